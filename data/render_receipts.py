"""Renderer: whole till slips with questions, and lines cut out of them for reading."""

import random

from PIL import Image

from mmvl.data.order import derive
from mmvl.data.page import Faces, Page
from mmvl.data.paper import age, dot_matrix, encode_page, warp
from mmvl.data.parallel import Make
from mmvl.data.receipt_items import HELD_OUT_LAYOUTS, LAYOUTS
from mmvl.data.receipts import draw_receipt
from mmvl.data.render_text_lines import CAPITALS, QUESTIONS
from mmvl.data.rendering import Pages, Plan, material, page_renderer, renderer
from mmvl.data.turns import Made, asked


def _on_the_glass(image: Image.Image, rng: random.Random) -> Image.Image:
    """A slip on a larger white sheet, as a scanner gives it."""
    space = [round(rng.uniform(0, 0.35) * image.width) for _ in range(2)] + [
        round(rng.uniform(0, 0.15) * image.height) for _ in range(2)
    ]
    sheet = Image.new("L", (image.width + space[0] + space[1], image.height + space[2] + space[3]), 255)
    sheet.paste(image, (space[0], space[2]))
    return sheet


@page_renderer("receipts")
def render_receipts(pages: Pages, *, max_side: int = 900, wear: float = 1.0) -> Plan:
    """Write `count` till slips, a conversation about each, and return the shards.

    max_side: longest side in pixels, before wear adds at most a few percent. wear: 0 clean, 1 ordinary, 2 heavy. Other
    settings: see `Pages`.
    """
    faces, phrases = pages.material()
    layouts = pages.layouts(LAYOUTS, HELD_OUT_LAYOUTS)

    def draw(rng: random.Random) -> Page:
        return draw_receipt(rng, phrases, faces, layouts, max_side)

    def store(image: Image.Image, rng: random.Random) -> tuple[str, bytes]:
        if wear > 0:
            if rng.random() < 0.12 * wear:
                image = dot_matrix(image, rng)
            if rng.random() < 0.3:
                image = _on_the_glass(image, rng)
            image = age(image, rng, wear, receipt=True)
        return encode_page(image, rng)

    return Plan(draw, lambda page, rng: (page, "receipts", {}), store)


@renderer("receipt-lines", per_shard=2016)
def render_receipt_lines(
    seed: int,
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
) -> Make:
    """Write `count` lines and parts of lines cut out of worn till slips, text in the case as printed.

    per_receipt: crops of one slip (drawn once for all of them). min_height, max_height: pixels of the crop's height,
    drawn evenly in the logarithm; max_width: a wider crop is made smaller. capitals: share that is asked
    for, and given, in capital letters. Other settings: as for `render_receipts`.
    """
    if per_receipt < 1:
        raise ValueError(f"receipt-lines: per_receipt is {per_receipt}; it is at least 1")
    if not 4 <= min_height <= max_height:
        raise ValueError(f"receipt-lines: need 4 <= min_height <= max_height, got {min_height} and {max_height}")
    fonts_of_it, phrases = material(fonts, corpus, held_out)
    faces, layouts = Faces(fonts_of_it), HELD_OUT_LAYOUTS if held_out else LAYOUTS
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

    def make(index: int) -> Made:
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
        shown = encode_page(image, rng, 0.6)
        question = rng.choice(QUESTIONS)
        if capitals and rng.random() < capitals:
            question, text = rng.choice(CAPITALS), text.upper()
        return asked("receipt-lines", shown, [(question, text)], shows="line", layout=page.layout, height=height)

    return make
