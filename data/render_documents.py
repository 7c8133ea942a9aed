"""Renderer: short documents (notes, receipts, letterheads, labels, tickets, lists) and a conversation about each."""

import random

from PIL import Image, ImageDraw

from mmvl.data.documents import Document, invent, questions
from mmvl.data.drawing import draw_line, encode, load_font, pick_colours, wear
from mmvl.data.fonts import Font, pick
from mmvl.data.order import derive
from mmvl.data.parallel import Make
from mmvl.data.rendering import material, renderer
from mmvl.data.turns import Made, asked


@renderer("documents", per_shard=1000)
def render_documents(
    seed: int,
    *,
    fonts: str,
    corpus: str,
    max_side: int = 450,
    min_size: int = 14,
    max_size: int = 26,
    fewest_questions: int = 2,
    most_questions: int = 5,
    held_out: bool = False,
    clean: bool = False,
    jpeg: float = 0.4,
) -> Make:
    """Write `count` documents with 2 to 5 questions each (one conversation a document) and return the shards.

    fonts, corpus, held_out, clean, jpeg: as for `render_text_lines`. max_side: longest side in pixels before wear;
    type is set smaller, down to 11 pixels, to stay within it. min_size, max_size: font sizes in pixels.
    """
    faces, phrases = material(fonts, corpus, held_out)

    def make(index: int) -> Made:
        rng = random.Random(derive("documents", seed, index, held_out))
        doc = invent(rng, phrases)
        face = pick(faces, rng)
        image = draw_document(doc, face, rng, max_side, min_size, max_size, clean)
        shown = encode(image, rng, jpeg)
        turns = questions(doc, rng, fewest_questions, most_questions)
        return asked(f"documents/{doc.kind}", shown, turns, shows=doc.kind, font=face.family, style=face.style)

    return make


def draw_document(
    doc: Document, face: Font, rng: random.Random, max_side: int, min_size: int, max_size: int, clean: bool = False
) -> Image.Image:
    """The document on paper, RGB, no side over max_side unless wear (rotation, rescaling) adds a little."""
    size = rng.randint(min_size, max_size)
    margin = rng.randint(6, 28)
    spacing = rng.uniform(1.15, 1.7)
    while True:
        boxes, width, height = _measure(doc, face, size, spacing)
        excess = max(width, height) / max(1, max_side - 2 * margin)
        if excess <= 1 or size <= 11:
            break
        size = max(11, min(size - 1, int(size / excess)))
    # Paper wider than the text shows alignment; a right column needs a gap.
    width += rng.randint(0, max(0, min(80, max_side - width - 2 * margin)))
    paper, ink = pick_colours(rng, inverted=0.05, coloured=0.3)
    image = Image.new("RGB", (width + 2 * margin, height + 2 * margin), paper)
    draw = ImageDraw.Draw(image)
    for line, (y, font) in zip(doc.lines, boxes, strict=True):
        top = y + margin
        if line.left:
            left, _, right, _ = font.getbbox(line.left)
            x = margin + ((width - (right - left)) // 2 if line.align == "centre" else 0)
            _on_baseline(draw, x, top, line.left, font, ink)
        if line.right:
            left, _, right, _ = font.getbbox(line.right)
            _on_baseline(draw, margin + width - (right - left), top, line.right, font, ink)
    if rng.random() < 0.15:
        draw.rectangle((1, 1, image.width - 2, image.height - 2), outline=ink)
    return image if clean else wear(image, rng, paper)


def _measure(doc: Document, face: Font, size: int, spacing: float):
    """([(y, font) of each line], width, height) in pixels; the ink of neighbouring lines never touches."""
    boxes, width, y = [], 0, 0
    for line in doc.lines:
        font = load_font(face.path, round(size * 1.35) if line.big else size)
        left, top, right, bottom = font.getbbox(line.text)
        gap = size * 2 if line.left and line.right else 0
        width = max(width, right - left + gap)
        boxes.append((y, font))
        y += max(round(font.size * spacing), bottom + 2)
    return boxes, width, y


def _on_baseline(draw: ImageDraw.ImageDraw, x: int, y: int, text: str, font, ink) -> None:
    """Draw with the line's own vertical origin, so that left and right columns share a baseline."""
    _, top, _, _ = font.getbbox(text)
    draw_line(draw, (x, y + top), text, font, ink)
