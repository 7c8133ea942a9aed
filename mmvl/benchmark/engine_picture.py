"""The picture of `mmvl bench engine`: tokens/s and waiting times over the number of requests at the same time."""

from pathlib import Path

COLOURS = {"mmvl": "#c0392b", "transformers": "#2c6fbb"}
STYLES = ("-", "--", ":", "-.")
PANELS = {
    "tokens_per_second": "tokens/s",
    "between_seconds": "seconds between tokens",
    "first_token_seconds": "seconds to the first token",
}


def draw(result: dict, path: Path) -> None:
    """One panel a quantity, one line a contestant and prompt length; the dotted floor is of the first length."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(PANELS), figsize=(5 * len(PANELS), 3.8), layout="constrained")
    lengths = list(dict.fromkeys(line["length"] for line in result["table"]))
    for axis, (key, title) in zip(axes, PANELS.items(), strict=True):
        for name, colour in COLOURS.items():
            for number, length in enumerate(lengths):
                points = [(line["sequences"], line[name][key]) for line in result["table"]
                          if line["length"] == length and name in line]  # fmt: skip
                if points:
                    style = STYLES[number % len(STYLES)]
                    axis.plot(*zip(*points, strict=True), style, marker="o", color=colour, label=f"{name}, {length:,}")
        if key == "between_seconds":
            points = [(line["sequences"], line["mmvl"]["step_floor"]) for line in result["table"]
                      if line["length"] == lengths[0] and "mmvl" in line]  # fmt: skip
            axis.plot(*zip(*points, strict=True), color="black", linewidth=1, label="floor")
        counts = sorted({line["sequences"] for line in result["table"]})
        axis.set(title=title, xlabel="requests at the same time", xscale="log", yscale="log")
        axis.set_xticks(counts, [str(count) for count in counts])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    where = result["gpu"] or f"CPU, {result['threads']} threads"
    figure.suptitle(f"{result['model']}, {result['dtype']}: {where}, {result['date']}, commit {result['commit']}")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
