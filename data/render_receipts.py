"""Renderer: whole till slips with questions, and lines cut out of them for reading."""

import random
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from mmvl.data.corpus import Phrases
from mmvl.data.drawing import assistant, user
from mmvl.data.fonts import held_out_fonts, training_fonts
from mmvl.data.order import derive
from mmvl.data.page import Faces, Page, Views, converse, record_of
from mmvl.data.paper import age, dot_matrix, encode_page, warp
from mmvl.data.parallel import write_shards
from mmvl.data.receipt_items import HELD_OUT_LAYOUTS, LAYOUTS
from mmvl.data.receipts import draw_receipt
from mmvl.data.render_text_lines import CAPITALS, QUESTIONS


def _material(fonts: str, corpus: str, held_out: bool) -> tuple[Faces, Phrases, tuple[str, ...]]:
    faces = Faces(held_out_fonts(fonts) if held_out else training_fonts(fonts))
    return faces, Phrases(corpus, held_out=held_out), HELD_OUT_LAYOUTS if held_out else LAYOUTS


def _on_the_glass(image: Image.Image, rng: random.Random) -> Image.Image:
    """A slip on a larger white sheet, as a scanner gives it."""
    space = [round(rng.uniform(0, 0.35) * image.width) for _ in range(2)] + [
        round(rng.uniform(0, 0.15) * image.height) for _ in range(2)
    ]
    sheet = Image.new("L", (image.width + space[0] + space[1], image.height + space[2] + space[3]), 255)
    sheet.paste(image, (space[0], space[2]))
    return sheet


