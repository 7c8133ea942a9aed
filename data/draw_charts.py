"""Draws charts with Pillow in several styles. It takes about 10 ms a chart where matplotlib takes over 100.

Pictures of less than 480 pixels are laid out for that: print of 11 to 13 pixels, thin margins, names beside their bars.
"""

import itertools
import math
import random

from PIL import Image, ImageDraw

from mmvl.data.chart_styles import COLOURS, Style
from mmvl.data.charts import COUNTRIES, Chart
from mmvl.data.page import Faces, Page, length, wrap

_NAMES = tuple(COLOURS)
_SMALL = 480  # pictures whose longer side is less than this are laid out for it


def _nice(low: float, high: float, count: int) -> list[float]:
    """Two or more round tick values that cover low to high; of values that are all the same, one above them too."""
    raw = ((high - low) or 1) / count
    power = 10 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= raw * 0.999)
    first = math.floor(low / step)
    return [i * step for i in range(first, max(math.ceil(high / step - 1e-6), first + 1) + 1)]


def _show(value: float, decimals: int, separator: str, unit: str) -> str:
    text = f"{value:,.{decimals}f}".replace(",", separator)
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return text + unit


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
    face = faces.pick(rng, mono=0.02, fancy=0.03)
    font, small = face(size), face(max(10, size - rng.randint(0, 1)))
    chart.shown = printed is not None and rng.random() < printed
    if little or chart.shown:
        _make_room(chart, small, width, height, little)
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
    top, bottom, left, right = size, height - size, size, width - size
    if rng.random() < style.title:
        chart.title = _title(rng, chart)
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
        _axes(page, rng, chart, rgb, font, small, style, (top, bottom, left, right), little)
    return page


def _make_room(chart: Chart, font, width: int, height: int, little: bool) -> None:
    """Leave out of the chart what has no room, values at their marks included; `shown` tells whether they have it."""
    if chart.kind == "pie":
        return
    texts = [_show(v, chart.decimals, ",", chart.unit) for _, values in chart.series for v in values]
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


def _title(rng: random.Random, chart: Chart) -> str:
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
        text = _show(value, chart.decimals, style.separator, "%")
        text = text if aside else f"{category} {text}" if rng.random() < 0.99 else text
        x, y = cx + (radius + size) * math.cos(middle), cy + (radius + size) * math.sin(middle) + size * 0.35
        while any(abs(x - a) < 8 * size and abs(y - b) < size * 1.1 for a, b in last):
            y += size * 0.6 if math.sin(middle) >= 0 else -size * 0.6
        last.append((x, y))
        anchor = "l" if math.cos(middle) > 0 else "r"
        wide = length(font, text)
        x = min(x, page.image.width - wide - 2) if anchor == "l" else max(x, wide + 2)
        page.print(x, y, text, font, anchor, style.ink)


