"""Renderer: letters, forms, invoices, memos and notes, with questions about their fields and transcriptions."""

import random

from PIL import Image

from mmvl.data.office import HELD_OUT_LAYOUTS, LAYOUTS, draw_office_page
from mmvl.data.page import Page
from mmvl.data.paper import age, encode_page
from mmvl.data.rendering import Pages, Plan, page_renderer


@page_renderer("pages")
def render_pages(pages: Pages, *, max_side: int = 800, wear: float = 1.0) -> Plan:
    """Write `count` pages of an office, a conversation about each, and return the shards.

    Settings: as for `render_receipts`.
    """
    faces, phrases = pages.material()
    layouts = pages.layouts(LAYOUTS, HELD_OUT_LAYOUTS)

    def draw(rng: random.Random) -> Page:
        return draw_office_page(rng, phrases, faces, layouts, max_side)

    def store(image: Image.Image, rng: random.Random) -> tuple[str, bytes]:
        return encode_page(age(image, rng, wear), rng, 0.85)

    return Plan(draw, lambda page, rng: (page, f"pages/{page.kind}", {}), store)
