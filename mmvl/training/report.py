"""What a run leaves for people to look at: metrics.jsonl, a line a log step, and the loss curve drawn from it."""

from __future__ import annotations

import json
from pathlib import Path

METRICS = "metrics.jsonl"


class Metrics:
    """Appends records to `metrics.jsonl`, flushed at once: a killed run still tells how far it came."""

    def __init__(self, out: Path):
        out.mkdir(parents=True, exist_ok=True)
        self.path = out / METRICS

    def write(self, record: dict) -> None:
        with self.path.open("a", encoding="utf-8") as f:
            f.write(json.dumps(record) + "\n")

    def truncate(self, step: int) -> None:
        """Drop the records after `step`: they belong to a run that died and is now done again."""
        if self.path.exists():
            kept = [r for r in read_metrics(self.path) if r["step"] <= step]
            beside = self.path.with_suffix(".jsonl.part")  # a kill meanwhile leaves the old file
            beside.write_text("".join(json.dumps(r) + "\n" for r in kept), encoding="utf-8")
            beside.replace(self.path)


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

    figure, axes = plt.subplots(1, len(runs), figsize=(6.4 * len(runs), 4.2), squeeze=False, layout="constrained")
    for axis, (name, path) in zip(axes[0], runs.items(), strict=True):
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
        axis.legend(fontsize=8)
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=110)
    plt.close(figure)
