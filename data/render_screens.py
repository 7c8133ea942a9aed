"""Renderer: windows of programs, with questions about their titles, fields, switches, files and buttons."""

import random
from collections.abc import Callable
from pathlib import Path

from mmvl.data.corpus import Phrases
from mmvl.data.fonts import held_out_fonts, training_fonts
from mmvl.data.page import Faces, Page, Views, converse, record_of
from mmvl.data.paper import age, encode_page
from mmvl.data.parallel import write_shards
from mmvl.data.screens import HELD_OUT_LAYOUTS, LAYOUTS, draw_screen


def render_screens(
    out_dir: str | Path,
    count: int,
    seed: int = 0,
    workers: int = 0,
    *,
    fonts: str,
    corpus: str,
    max_side: int = 720,
    fewest_questions: int = 3,
    most_questions: int = 8,
    unanswerable: float = 0.1,
    whole: float = 0.0,
    views: int = 1,
    wear: float = 0.15,
    held_out: bool = False,
    prefix: str = "screens",
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Write `count` windows, a conversation about each, and return the shards.

    wear: share of the windows that are photographs of a screen, lightly worn. Other settings: as for `render_receipts`.
    """
    faces = Faces(held_out_fonts(fonts) if held_out else training_fonts(fonts))
    phrases = Phrases(corpus, held_out=held_out)
    layouts = HELD_OUT_LAYOUTS if held_out else LAYOUTS

    def draw(rng: random.Random) -> Page:
        return draw_screen(rng, phrases, faces, layouts, max_side)

    drawn = Views(views, draw, "screens", seed, held_out)

    def make(index: int) -> tuple[dict, dict[str, bytes]]:
        page, rng = drawn(index)
        pairs = converse(page, rng, fewest_questions, most_questions, unanswerable, whole=whole)
        image = age(page.image, rng, 0.6) if rng.random() < wear else page.image
        extension, data = encode_page(image, rng, 0.4)
        return record_of(page, "screens", pairs, f"0.{extension}"), {f"0.{extension}": data}

    return write_shards(out_dir, prefix, count, make, workers, per_shard=500, progress=progress)