def _axes(page: Page, rng, chart: Chart, rgb, font, small, style: Style, box, little: bool) -> None:
    """Bars and lines: ticks, grid, category names, bars or lines, printed values."""
    top, bottom, left, right = box
    size = font.size
    draw, ink = page.draw, style.ink
    across = "horizontal" in chart.kind
    stacked = chart.kind.startswith("stacked")
    count = len(chart.categories)
    columns = [[values[i] for _, values in chart.series] for i in range(count)]
    high = max(sum(c) if stacked else max(c) for c in columns)
    low = min(0.0, min(min(c) for c in columns))
    if chart.kind in ("line", "lines") and rng.random() < 0.3:
        low = min(min(c) for c in columns)
        low = max(0.0, low - (high - low) * 0.2) if low > 0 else low
    number = rng.randint(4, 7)
    if little and across:  # the values stand side by side
        number = 3
    ticks = _nice(low, high * (1.0 if stacked and chart.unit == "%" else 1.06), number)
    step = ticks[1] - ticks[0]
    decimals = (
        0
        if step >= 1 and step == int(step)
        else 1
        if abs(step * 10 - round(step * 10)) < 1e-6
        else 2
        if step >= 0.01
        else 4
    )
    names = [_show(t, decimals, style.separator, chart.unit) for t in ticks]
    hide_axis = style.labels >= 0.95 and chart.shown
    values = [_show(v, chart.decimals, style.separator, chart.unit) for column in columns for v in column]
    label_shown = rng.random() < 0.75
    if across:
        aside = max(60, (right - left) * (0.36 if little else 0.3))
        wrapped = [wrap(c, font, aside) for c in chart.categories]
        if little:
            aside = max(length(font, line) for lines in wrapped for line in lines)
        left += min(max(length(font, c) for c in chart.categories), aside) + size * 0.8
        bottom -= 0 if hide_axis else size * 1.6
        bottom -= size * 1.6 if label_shown else 0
        right -= max(length(small, text) for text in values) if little and chart.shown else size * 3
    else:
        left += (0 if hide_axis else max(length(font, n) for n in names) + size * 0.5) + (
            size * 1.6 if label_shown else 0
        )
        slot = (right - left) / count
        wrapped = [wrap(c, small, slot * 0.95) for c in chart.categories]
        tilted = max(length(small, w) for lines in wrapped for w in lines) > slot * 0.98 or max(map(len, wrapped)) > 3
        if tilted:  # the first name begins left of its bar
            left = max(left, length(small, chart.categories[0]) * 0.72 - slot * 0.4 + 4)
            bottom -= max(length(small, c) for c in chart.categories) * 0.72 + size
        else:
            bottom -= max(map(len, wrapped)) * size * 1.15 + size * 0.5
        top += size * 1.2
    if little:  # long names and titles may leave next to nothing
        bottom, right = max(bottom, top + 3 * size), max(right, left + 3 * size)
    span = ticks[-1] - ticks[0]

    def place(value: float) -> float:
        share = (value - ticks[0]) / span
        return left + share * (right - left) if across else bottom - share * (bottom - top)

    slot = ((bottom - top) if across else (right - left)) / count
    if style.plot:
        draw.rectangle((left, top, right, bottom), fill=style.plot)
    if style.bands:
        shade = tuple(max(0, v - 6) for v in style.paper)
        for i in range(0, count, 2):
            a = (top if across else left) + i * slot
            draw.rectangle((left, a, right, a + slot) if across else (a, top, a + slot, bottom), fill=shade)
    for tick, text in zip(ticks, names, strict=True):
        at = round(place(tick))
        if style.grid and not (hide_axis and not style.plot):
            draw.line((at, top, at, bottom) if across else (left, at, right, at), fill=style.grid)
        if not hide_axis:
            if across:
                page.print(at, bottom + size * 1.3, text, small, "m", ink)
            else:
                page.print(left - size * 0.5, at + size * 0.35, text, small, "r", ink)
            if style.ticks:
                draw.line((at, bottom, at, bottom + 4) if across else (left - 4, at, left, at), fill=ink)
    zero = place(max(0.0, ticks[0]))
    draw.line((zero, top, zero, bottom) if across else (left, zero, right, zero), fill=ink)
    if style.box:
        draw.rectangle((left, top, right, bottom), outline=ink)
    if label_shown:
        text = chart.label
        if across:
            page.print((left + right) / 2, bottom + size * (1.4 if hide_axis else 2.9), text, small, "m", ink)
        else:
            _upright(page, max(2, round(size * 0.4)), (top + bottom) / 2, text, small, ink, bottom - top + 2 * size)
    else:
        chart.label = ""
    # Category names.
    for i, lines in enumerate(wrapped):
        middle = (top if across else left) + (i + 0.5) * slot
        if across:
            y = middle + size * 0.35 - (len(lines) - 1) * size * 0.55
            for line in lines:
                page.print(left - size * 0.6, y, line, font, "r", ink)
                y += size * 1.1
        elif tilted:
            _tilt(page, middle, bottom + size * 0.3, chart.categories[i], small, ink)
        else:
            for j, line in enumerate(lines):
                page.print(middle, bottom + size * (1.2 + 1.15 * j), line, small, "m", ink)
    if chart.kind in ("line", "lines"):
        _lines(page, rng, chart, rgb, small, style, left, slot, bottom, place, little)
        return
    gap = rng.uniform(0.15, 0.25 if little else 0.5)
    parts = 1 if stacked else len(chart.series)
    thick = slot * (1 - gap) / parts
    if little and stacked and chart.shown:  # in all parts or in none
        extents = (abs(place(v) - place(0)) for column in columns for v in column)
        wide = [length(small, text) for text in values]
        chart.shown = all(
            extent > (w if across else size) and (across or w <= thick) for extent, w in zip(extents, wide, strict=True)
        )
    for i, column in enumerate(columns):
        begin = (top if across else left) + i * slot + slot * gap / 2
        base = 0.0
        for j, value in enumerate(column):
            a = begin if stacked else begin + j * thick
            lowv, highv = (
                (base, base + value)
                if stacked
                else (max(0.0, ticks[0]) if value >= 0 else value, value if value >= 0 else 0.0)
            )
            base += value if stacked else 0
            p, q = sorted((place(lowv), place(highv)))
            rect = (p, a, q, a + thick - 1) if across else (a, p, a + thick - 1, q)
            draw.rectangle(tuple(round(v) for v in rect), fill=rgb[j])
            if not chart.shown:
                continue
            text = _show(value, chart.decimals, style.separator, chart.unit)
            if stacked:
                inside = (q - p) > (length(small, text) if across else size)
                if not inside or (not across and length(small, text) > thick):
                    chart.shown = False
                    continue
                light = 255 if sum(rgb[j]) < 420 else 20
                page.print(
                    (rect[0] + rect[2]) / 2, (rect[1] + rect[3]) / 2 + size * 0.35, text, small, "m", (light,) * 3
                )
            elif across:
                page.print(
                    place(value) + (4 if value >= 0 else -4),
                    a + thick / 2 + size * 0.35,
                    text,
                    small,
                    "l" if value >= 0 else "r",
                    ink,
                )
            else:
                page.print(a + thick / 2, place(value) + (-4 if value >= 0 else size), text, small, "m", ink)


