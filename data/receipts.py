"""Invents till slips and draws them: header, items in columns, sums with tax, footer, in the manner of real ones.

Sums are right to the cent: items give the subtotal, discount and tax the total, cash the change.
"""

import random
import string

from mmvl.data.corpus import Phrases
from mmvl.data.invented import (
    address_lines,
    company_name,
    date_text,
    digits,
    goods_name,
    make_items,
    money,
    phone_text,
    proper,
    time_text,
)
from mmvl.data.page import Faces, Page, length

LAYOUTS = ("one-line", "two-line", "code-first", "quantity-first", "price-below", "tax-coded")

HELD_OUT_LAYOUTS = ("ruled-columns", "name-below")

_TITLES = (
    "TAX INVOICE", "Tax Invoice", "RECEIPT", "INVOICE", "CASH BILL", "Simplified Tax Invoice", "OFFICIAL RECEIPT",
    "CASH SALES", "Cash Receipt", "SALES RECEIPT", "*** TAX INVOICE ***",
)

_THANKS = (
    "THANK YOU", "Thank you, please come again", "THANK YOU FOR SHOPPING WITH US", "Please come again",
    "Goods sold are not returnable", "GOODS SOLD ARE NOT REFUNDABLE", "Have a nice day!", "Keep this receipt",
    "*** THANK YOU ***", "Exchange within 7 days with receipt", "All prices include tax", "E. & O. E.",
    "This is a computer generated receipt", "No signature required", "CUSTOMER'S COPY",
)

_PEOPLE = """Anna Ben Clara Farid Mei Lim Tan Siti Kumar Raju Wong Lee Ali Nora Ivy Joyce Admin Manager Hafiz Aina Devi
Ong Jenny Azlan Suzy Chong Kevin Peter Maria User""".split()


class _Slip:
    """The printer: rows of a slip go down the paper; widths in pixels, `size` the height of type."""

    def __init__(self, page: Page, rng: random.Random, faces: Faces, width: int, size: int, margin: int):
        self.page, self.rng = page, rng
        self.face = faces.pick(rng, mono=0.62, fancy=0.06)
        self.other = faces.pick(rng, mono=0.3) if rng.random() < 0.2 else self.face
        self.left, self.right = margin, width - margin
        self.size = size
        self.pitch = size * rng.uniform(1.1, 1.45)
        self.y = margin + size
        self.upper = rng.random() < 0.45
        self.bold_sums = rng.random() < 0.4
        self.tall = rng.choice(((1, 1), (1, 1), (1, 1.5), (1.5, 1), (1.4, 1.5)))
        self.condense = rng.choice((1, 1, 1, 0.85, 0.92))
        self.ink = rng.choice((0, 0, rng.randint(0, 80)))

    @property
    def width(self) -> int:
        return self.right - self.left

    def say(self, text: str) -> str:
        return text.upper() if self.upper else text

    def measure(self, text: str, font, stretch: tuple[float, float]) -> float:
        return length(font, text) * stretch[0]

    def put(self, x: float, text: str, anchor: str = "l", bold: bool = False, stretch=None, face=None) -> str:
        """Print in the present line and return what was printed: a text too wide for the paper loses its end."""
        stretch = stretch or (self.condense, 1)
        font = (face or self.face)(self.size, bold)
        room = {"l": self.right - x, "r": x - self.left, "m": self.width}[anchor]
        while text and self.measure(text, font, stretch) > room + 1:
            if stretch[0] > 0.8:
                stretch = (max(0.8, room / max(1, self.measure(text, font, (1, 1)))), stretch[1])
                if self.measure(text, font, stretch) <= room + 1:
                    break
            text = text[:-1].rstrip()
        if text:
            self.page.print(x, self.y, text, font, anchor, self.ink, stretch)
        return text

    def next(self, share: float = 1.0) -> None:
        self.y += self.pitch * share
        self.page.row()

    def line(self, text: str, align: str = "l", bold: bool = False, stretch=None, face=None) -> str:
        if stretch and stretch[1] > 1:
            self.y += self.size * (stretch[1] - 1)
        x = {"l": self.left, "m": (self.left + self.right) / 2, "r": self.right}[align]
        text = self.put(x, text, align, bold, stretch, face)
        self.next()
        return text

    def rule(self, style: str) -> None:
        """A line across: drawn, or of dashes. It is not part of the transcription."""
        y = round(self.y - self.size * 0.3)
        if style in "-=*.":
            font = self.face(self.size)
            count = max(1, int(self.width / max(1.0, font.getlength(style * 8) / 8)))
            self.page.draw.text((self.left, self.y), style * count, font=font, fill=self.ink, anchor="ls")
        else:
            self.page.draw.line((self.left, y, self.right, y), fill=self.ink, width=1)
        self.next(0.9)

    def pair(self, label: str, value: str, at: float | None = None, bold: bool = False, stretch=None) -> str:
        """A label and, right-aligned or at x, its value; the value in full, the label cut where there is no room."""
        if stretch and stretch[1] > 1:
            self.y += self.size * (stretch[1] - 1)
        chosen = stretch or (self.condense, 1)
        font = self.face(self.size, bold)
        need = self.measure(value, font, chosen)
        x = self.right - need if at is None else at
        keep, self.right = self.right, int(x - self.size * 0.5)
        self.put(self.left, label, "l", bold, chosen)
        self.right = keep
        self.put(x, value, "l", bold, chosen)
        self.next()
        return value


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
    slip = _Slip(page, rng, faces, width, size, rng.randint(6, 26))
    values = page.values
    currency = rng.choice(("RM", "RM", "$", "", "", "MYR", "GBP", "EUR"))
    comma = rng.random() < 0.5
    _header(slip, rng, phrases, values)
    _details(slip, rng, phrases, values)
    style = rng.choice(("-", "-", "-", "=", "line", "none", "*"))
    _items(slip, rng, layout, items, style, currency, comma, page)
    _sums(slip, rng, items, style, currency, comma, values, page)
    for _ in range(rng.randint(0, 3)):
        slip.line(slip.say(rng.choice(_THANKS)), "m", face=slip.other)
    page.cut(width, min(page.image.height, round(slip.y + rng.randint(0, 40))))
    page.rows = [row for row in page.rows if row]
    page.may = (
        "shop", "date", "time", "number", "phone", "fax", "tax number", "registration", "cashier", "table number",
        "subtotal", "tax", "discount", "rounding", "service", "total", "cash", "change", "website",
    )
    text = " ".join(page.lines()).lower()
    others = [slip.say(goods_name(rng, phrases)) for _ in range(3)]
    page.absent = [
        question.format(o)
        for o in others
        if o.lower() not in text
        for question in ("How much is the {}?", "How many {} were bought?")
    ]
    page.caption = f"A receipt of {values['shop']}, total {values['total']}."
    if max(page.image.size) > max_side:  # a long slip is a photograph from farther away
        scale = max_side / max(page.image.size)
        page.shrink(scale)
    return page


