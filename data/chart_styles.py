"""Styles of charts: colours, papers, grids, where the legend is. Two of ours, and two of matplotlib's, are kept out of
training.
"""

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
    """How a chart looks. palette: names of COLOURS; bands: stripes behind categories; box: a frame around the plot.

    title, labels, bold, framed: shares of the charts with a title, with values at their marks, of these in bold, and of
    those that stand among buttons and credits (`chart_frame`).
    """

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
    bold: float = 0.0
    framed: float = 0.0
    separator: str = ","
    serif: bool = False


STYLES = {
    "statistics": Style(
        ("blue", "navy", "grey", "red", "green", "yellow"),
        bands=True,
        title=0.08,
        labels=0.85,
        bold=0.7,
        framed=0.6,
        separator=" ",
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

# matplotlib's style sheets, and what people call those colours of their cycles that have a name of their own: of two
# blues the first. A chart has no two colours of one name, so that a question can name it.
_TAB10 = {
    "blue": "#1f77b4", "orange": "#ff7f0e", "green": "#2ca02c", "red": "#d62728", "purple": "#9467bd",
    "brown": "#8c564b", "pink": "#e377c2", "grey": "#7f7f7f",
}  # fmt: skip
_DEEP = {"blue": "#4C72B0", "green": "#55A868", "red": "#C44E52", "purple": "#8172B2"}

MATPLOTLIB_STYLES = {
    "default": _TAB10,
    "fast": _TAB10,
    "ggplot": {
        "red": "#E24A33", "blue": "#348ABD", "purple": "#988ED5", "grey": "#777777", "yellow": "#FBC15E",
        "green": "#8EBA42", "pink": "#FFB5B8",
    },
    "bmh": {
        "blue": "#348ABD", "red": "#A60628", "purple": "#7A68A6", "green": "#467821", "orange": "#D55E00",
        "pink": "#CC79A7", "yellow": "#F0E442",
    },
    "fivethirtyeight": {
        "blue": "#008fd5", "red": "#fc4f30", "yellow": "#e5ae38", "green": "#6d904f", "grey": "#8b8b8b",
        "purple": "#810f7c",
    },
    "classic": {"blue": "b", "green": "g", "red": "r", "yellow": "y", "black": "k"},
    "tableau-colorblind10": {"blue": "#006BA4", "orange": "#FF800E", "grey": "#ABABAB"},
    "petroff10": {
        "blue": "#3f90da", "orange": "#ffa90e", "red": "#bd1f01", "grey": "#94a4a2", "purple": "#832db6",
        "brown": "#a96b59",
    },
    "dark_background": {
        "teal": "#8dd3c7", "yellow": "#feffb3", "blue": "#81b1d2", "orange": "#fdb462", "green": "#b3de69",
        "purple": "#bc82bd",
    },
    "seaborn-v0_8": _DEEP,
    "seaborn-v0_8-deep": _DEEP,
    "seaborn-v0_8-muted": {"blue": "#4878CF", "green": "#6ACC65", "red": "#D65F5F", "purple": "#B47CC7"},
    "seaborn-v0_8-bright": {
        "blue": "#003FFF", "green": "#03ED3A", "red": "#E8000B", "purple": "#8A2BE2", "yellow": "#FFC400",
    },
    "seaborn-v0_8-pastel": {"blue": "#92C6FF", "green": "#97F0AA", "purple": "#D0BBFF"},
    "seaborn-v0_8-dark-palette": {
        "navy": "#001C7F", "green": "#017517", "red": "#8C0900", "purple": "#7600A1", "teal": "#006374",
    },
    "seaborn-v0_8-colorblind": {"blue": "#0072B2", "orange": "#D55E00", "pink": "#CC79A7", "yellow": "#F0E442"},
    "seaborn-v0_8-white": _TAB10,
    "seaborn-v0_8-whitegrid": _TAB10,
    "seaborn-v0_8-darkgrid": _TAB10,
    "seaborn-v0_8-dark": _TAB10,
    "seaborn-v0_8-ticks": _TAB10,
}  # fmt: skip

HELD_OUT_MATPLOTLIB_STYLES = {
    "grayscale": {"black": "0.00", "grey": "0.60"},
    "Solarize_Light2": {
        "blue": "#268BD2", "teal": "#2AA198", "green": "#859900", "red": "#DC322F", "pink": "#D33682",
        "purple": "#6C71C4",
    },
}  # fmt: skip
