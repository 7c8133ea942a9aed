"""Renderer: pictures of labelled values with many questions, a good part of them for labels that are not there."""

import random

from PIL import Image

from mmvl.data.drawing import encode, wear
from mmvl.data.labelled import HELD_OUT_LAYOUTS, LAYOUTS, draw_labelled
from mmvl.data.page import Page
from mmvl.data.rendering import Pages, Plan, page_renderer


@page_renderer("labelled", per_shard=1000, most_questions=10, unanswerable=0.3, whole=0.15)
def render_labelled(pages: Pages, *, max_side: int = 560) -> Plan:
    """Write `count` pictures of labelled values, a conversation about each, and return the shards.

    max_side: longest side in pixels, before wear; type is set smaller, down to 11 pixels, to stay within it. Other
    settings: see `Pages`.
    """
    faces, phrases = pages.material()
    layouts = pages.layouts(LAYOUTS, HELD_OUT_LAYOUTS)

    def draw(rng: random.Random) -> Page:
        return draw_labelled(rng, phrases, faces, layouts, max_side)

    def store(image: Image.Image, rng: random.Random) -> tuple[str, bytes]:
        return encode(wear(image, rng, (255, 255, 255)), rng)

    return Plan(draw, lambda page, rng: (page, "labelled", {}), store)
