"""Draws charts with matplotlib in its own style sheets, as papers, notebooks and slides have them."""

import math
import random
from dataclasses import replace

import matplotlib
import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import ScaledTranslation

from mmvl.data.chart_styles import COLOURS, HELD_OUT_MATPLOTLIB_STYLES, MATPLOTLIB_STYLES
from mmvl.data.charts import Chart
from mmvl.data.draw_axes import show
from mmvl.data.draw_charts import invent_title, make_room
from mmvl.data.matplotlib_page import FigurePage, NoRoomError, overlaps, styled
from mmvl.data.page import Faces, Page, Type, length, wrap

_SMALL = 480  # pictures whose longer side is less than this are laid out for it
_PRINTED, _TITLED, _LABELLED = 0.4, 0.7, 0.75  # shares of the charts
_TRIES = 16


def draw_matplotlib(
    rng: random.Random, chart: Chart, style: str, faces: Faces, max_side: int = 720, printed: float | None = None
) -> Page | None:
    """The chart as a Page (RGB), or None where it finds no room.

    max_side, printed: as for `draw_charts.draw_chart`. style: a key of MATPLOTLIB_STYLES or of its held-out ones. Into
    `chart` go what is drawn of it and how: kind, categories, title, label, shown, and colours, which are [] where their
    names would not tell them apart. A chart in which something has no room is drawn again in another way, with fewer
    categories if need be; of one that stays without room `chart` is as it was.
    """
    count = len(chart.categories)
    for attempt in range(_TRIES):
        most = count if chart.kind == "pie" else max(2, count - max(0, attempt - 3))
        draft = replace(
            chart, categories=chart.categories[:most], series=[(name, values[:most]) for name, values in chart.series]
        )
        try:
            page = _Drawing(rng, draft, style, faces, max_side, printed).draw(tight=attempt > 1)
        except NoRoomError:
            continue
        vars(chart).update(vars(draft))
        return page
    return None


