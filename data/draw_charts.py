"""Draws charts with Pillow in several styles. It takes about 10 ms a chart where matplotlib takes 50.

Pictures of less than 480 pixels are laid out for that: print of 11 to 13 pixels, thin margins, names beside their bars.
"""

import math
import random

from PIL import Image, ImageDraw

from mmvl.data.chart_frame import draw_frame
from mmvl.data.chart_styles import COLOURS, Style
from mmvl.data.charts import COUNTRIES, Chart
from mmvl.data.draw_axes import draw_axes, show
from mmvl.data.page import Faces, Page, length, wrap

_NAMES = tuple(COLOURS)
_SMALL = 480  # pictures whose longer side is less than this are laid out for it


def draw_chart(
    rng: random.Random,
    chart: Chart,
    style: Style,
    name: str,
    faces: Faces,
    max_side: int = 720,
    printed: float | None = None,
) -> Page:
    """The chart as a Page (RGB) with title, axes, legend; colours and whether values are printed go into `chart`.

    printed: share of the charts whose values are to be printed at their marks (None: as the style has it). Such a
    chart, and one in a small picture, loses the categories for which there is no room, but keeps two.
    """
    little = max_side < _SMALL
    width = rng.randint(int(max_side * (0.85 if little else 0.62)), max_side)
    height = round(width * (rng.uniform(0.65, 0.95) if little else rng.uniform(0.55, 0.85)))
    size = rng.randint(11, 13) if little else round(rng.randint(11, 16) * max(1, width / 640))
    framed = not little and rng.random() < style.framed
    if framed:  # small print on a large picture, most of it far from the chart's edges
        size = max(10, round(rng.uniform(10.5, 13) * width / 800))
    face = faces.pick(rng, mono=0.02, fancy=0.03)
    font, small = face(size), face(max(10, size - rng.randint(0, 1)))
    mark = face(small.size, rng.random() < style.bold)
    chart.shown = printed is not None and rng.random() < printed
    if little or chart.shown:
        around = 4 * size if framed else 0
        make_room(chart, mark, width - around, height - around, little)
    page = Page.blank(width, height, "chart", name, style.paper)
    page.read_rows = False
    page.row()
    pie = chart.kind == "pie"
    palette = list(style.palette)
    if rng.random() < 0.3:
        rng.shuffle(palette)
    parts = len(chart.categories) if pie else len(chart.series)
    others = [
        c
        for c in _NAMES
        if c not in palette and sum(abs(a - b) for a, b in zip(COLOURS[c], style.paper, strict=True)) > 150
    ]
    rng.shuffle(others)
    chart.colours = (
        (palette + others)[:parts] if parts > 1 else [palette[0] if rng.random() < 0.6 else rng.choice(palette)]
    )
    while len(chart.colours) < parts:
        chart.colours.append(rng.choice(_NAMES))
    rgb = [COLOURS[c] for c in chart.colours]
    crowded = len(chart.categories) * len(chart.series) * size * 3 > width * 0.95 and "horizontal" not in chart.kind
    if printed is None:
        chart.shown = rng.random() < style.labels and not (crowded and chart.kind in ("grouped", "lines", "bar"))
    if pie:
        chart.shown = True
    top, bottom, left, right = box = size, height - size, size, width - size
    if framed:
        top, bottom, left, right = draw_frame(page, rng, face, size, style.ink, box)
    if rng.random() < style.title:
        chart.title = invent_title(rng, chart)
        title_font = face(round(size * (1.1 if little else rng.uniform(1.1, 1.5))), rng.random() < 0.7)
        lines = wrap(chart.title, title_font, width - 2 * size)
        chart.title = " ".join(lines)
        centred = rng.random() < 0.5 and name != "newspaper"
        for line in lines:
            top += title_font.size
            page.print(width / 2 if centred else left, top, line, title_font, "m" if centred else "l", style.ink)
        top += size * 1.2
    legend = [n for n, _ in chart.series] if parts > 1 and not pie else []
    aside = pie and (rng.random() < 0.4 or little and max(length(font, c) for c in chart.categories) > width * 0.2)
    if legend or aside:
        top, bottom, left, right = _legend(
            page, rng, chart.categories if pie else legend, rgb, font, style, (top, bottom, left, right)
        )
    if pie:
        _pie(page, rng, chart, rgb, font, style, (top, bottom, left, right), aside, little)
    else:
        draw_axes(page, rng, chart, rgb, font, small, mark, style, (top, bottom, left, right), little)
    return page


def make_room(chart: Chart, font, width: int, height: int, little: bool) -> None:
    """Leave out of the chart what has no room, values at their marks included; `shown` tells whether they have it."""
    if chart.kind == "pie":
        return
    texts = [show(v, chart.decimals, ",", chart.unit) for _, values in chart.series for v in values]
    widest, plot = max(length(font, text) for text in texts) + 4, width * 0.72
    longest = max(length(font, word) for c in chart.categories for word in c.split())
    if (
        little
        and not chart.time
        and longest > min(plot / len(chart.categories), 6 * font.size)
        and "horizontal" not in chart.kind
    ):
        chart.kind = "stacked-horizontal" if chart.kind == "stacked" else "horizontal"
    parts = 1 if chart.kind in ("stacked", "stacked-horizontal", "lines") else len(chart.series)
    if "horizontal" in chart.kind:
        rows = max(len(wrap(c, font, width * 0.35)) for c in chart.categories)
        most = int(height * 0.55 / font.size / max(parts * 1.3, rows * 1.2))
    elif chart.shown:
        most = int(plot * (1 if parts == 1 else 0.8) / widest / parts)
    else:
        most = int(plot / font.size / (parts if not chart.time else 1.2))
    if most < 3 and chart.kind == "grouped" and chart.shown:
        chart.kind = "horizontal"
        most = int(height * 0.55 / font.size / (parts * 1.3))
    most = max(2, most)
    chart.categories = chart.categories[:most]
    chart.series = [(name, values[:most]) for name, values in chart.series]


