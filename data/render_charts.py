"""Renderer: charts in many styles, of invented numbers and of real tables, with questions and exact answers."""

import random

from PIL import Image

from mmvl.data.ask_charts import ask_chart
from mmvl.data.chart_styles import HELD_OUT_MATPLOTLIB_STYLES, HELD_OUT_STYLES, MATPLOTLIB_STYLES, STYLES
from mmvl.data.charts import NAMES, Chart, chart_of_table, cut_chart, invent_chart
from mmvl.data.draw_charts import draw_chart
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
    most_categories: int = 16,
    most_series: int = 5,
    printed_values: float | None = None,
    matplotlib: float = 0.0,
    max_side: int = 720,
    wear: float = 0.3,
) -> Plan:
    """Write `count` charts, a conversation about each, and return the shards.

    tables: file or folder of real tables (see `public_formats.read_tables`), of which a share `real` of the charts is
    made; of the split "development" of `splits` where pages are held out, otherwise of "train". statistics: share of
    the charts in the style of statistics pages (training only). most_categories, most_series: a chart of more shows a
    part of them. printed_values: share of the charts with every value printed at its mark, where it has room (null: as
    the style has it). matplotlib: share of the charts that it draws, in its own style sheets, which takes some five
    times as long. max_side: as for `render_receipts`; of less than 480, charts are laid out for a small picture.
    wear: share of the charts that are worn, and how much. Other settings: see `Pages`.
    """
    if not 2 <= most_categories <= 24:
        raise ValueError(f"charts: most_categories is {most_categories}; it is 2 to 24")
    if not 2 <= most_series <= 5:
        raise ValueError(f"charts: most_series is {most_series}; it is 2 to 5")
    if printed_values is not None and not 0 <= printed_values <= 1:
        raise ValueError(f"charts: printed_values is {printed_values}; it is a share, 0 to 1, or null")
    if not 0 <= matplotlib <= 1:
        raise ValueError(f"charts: matplotlib is {matplotlib}; it is a share, 0 to 1")
    if max_side < 240:
        raise ValueError(f"charts: max_side is {max_side}; print has no room below 240")
    faces, phrases = pages.material()
    styles = HELD_OUT_STYLES if pages.held_out else STYLES
    if matplotlib:  # its import takes a second
        from mmvl.data.draw_matplotlib import draw_matplotlib

    theirs = list(HELD_OUT_MATPLOTLIB_STYLES if pages.held_out else MATPLOTLIB_STYLES)
    known = [table for table in read_tables(tables) if in_split(table.key, pages.split)] if tables else []

    def draw(rng: random.Random) -> tuple[Page, Chart]:
        chart = None
        for _ in range(20 if known and rng.random() < real else 0):
            if chart := chart_of_table(rng, rng.choice(known)):
                break
        chart = cut_chart(chart or invent_chart(rng, phrases), rng, most_categories, most_series)
        if matplotlib and rng.random() < matplotlib:
            if page := draw_matplotlib(rng, chart, rng.choice(theirs), faces, max_side, printed_values):
                return page, chart
        name = "statistics" if not pages.held_out and rng.random() < statistics else rng.choice(list(styles))
        return draw_chart(rng, chart, styles[name], name, faces, max_side, printed_values), chart

    def ask(drawn: tuple[Page, Chart], rng: random.Random) -> tuple[Page, str, dict]:
        page, chart = drawn
        page.facts, page.absent = [], []  # each view has its own
        ask_chart(page, chart, rng, max(16, pages.most_questions))
        return page, f"charts/{chart.kind}", {"shows": NAMES[chart.kind]}

    def store(image: Image.Image, rng: random.Random) -> tuple[str, bytes]:
        return encode_page(age(image, rng, wear) if rng.random() < wear else image, rng, 0.6)

    return Plan(draw, ask, store)
