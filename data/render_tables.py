"""Renderer: tables, real ones from files and invented ones, with people's questions and made ones."""

import random

from PIL import Image

from mmvl.data.ask_as_people import ask_as_people
from mmvl.data.ask_tables import ask_table
from mmvl.data.page import Page
from mmvl.data.paper import age, encode_page
from mmvl.data.public_formats import RealTable, read_tables
from mmvl.data.rendering import Pages, Plan, page_renderer
from mmvl.data.splits import in_split
from mmvl.data.tables import HELD_OUT_LAYOUTS, LAYOUTS, draw_table, invent_table, mix_table, part_of, shuffle_columns
from mmvl.data.text import clean


@page_renderer("tables")
def render_tables(
    pages: Pages,
    *,
    tables: str = "",
    real: float = 0.7,
    mixed: float = 0.0,
    shuffled: float = 0.0,
    people: float = 0.0,
    most_rows: int = 24,
    cut: float = 0.5,
    most_columns: int = 6,
    max_side: int = 800,
    wear: float = 0.4,
) -> Plan:
    """Write `count` tables, a conversation about each, and return the shards.

    tables: file or folder of real tables (see `public_formats.read_tables`), a share `real` of all, of the split
    "development" of `splits` where pages are held out, otherwise of "train"; mixed: share of these that is mixed of
    their columns (`tables.mix_table`); shuffled: share of the others whose cells change places within their columns
    (`tables.shuffle_columns`). people: share of the conversations that ask in people's words (`ask_as_people`). A table
    of more than most_rows rows gives a part of them and no questions by people, like a shuffled one; cut: share of the
    tables that are to have 8 or 5 rows at most. Mixed and invented ones have at most most_columns columns and 12 rows.
    max_side: as for `render_receipts`. wear: share of the tables that are worn, and how much. Other settings: see
    `Pages`.
    """
    if most_rows < 2:
        raise ValueError(f"tables: most_rows is {most_rows}; it is at least 2")
    if not 2 <= most_columns <= 20:
        raise ValueError(f"tables: most_columns is {most_columns}; it is 2 to 20")
    faces, phrases = pages.material()
    layouts = pages.layouts(LAYOUTS, HELD_OUT_LAYOUTS)
    known = [table for table in read_tables(tables) if in_split(table.key, pages.split)] if tables else []
    # Fonts have Latin letters; a table with many others is left out, an odd accent becomes its letter.
    known = [table for table in known if _legible(table) and table.rows]
    few_rows = min(12, most_rows)

    def draw(rng: random.Random) -> tuple[Page, RealTable]:
        if known and rng.random() < real:
            if mixed and rng.random() < mixed and (table := mix_table(rng, known, few_rows, most_columns)).rows:
                return draw_table(rng, table, layouts, faces, max_side)
            table = rng.choice(known)
            if shuffled and rng.random() < shuffled:
                table = shuffle_columns(table, rng)
            rows = rng.choice((8, 5)) if rng.random() < cut else most_rows
            table, _ = part_of(table, rng, min(rows, most_rows))
        else:
            table = invent_table(rng, phrases, few_rows, most_columns)
        return draw_table(rng, table, layouts, faces, max_side)

    def ask(drawn: tuple[Page, RealTable], rng: random.Random) -> tuple[Page, str, dict]:
        page, table = drawn
        page.facts, page.absent = [], []  # each view has its own
        other = rng.choice(known) if known and rng.random() < real else invent_table(rng, phrases)
        ask = ask_as_people if people and rng.random() < people else ask_table
        ask(page, table, rng, other, looks=max(8, 3 * pages.most_questions))
        return page, "tables", {"table": table.key}

    def store(image: Image.Image, rng: random.Random) -> tuple[str, bytes]:
        return encode_page(age(image, rng, wear) if rng.random() < wear else image, rng, 0.6)

    return Plan(draw, ask, store)


def _legible(table) -> bool:
    text = "".join(cell for row in [table.header, *table.rows] for cell in row)
    return all(ord(c) < 0x180 or c in "\u2013\u2014\u2018\u2019\u201c\u201d\u2022\u2026" for c in text) and bool(
        clean(text)
    )
