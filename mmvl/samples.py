"""Samples of shards as people read them: lines of text, and one picture of several."""

import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont

from mmvl.data.shards import Sample, parts_of
from mmvl.vision.images import open_image


def lines(sample: Sample) -> Iterator[str]:
    """What a sample says, a line a part; pictures by name and size, "damaged" where they cannot be read."""
    for who, part in _said(sample.json):
        if part["type"] == "image":
            image = _opened(sample.members[part["file"]])
            size = f"{image.width}x{image.height}" if image else "damaged"
            yield f"{who}: [{part['file']}, {size}]" if who else f"[{part['file']}, {size}]"
        else:
            yield f"{who}: {part['text']}" if who else part["text"]


def _said(record: dict) -> Iterator[tuple[str, dict]]:
    """(who, part) in order of reading; who is "" in documents."""
    if record["kind"] in ("text", "interleaved"):
        yield from (("", part) for part in parts_of(record))
        return
    for message in record["messages"]:
        yield from ((message["role"], part) for part in message["content"])
    for name in ("chosen", "rejected"):
        yield from ((name, part) for part in record.get(name, []))


def _opened(data: bytes) -> Image.Image | None:
    try:
        return open_image(data)
    except ValueError:
        return None


def sheet(samples: Sequence[Sample], width: int = 1200, shown: int = 420) -> Image.Image:
    """The samples one under the other: their pictures to the left, at most `shown` pixels wide, what is said beside."""
    fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    font = ImageFont.truetype(str(fonts / "DejaVuSans.ttf"), 14)
    rows = []
    for sample in samples:
        pictures = [_opened(sample.members[p["file"]]) for p in parts_of(sample.json) if p["type"] == "image"]
        pictures = [picture for picture in pictures if picture is not None]
        for picture in pictures:
            picture.thumbnail((shown, 2 * shown))
        text = [f"{sample.key} ({sample.json['kind']})"]
        for line in lines(sample):
            for each in line.split("\n"):
                text += textwrap.wrap(each, 92) or [""]
        text = text if len(text) <= 60 else [*text[:59], "..."]
        high = max(sum(p.height + 8 for p in pictures), 20 * len(text)) + 16
        row = Image.new("RGB", (width, high), "white")
        y = 8
        for picture in pictures:
            row.paste(picture, (8, y))
            y += picture.height + 8
        for number, line in enumerate(text):
            ImageDraw.Draw(row).text((shown + 24, 8 + 20 * number), line, font=font, fill="black" if number else "#06c")
        ImageDraw.Draw(row).line((0, high - 1, width, high - 1), fill="#ccc")
        rows.append(row)
    sheet, y = Image.new("RGB", (width, sum(row.height for row in rows)), "white"), 0
    for row in rows:
        sheet.paste(row, (0, y))
        y += row.height
    return sheet
