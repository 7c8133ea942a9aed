"""Pages of an office: letters, forms, invoices and notes, each in several layouts."""

import random

from mmvl.data import forms, invoices, letters, notes
from mmvl.data.corpus import Phrases
from mmvl.data.page import Faces, Page

LAYOUTS = letters.LAYOUTS + forms.LAYOUTS + invoices.LAYOUTS + notes.LAYOUTS
HELD_OUT_LAYOUTS = (
    letters.HELD_OUT_LAYOUTS + forms.HELD_OUT_LAYOUTS + invoices.HELD_OUT_LAYOUTS + notes.HELD_OUT_LAYOUTS
)

_DRAW = {
    layout: draw
    for kind, draw in (
        (letters, letters.draw_letter),
        (forms, forms.draw_form),
        (invoices, invoices.draw_invoice),
        (notes, notes.draw_note),
    )
    for layout in kind.LAYOUTS + kind.HELD_OUT_LAYOUTS
}


def draw_office_page(rng: random.Random, phrases: Phrases, faces: Faces, layouts, max_side: int = 800) -> Page:
    """A letter, form, invoice, memo or note of at most max_side pixels."""
    layout = rng.choice(layouts)
    page = _DRAW[layout](rng, phrases, faces, layout, max_side)
    if max(page.image.size) > max_side:
        page.shrink(max_side / max(page.image.size))
    return page