def _header(slip: _Slip, rng: random.Random, phrases: Phrases, values: dict) -> None:
    align = "l" if rng.random() < 0.15 else "m"
    name = company_name(rng, phrases)
    name = name.upper() if rng.random() < 0.75 else name
    stretch = slip.tall if rng.random() < 0.6 else None
    # A name in two lines where it is too wide.
    font = slip.other(slip.size, True)
    words, lines = name.split(), [""]
    for word in words:
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) * (stretch or (1, 1))[0] > slip.width:
            lines.append(word)
        else:
            lines[-1] = longer
    bold = rng.random() < 0.5
    values["shop"] = " ".join(slip.line(line, align, bold, stretch, slip.other) for line in lines)
    registration = f"{digits(rng, 5, 7)}-{rng.choice(string.ascii_uppercase)}"
    if rng.random() < 0.55:
        values["registration"] = registration
        pattern = rng.choice(("({})", "Co. Reg. No.: {}", "(Co. No: {})", "ROC NO. {}", "Reg No: {}"))
        slip.line(slip.say(pattern.format(registration)), align)
    upper = rng.random() < 0.5
    printed = []
    for line in address_lines(rng, phrases):
        printed.append(slip.line(line.upper() if upper else line, align))
    values["address"] = " ".join(printed)
    if rng.random() < 0.7:
        phone = phone_text(rng)
        label = rng.choice(("Tel: ", "TEL : ", "Tel No: ", "Phone: ", "T: ", "H/P: "))
        fax = phone_text(rng)
        if rng.random() < 0.25 and slip.face(slip.size).getlength(label + phone + " Fax: " + fax) < slip.width:
            slip.line(f"{label}{phone} Fax: {fax}", align)
            values |= {"phone": phone, "fax": fax}
        elif phone in slip.line(label + phone, align):
            values["phone"] = phone
    if rng.random() < 0.65:
        number = digits(rng, 12, 12)
        label = rng.choice(
            ("GST No: ", "GST ID : ", "GST REG NO. ", "GST Reg. No: ", "(GST ID NO: ", "VAT No. ", "Tax ID: ")
        )
        if number in slip.line(label + number + (")" if label[0] == "(" else ""), align):
            values["tax number"] = number
    if rng.random() < 0.12:
        site = f"www.{proper(rng, phrases).lower()}.com"
        if slip.line(site, align) == site:
            values["website"] = site
    slip.next(rng.uniform(0, 0.6))
    if rng.random() < 0.75:
        slip.line(
            rng.choice(_TITLES),
            "m" if align == "m" else "l",
            rng.random() < 0.4,
            slip.tall if rng.random() < 0.3 else None,
        )