class _Drawing:
    """One attempt at a chart, for the faults of which there is NoRoomError."""

    def __init__(self, rng, chart: Chart, style: str, faces: Faces, max_side: int, printed: float | None):
        self.rng, self.chart, self.style = rng, chart, style
        self.little = little = max_side < _SMALL
        self.width = rng.randint(int(max_side * (0.85 if little else 0.62)), max_side)
        height = round(self.width * (rng.uniform(0.65, 0.95) if little else rng.uniform(0.55, 0.85)))
        self.size = rng.randint(11, 13) if little else round(rng.randint(11, 16) * max(1, self.width / 640))
        self.face: Type = faces.pick(rng, mono=0.02, fancy=0.03)
        self.font = self.face(self.size)
        chart.shown = rng.random() < (_PRINTED if printed is None else printed)
        if little or chart.shown:
            make_room(chart, self.font, self.width, height, little)
        chart.shown = chart.shown or chart.kind == "pie"
        self.separator = rng.choice(("", "", ","))
        self.tilt = 0  # degrees
        self.names = self._wrap(height)
        self.height = min(max_side, max(height, round(self._least_height())))

    def draw(self, tight: bool) -> Page:
        """tight: without what needs much room."""
        rng, chart = self.rng, self.chart
        with styled(self.style):
            self.sheet = FigurePage(self.width, self.height, rng.choice((72, 80, 100, 100, 120)), self.face, self.size)
            self.sheet.tilted = bool(self.tilt)
            self.axes = self.sheet.axes
            self._colour()
            if rng.random() < _TITLED:
                size = round(self.size * (1.1 if self.little else rng.uniform(1.1, 1.5)))
                chart.title = self.sheet.title(invent_title(rng, chart), size, rng.random() < 0.4)
            if chart.kind == "pie":
                self._pie(tight)
                self.sheet.fit()
            else:
                self._plot(tight)
                self.sheet.fit()
                self._keep_values()
            return self.sheet.page("chart", f"matplotlib {self.style}")

    def _colour(self) -> None:
        """Colours in the order of the style's cycle, no two of one name."""
        rng, chart = self.rng, self.chart
        named = (MATPLOTLIB_STYLES | HELD_OUT_MATPLOTLIB_STYLES)[self.style]
        parts = len(chart.categories) if chart.kind == "pie" else len(chart.series)
        if self.style == "grayscale" and parts > len(named):
            chart.colours = []
            palest = 0.65 if chart.kind == "lines" else 0.85
            self.shades = [(i * palest / (parts - 1),) * 3 for i in range(parts)]
            return
        names = list(named)
        if rng.random() < 0.3:
            rng.shuffle(names)
        papers = [to_rgb(matplotlib.rcParams[key]) for key in ("figure.facecolor", "axes.facecolor")]
        more = [
            name
            for name, colour in COLOURS.items()
            if name not in named
            and all(sum(abs(a / 255 - b) for a, b in zip(colour, paper, strict=True)) > 0.6 for paper in papers)
        ]
        rng.shuffle(more)
        chart.colours = (names + more)[:parts]
        self.shades = [to_rgb(named.get(n) or tuple(v / 255 for v in COLOURS[n])) for n in chart.colours]

    def _wrap(self, height: int) -> list[str]:
        """Category names in lines, or to be tilted; where they are too long to stand below, the bars lie down."""
        chart, font, size = self.chart, self.font, self.size
        if chart.kind == "pie":
            return chart.categories
        slot = self.width * 0.76 / len(chart.categories)
        lines = [wrap(c, font, slot * 0.94) for c in chart.categories]
        if "horizontal" not in chart.kind:
            widest = max(length(font, line) for wrapped in lines for line in wrapped)
            if widest <= slot * 0.94 and max(map(len, lines)) <= (2 if self.little else 3):
                return ["\n".join(wrapped) for wrapped in lines]
            longest = max(length(font, c) for c in chart.categories)
            if longest <= 0.4 * height or chart.kind in ("line", "lines"):
                self.tilt = self.rng.choice((30, 45, 45, 60, 90))
                if slot * math.sin(math.radians(self.tilt)) < 1.3 * size:
                    self.tilt = 90
                return chart.categories
            chart.kind = "stacked-horizontal" if chart.kind == "stacked" else "horizontal"
        return ["\n".join(wrap(c, font, self.width * 0.32)) for c in chart.categories]

    def _least_height(self) -> float:
        """Of a picture with room for the names."""
        chart, size = self.chart, self.size
        if chart.kind == "pie":
            return 0
        if "horizontal" in chart.kind:
            parts = 1 if chart.kind.startswith("stacked") else len(chart.series)
            lines = max(name.count("\n") + 1 for name in self.names)
            return len(self.names) * size * max(1.3 * parts + 0.3, 1.2 * lines + 0.3) + 7 * size
        return self._depth() + 13 * size

    def _depth(self) -> float:
        """Height of the category names below a plot."""
        if self.tilt:
            turn, longest = math.radians(self.tilt), max(length(self.font, name) for name in self.names)
            return longest * math.sin(turn) + self.size * math.cos(turn)
        return max(name.count("\n") + 1 for name in self.names) * 1.25 * self.size

    def _plot(self, tight: bool) -> None:
        """Bars or lines with their axes."""
        rng, chart, axes, type_ = self.rng, self.chart, self.axes, self.sheet.type()
        across, lines = "horizontal" in chart.kind, chart.kind in ("line", "lines")
        axes.set_axisbelow(True)
        if rng.random() < 0.3:
            axes.grid(rng.random() < 0.7, axis="x" if across else "y")
            axes.grid(False, axis="y" if across else "x")
        if rng.random() < 0.3:
            axes.spines[["top", "right"]].set_visible(False)
        self._scale(across, lines)
        (self._lines if lines else self._bars)()
        places = range(len(self.names))
        if across:
            axes.set_yticks(places, self.names, fontproperties=type_)
            axes.set_ylim(len(self.names) - 0.5, -0.5)
        else:
            axes.set_xticks(places, self.names, fontproperties=type_)
            if self.tilt:
                end, mode = ("right", "anchor") if self.tilt < 90 else ("center", "default")
                for label in axes.get_xticklabels():
                    label.set(rotation=self.tilt, ha=end, va="top", rotation_mode=mode)
            edge = 0.5 if not lines or chart.shown or rng.random() < 0.6 else 0.1
            axes.set_xlim(-edge, len(self.names) - 1 + edge)
        below = (1.3 * self.size if across else self._depth()) + self._label(across) + 0.8 * self.size
        if len(chart.series) > 1:
            self._legend([name for name, _ in chart.series], below, across, tight)

    def _scale(self, across: bool, lines: bool) -> None:
        """Ticks and limits of the value axis, which may be left out where values are printed."""
        rng, chart, axes, size = self.rng, self.chart, self.axes, self.size
        columns = list(zip(*(values for _, values in chart.series), strict=True))
        stacked = chart.kind.startswith("stacked")
        high = max(sum(c) if stacked else max(c) for c in columns)
        least = min(map(min, columns))
        low = min(0.0, least)
        if lines and least > 0 and rng.random() < 0.5:
            low = max(0.0, least - (high - least) * 0.2)
        high = max(high, low + 10.0**-chart.decimals)
        widest = max(length(self.font, self._text(value)) for column in columns for value in column)
        room = 0.6 * self.width / (widest + 2 * size) if across else 0.5 * self.height / (2 * size)
        number = max(2, min(rng.randint(4, 8), int(room)))
        margin = 0.05
        if chart.shown and not stacked:
            margin = (widest + size) / (0.6 * self.width) if across else 1.7 * size / (0.5 * self.height)
        whole = stacked and chart.unit == "%" and rng.random() < 0.5
        top = high if whole else high + (high - low) * margin
        bottom = low - (high - low) * margin if low < 0 or (lines and low > 0) else low
        for more in range(0, 6, 2):  # of less than three nobody reads a value
            ticks = MaxNLocator(number + more, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
            ticks = [float(t) for t in ticks if bottom - 1e-9 <= t <= top + 1e-9 * abs(top)]
            if len(ticks) > 2:
                break
        if len(ticks) < 3:
            raise NoRoomError
        (axes.set_xlim if across else axes.set_ylim)(bottom, top)
        self.hidden = chart.shown and rng.random() < 0.15
        if self.hidden:
            ticks = []
        places = len(f"{ticks[1] - ticks[0]:.8g}".partition(".")[2]) if ticks else 0
        names = [show(t, places, self.separator, chart.unit) for t in ticks]
        (axes.set_xticks if across else axes.set_yticks)(ticks, names, fontproperties=self.sheet.type())
        if low < 0:
            edge = matplotlib.rcParams["axes.edgecolor"]
            (axes.axvline if across else axes.axhline)(0, color=edge, linewidth=0.8)

    def _text(self, value: float) -> str:
        return show(value, self.chart.decimals, self.separator, self.chart.unit)

    def _label(self, across: bool) -> float:
        """Print what the axes measure; returns the height that it takes below the plot."""
        rng, chart, type_ = self.rng, self.chart, self.sheet.type()
        thing = chart.thing.capitalize() if chart.thing.isascii() and chart.thing.replace(" ", "").isalpha() else ""
        if chart.time:
            thing = "Year" if chart.categories[0][:4].isdigit() else "Month"
        if rng.random() < 0.6 or len(thing) > 20:
            thing = ""
        if rng.random() >= _LABELLED:
            chart.label = ""
        lines = wrap(chart.label, self.font, 0.55 * (self.width if across else self.height))
        chart.label = " ".join(lines)
        value = "\n".join(lines)
        below, beside = (value, thing) if across else (thing, value)
        self.axes.set_xlabel(below, fontproperties=type_)
        self.axes.set_ylabel(beside, fontproperties=type_)
        return (below.count("\n") + 1) * 1.3 * self.size if below else 0

    def _bars(self) -> None:
        rng, chart, axes = self.rng, self.chart, self.axes
        across, stacked = "horizontal" in chart.kind, chart.kind.startswith("stacked")
        count, parts = len(chart.categories), 1 if stacked else len(chart.series)
        self.thick = rng.uniform(0.6, 0.9) / parts
        edge = {"edgecolor": rng.choice(("white", "black", "none"))} if rng.random() < 0.3 else {}
        base = np.zeros(count)
        for j, ((name, values), shade) in enumerate(zip(chart.series, self.shades, strict=True)):
            at = np.arange(count) + (0 if stacked else (j - (parts - 1) / 2) * self.thick)
            look = {"left" if across else "bottom": base, "color": [shade], "label": name} | edge
            bars = (axes.barh if across else axes.bar)(at, values, self.thick, **look)
            if stacked:
                base = base + values
            if chart.shown:
                look = {"label_type": "center", "color": _on(shade)} if stacked else {"padding": 2}
                texts = [self._text(value) for value in values]
                self.sheet.values += axes.bar_label(bars, texts, fontproperties=self.sheet.type(), **look)

    def _lines(self) -> None:
        rng, chart, axes = self.rng, self.chart, self.axes
        marker = rng.choice((None, "o", "o", "s", "^", "D"))
        dashes = ("-", "--", ":", "-.", (0, (5, 1))) if not chart.colours or rng.random() < 0.1 else ("-",) * 5
        for (name, values), shade, dash in zip(chart.series, self.shades, dashes, strict=False):
            axes.plot(range(len(values)), values, color=shade, label=name, marker=marker, linestyle=dash)
        if len(chart.series) == 1 and rng.random() < 0.1:
            low, high = axes.get_ylim()
            axes.fill_between(range(len(values)), values, max(low, 0), color=shade, alpha=0.25, linewidth=0)
            axes.set_ylim(low, high)
        most = [max(column) for column in zip(*(values for _, values in chart.series), strict=True)]
        for _, values in chart.series if chart.shown else ():
            for i, value in enumerate(values):
                around = values[max(0, i - 1) : i + 2]
                under = value < most[i] or (len(chart.series) == 1 and value == min(around) < max(around))
                self.sheet.values.append(
                    axes.annotate(
                        self._text(value), (i, value), (0, self.sheet.points(-6 if under else 6)),
                        textcoords="offset points", ha="center", va="top" if under else "bottom",
                        fontproperties=self.sheet.type(),
                    )
                )  # fmt: skip

    def _keep_values(self) -> None:
        """Take the printed values away where one has no room at its mark."""
        chart, sheet = self.chart, self.sheet
        if not chart.shown:
            return
        boxes = sheet.boxes(sheet.values)
        sizes = boxes[:, 2:] - boxes[:, :2]
        good = not overlaps(boxes)
        if chart.kind not in ("line", "lines"):
            across = "horizontal" in chart.kind
            plot = (self.axes.bbox.width, self.axes.bbox.height)
            slot = plot[1 if across else 0] / len(chart.categories)
            good &= (sizes[:, 1 if across else 0] <= self.thick * slot * 1.15).all() or len(chart.series) == 1
            if chart.kind.startswith("stacked"):
                low, high = self.axes.get_xlim() if across else self.axes.get_ylim()
                marks = [v / (high - low) * plot[0 if across else 1] for _, values in chart.series for v in values]
                good &= (sizes[:, 0 if across else 1] <= np.array(marks)).all()
        if good:
            return
        if self.hidden:  # nothing would be left to read them from
            raise NoRoomError
        chart.shown = False
        for text in sheet.values:
            text.remove()
        sheet.values = []

    def _legend(self, names: list[str], below: float, across: bool, tight: bool) -> None:
        """below: the height of what is printed below the plot."""
        rng, axes, size = self.rng, self.axes, self.size
        widest = max(length(self.font, name) for name in names) + 4 * size
        row = max(1, min(len(names), int(0.85 * self.width / widest)))
        places = ["below"] if across or tight else ["inside", "inside", "inside", "below"]
        if widest < 0.35 * self.width:
            places += ["right"]
        place = rng.choice(places)
        look = {"prop": self.sheet.type(), "frameon": rng.random() < 0.6}
        if place == "inside":
            loc, ncols = rng.choice((("upper left", 1), ("upper right", 1), ("upper center", row)))
            self.sheet.legend = axes.legend(loc=loc, ncols=ncols if len(names) > 3 or ncols > 1 else 1, **look)
        elif place == "right":
            loc, y = rng.choice((("upper left", 1.0), ("center left", 0.5)))
            self.sheet.legend = axes.legend(loc=loc, bbox_to_anchor=(1.01, y), **look)
        else:
            drop = ScaledTranslation(0, -below / self.sheet.dpi, self.sheet.figure.dpi_scale_trans)
            self.sheet.legend = axes.legend(
                loc="upper center", bbox_to_anchor=(0.5, 0), bbox_transform=axes.transAxes + drop, ncols=row, **look
            )

    def _pie(self, tight: bool) -> None:
        rng, chart, axes, type_ = self.rng, self.chart, self.axes, self.sheet.type()
        values = chart.series[0][1]
        hole = rng.random() < 0.25
        edge = matplotlib.rcParams["figure.facecolor"] if hole or rng.random() < 0.5 else None
        axes.pie(
            values, colors=self.shades, startangle=rng.choice((0, 90, 90, rng.uniform(0, 360))),
            counterclock=rng.random() < 0.5,
            wedgeprops={"width": rng.uniform(0.4, 0.6) if hole else None, "edgecolor": edge, "linewidth": 1},
        )  # fmt: skip
        axes.set(xlim=(-1.05, 1.05), ylim=(-1.05, 1.05))
        texts = [self._text(value) for value in values]
        between = rng.choice((" ", ": ", "\n"))
        named = [name + between + text for name, text in zip(chart.categories, texts, strict=True)]
        inside = not hole and min(values) >= 6
        form = rng.choice(("around", "around", "inside" if inside else "around", "legend" if inside else "around"))
        if tight and chart.colours:
            form = "list"
        if form in ("legend", "list"):
            entries = [" ".join(n.split()) for n in named] if form == "list" else chart.categories
            self.sheet.legend = axes.legend(
                axes.patches, entries, loc="center left", bbox_to_anchor=(1.02, 0.5), prop=type_
            )
        for i, wedge in enumerate(axes.patches):
            turn = math.radians((wedge.theta1 + wedge.theta2) / 2)
            x, y = math.cos(turn), math.sin(turn)
            if form in ("around", "inside"):
                axes.text(
                    1.08 * x, 1.08 * y, named[i] if form == "around" else chart.categories[i],
                    ha="left" if x > 0 else "right", va="center", fontproperties=type_,
                )  # fmt: skip
            if form in ("inside", "legend"):
                axes.text(
                    0.68 * x, 0.68 * y, texts[i], ha="center", va="center", fontproperties=type_,
                    color=_on(self.shades[i]),
                )  # fmt: skip


def _on(shade: tuple[float, float, float]) -> str:
    """Ink for print on a colour (its parts 0 to 1)."""
    return "white" if 0.299 * shade[0] + 0.587 * shade[1] + 0.114 * shade[2] < 0.55 else "black"
