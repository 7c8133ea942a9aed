"""Invents and draws invoices: letterhead, customer, items in columns, sums that are right to the cent."""

import random

from mmvl.data.corpus import Phrases
from mmvl.data.invented import (
    address_lines,
    company_name,
    date_text,
    digits,
    make_items,
    money,
    person_name,
    proper,
)
from mmvl.data.page import Faces, Page, length
from mmvl.data.sheet import Sheet

LAYOUTS = ("grid-invoice", "open-invoice", "banner-invoice")
HELD_OUT_LAYOUTS = ("striped-invoice",)


def draw_invoice(rng: random.Random, phrases: Phrases, faces: Faces, layout: str, max_side: int) -> Page:
    """An invoice of at most 6 items."""
    sheet = Sheet(rng, faces, layout, "invoice", max_side)
    sheet.width = max(sheet.width, min(max_side, 34 * sheet.size))
    page = sheet.page = Page.blank(sheet.width, 3 * max_side, "invoice", layout, sheet.page.image.getpixel((0, 0)))
    sheet.right = sheet.width - sheet.left
    values = page.values
    currency = rng.choice(("$", "EUR ", "RM ", "", ""))
    banner = layout == "banner-invoice"
    title = rng.choice(("INVOICE", "Invoice", "Tax invoice", "PROFORMA INVOICE"))
    if banner:
        page.draw.rectangle((0, 0, sheet.width, sheet.y + 2.4 * sheet.size), fill=sheet.pale)
        page.row()
    values["company"] = sheet.line(company_name(rng, phrases), "l", True, 1.25)
    if banner:
        sheet.next(0.7)
    values["title"] = sheet.line(title, rng.choice("lr"), True, 1.3)
    values["address"] = " ".join(sheet.lines(address_lines(rng, phrases)))
    sheet.next(0.5)
    rows = [
        (
            "number",
            rng.choice(("Invoice no.", "Invoice number", "No.")),
            f"{rng.choice(('INV-', '', 'R', '2024-'))}{digits(rng, 3, 6)}",
        ),
        ("date", rng.choice(("Date", "Invoice date", "Issued")), date_text(rng)),
    ]
    if rng.random() < 0.6:
        rows.append(("due", rng.choice(("Due", "Due date", "Payable by")), date_text(rng)))
    if rng.random() < 0.4:
        rows.append(
            (
                "reference",
                rng.choice(("Your ref.", "Reference")),
                f"{proper(rng, phrases)[:3].upper()}{digits(rng, 2, 4)}",
            )
        )
    column = sheet.left + sheet.size * 8
    for name, label, value in rows:
        sheet.put(sheet.left, label + rng.choice((":", "")))
        values[name] = sheet.put(column, value)
        sheet.next()
    sheet.next(0.4)
    values["recipient"] = ""
    label = rng.choice(("Bill to:", "To:", "Customer:"))
    sheet.line(label, bold=rng.random() < 0.5)
    values["recipient"] = sheet.line(rng.choice((person_name, company_name))(rng, phrases))
    if rng.random() < 0.7:
        values["recipient address"] = " ".join(sheet.lines(address_lines(rng, phrases)))
    sheet.next(0.5)
    columns = (
        sheet.left + (sheet.right - sheet.left) * 0.62,
        sheet.left + (sheet.right - sheet.left) * 0.8,
        sheet.right,
    )
    items = make_items(rng, phrases, 6)
    top = sheet.y
    if layout in ("striped-invoice", "banner-invoice"):
        page.draw.rectangle((sheet.left - 4, sheet.y, sheet.right + 4, sheet.y + sheet.pitch), fill=sheet.pale)
    sheet.put(sheet.left, rng.choice(("Description", "Item", "Article")), bold=True)
    for x, text in zip(columns, ("Qty", "Price", "Amount"), strict=True):
        sheet.put(x, text, "r", bold=True)
    sheet.next(1.1)
    if layout == "open-invoice":
        sheet.rule()
    for place, item in enumerate(items):
        if layout == "striped-invoice" and place % 2:
            page.draw.rectangle((sheet.left - 4, sheet.y, sheet.right + 4, sheet.y + sheet.pitch), fill=sheet.pale)
        name, font = item.name, sheet.font()
        while length(font, name) > (sheet.right - sheet.left) * 0.52:
            name = name[:-1].rstrip()
        sheet.put(sheet.left, name)
        sheet.put(columns[0], str(item.quantity), "r")
        sheet.put(columns[1], money(item.price), "r")
        sheet.put(columns[2], money(item.amount, True), "r")
        sheet.next()
        page.fact(money(item.amount, True), f"What is the amount for {name}?", f"How much is the {name}?")
        page.fact(str(item.quantity), f"What is the quantity of {name}?", f"How many {name} were ordered?")
        page.fact(money(item.price), f"What is the unit price of {name}?", f"What is the price of one {name}?")
    if layout == "grid-invoice":
        bottom = sheet.y + 2
        for x in (sheet.left - 4, columns[0] - sheet.size * 3, columns[0] + 5, columns[1] + 5, sheet.right + 4):
            page.draw.line((x, top, x, bottom), fill=sheet.ink)
        for y in (top, top + sheet.pitch * 1.1, bottom):
            page.draw.line((sheet.left - 4, y, sheet.right + 4, y), fill=sheet.ink)
    elif layout == "open-invoice":
        sheet.rule()
    sheet.next(0.4)
    subtotal = sum(item.amount for item in items)
    total = subtotal
    at = columns[0] - sheet.size * 4
    if rng.random() < 0.7:
        rate = rng.choice((5, 6, 7, 10, 19, 20))
        tax = round(subtotal * rate / 100)
        total += tax
        for name, label, cents in (
            ("subtotal", "Subtotal", subtotal),
            ("tax", rng.choice((f"VAT {rate}%", f"Tax {rate}%", f"GST {rate}%")), tax),
        ):
            sheet.put(at, label)
            values[name] = sheet.put(sheet.right, currency + money(cents, True), "r")
            sheet.next()
    bold = rng.random() < 0.7
    sheet.put(at, rng.choice(("Total", "TOTAL", "Amount due", "Total due")), bold=bold)
    values["total"] = sheet.put(sheet.right, currency + money(total, True), "r", bold=bold)
    sheet.next(1.5)
    if rng.random() < 0.5:
        account = digits(rng, 8, 14)
        if account in sheet.line(rng.choice(("Account no. ", "Please pay to account ", "Bank account: ")) + account):
            values["account"] = account
    page.fact(str(len(items)), "How many items are listed?", "How many lines of items are there?")
    page.may = (
        "company", "address", "number", "date", "due", "reference", "recipient", "subtotal", "tax", "total",
        "account", "recipient address", "phone", "email", "discount", "fax", "cashier",
    )  # fmt: skip
    page.caption = f"An invoice from {values['company']} to {values['recipient']}, total {values['total']}."
    return sheet.done()