def invent_title(rng: random.Random, chart: Chart) -> str:
    """A title that says what the chart is about, and sometimes where or when."""
    place = rng.choice(COUNTRIES)
    about = chart.about[:1].upper() + chart.about[1:]
    if chart.time:
        a, b = chart.categories[0].strip("*"), chart.categories[-1].strip("*")
        return rng.choice(
            (f"{about} in {place} from {a} to {b}", f"{about}, {a}-{b}", f"{chart.label}", f"{about} over time")
        )
    return rng.choice(
        (f"{about} in {rng.randint(1995, 2023)}", f"{about} in {place}", chart.label, f"{about} by category")
    )


def _legend(page: Page, rng, names, rgb, font, style: Style, box):
    """Print the legend; returns the box that is left. box: top, bottom, left, right in pixels."""
    top, bottom, left, right = box
    size = font.size
    widths = [length(font, n) + 2.6 * size for n in names]
    where = style.legend if style.legend != "inside" else rng.choice(("right", "bottom", "top"))
    if max(widths) > (right - left) * 0.35 and where == "right":
        where = "bottom"
    if where == "right":
        x, y = right - max(widths), (top + bottom) / 2 - len(names) * size * 0.8
        for name, colour in zip(names, rgb, strict=False):
            page.draw.rectangle((x, y, x + size, y + size * 0.8), fill=colour)
            page.print(x + size * 1.5, y + size * 0.8, name, font, "l", style.ink)
            y += size * 1.6
        return top, bottom, left, right - max(widths) - size
    lines, used = [[]], 0.0
    for entry in zip(names, widths, rgb, strict=False):
        if lines[-1] and used + entry[1] > right - left:
            lines.append([])
            used = 0.0
        lines[-1].append(entry)
        used += entry[1]
    y = top + size if where == "top" else bottom - (len(lines) - 1) * size * 1.6
    for line in lines:
        x = left + (right - left - sum(w for _, w, _ in line)) / 2 if where == "bottom" else left
        for name, width, colour in line:
            if where == "bottom":
                page.draw.ellipse((x, y - size * 0.75, x + size * 0.8, y + size * 0.05), fill=colour)
            else:
                page.draw.rectangle((x, y - size * 0.75, x + size, y + size * 0.05), fill=colour)
            page.print(x + size * 1.3, y, name, font, "l", style.ink)
            x += width
        y += size * 1.6
    used_up = len(lines) * size * 1.6 + size * 0.6
    return (top + used_up, bottom, left, right) if where == "top" else (top, bottom - used_up, left, right)


def _pie(page: Page, rng, chart: Chart, rgb, font, style: Style, box, aside: bool, little: bool) -> None:
    top, bottom, left, right = box
    size = font.size
    radius = max(
        30,
        min(
            (right - left) / 2 - (3 * size if little and aside else size if aside else 6 * size),
            (bottom - top) / 2 - 1.5 * size,
        ),
    )
    cx, cy = (left + right) / 2, (top + bottom) / 2
    big = Image.new("RGB", (round(radius * 4) + 4,) * 2, style.paper)
    draw = ImageDraw.Draw(big)
    angle = start = rng.choice((-90, -90, rng.uniform(0, 360)))
    values = chart.series[0][1]
    for value, colour in zip(values, rgb, strict=True):
        turn = 360 * value / sum(values)
        draw.pieslice(
            (2, 2, big.width - 2, big.height - 2), angle, angle + turn, fill=colour, outline=style.paper, width=3
        )
        angle += turn
    if rng.random() < 0.25:
        hole = radius * 2 * rng.uniform(0.4, 0.6)
        draw.ellipse(
            (big.width / 2 - hole, big.height / 2 - hole, big.width / 2 + hole, big.height / 2 + hole), fill=style.paper
        )
    page.image.paste(big.reduce(2), (round(cx - radius), round(cy - radius)))
    angle = start
    last: list[tuple[float, float]] = []
    for category, value in zip(chart.categories, values, strict=True):
        middle = math.radians(angle + 180 * value / sum(values))
        angle += 360 * value / sum(values)
        text = show(value, chart.decimals, style.separator, "%")
        text = text if aside else f"{category} {text}" if rng.random() < 0.99 else text
        x, y = cx + (radius + size) * math.cos(middle), cy + (radius + size) * math.sin(middle) + size * 0.35
        while any(abs(x - a) < 8 * size and abs(y - b) < size * 1.1 for a, b in last):
            y += size * 0.6 if math.sin(middle) >= 0 else -size * 0.6
        last.append((x, y))
        anchor = "l" if math.cos(middle) > 0 else "r"
        wide = length(font, text)
        x = min(x, page.image.width - wide - 2) if anchor == "l" else max(x, wide + 2)
        page.print(x, y, text, font, anchor, style.ink)
