"""Renderer: real receipts and charts seen again and again, each time otherwise cut, scaled, worn and stored.

A few hundred scans are soon known by heart; what differs from one view to the next is what must not matter. SROIE's
truth is in capitals whatever is printed, so whole texts and lines with letters are asked for in capitals.
"""

import functools
import io
import random
from collections.abc import Sequence

from PIL import Image

from mmvl.data.conversation import CANNOT_SEE, FIELDS
from mmvl.data.corpus import Phrases
from mmvl.data.fonts import training_fonts
from mmvl.data.import_documents import FIELDS as ASKED
from mmvl.data.order import derive
from mmvl.data.page import Faces
from mmvl.data.paper import age, encode_page, warp
from mmvl.data.parallel import Make
from mmvl.data.public_formats import Receipt, read_charts, read_receipts
from mmvl.data.render_text_lines import CAPITALS, QUESTIONS
from mmvl.data.rendering import renderer
from mmvl.data.rewrite_scans import rewritten
from mmvl.data.splits import in_split
from mmvl.data.turns import Made, asked

# Fields that a receipt lacks if none of these words is on it.
_SIGNS = {
    "email": ("@", "mail"), "website": ("www", "http", ".com"), "fax": ("fax",), "due": ("due",),
    "table number": ("table", "tbl"), "birth date": ("birth",), "nationality": ("national",), "occupation": ("job",),
    "account": ("acc", "a/c"), "service": ("service", "srv", "svc"), "discount": ("disc",), "cashier": ("cashier",),
}  # fmt: skip


def reading_order(lines: Sequence[tuple[tuple[float, float, float, float], str]]) -> list[str]:
    """Boxes (left, top, right, bottom) and their texts -> the text of each row, top to bottom, left to right."""
    rows: list[list] = []
    for box, text in sorted(lines, key=lambda line: line[0][1] + line[0][3]):
        middle = (box[1] + box[3]) / 2
        if rows and rows[-1][-1][0][1] < middle < rows[-1][-1][0][3]:
            rows[-1].append((box, text))
        else:
            rows.append([(box, text)])
    return [" ".join(text for _, text in sorted(row, key=lambda line: line[0][0])) for row in rows]


@renderer("scans", per_shard=500)
def render_scans(
    seed: int,
    *,
    receipts: str,
    split: str = "train",
    fonts: str = "",
    corpus: str = "",
    rewrite: float = 0.0,
    unanswerable: float = 0.1,
    whole: float = 0.5,
    max_side: int = 1120,
    least: float = 0.7,
    wear: float = 0.35,
) -> Make:
    """Write `count` views of real receipts, questions about their fields with each; returns the shards.

    receipts: see `public_formats.read_receipts`; split: of `splits`. rewrite: share of the views in which other words
    stand for date, total and company (`rewrite_scans`), printed in the fonts and words of fonts and corpus (see
    `render_text_lines`). unanswerable: share of the questions for fields
    that none of a receipt's words points to. whole: share of the views whose last question is for all of the text.
    max_side: longest side in pixels; least: how small a view may be beside the scan, which is asked about at the size
    that its canvas allows. wear: up to how worn a view is (1 is ordinary wear of a clean page; scans bring their own).
    """
    if not 0 < least <= 1:
        raise ValueError(f"scans: least is {least}; it is above 0 and at most 1")
    if rewrite and not (fonts and corpus):
        raise ValueError("scans: rewrite needs fonts and corpus, the directories of fonts and texts to print with")
    known = _receipts(receipts, split)
    faces, phrases = (Faces(training_fonts(fonts)), Phrases(corpus)) if rewrite else (None, None)

    def make(index: int) -> Made:
        turn, number = divmod(index, len(known))
        receipt = known[number]
        rng = random.Random(derive("scans", seed, turn, receipt.key))
        image = _opened(receipt.image, "L")
        if rewrite and rng.random() < rewrite:
            receipt, image = rewritten(receipt, image, rng, faces, phrases)
        image = _view(image, [box for box, _ in receipt.lines], rng, max_side, least)
        image = age(image, rng, rng.uniform(0, wear), receipt=True)
        pairs = [
            (rng.choice(ASKED[name] + FIELDS.get(name, ())), value.strip())
            for name, value in receipt.fields.items()
            if name in ASKED and value.strip()
        ]
        rows = reading_order(receipt.lines)
        text = "\n".join(rows)
        missing = [name for name, signs in _SIGNS.items() if not any(sign in text.lower() for sign in signs)]
        rng.shuffle(missing)
        pairs += [
            (rng.choice(FIELDS[name]), CANNOT_SEE)
            for name in missing[:3]
            if rng.random() < unanswerable * max(1, len(pairs)) / 3
        ]
        rng.shuffle(pairs)
        if rows and (not pairs or rng.random() < whole):
            pairs.append((rng.choice(CAPITALS), text.upper()))
        return asked("scans", encode_page(image, rng, 0.9), pairs, shows="receipt", id=receipt.key)

    return make


