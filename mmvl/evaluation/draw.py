"""Plain pictures for the evaluation's own sets: a table, a page of lines. Always in DejaVu, which matplotlib brings.

One fixed look, so that a number does not move when the renderers of training data get better.
"""

import io
import textwrap
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont

INK, PAPER, RULE, HEAD = (20, 20, 20), (255, 255, 255), (150, 150, 150), (228, 232, 238)


@cache
def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans of `size` pixels."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name, size)


def draw_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, size: int = 16, width: int = 22) -> bytes:
    """PNG of a table with ruled cells. size: of the letters, pixels; width: characters after which a cell wraps."""
    table = [list(header), *[list(row) for row in rows]]
    columns = max(len(row) for row in table)
    wrapped = [[textwrap.wrap(cell, width) or [""] for cell in row + [""] * (columns - len(row))] for row in table]
    pad, step = size // 2, round(size * 1.3)

    def length(row: int, text: str) -> float:
        return font(size, row == 0).getlength(text)

    widths = [
        2 * pad + max(round(max(length(n, line) for line in row[c])) for n, row in enumerate(wrapped))
        for c in range(columns)
    ]
    heights = [2 * pad + step * max(len(cell) for cell in row) for row in wrapped]
    picture = Image.new("RGB", (sum(widths) + 2 * size + 1, sum(heights) + 2 * size + 1), PAPER)
    pen = ImageDraw.Draw(picture)
    y = size
    for n, row in enumerate(wrapped):
        x = size
        for c, cell in enumerate(row):
            fill = HEAD if n == 0 else PAPER
            pen.rectangle((x, y, x + widths[c], y + heights[n]), fill=fill, outline=RULE)
            for k, line in enumerate(cell):
                pen.text((x + pad, y + pad + k * step), line, fill=INK, font=font(size, n == 0))
            x += widths[c]
        y += heights[n]
    return png(picture)


def draw_lines(lines: Sequence[str], *, size: int = 18) -> bytes:
    """PNG of lines of text on a white page, as wide as they are."""
    step, edge = round(size * 1.5), size
    width = max(round(font(size).getlength(line)) for line in lines)
    picture = Image.new("RGB", (width + 2 * edge, step * len(lines) + 2 * edge), PAPER)
    pen = ImageDraw.Draw(picture)
    for n, line in enumerate(lines):
        pen.text((edge, edge + n * step), line, fill=INK, font=font(size))
    return png(picture)


def png(picture: Image.Image) -> bytes:
    """The bytes of a PNG file."""
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()
