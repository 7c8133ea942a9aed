"""Stops a run whose loss is not finite or jumps, keeps the batch that did it, and looks at that batch again.

The loss of a step is known to all ranks one step later, in the exchange that every step makes anyway; nothing waits for
it. An update whose gradients are not finite was left out by then (`GuardedAdamW`). After a jump the weights have taken
one bad step, so nothing is saved: the run goes on from its last checkpoint, which is older.
"""

from __future__ import annotations

import dataclasses
import math
from collections import deque
from pathlib import Path

import torch

from mmvl.model import ImageBatch
from mmvl.training.batch import Batch

HISTORY, WARM_UP = 128, 16  # losses that a jump is measured against, and how many there must be first
DERIVED = ("packed", "part")  # what Batch.to builds anew


class LossGuard:
    """Judges a loss by those before it; `losses` is its state."""

    def __init__(self, spike: float | None, losses: list[float] | None = None):
        self.spike = spike
        self.losses: deque[float] = deque(losses or [], maxlen=HISTORY)

    def judge(self, loss: float) -> str | None:
        """What is wrong with it, or None; a good one joins the history.

        The measure is the highest loss of late, not the mean: sources differ, and a batch of the hardest is no jump.
        """
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        if self.spike is not None and len(self.losses) >= WARM_UP and loss > self.spike * max(self.losses):
            return f"the loss jumped to {loss:.4g}, above spike ({self.spike:g}) times the highest of late, " + (
                f"{max(self.losses):.4g}"
            )
        self.losses.append(loss)
        return None


class BadLoss(ValueError):
    """A run was stopped by its guard."""


def stopped(name: str, problem: str, step: int, directory: Path) -> str:
    """The line that a `BadLoss` says."""
    return (
        f"{name} stopped: {problem} at step {step}; `mmvl replay {directory}` looks at that step's batches again; "
        "lower optimizer.lr, mend the data or raise spike, and the same command goes on from the last checkpoint"
    )


def save_batches(directory: Path, rank: int, step: int, problem: str, batches: list[Batch]) -> None:
    """Keep a rank's batches of a step for `replay`, as they came from the loader."""
    directory.mkdir(parents=True, exist_ok=True)
    stored = []
    for batch in batches:
        fields = {f.name: getattr(batch, f.name) for f in dataclasses.fields(batch) if f.name not in DERIVED}
        if batch.images is not None:
            fields["images"] = {"tiles": batch.images.tiles_N3tt, "layout": batch.images.layout}
        stored.append(fields)
    torch.save({"step": step, "problem": problem, "batches": stored}, directory / f"rank-{rank:05d}.pt")


def load_batches(directory: Path) -> tuple[int, str, list[Batch]]:
    """Step, problem and the batches of all ranks that `save_batches` left.

    Raises:
        FileNotFoundError, ValueError: nothing was saved there, or not by `save_batches`.
    """
    files = sorted(directory.glob("rank-*.pt"))
    if not files:
        raise FileNotFoundError(f"no saved batches in {directory}; give the bad-step-... directory of a stopped run")
    batches: list[Batch] = []
    for file in files:
        try:
            stored = torch.load(file, weights_only=True)
            for fields in stored["batches"]:
                images = fields.pop("images")
                batches.append(
                    Batch(**fields, images=None if images is None else ImageBatch(images["tiles"], images["layout"]))
                )
        except Exception as e:  # torch.load raises whatever the damage leads to
            raise ValueError(f"{file} is no saved batch ({e})") from e
    return stored["step"], stored["problem"], batches
