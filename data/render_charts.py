"""Renderer: charts in many styles, of invented numbers and of real tables, with questions and exact answers."""

import random
from collections.abc import Callable
from pathlib import Path

from mmvl.data.ask_charts import ask_chart
from mmvl.data.charts import Chart, chart_of_table, invent_chart
from mmvl.data.corpus import Phrases
from mmvl.data.draw_charts import HELD_OUT_STYLES, STYLES, draw_chart
from mmvl.data.fonts import held_out_fonts, training_fonts
from mmvl.data.page import Faces, Page, Views, converse, record_of
from mmvl.data.paper import age, encode_page
from mmvl.data.parallel import write_shards
from mmvl.data.public_formats import read_tables
from mmvl.data.splits import in_split


def render_charts(
    out_dir: str | Path,
    count: int,
    seed: int = 0,
    workers: int = 0,
    *,
    fonts: str,
    corpus: str,
    tables: str = "",
    real: float = 0.25,
    statistics: float = 0.4,
    max_side: int = 720,
    fewest_questions: int = 3,
    most_questions: int = 8,
    unanswerable: float = 0.1,
    whole: float = 0.0,
    views: int = 1,
    wear: float = 0.3,
    held_out: bool = False,
    prefix: str = "charts",
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Write `count` charts, a conversation about each, and return the shards.

    tables: file or folder of real tables (see `public_formats.read_tables`), of which a share `real` of the charts is
    made. statistics: share of the charts in the style of statistics pages (training only). held_out: only the held-out
    styles, fonts, words and tables (split "development" of `splits`); otherwise only the others. Other settings: as for
    `render_receipts`.
    """
    faces = Faces(held_out_fonts(fonts) if held_out else training_fonts(fonts))
    phrases = Phrases(corpus, held_out=held_out)
    styles = HELD_OUT_STYLES if held_out else STYLES
    split = "development" if held_out else "train"
    known = [table for table in read_tables(tables) if in_split(table.key, split)] if tables else []

    def draw(rng: random.Random) -> tuple[Page, Chart]:
        chart = None
        for _ in range(20 if known and rng.random() < real else 0):
            if chart := chart_of_table(rng, rng.choice(known)):
                break
        chart = chart or invent_chart(rng, phrases)
        name = "statistics" if not held_out and rng.random() < statistics else rng.choice(list(styles))
        return draw_chart(rng, chart, styles[name], name, faces, max_side), chart

    drawn = Views(views, draw, "charts", seed, held_out)

    def make(index: int) -> tuple[dict, dict[str, bytes]]:
        (page, chart), rng = drawn(index)
        page.facts, page.absent = [], []  # each view has its own
        ask_chart(page, chart, rng)
        pairs = converse(page, rng, fewest_questions, most_questions, unanswerable, whole=whole)
        image = age(page.image, rng, wear) if rng.random() < wear else page.image
        extension, data = encode_page(image, rng, 0.6)
        return record_of(page, f"charts/{chart.kind}", pairs, f"0.{extension}"), {f"0.{extension}": data}

    return write_shards(out_dir, prefix, count, make, workers, per_shard=500, progress=progress)
