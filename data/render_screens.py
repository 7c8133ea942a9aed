"""Renderer: windows of programs, with questions about their titles, fields, switches, files and buttons."""

import random

from PIL import Image

from mmvl.data.page import Page
from mmvl.data.paper import age, encode_page
from mmvl.data.rendering import Pages, Plan, page_renderer
from mmvl.data.screens import HELD_OUT_LAYOUTS, LAYOUTS, draw_screen


@page_renderer("screens")
def render_screens(pages: Pages, *, max_side: int = 720, wear: float = 0.15) -> Plan:
    """Write `count` windows, a conversation about each, and return the shards.

    max_side: as for `render_receipts`. wear: share of the windows that are photographs of a screen, lightly worn. Other
    settings: see `Pages`.
    """
    faces, phrases = pages.material()
    layouts = pages.layouts(LAYOUTS, HELD_OUT_LAYOUTS)

    def draw(rng: random.Random) -> Page:
        return draw_screen(rng, phrases, faces, layouts, max_side)

    def store(image: Image.Image, rng: random.Random) -> tuple[str, bytes]:
        return encode_page(age(image, rng, 0.6) if rng.random() < wear else image, rng, 0.4)

    return Plan(draw, lambda page, rng: (page, "screens", {}), store)
