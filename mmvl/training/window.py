"""Figures between two lines of the log: summed on the device, so that logging costs one sync."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from mmvl.training.ranks import Ranks

FIGURES = ("balance", "busiest_expert", "by_source")


class Window:
    """What the steps since the last log line showed, a figure a batch.

    A checkpoint keeps it: the line after a resume then says the same as that of a run that was never stopped.
    """

    def __init__(self):
        self.figures: dict[str, list[Tensor]] = {name: [] for name in FIGURES}
        self.wait, self.tokens, self.began = 0.0, 0, time.monotonic()

    def add(self, figures: dict[str, Tensor]) -> None:
        for name in FIGURES:
            self.figures[name].append(figures[name])

    def record(self, names: list[str], ranks: Ranks) -> dict:
        """Means over the window's targets of all ranks; balance, experts and waiting are the first rank's."""
        count = len(names)
        flat = ranks.sum(torch.stack(self.figures["by_source"]).sum(0).flatten().tolist())
        sums = [flat[i * count : (i + 1) * count] for i in range(3)]
        seconds = time.monotonic() - self.began
        return {
            "loss": sum(sums[0]) / sum(sums[2]),
            "balance": torch.stack(self.figures["balance"]).mean().item(),
            "busiest_expert": torch.stack(self.figures["busiest_expert"]).max().item(),
            "by_source": {
                name: {"loss": sums[0][i] / sums[2][i], "accuracy": sums[1][i] / sums[2][i]}
                for i, name in enumerate(names)
                if sums[2][i]
            },
            "tokens_per_second": self.tokens / seconds,
            "waited_for_data": self.wait / seconds,
        }

    def state(self) -> dict[str, list]:
        """JSON-able; fp32 survives it to the last bit."""
        return {name: torch.stack(values).tolist() if values else [] for name, values in self.figures.items()}

    @classmethod
    def resumed(cls, states: list[dict[str, list]], rank: int, world: int, device: torch.device) -> Window:
        """This rank's window of those of all ranks; with another number of ranks the first one takes them all."""
        mine = states[rank : rank + 1] if len(states) == world else states if rank == 0 else []
        window = cls()
        for name in FIGURES:
            values = [v for state in mine for v in state[name]]
            window.figures[name] = [torch.tensor(v, dtype=torch.float32, device=device) for v in values]
        return window
