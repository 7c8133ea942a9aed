"""Renderer: charts in many styles, of invented numbers and of real tables, with questions and exact answers."""

import random

from PIL import Image

from mmvl.data.ask_charts import ask_chart
from mmvl.data.charts import Chart, chart_of_table, invent_chart
from mmvl.data.draw_charts import HELD_OUT_STYLES, STYLES, draw_chart
from mmvl.data.page import Page
from mmvl.data.paper import age, encode_page
from mmvl.data.public_formats import read_tables
from mmvl.data.rendering import Pages, Plan, page_renderer
from mmvl.data.splits import in_split


@page_renderer("charts")
def render_charts(
    pages: Pages,
    *,
    tables: str = "",
    real: float = 0.25,
    statistics: float = 0.4,
    max_side: int = 720,
    wear: float = 0.3,
) -> Plan:
    """Write `count` charts, a conversation about each, and return the shards.

    tables: file or folder of real tables (see `public_formats.read_tables`), of which a share `real` of the charts is
    made; of the split "development" of `splits` where pages are held out, otherwise of "train". statistics: share of
    the charts in the style of statistics pages (training only). max_side: as for `render_receipts`. wear: share of the
    charts that are worn, and how much. Other settings: see `Pages`.
    """
    faces, phrases = pages.material()
    styles = HELD_OUT_STYLES if pages.held_out else STYLES
    known = [table for table in read_tables(tables) if in_split(table.key, pages.split)] if tables else []

    def draw(rng: random.Random) -> tuple[Page, Chart]:
        chart = None
        for _ in range(20 if known and rng.random() < real else 0):
            if chart := chart_of_table(rng, rng.choice(known)):
                break
        chart = chart or invent_chart(rng, phrases)
        name = "statistics" if not pages.held_out and rng.random() < statistics else rng.choice(list(styles))
        return draw_chart(rng, chart, styles[name], name, faces, max_side), chart

    def ask(drawn: tuple[Page, Chart], rng: random.Random) -> tuple[Page, str, dict]:
        page, chart = drawn
        page.facts, page.absent = [], []  # each view has its own
        ask_chart(page, chart, rng)
        return page, f"charts/{chart.kind}", {}

    def store(image: Image.Image, rng: random.Random) -> tuple[str, bytes]:
        return encode_page(age(image, rng, wear) if rng.random() < wear else image, rng, 0.6)

    return Plan(draw, ask, store)
