"""The picture of a benchmark: time against length for every operation measured at several, the floor as a line."""

from pathlib import Path

OURS, FLOOR, PEERS = "#c0392b", "black", ("#2c6fbb", "#3a9b62", "#8e6bb5", "#b8860b", "#5b6770")
LENGTHS = {"T": "tokens", "S": "sequences", "L": "tokens", "M": "keys"}


def draw(result: dict, path: Path) -> None:
    """One panel an operation with at least two shapes. Raises ValueError if there is none."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    panels = _panels(result["results"])
    if not panels:
        raise ValueError("nothing to draw: no operation was measured at several lengths")
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(4.6 * columns, 3.6 * rows), squeeze=False, layout="constrained")
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis, (op, measured) in zip(axes.flat, panels.items(), strict=False):
        _panel(axis, op, measured)
    figure.suptitle(f"{result['gpu'] or 'CPU'}: milliseconds a call, {result['date']}, commit {result['commit']}")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _panels(rows: list[dict]) -> dict[str, list[dict]]:
    """Rows by operation, those of its commonest shape but for the axis, if they are at least two."""
    by_op: dict[str, dict[tuple, list[dict]]] = {}
    for row in rows:
        rest = tuple((key, value) for key, value in row["shape"].items() if key != row["axis"])
        by_op.setdefault(row["op"], {}).setdefault(rest, []).append(row)
    longest = {op: max(groups.values(), key=len) for op, groups in by_op.items()}
    return {op: sorted(group, key=_length) for op, group in longest.items() if len(group) > 1}


def _length(row: dict) -> int:
    return row["shape"][row["axis"]]


def _panel(axis, op: str, rows: list[dict]) -> None:
    axis.plot([_length(r) for r in rows], [r["floor_ms"] for r in rows], color=FLOOR, linewidth=1, label="floor")
    goals = [(_length(r), r["goal_ms"]) for r in rows if r["goal_ms"]]
    if goals:
        axis.scatter(*zip(*goals, strict=True), marker="_", s=160, color=FLOOR, label="goal")
    colours = iter(PEERS * 3)
    names = list(dict.fromkeys(c["name"] for r in rows for c in r["contestants"]))
    for name in names:
        points = [(_length(r), c["ms"], c["ours"]) for r in rows for c in r["contestants"]
                  if c["name"] == name and c["status"] == "ok"]  # fmt: skip
        if points:
            x, y, ours = zip(*points, strict=True)
            style = dict(color=OURS, linewidth=2, zorder=3) if ours[0] else dict(color=next(colours), linewidth=1.2)
            axis.plot(x, y, marker="o", markersize=4, label=name, **style)
    lengths = [_length(r) for r in rows]
    axis.set(title=op, xlabel=LENGTHS.get(rows[0]["axis"], rows[0]["axis"]), xscale="log", yscale="log")
    axis.set_xticks(lengths, [f"{n:,}" for n in lengths], fontsize=7)
    axis.minorticks_off()
    axis.grid(alpha=0.3)
    axis.legend(fontsize=7)