def _details(slip: _Slip, rng: random.Random, phrases: Phrases, values: dict) -> None:
    number = rng.choice(("", "", "CS", "INV", "A", "OR", "R")) + rng.choice(("", "-", "")) + digits(rng, 4, 10)
    date, time = date_text(rng), time_text(rng)
    person = rng.choice(_PEOPLE)
    person = person.upper() if slip.upper else person
    rows = [
        ("number", rng.choice(("Invoice No", "Inv No.", "Receipt #", "Bill No", "Doc No.", "INV#", "Slip No")), number)
    ]
    with_time = rng.random() < 0.45
    rows.append(
        (
            "date",
            rng.choice(("Date", "DATE", "Bill Date", "Date/Time" if with_time else "Date", "")),
            f"{date} {time}" if with_time else date,
        )
    )
    if not with_time and rng.random() < 0.4:
        rows.append(("time", "Time", time))
    if rng.random() < 0.6:
        rows.append(("cashier", rng.choice(("Cashier", "Served by", "Staff", "Cashier")), person))
    if rng.random() < 0.2:
        rows.append(("table number", "Table", str(rng.randint(1, 60))))
    rows = [row for row in rows if row[0] == "date" or rng.random() < 0.85]
    rng.shuffle(rows)
    colon = rng.choice((" : ", ": ", " :", ":"))
    column = slip.left + slip.width * rng.uniform(0.3, 0.45) if rng.random() < 0.4 else None
    together = column is None and rng.random() < 0.3
    printed = []
    while rows:
        name, label, value = rows.pop(0)
        label = slip.say(label)
        if not label:
            text = slip.line(value)
        elif column:
            font = slip.face(slip.size)
            if font.getlength(label) > column - slip.left - slip.size * 0.4:
                label = label[:6].strip(" .")
            slip.put(slip.left, label)
            text = slip.put(column, f"{colon.strip()} {value}")
            slip.next()
        else:
            text = slip.put(slip.left, f"{label}{colon}{value}")
            if together and rows and rows[0][1] and not with_time:
                second = f"{slip.say(rows[0][1])}{colon}{rows[0][2]}"
                font = slip.face(slip.size)
                if font.getlength(text) + font.getlength(second) + slip.size < slip.width:
                    slip.put(slip.right, second, "r")
                    printed.append((rows[0][0], rows[0][2], second))
                    rows.pop(0)
            slip.next()
        printed.append((name, value, text))
    for name, value, text in printed:
        if value not in text:
            # Cut at the paper's edge: only the date may be known from what is left.
            if name == "date" and date in text:
                values["date"] = date
            continue
        values[name] = date if name == "date" else value
        if name == "date" and with_time:
            values["time"] = time
    if "date" not in values:
        values["date"] = slip.line(date)


def _items(
    slip: _Slip, rng: random.Random, layout: str, items, style: str, currency: str, comma: bool, page: Page
) -> None:
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


def _sums(
    slip: _Slip, rng: random.Random, items, style: str, currency: str, comma: bool, values: dict, page: Page
) -> None:
    def show(cents: int) -> str:
        return money(cents, comma)

    shown = rng.random()
    sign = {"$": "$", "RM": "RM "}.get(currency, "") if shown < 0.15 else ""
    named = f" ({currency})" if currency and 0.15 <= shown < 0.4 else ""
    colon = rng.choice((":", " :", "", ""))
    at = None
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
        values[name] = slip.pair(slip.say(label) + named + colon, sign + show(cents), at)
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
    values["total"] = slip.pair(slip.say(label) + named + colon, sign + show(total), at, slip.bold_sums, big)
    if big:
        slip.next(0.2)
    paid = rng.random()
    if paid < 0.6:
        cash = rng.choice((total, -(-total // 100) * 100, -(-total // 1000) * 1000, -(-total // 5000) * 5000))
        values["cash"] = slip.pair(
            slip.say("Cash" + rng.choice(("", " Tendered", ""))) + named + colon, sign + show(cash), at
        )
        values["change"] = slip.pair(
            slip.say(rng.choice(("Change", "Change Due", "Balance"))) + named + colon, sign + show(cash - total), at
        )
    elif paid < 0.8:
        card = slip.say(rng.choice(("Visa", "Mastercard", "Debit card", "Credit card")))
        slip.pair(card + colon, sign + show(total), at)
        page.fact(card, "How was it paid?", "What was the means of payment?")
    if rng.random() < 0.25:
        pieces = sum(item.quantity for item in items)
        slip.pair(slip.say(rng.choice(("Total Qty", "Item Count", "No. of pieces"))) + colon, str(pieces), at)
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
