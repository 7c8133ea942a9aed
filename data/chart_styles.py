"""Styles of charts: colours, papers, grids, where the legend is. Two are kept out of training."""

from dataclasses import dataclass

COLOURS = {
    "blue": (47, 118, 222),
    "navy": (15, 40, 62),
    "grey": (187, 187, 187),
    "red": (168, 13, 13),
    "green": (120, 175, 60),
    "orange": (240, 140, 30),
    "purple": (128, 80, 170),
    "yellow": (235, 200, 50),
    "pink": (230, 120, 170),
    "brown": (140, 86, 75),
    "teal": (23, 155, 160),
    "black": (30, 30, 30),
}


@dataclass(frozen=True)
class Style:
    """How a chart looks. palette: names of COLOURS; bands: stripes behind categories; box: a frame around the plot."""

    palette: tuple[str, ...]
    paper: tuple[int, int, int] = (255, 255, 255)
    plot: tuple[int, int, int] | None = None
    ink: tuple[int, int, int] = (70, 70, 70)
    grid: tuple[int, int, int] | None = (228, 228, 228)
    bands: bool = False
    box: bool = False
    ticks: bool = False
    legend: str = "bottom"
    title: float = 0.6
    labels: float = 0.5
    separator: str = ","
    serif: bool = False


STYLES = {
    "statistics": Style(
        ("blue", "navy", "grey", "red", "green", "yellow"), bands=True, title=0.08, labels=0.85, separator=" "
    ),
    "plain": Style(
        ("blue", "orange", "green", "red", "purple", "brown"), grid=None, box=True, ticks=True, legend="inside"
    ),
    "office": Style(("blue", "orange", "grey", "yellow", "teal", "green"), title=0.9),
    "dark": Style(
        ("teal", "orange", "pink", "yellow", "green", "blue"), (32, 34, 40), None, (225, 225, 225), (70, 72, 80)
    ),
    "minimal": Style(("navy", "red", "grey", "teal"), grid=None, title=0.8, labels=0.95, legend="top"),
    "newspaper": Style(
        ("red", "navy", "teal", "grey", "brown"),
        (240, 235, 222),
        None,
        (40, 40, 40),
        (205, 200, 190),
        title=1,
        legend="top",
    ),
    "grid": Style(
        ("pink", "teal", "green", "purple", "orange", "blue"),
        (255, 255, 255),
        (233, 233, 233),
        (60, 60, 60),
        (255, 255, 255),
        legend="right",
    ),
    "pew": Style(
        ("navy", "yellow", "grey", "brown", "green"), grid=None, title=1, labels=1.0, legend="top", serif=True
    ),
}

HELD_OUT_STYLES = {
    "journal": Style(
        ("black", "grey", "brown", "navy"),
        grid=(215, 215, 215),
        box=True,
        ticks=True,
        legend="right",
        title=0.7,
        serif=True,
    ),
    "slate": Style(
        ("yellow", "pink", "teal", "grey", "orange"),
        (38, 50, 66),
        (48, 62, 80),
        (235, 238, 242),
        (80, 95, 112),
        title=0.8,
        legend="top",
    ),
}
