"""The lower part of a till slip: sums that are right to the cent, tax, and how it was paid.

Items give the subtotal, discount and tax the total, cash the change.
"""

import random
from collections.abc import Sequence

from mmvl.data.invented import Item, money
from mmvl.data.page import Page
from mmvl.data.slip import Slip


def print_sums(
    slip: Slip, rng: random.Random, items: Sequence[Item], style: str, currency: str, comma: bool, page: Page
) -> None:
    """Subtotal to change and a summary of the tax; what stands there goes into `page.values` and `page.facts`."""
    values = page.values

    def show(cents: int) -> str:
        return money(cents, comma)

    shown = rng.random()
    sign = {"$": "$", "RM": "RM "}.get(currency, "") if shown < 0.15 else ""
    named = f" ({currency})" if currency and 0.15 <= shown < 0.4 else ""
    colon = rng.choice((":", " :", "", ""))
    subtotal = sum(item.amount for item in items)
    total, rows = subtotal, []
    if rng.random() < 0.7:
        rows.append(("subtotal", rng.choice(("Sub Total", "Subtotal", "SUB-TOTAL", "Total Excl. GST")), subtotal))
    if rng.random() < 0.2:
        discount = round(subtotal * rng.choice((0.05, 0.1, 0.2)))
        total -= discount
        rows.append(("discount", rng.choice(("Discount", "Disc", "Less Discount")), rng.choice((discount, -discount))))
    if rng.random() < 0.15:
        service = round(subtotal * 0.1)
        total += service
        rows.append(("service", rng.choice(("Service Charge", "Svc Chg 10%")), service))
    rate = rng.choice((6, 6, 6, 5, 7, 10, 20))
    tax = round(total * rate / 100)
    taxed = rng.random() < 0.6
    before = total
    if taxed:
        total += tax
        rows.append(
            (
                "tax",
                rng.choice(
                    (
                        f"GST {rate}%",
                        f"GST @ {rate}%",
                        f"Tax {rate}%",
                        f"GST ({rate}%)",
                        f"VAT {rate}%",
                        f"Service Tax {rate}%",
                    )
                ),
                tax,
            )
        )
    if rng.random() < 0.35:
        rounded = 5 * round(total / 5)
        rows.append(("rounding", rng.choice(("Rounding", "Rounding Adj.", "Rounding Adjustment")), rounded - total))
        total = rounded
    for name, label, cents in rows:
        values[name] = slip.pair(slip.say(label) + named + colon, sign + show(cents))
    label = rng.choice(
        (
            "Total",
            "TOTAL",
            "Grand Total",
            "Net Total",
            "Total Amount",
            "TOTAL DUE",
            "Nett Total",
            "Total Payable",
            "Total (Incl. GST)" if taxed else "Total",
        )
    )
    big = slip.tall if rng.random() < 0.5 else None
    values["total"] = slip.pair(slip.say(label) + named + colon, sign + show(total), slip.bold_sums, big)
    if big:
        slip.next(0.2)
    paid = rng.random()
    if paid < 0.6:
        cash = rng.choice((total, -(-total // 100) * 100, -(-total // 1000) * 1000, -(-total // 5000) * 5000))
        values["cash"] = slip.pair(
            slip.say("Cash" + rng.choice(("", " Tendered", ""))) + named + colon, sign + show(cash)
        )
        values["change"] = slip.pair(
            slip.say(rng.choice(("Change", "Change Due", "Balance"))) + named + colon, sign + show(cash - total)
        )
    elif paid < 0.8:
        card = slip.say(rng.choice(("Visa", "Mastercard", "Debit card", "Credit card")))
        slip.pair(card + colon, sign + show(total))
        page.fact(card, "How was it paid?", "What was the means of payment?")
    if rng.random() < 0.25:
        pieces = sum(item.quantity for item in items)
        slip.pair(slip.say(rng.choice(("Total Qty", "Item Count", "No. of pieces"))) + colon, str(pieces))
        page.fact(str(pieces), "How many pieces were bought in all?", "What is the total quantity?")
    if taxed and rng.random() < 0.5:
        if style != "none":
            slip.rule(style)
        x = slip.left + slip.width * 0.68
        slip.put(slip.left, slip.say("GST Summary") if rng.random() < 0.8 else slip.say("Tax Code"))
        slip.put(x, rng.choice(("Amount", "Amt(RM)", "Goods")), "r")
        slip.put(slip.right, rng.choice(("Tax", "Tax(RM)", "GST")), "r")
        slip.next()
        slip.put(slip.left, rng.choice((f"SR @ {rate}%", f"SR ({rate}%)", f"S = {rate}%")))
        slip.put(x, show(before), "r")
        slip.put(slip.right, show(tax), "r")
        slip.next()
    slip.next(rng.uniform(0.2, 1))
