"""What a run leaves for people to look at: a line a log step, metrics.jsonl, TensorBoard's files, the loss curve."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch

from mmvl.config import VLConfig
from mmvl.host_memory import peak_bytes
from mmvl.training.flops import StepFlops, peak_tflops
from mmvl.training.ranks import Ranks
from mmvl.training.recipe import TrainRecipe

METRICS = "metrics.jsonl"
TENSORBOARD = "tensorboard"


class Metrics:
    """Appends records to `metrics.jsonl`, flushed at once: a killed run still tells how far it came.

    The same numbers go to TensorBoard's files in `tensorboard/` where that package is installed (the extra `train`).
    """

    def __init__(self, out: Path):
        out.mkdir(parents=True, exist_ok=True)
        self.path = out / METRICS
        self._board, self._purge = None, None

    def write(self, record: dict) -> None:
        with self.path.open("a", encoding="utf-8") as f:
            f.write(json.dumps(record) + "\n")
        if self._board is None:
            self._board = _tensorboard(self.path.parent / TENSORBOARD, self._purge)
        if self._board:
            for name, value in _numbers(record):
                self._board.add_scalar(name, value, record["step"])
            self._board.flush()

    def truncate(self, step: int) -> None:
        """Drop the records after `step`: they belong to a run that died and is now done again."""
        self._purge = step + 1
        if self.path.exists():
            kept = [r for r in read_metrics(self.path) if r["step"] <= step]
            beside = self.path.with_suffix(".jsonl.part")  # a kill meanwhile leaves the old file
            beside.write_text("".join(json.dumps(r) + "\n" for r in kept), encoding="utf-8")
            beside.replace(self.path)


def _tensorboard(directory: Path, purge_step: int | None):
    """TensorBoard's writer; False where it is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return False
    return SummaryWriter(str(directory), purge_step=purge_step)


def _numbers(record: dict, prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in record.items():
        if isinstance(value, dict):
            yield from _numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and name != "step":
            yield prefix + name, value


class Rates:
    """Model-FLOP utilisation, memory and time left: what a log line says about the machine.

    Operations are counted from the config (flops.py), document by document. The peak is the recipe's `hardware`, else
    the data sheet's of the device, else unknown.
    """

    def __init__(self, config: VLConfig, recipe: TrainRecipe, ranks: Ranks):
        self.flops = StepFlops.of(config, recipe.trainable)
        self.device, self.world = ranks.device, ranks.world
        cuda = self.device.type == "cuda"
        known = peak_tflops(torch.cuda.get_device_name(self.device)) if cuda else None
        self.peak = recipe.hardware.peak_tflops if recipe.hardware else known
        self._done = 0.0

    def add(self, batch, share: float = 1.0) -> None:
        """Count a batch (whole rows, before they are cut among `1 / share` ranks of a sequence group)."""
        tiles = 0 if batch.images is None else len(batch.images.tiles_N3tt)
        self._done += self.flops(batch.lengths, len(batch.targets_L), tiles) * share

    def of(self, ranks: Ranks, window_seconds: float, spent: float, seconds: float) -> dict:
        """Figures since the last call. All ranks call it together.

        mfu: share of the peak of all devices, None if that is unknown. memory_gib: most that this rank has held, of
        the device or, on the CPU, of the host. eta_seconds: time left at the stage's pace so far; None at its start.
        """
        (done,) = ranks.sum([self._done])
        self._done = 0.0
        rate = done / window_seconds
        memory = torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else peak_bytes()
        return {
            "tflops": rate / 1e12,
            "mfu": rate / (self.peak * 1e12 * self.world) if self.peak else None,
            "memory_gib": round(memory / 2**30, 3),
            "eta_seconds": round(seconds * (1 - spent) / spent, 1) if spent else None,
        }


def progress_line(record: dict, spent: float) -> str:
    """A record in one line for people; figures that it lacks are left out. `spent`: share of the stage's budget."""
    parts = [f"{spent:6.1%} step {record['step']} loss {record['loss']:.4f} lr {record['lr']:.2e}"]
    for name, form in (
        ("tokens_per_second", "{:,.0f} tok/s"),
        ("pairs_per_second", "{:,.0f} pairs/s"),
        ("mfu", "mfu {:.1%}"),
        ("grad_norm", "grad {:.2f}"),
        ("balance", "balance {:.3f}"),
        ("busiest_expert", "busiest {:.2f}x"),
        ("memory_gib", "mem {:.1f} GiB"),
        ("waited_for_data", "wait {:.0%}"),
    ):
        if record.get(name) is not None:
            parts.append(form.format(record[name]))
    if record.get("eta_seconds") is not None:
        parts.append(f"eta {_clock(record['eta_seconds'])}")
    sources = []
    for name, figures in record["by_source"].items():
        accuracy = f"/{figures['accuracy']:.0%}" if "accuracy" in figures else ""
        sources.append(f"{name} {figures['loss']:.3f}{accuracy}")
    return "  ".join([" ".join(parts[:1]), " ".join(parts[1:]), *sources])


def _clock(seconds: float) -> str:
    minutes = int(seconds // 60)
    days, hours = minutes // 1440, minutes // 60 % 24
    if days:
        return f"{days}d{hours:02d}h"
    return f"{hours}h{minutes % 60:02d}m" if hours else f"{minutes}m{int(seconds) % 60:02d}s"


def read_metrics(path: Path) -> list[dict]:
    """The records of a `metrics.jsonl`; a last line cut short by a kill is left out."""
    records = []
    lines = path.read_text(encoding="utf-8").splitlines()
    for i, line in enumerate(lines):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            if i + 1 != len(lines):
                raise ValueError(f"{path}, line {i + 1}: not JSON") from None
    return records


def draw_loss(runs: dict[str, Path], picture: Path) -> None:
    """Draw the loss of one or several stages (name -> metrics.jsonl) over tokens, by source, into a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    columns = min(len(runs), 4)
    rows = -(-len(runs) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(6.4 * columns, 4.2 * rows), squeeze=False, layout="constrained")
    for axis in axes.flat[len(runs) :]:
        axis.remove()
    for axis, (name, path) in zip(axes.flat, runs.items(), strict=False):
        records = read_metrics(path)
        tokens = [r["tokens"] / 1e6 for r in records]
        axis.plot(tokens, [r["loss"] for r in records], color="black", linewidth=1.6, label="all")
        for source in sorted({s for r in records for s in r["by_source"]}):
            points = [
                (x, r["by_source"][source]["loss"])
                for x, r in zip(tokens, records, strict=True)
                if source in r["by_source"]
            ]
            axis.plot(*zip(*points, strict=True), linewidth=0.9, alpha=0.8, label=source)
        axis.set(title=name, xlabel="millions of tokens consumed", ylabel="nats per target", yscale="log")
        axis.grid(alpha=0.3, which="both")
        axis.legend(fontsize=7, ncols=2)
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=110)
    plt.close(figure)
