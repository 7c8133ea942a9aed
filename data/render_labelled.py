"""Renderer: pictures of labelled values with many questions, a good part of them for labels that are not there."""

import random
from collections.abc import Callable
from pathlib import Path

from mmvl.data.corpus import Phrases
from mmvl.data.drawing import encode, wear
from mmvl.data.fonts import held_out_fonts, training_fonts
from mmvl.data.labelled import HELD_OUT_LAYOUTS, LAYOUTS, draw_labelled
from mmvl.data.page import Faces, Page, Views, converse, record_of
from mmvl.data.parallel import write_shards


def render_labelled(
    out_dir: str | Path,
    count: int,
    seed: int = 0,
    workers: int = 0,
    *,
    fonts: str,
    corpus: str,
    max_side: int = 560,
    fewest_questions: int = 3,
    most_questions: int = 10,
    unanswerable: float = 0.3,
    whole: float = 0.15,
    views: int = 1,
    held_out: bool = False,
    prefix: str = "labelled",
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Write `count` pictures of labelled values, a conversation about each, and return the shards.

    max_side: longest side in pixels, before wear; type is set smaller, down to 11 pixels, to stay within it. held_out:
    only the held-out layouts, fonts and words; otherwise only the others. Other settings: as for `render_receipts`.
    """
    faces = Faces(held_out_fonts(fonts) if held_out else training_fonts(fonts))
    phrases = Phrases(corpus, held_out=held_out)
    layouts = HELD_OUT_LAYOUTS if held_out else LAYOUTS

    def draw(rng: random.Random) -> Page:
        return draw_labelled(rng, phrases, faces, layouts, max_side)

    drawn = Views(views, draw, "labelled", seed, held_out)

    def make(index: int) -> tuple[dict, dict[str, bytes]]:
        page, rng = drawn(index)
        pairs = converse(page, rng, fewest_questions, most_questions, unanswerable, whole=whole)
        extension, data = encode(wear(page.image, rng, (255, 255, 255)), rng)
        return record_of(page, "labelled", pairs, f"0.{extension}"), {f"0.{extension}": data}

    return write_shards(out_dir, prefix, count, make, workers, per_shard=1000, progress=progress)