def _lines(page: Page, rng, chart: Chart, rgb, font, style: Style, left, slot, bottom, place, little: bool) -> None:
    """Lines are drawn at twice the size for smooth edges."""
    width, height = page.image.size
    big = page.image.resize((2 * width, 2 * height), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(big)
    marker, thick = rng.choice((0, 3, 4)), rng.choice((3, 4, 6))
    for (_, values), colour in zip(chart.series, rgb, strict=True):
        points = [(2 * (left + (i + 0.5) * slot), 2 * place(v)) for i, v in enumerate(values)]
        draw.line(points, fill=colour, width=thick, joint="curve")
        for x, y in points if marker else ():
            draw.ellipse((x - 2 * marker, y - 2 * marker, x + 2 * marker, y + 2 * marker), fill=colour)
    page.image.paste(big.reduce(2))
    page.draw = ImageDraw.Draw(page.image)
    columns = list(zip(*(values for _, values in chart.series), strict=True))
    apart = all(abs(place(a) - place(b)) > 2.5 * font.size for column in columns for a, b in itertools.pairwise(column))
    if len(chart.series) > (2 if little and apart else 1):
        chart.shown = False
    for i, column in enumerate(columns if chart.shown else ()):
        for value in column:
            text = _show(value, chart.decimals, style.separator, chart.unit)
            under = value < max(column) and place(value) + 2 * font.size < bottom  # the lower of two lines
            y = place(value) + (font.size + 3 if under else -7)
            page.print(left + (i + 0.5) * slot, y, text, font, "m", style.ink)


def _upright(page: Page, x: int, middle: float, text: str, font, ink, room: float) -> None:
    """Text that runs upwards, its left edge at x; made smaller where there is no room."""
    left, top, right, bottom = font.getbbox(text)
    mask = Image.new("L", (right - left + 2, bottom - top + 2), 0)
    ImageDraw.Draw(mask).text((1 - left, 1 - top), text, font=font, fill=255)
    if mask.width > room:
        mask = mask.resize((round(room), mask.height), Image.Resampling.BILINEAR)
    mask = mask.transpose(Image.Transpose.ROTATE_90)
    page.image.paste(ink, (x, max(0, round(middle - mask.height / 2))), mask)


def _tilt(page: Page, x: float, y: float, text: str, font, ink) -> None:
    """Text that rises to its end at (x, y)."""
    left, top, right, bottom = font.getbbox(text)
    mask = Image.new("L", (right - left + 2, bottom - top + 2), 0)
    ImageDraw.Draw(mask).text((1 - left, 1 - top), text, font=font, fill=255)
    mask = mask.rotate(45, Image.Resampling.BICUBIC, expand=True)
    page.image.paste(ink, (round(x - mask.width + font.size * 0.4), round(y)), mask)
