"""Renderer: tables, real ones from files and invented ones, with people's questions and made ones."""

import random
from collections.abc import Callable
from pathlib import Path

from mmvl.data.ask_tables import ask_table
from mmvl.data.corpus import Phrases
from mmvl.data.fonts import held_out_fonts, training_fonts
from mmvl.data.page import Faces, Page, Views, converse, record_of
from mmvl.data.paper import age, encode_page
from mmvl.data.parallel import write_shards
from mmvl.data.public_formats import RealTable, read_tables
from mmvl.data.splits import in_split
from mmvl.data.tables import HELD_OUT_LAYOUTS, LAYOUTS, draw_table, invent_table, mix_table, part_of
from mmvl.data.text import clean


def render_tables(
    out_dir: str | Path,
    count: int,
    seed: int = 0,
    workers: int = 0,
    *,
    fonts: str,
    corpus: str,
    tables: str = "",
    real: float = 0.7,
    mixed: float = 0.0,
    most_rows: int = 24,
    most_columns: int = 6,
    max_side: int = 800,
    fewest_questions: int = 3,
    most_questions: int = 8,
    unanswerable: float = 0.1,
    whole: float = 0.0,
    views: int = 1,
    wear: float = 0.4,
    held_out: bool = False,
    prefix: str = "tables",
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Write `count` tables, a conversation about each, and return the shards.

    tables: file or folder of real tables (see `public_formats.read_tables`), a share `real` of all; mixed: share of
    these that is mixed of their columns (`tables.mix_table`). A table of more than most_rows rows gives a part of them
    and no questions by people. Mixed and invented ones have at most most_columns columns and 12 rows. held_out: only
    the held-out layouts, fonts, words and tables (split "development" of `splits`); otherwise only the others. Other
    settings: as for `render_receipts`.
    """
    if most_rows < 2:
        raise ValueError(f"tables: most_rows is {most_rows}; it is at least 2")
    if not 2 <= most_columns <= 20:
        raise ValueError(f"tables: most_columns is {most_columns}; it is 2 to 20")
    faces = Faces(held_out_fonts(fonts) if held_out else training_fonts(fonts))
    phrases = Phrases(corpus, held_out=held_out)
    layouts = HELD_OUT_LAYOUTS if held_out else LAYOUTS
    split = "development" if held_out else "train"
    known = [table for table in read_tables(tables) if in_split(table.key, split)] if tables else []
    # Fonts have Latin letters; a table with many others is left out, an odd accent becomes its letter.
    known = [table for table in known if _legible(table) and table.rows]

    few_rows = min(12, most_rows)

    def draw(rng: random.Random) -> tuple[Page, RealTable]:
        if known and rng.random() < real:
            if mixed and rng.random() < mixed and (table := mix_table(rng, known, few_rows, most_columns)).rows:
                return draw_table(rng, table, layouts, faces, max_side)
            table, _ = part_of(rng.choice(known), rng, rng.choice((most_rows, most_rows, 8, 5)))
        else:
            table = invent_table(rng, phrases, few_rows, most_columns)
        return draw_table(rng, table, layouts, faces, max_side)

    drawn = Views(views, draw, "tables", seed, held_out)

    def make(index: int) -> tuple[dict, dict[str, bytes]]:
        (page, table), rng = drawn(index)
        page.facts = []  # each view has its own
        other = rng.choice(known) if known and rng.random() < real else invent_table(rng, phrases)
        page.absent = []
        ask_table(page, table, rng, other, looks=max(8, 3 * most_questions))
        pairs = converse(page, rng, fewest_questions, most_questions, unanswerable, whole=whole)
        image = age(page.image, rng, wear) if rng.random() < wear else page.image
        extension, data = encode_page(image, rng, 0.6)
        record = record_of(page, "tables", pairs, f"0.{extension}", table=table.key)
        return record, {f"0.{extension}": data}

    return write_shards(out_dir, prefix, count, make, workers, per_shard=500, progress=progress)


def _legible(table) -> bool:
    text = "".join(cell for row in [table.header, *table.rows] for cell in row)
    return all(ord(c) < 0x180 or c in "\u2013\u2014\u2018\u2019\u201c\u201d\u2022\u2026" for c in text) and bool(
        clean(text)
    )
