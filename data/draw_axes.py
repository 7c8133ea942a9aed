"""Axes of charts with bars or lines: ticks, grid, names, marks, the values printed at them."""

import itertools
import math

from PIL import Image, ImageDraw

from mmvl.data.chart_styles import Style
from mmvl.data.charts import Chart
from mmvl.data.page import Page, length, wrap


def _nice_ticks(low: float, high: float, count: int) -> list[float]:
    """Two or more round tick values that cover low to high; of values that are all the same, one above them too."""
    raw = ((high - low) or 1) / count
    power = 10 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= raw * 0.999)
    first = math.floor(low / step)
    return [i * step for i in range(first, max(math.ceil(high / step - 1e-6), first + 1) + 1)]


def show(value: float, decimals: int, separator: str, unit: str) -> str:
    """The value as a chart prints it: 1234.50 and " " become "1 234.5"."""
    text = f"{value:,.{decimals}f}".replace(",", separator)
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return text + unit


def draw_axes(page: Page, rng, chart: Chart, rgb, font, small, mark, style: Style, box, little: bool) -> None:
    """Bars and lines: ticks, grid, category names, bars or lines, and in the font `mark` the printed values."""
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
    ticks = _nice_ticks(low, high * (1.0 if stacked and chart.unit == "%" else 1.06), number)
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
    names = [show(t, decimals, style.separator, chart.unit) for t in ticks]
    hide_axis = style.labels >= 0.95 and chart.shown
    values = [show(v, chart.decimals, style.separator, chart.unit) for column in columns for v in column]
    label_shown = rng.random() < 0.75
    if across:
        aside = max(60, (right - left) * (0.36 if little else 0.3))
        wrapped = [wrap(c, font, aside) for c in chart.categories]
        if little:
            aside = max(length(font, line) for lines in wrapped for line in lines)
        left += min(max(length(font, c) for c in chart.categories), aside) + size * 0.8
        bottom -= 0 if hide_axis else size * 1.6
        bottom -= size * 1.6 if label_shown else 0
        right -= max(length(mark, text) for text in values) if little and chart.shown else size * 3
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
        _lines(page, rng, chart, rgb, mark, style, left, slot, bottom, place, little)
        return
    gap = rng.uniform(0.15, 0.25 if little else 0.5)
    parts = 1 if stacked else len(chart.series)
    thick = slot * (1 - gap) / parts
    if little and stacked and chart.shown:  # in all parts or in none
        extents = (abs(place(v) - place(0)) for column in columns for v in column)
        wide = [length(mark, text) for text in values]
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
            text = show(value, chart.decimals, style.separator, chart.unit)
            if stacked:
                inside = (q - p) > (length(mark, text) if across else size)
                if not inside or (not across and length(mark, text) > thick):
                    chart.shown = False
                    continue
                light = 255 if sum(rgb[j]) < 420 else 20
                page.print(
                    (rect[0] + rect[2]) / 2, (rect[1] + rect[3]) / 2 + size * 0.35, text, mark, "m", (light,) * 3
                )
            elif across:
                page.print(
                    place(value) + (4 if value >= 0 else -4),
                    a + thick / 2 + size * 0.35,
                    text,
                    mark,
                    "l" if value >= 0 else "r",
                    ink,
                )
            else:
                page.print(a + thick / 2, place(value) + (-4 if value >= 0 else size), text, mark, "m", ink)


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
            text = show(value, chart.decimals, style.separator, chart.unit)
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
