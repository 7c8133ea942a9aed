"""Invents till slips and draws them: header, items in columns, sums with tax, footer, in the manner of real ones."""

import random

from mmvl.data.corpus import Phrases
from mmvl.data.invented import goods_name, make_items
from mmvl.data.page import Faces, Page
from mmvl.data.receipt_head import print_details, print_shop
from mmvl.data.receipt_items import LAYOUTS, print_items
from mmvl.data.receipt_sums import print_sums
from mmvl.data.slip import Slip

_THANKS = (
    "THANK YOU", "Thank you, please come again", "THANK YOU FOR SHOPPING WITH US", "Please come again",
    "Goods sold are not returnable", "GOODS SOLD ARE NOT REFUNDABLE", "Have a nice day!", "Keep this receipt",
    "*** THANK YOU ***", "Exchange within 7 days with receipt", "All prices include tax", "E. & O. E.",
    "This is a computer generated receipt", "No signature required", "CUSTOMER'S COPY",
)  # fmt: skip


def draw_receipt(
    rng: random.Random, phrases: Phrases, faces: Faces, layouts=LAYOUTS, max_side: int = 900, min_size: int = 11
) -> Page:
    """A slip in grey, black on white, of at most max_side pixels; type of min_size to about 24 pixels.

    Its fields: see `Page.values`; facts are prices, quantities and counts.
    """
    layout = rng.choice(layouts)
    items = make_items(rng, phrases, 5 if max_side < 700 else 8)
    width = rng.randint(int(max_side * 0.36), int(max_side * 0.62))
    size = max(min_size, min(24, round(width / rng.uniform(19, 30))))
    page = Page.blank(width, 4 * max_side, "receipt", layout)
    page.row()
    slip = Slip(page, rng, faces, width, size, rng.randint(6, 26))
    currency = rng.choice(("RM", "RM", "$", "", "", "MYR", "GBP", "EUR"))
    comma = rng.random() < 0.5
    print_shop(slip, rng, phrases, page.values)
    print_details(slip, rng, page.values)
    style = rng.choice(("-", "-", "-", "=", "line", "none", "*"))
    print_items(slip, rng, layout, items, style, currency, comma, page)
    print_sums(slip, rng, items, style, currency, comma, page)
    for _ in range(rng.randint(0, 3)):
        slip.line(slip.say(rng.choice(_THANKS)), "m", face=slip.other)
    page.cut(width, min(page.image.height, round(slip.y + rng.randint(0, 40))))
    page.rows = [row for row in page.rows if row]
    page.may = (
        "shop", "date", "time", "number", "phone", "fax", "tax number", "registration", "cashier", "table number",
        "subtotal", "tax", "discount", "rounding", "service", "total", "cash", "change", "website",
    )  # fmt: skip
    text = " ".join(page.lines()).lower()
    others = [slip.say(goods_name(rng, phrases)) for _ in range(3)]
    page.absent = [
        question.format(o)
        for o in others
        if o.lower() not in text
        for question in ("How much is the {}?", "How many {} were bought?")
    ]
    page.caption = f"A receipt of {page.values['shop']}, total {page.values['total']}."
    if max(page.image.size) > max_side:  # a long slip is a photograph from farther away
        scale = max_side / max(page.image.size)
        page.shrink(scale)
    return page
