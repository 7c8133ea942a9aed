"""The middle of a till slip: what was bought, in the columns of one of several layouts."""

import random
from collections.abc import Sequence

from mmvl.data.invented import Item, money
from mmvl.data.page import Page
from mmvl.data.slip import Slip

LAYOUTS = ("one-line", "two-line", "code-first", "quantity-first", "price-below", "tax-coded")

HELD_OUT_LAYOUTS = ("ruled-columns", "name-below")


def print_items(
    slip: Slip,
    rng: random.Random,
    layout: str,
    items: Sequence[Item],
    style: str,
    currency: str,
    comma: bool,
    page: Page,
) -> None:
    """The items in the columns of a layout, between rules of a style; each gives facts (see `Page.facts`)."""
    names = {
        "item": rng.choice(("Item", "Description", "ITEM", "Desc.")),
        "qty": rng.choice(("Qty", "QTY")),
        "price": rng.choice(("Price", "U.Price", "U/P", "RSP")),
        "amount": rng.choice(("Amount", "Amt", "Total")),
    }
    if currency == "RM" and rng.random() < 0.4:
        names["amount"] = rng.choice(("RM", "Amt(RM)", "Total(RM)"))
    left, right, width = slip.left, slip.right, slip.width
    code = rng.choice((" SR", " S", "T", " ZR", "SR", " *")) if layout == "tax-coded" else ""
    if style != "none":
        slip.rule(style)
    columns = {"qty": left + width * 0.52, "price": left + width * 0.75}
    ruled = layout == "ruled-columns"
    top = slip.y - slip.size
    if rng.random() < 0.75 or ruled:
        if layout == "quantity-first":
            slip.put(left, names["qty"])
            slip.put(left + width * 0.16, names["item"])
        else:
            slip.put(left, names["item"])
            if layout in ("one-line", "code-first", "name-below", "ruled-columns"):
                slip.put(columns["qty"], names["qty"], "r")
                slip.put(columns["price"], names["price"], "r")
        slip.put(right, names["amount"], "r")
        slip.next()
        if style != "none":
            slip.rule(style)
    for item in items:
        name = slip.say(item.name)
        price, amount = money(item.price, comma), money(item.amount, comma) + code

        def described(room: float, x: float = left, name=name) -> str:
            keep, slip.right = slip.right, int(x + room)
            text = slip.put(x, name)
            slip.right = keep
            return text

        if layout in ("one-line", "ruled-columns"):
            text = described(width * 0.42)
            slip.put(columns["qty"], str(item.quantity), "r")
            slip.put(columns["price"], price, "r")
            slip.put(right, amount, "r")
        elif layout == "two-line":
            text = described(width)
            slip.next()
            slip.put(left + width * 0.08, f"{item.quantity} x {price}")
            slip.put(right, amount, "r")
        elif layout in ("code-first", "name-below"):
            slip.put(left, item.code if layout == "code-first" else item.code[:5])
            slip.put(columns["qty"], str(item.quantity), "r")
            slip.put(columns["price"], price, "r")
            slip.put(right, amount, "r")
            slip.next()
            text = described(width * 0.9, left + width * 0.03)
        elif layout == "quantity-first":
            slip.put(left, str(item.quantity))
            text = described(width * 0.54, left + width * 0.12)
            slip.put(right, amount, "r")
        elif layout == "price-below":
            text = described(width * 0.7)
            slip.put(right, amount, "r")
            slip.next()
            slip.put(left + width * 0.12, f"{item.quantity} @ {price}")
        else:  # tax-coded
            text = described(width * 0.5)
            slip.put(left + width * 0.64, f"{item.quantity}x", "r")
            slip.put(right, amount, "r")
        slip.next()
        page.fact(
            money(item.amount, comma),
            f"How much is the {text}?",
            f"What is the amount for {text}?",
            f"What does {text} cost in total?",
        )
        page.fact(str(item.quantity), f"How many {text} were bought?", f"What is the quantity of {text}?")
        if layout not in ("quantity-first", "tax-coded"):
            page.fact(price, f"What is the unit price of {text}?", f"What is the price of one {text}?")
    if ruled:
        bottom = slip.y - slip.size * 0.7
        for x in (left - 3, left + width * 0.44, columns["qty"] + 5, columns["price"] + 5, right + 2):
            page.draw.line((x, top, x, bottom), fill=slip.ink)
    page.fact(str(len(items)), "How many different items were bought?", "How many kinds of items are there?")
    if len(items) > 1:
        best = max(items, key=lambda i: i.amount)
        if sum(i.amount == best.amount for i in items) == 1:
            page.fact(
                money(best.amount, comma),
                "What is the highest amount of an item?",
                "How much did the most expensive line cost?",
            )
    if style != "none":
        slip.rule(style)
