"""Renderer: letters, forms, invoices, memos and notes, with questions about their fields and transcriptions."""

import random
from collections.abc import Callable
from pathlib import Path

from mmvl.data.corpus import Phrases
from mmvl.data.fonts import held_out_fonts, training_fonts
from mmvl.data.office import HELD_OUT_LAYOUTS, LAYOUTS, draw_office_page
from mmvl.data.page import Faces, Page, Views, converse, record_of
from mmvl.data.paper import age, encode_page
from mmvl.data.parallel import write_shards


def render_pages(
    out_dir: str | Path,
    count: int,
    seed: int = 0,
    workers: int = 0,
    *,
    fonts: str,
    corpus: str,
    max_side: int = 800,
    fewest_questions: int = 3,
    most_questions: int = 8,
    unanswerable: float = 0.1,
    whole: float = 0.0,
    views: int = 1,
    wear: float = 1.0,
    held_out: bool = False,
    prefix: str = "pages",
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Write `count` pages of an office, a conversation about each, and return the shards.

    Settings: as for `render_receipts`. held_out: only held-out layouts, fonts and words; otherwise only the others.
    """
    faces = Faces(held_out_fonts(fonts) if held_out else training_fonts(fonts))
    phrases = Phrases(corpus, held_out=held_out)
    layouts = HELD_OUT_LAYOUTS if held_out else LAYOUTS

    def draw(rng: random.Random) -> Page:
        return draw_office_page(rng, phrases, faces, layouts, max_side)

    drawn = Views(views, draw, "pages", seed, held_out)

    def make(index: int) -> tuple[dict, dict[str, bytes]]:
        page, rng = drawn(index)
        pairs = converse(page, rng, fewest_questions, most_questions, unanswerable, whole=whole)
        extension, data = encode_page(age(page.image, rng, wear), rng, 0.85)
        return record_of(page, f"pages/{page.kind}", pairs, f"0.{extension}"), {f"0.{extension}": data}

    return write_shards(out_dir, prefix, count, make, workers, per_shard=500, progress=progress)