@renderer("scan-lines", per_shard=2000)
def render_scan_lines(
    seed: int,
    *,
    receipts: str,
    split: str = "train",
    max_width: int = 640,
    wear: float = 0.35,
) -> Make:
    """Write `count` lines cut out of real receipts by their boxes, with more or less of what is around them.

    Settings: as for `render_scans`; max_width: a wider line is made smaller.
    """
    known = [(receipt, n) for receipt in _receipts(receipts, split) for n, line in enumerate(receipt.lines) if line[1]]

    @functools.lru_cache(maxsize=1)  # a scan's lines come one after the other
    def scan_of(data: bytes) -> Image.Image:
        return _opened(data, "L")

    def make(index: int) -> Made:
        turn, number = divmod(index, len(known))
        receipt, n = known[number]
        rng = random.Random(derive("scan-lines", seed, turn, receipt.key, n))
        (left, top, right, bottom), text = receipt.lines[n]
        scan = scan_of(receipt.image)
        room = max(2.0, rng.uniform(0.0, 0.25) * (bottom - top))
        edges = [rng.uniform(0.2, 1.2) * room for _ in range(4)]
        box = (max(0, left - edges[0]), max(0, top - edges[1]))
        box += (
            max(box[0] + 4, min(scan.width, right + edges[2])),
            max(box[1] + 4, min(scan.height, bottom + edges[3])),
        )
        image = scan.crop(tuple(round(v) for v in box))
        image = age(image, rng, rng.uniform(0, wear), receipt=True, geometry=False)
        if rng.random() < 0.2:
            image = warp(image, rng, 255, max(-2.0, min(2.0, rng.gauss(0, 0.8))), 0.0, 0.0)
        scale = min(max_width / image.width, 0.75 * 2 ** rng.random())
        size = (max(4, round(image.width * scale)), max(4, round(image.height * scale)))
        image = image.resize(size, Image.Resampling.BICUBIC)
        cased = any(c.isalpha() for c in text)
        question = rng.choice(CAPITALS if cased else QUESTIONS)
        return asked(
            "scan-lines", encode_page(image, rng, 0.9), [(question, text.upper())], shows="line",
            id=f"{receipt.key}/{n:03d}",
        )  # fmt: skip

    return make


@renderer("chart-scans", per_shard=500)
def render_chart_scans(
    seed: int,
    *,
    charts: str,
    split: str = "train",
    max_side: int = 960,
    wear: float = 0.3,
) -> Make:
    """Write `count` views of real charts with their questions.

    charts: see `public_formats.read_charts`. Other settings: as for `render_scans`; none is made much smaller, as their
    labels are 8 to 11 pixels high.
    """
    known = [chart for chart in read_charts(charts) if in_split(chart.key, split)]
    if not known:
        raise ValueError(f"{charts} holds no charts of the split {split!r}")

    def make(index: int) -> Made:
        turn, number = divmod(index, len(known))
        chart = known[number]
        rng = random.Random(derive("chart-scans", seed, turn, chart.key))
        image = _opened(chart.image, "RGB")
        image = _view(image, [(0, 0, image.width, image.height)], rng, max_side, least=0.9)
        if rng.random() < wear:
            image = age(image, rng, 0.3)
        pairs = [(question, answers[0]) for question, answers in chart.qa]
        rng.shuffle(pairs)
        return asked("chart-scans", encode_page(image, rng, 0.9), pairs, shows="chart", id=chart.key)

    return make


def _receipts(path: str, split: str) -> list[Receipt]:
    known = [receipt for receipt in read_receipts(path) if in_split(receipt.key, split)]
    if not known:
        raise ValueError(f"{path} holds no receipts of the split {split!r}")
    return known


def _opened(data: bytes, mode: str) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert(mode)


def _view(
    image: Image.Image, boxes: Sequence[Sequence[float]], rng: random.Random, max_side: int, least: float = 0.6
) -> Image.Image:
    """Some of the margin around the boxes cut off; scaled by `least` to 1.15, no side over max_side."""
    if boxes:
        ink = (min(b[0] for b in boxes), min(b[1] for b in boxes), max(b[2] for b in boxes), max(b[3] for b in boxes))
        ink = (max(0, ink[0] - 6), max(0, ink[1] - 6), min(image.width, ink[2] + 6), min(image.height, ink[3] + 6))
        share = [max(0.0, rng.uniform(-0.6, 1.0)) for _ in range(4)]  # how much of each margin goes
        image = image.crop((round(ink[0] * share[0]), round(ink[1] * share[1]),
                            round(image.width - (image.width - ink[2]) * share[2]),
                            round(image.height - (image.height - ink[3]) * share[3])))  # fmt: skip
    scale = min(max_side / max(image.size), least * (1.15 / least) ** rng.random())
    stretch = rng.uniform(0.93, 1.07)  # the paper's feed is not quite the scanner's
    size = (max(4, round(image.width * scale)), max(4, min(max_side, round(image.height * scale * stretch))))
    return image.resize(size, Image.Resampling.BICUBIC if scale > 0.5 else Image.Resampling.LANCZOS)