def render_receipts(
    out_dir: str | Path,
    count: int,
    seed: int = 0,
    workers: int = 0,
    *,
    fonts: str,
    corpus: str,
    max_side: int = 900,
    fewest_questions: int = 3,
    most_questions: int = 8,
    unanswerable: float = 0.1,
    whole: float = 0.0,
    views: int = 1,
    wear: float = 1.0,
    held_out: bool = False,
    prefix: str = "receipts",
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Write `count` till slips, a conversation of fewest_questions to most_questions about each; returns the shards.

    fonts, corpus: as for `render_text_lines`. max_side: longest side in pixels, before wear adds at most a few percent.
    unanswerable: share of the questions that the slip does not answer. whole: share of the conversations that end with
    a transcription of all of it (where it is not too long). views: samples of every slip that is drawn, with other
    questions and wear. wear: 0 clean, 1 ordinary, 2 heavy.
    held_out: only held-out fonts, words and layouts (for evaluation); otherwise only the others.
    """
    faces, phrases, layouts = _material(fonts, corpus, held_out)

    def draw(rng: random.Random) -> Page:
        return draw_receipt(rng, phrases, faces, layouts, max_side)

    drawn = Views(views, draw, "receipts", seed, held_out)

    def make(index: int) -> tuple[dict, dict[str, bytes]]:
        page, rng = drawn(index)
        pairs = converse(page, rng, fewest_questions, most_questions, unanswerable, whole=whole)
        image = page.image
        if wear > 0:
            if rng.random() < 0.12 * wear:
                image = dot_matrix(image, rng)
            if rng.random() < 0.3:
                image = _on_the_glass(image, rng)
            image = age(image, rng, wear, receipt=True)
        extension, data = encode_page(image, rng)
        return record_of(page, "receipts", pairs, f"0.{extension}"), {f"0.{extension}": data}

    return write_shards(out_dir, prefix, count, make, workers, per_shard=500, progress=progress)


def render_receipt_lines(
    out_dir: str | Path,
    count: int,
    seed: int = 0,
    workers: int = 0,
    *,
    fonts: str,
    corpus: str,
    per_receipt: int = 12,
    max_width: int = 640,
    min_height: int = 14,
    max_height: int = 48,
    capitals: float = 0.0,
    wear: float = 1.0,
    held_out: bool = False,
    prefix: str = "receipt-lines",
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Write `count` lines and parts of lines cut out of worn till slips, text in the case as printed.

    per_receipt: crops of one slip (drawn once for all of them). min_height, max_height: pixels of the crop's height,
    drawn evenly in the logarithm; max_width: a wider crop is made smaller. capitals: share that is asked
    for, and given, in capital letters. Other settings: as for `render_receipts`.
    """
    if per_receipt < 1:
        raise ValueError(f"receipt-lines: per_receipt is {per_receipt}; it is at least 1")
    if not 4 <= min_height <= max_height:
        raise ValueError(f"receipt-lines: need 4 <= min_height <= max_height, got {min_height} and {max_height}")
    faces, phrases, layouts = _material(fonts, corpus, held_out)
    last: dict[int, tuple[Page, list]] = {}

    def slip(number: int) -> tuple[Page, list]:
        """The worn slip of a number and its pieces in random order; the last one is kept."""
        if number not in last:
            rng = random.Random(derive("receipt-lines", seed, number, held_out))
            page = draw_receipt(rng, phrases, faces, layouts, rng.choice((700, 1000, 1280)), 10)
            image = page.image
            if wear > 0:
                if rng.random() < 0.15 * wear:
                    image = dot_matrix(image, rng)
                page.image = age(image, rng, wear, receipt=True, geometry=False)
            crops = [[piece] for row in page.rows for piece in row]
            crops += [row for row in page.rows if 1 < len(row)] * 2
            rng.shuffle(crops)
            last.clear()
            last[number] = (page, crops)
        return last[number]

    def make(index: int) -> tuple[dict, dict[str, bytes]]:
        number, position = divmod(index, per_receipt)
        page, crops = slip(number)
        rng = random.Random(derive("receipt-lines", seed, number, position, held_out))
        pieces = sorted(crops[position % len(crops)], key=lambda p: p.box[0])
        text = " ".join(piece.text for piece in pieces)
        left, top = min(p.box[0] for p in pieces), min(p.box[1] for p in pieces)
        right, bottom = max(p.box[2] for p in pieces), max(p.box[3] for p in pieces)
        # Boxes of real data sets are drawn by hand: some cut close, some show a bit of the neighbours.
        edges = [rng.randint(0, 5) for _ in range(4)]
        image = page.image.crop((left - edges[0], top - edges[1], right + edges[2], bottom + edges[3]))
        if left < edges[0] or right + edges[2] > page.image.width:  # PIL fills with black what lies outside
            image = Image.new("L", image.size, 255)
            inside = (max(0, left - edges[0]), max(0, top - edges[1]), right + edges[2], bottom + edges[3])
            inside = (*inside[:2], min(inside[2], page.image.width), min(inside[3], page.image.height))
            image.paste(page.image.crop(inside), (max(0, edges[0] - left), max(0, edges[1] - top)))
        if wear > 0 and rng.random() < 0.25:
            image = warp(image, rng, 255, max(-2.0, min(2.0, rng.gauss(0, 0.8))), 0.0, 0.0)
        height = round(min_height * (max_height / min_height) ** rng.random())
        height = max(4, min(height, image.height * 2, round(image.height * max_width / image.width)))
        width = min(max_width, max(4, round(image.width * height / image.height)))
        image = image.resize((width, height), Image.Resampling.BICUBIC)
        extension, data = encode_page(image, rng, 0.6)
        question = rng.choice(QUESTIONS)
        if capitals and rng.random() < capitals:
            question, text = rng.choice(CAPITALS), text.upper()
        record = {
            "source": "receipt-lines",
            "kind": "vqa",
            "messages": [user(question, f"0.{extension}"), assistant(text)],
            "meta": {"layout": page.layout, "height": height},
        }
        return record, {f"0.{extension}": data}

    return write_shards(out_dir, prefix, count, make, workers, per_shard=2016, progress=progress)
