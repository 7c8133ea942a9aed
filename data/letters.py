"""Invents and draws office pages: letters, forms, invoices and notes, each in several layouts."""

import random

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
from mmvl.data.page import Faces, Page, length, wrap

LAYOUTS = (
    "block", "right-date", "letterhead", "ruled-form", "boxed-form", "dotted-form", "grid-invoice", "open-invoice",
    "banner-invoice", "note", "memo", "slip",
)
HELD_OUT_LAYOUTS = ("side-head", "two-column-form", "striped-invoice", "card")

_FIRST = "Anna Ben Clara David Emma Felix Grace Henry Ida James Leo Maria Noah Olivia Paul Rosa Sam Tara Vera Ali Mei"
_PLACES = "station library office cafe park museum harbour school"
_JOBS = (
    "Teacher Nurse Engineer Driver Baker Clerk Lawyer Farmer Painter Plumber Student Manager Cook Architect Librarian"
)
_NATIONS = (
    "British French German Malaysian Indian Kenyan Brazilian Canadian Japanese Polish Turkish Irish Dutch Chilean"
)
_COUNTRIES = (
    "France Germany Malaysia India Kenya Brazil Canada Japan Poland Turkey Ireland Chile Norway Spain Ghana Peru"
)
_SUBJECTS = (
    "Renewal of the {w} contract", "Your order of {d}", "Invitation to {w}", "Delivery of {w}", "Change of address",
    "Complaint about {w}", "Application for {w}", "Report on {w}", "Meeting on {d}", "Payment reminder {n}",
)
_CLOSINGS = (
    "Yours sincerely,", "Yours faithfully,", "Kind regards,", "Best regards,", "Sincerely,", "With best wishes,",
)


def person(rng: random.Random, phrases: Phrases) -> str:
    first = rng.choice(_FIRST.split()) if rng.random() < 0.6 else proper(rng, phrases)
    return f"{rng.choice(('', '', '', 'Mr ', 'Ms ', 'Dr '))}{first} {proper(rng, phrases)}"


class _Sheet:
    """A page being written from top to bottom. y is the next line's top."""

    def __init__(
        self,
        rng: random.Random,
        faces: Faces,
        layout: str,
        kind: str,
        max_side: int,
        mono: float = 0.12,
        fancy: float = 0.05,
    ):
        self.rng = rng
        self.size = rng.randint(13, 20)
        self.width = rng.randint(min(max_side - 20, 24 * self.size), min(max_side, 42 * self.size))
        paper = 255 if rng.random() < 0.7 else tuple(rng.randint(228, 255) for _ in range(3))
        self.page = Page.blank(self.width, 3 * max_side, kind, layout, paper)
        self.grey = isinstance(paper, int)
        self.face = faces.pick(rng, mono=mono, fancy=fancy)
        self.hand = faces.pick(rng, fancy=1.0) if rng.random() < 0.35 else self.face
        value = rng.randint(0, 70)
        self.ink = value if self.grey else (value, value, value)
        self.blue = self.ink if self.grey or rng.random() < 0.5 else (20, 40, rng.randint(90, 160))
        self.pale = rng.randint(200, 235) if self.grey else tuple(rng.randint(195, 235) for _ in range(3))
        self.left = rng.randint(self.size, 3 * self.size)
        self.right = self.width - self.left
        self.y = float(rng.randint(self.size, 3 * self.size))
        self.pitch = self.size * rng.uniform(1.25, 1.6)

    def font(self, bold: bool = False, scale: float = 1.0, hand: bool = False):
        return (self.hand if hand else self.face)(self.size * scale, bold)

    def put(self, x: float, text: str, anchor: str = "l", bold=False, scale: float = 1.0, ink=None, hand=False) -> str:
        font = self.font(bold, scale, hand)
        while text and length(font, text) > (
            self.width - 4 - x if anchor == "l" else x if anchor == "r" else self.width - 8
        ):
            text = text[:-1].rstrip()
        if text:
            self.page.print(x, self.y + self.size, text, font, anchor, self.ink if ink is None else ink)
        return text

    def next(self, share: float = 1.0) -> None:
        self.y += self.pitch * share
        self.page.row()

    def line(self, text: str, anchor: str = "l", bold=False, scale: float = 1.0, hand=False) -> str:
        x = {"l": self.left, "m": self.width / 2, "r": self.right}[anchor]
        if scale > 1:
            self.y += self.size * (scale - 1)
        text = self.put(x, text, anchor, bold, scale, hand=hand)
        self.next()
        return text

    def lines(self, texts, anchor: str = "l", bold=False, hand=False) -> list[str]:
        return [self.line(text, anchor, bold, hand=hand) for text in texts]

    def paragraph(self, text: str, hand=False) -> None:
        for line in wrap(text, self.font(hand=hand), self.right - self.left):
            self.line(line, hand=hand)

    def rule(self) -> None:
        self.page.draw.line((self.left, self.y + 2, self.right, self.y + 2), fill=self.ink)
        self.y += self.size * 0.5

    def done(self) -> Page:
        page = self.page
        page.cut(self.width, min(page.image.height, round(self.y + self.rng.randint(self.size, 3 * self.size))))
        page.rows = [row for row in page.rows if row]
        return page


def draw_office_page(rng: random.Random, phrases: Phrases, faces: Faces, layouts, max_side: int = 800) -> Page:
    """A letter, form, invoice, memo or note of at most max_side pixels."""
    layout = rng.choice(layouts)
    if "form" in layout:
        page = _form(rng, phrases, faces, layout, max_side)
    elif "invoice" in layout:
        page = _invoice(rng, phrases, faces, layout, max_side)
    elif layout in ("note", "memo", "slip", "card"):
        page = _note(rng, phrases, faces, layout, max_side)
    else:
        page = _letter(rng, phrases, faces, layout, max_side)
    if max(page.image.size) > max_side:
        page.shrink(max_side / max(page.image.size))
    return page


def _letter(rng, phrases, faces, layout, max_side) -> Page:
    sheet = _Sheet(rng, faces, layout, "letter", max_side)
    page, values = sheet.page, sheet.page.values
    company = company_name(rng, phrases)
    where = {"letterhead": "m", "right-date": "l", "block": "l", "side-head": "r"}[layout]
    values["company"] = sheet.line(company, where, rng.random() < 0.6, 1.3 if rng.random() < 0.6 else 1)
    values["address"] = " ".join(sheet.lines(address_lines(rng, phrases), where))
    if rng.random() < 0.6:
        phone = phone_text(rng)
        if phone in sheet.line(rng.choice(("Tel. ", "Phone: ", "T ")) + phone, where):
            values["phone"] = phone
    if rng.random() < 0.5:
        mail = f"{rng.choice(('info', 'office'))}@{proper(rng, phrases).lower()}.{rng.choice(('com', 'org', 'net'))}"
        if sheet.line(mail, where) == mail:
            values["email"] = mail
    if layout == "letterhead":
        sheet.rule()
    sheet.next(0.6)
    to = person(rng, phrases)
    values["recipient"] = sheet.line(to)
    if rng.random() < 0.7:
        values["recipient address"] = " ".join(sheet.lines(address_lines(rng, phrases)))
    sheet.next(0.6)
    date = date_text(rng)
    label = rng.choice(("", "", "Date: "))
    if date in sheet.line(label + date, "r" if layout == "right-date" else "l"):
        values["date"] = date
    if rng.random() < 0.5:
        reference = f"{proper(rng, phrases)[:2].upper()}/{digits(rng, 3, 6)}"
        if reference in sheet.line(rng.choice(("Our ref: ", "Ref. ", "Reference: ")) + reference):
            values["reference"] = reference
    if rng.random() < 0.75:
        subject = rng.choice(_SUBJECTS).format(w=phrases.word(rng), d=date_text(rng), n=digits(rng, 2, 4))
        printed = sheet.line(("Subject: " if (labelled := rng.random() < 0.4) else "") + subject, bold=not labelled)
        values["subject"] = printed.removeprefix("Subject: ")
    sheet.next(0.5)
    sheet.line(f"Dear {to},")
    for _ in range(rng.randint(1, 3)):
        sheet.next(0.3)
        sheet.paragraph(" ".join(phrases.sentence(rng, 20, 90) for _ in range(rng.randint(1, 3))))
    sheet.next(0.5)
    sheet.line(rng.choice(_CLOSINGS))
    sheet.next(rng.uniform(0.3, 1.5))
    values["sender"] = sheet.line(person(rng, phrases), hand=rng.random() < 0.4)
    page.may = (
        "company", "address", "phone", "email", "date", "reference", "subject", "sender", "recipient", "fax",
        "website", "recipient address", "account", "total", "due",
    )
    page.caption = f"A letter from {values['company']} to {values['recipient']}."
    return sheet.done()


_FORM = (
    ("name", ("Name", "Full name", "Applicant's name")),
    ("birth date", ("Date of birth", "Born on", "DOB")),
    ("nationality", ("Nationality",)),
    ("occupation", ("Occupation", "Profession")),
    ("phone", ("Telephone", "Phone no.", "Mobile")),
    ("email", ("E-mail", "Email address")),
    ("address", ("Address", "Street")),
    ("city", ("City", "Town")),
    ("postcode", ("Postcode", "Postal code")),
    ("country", ("Country",)),
    ("date", ("Date", "Date of application")),
    ("number", ("Form no.", "Application no.", "Document no.")),
    ("account", ("Account no.", "Bank account")),
)


def _form_value(rng, phrases, name: str) -> str:
    if name in ("birth date", "date"):
        return date_text(rng, name == "date")
    makers = {
        "name": lambda: person(rng, phrases),
        "nationality": lambda: rng.choice(_NATIONS.split()),
        "occupation": lambda: rng.choice(_JOBS.split()),
        "phone": lambda: phone_text(rng),
        "email": lambda: f"{proper(rng, phrases).lower()}@{proper(rng, phrases).lower()}.com",
        "address": lambda: address_lines(rng, phrases)[0].rstrip(","),
        "city": lambda: proper(rng, phrases),
        "postcode": lambda: digits(rng, 4, 6),
        "country": lambda: rng.choice(_COUNTRIES.split()),
        "number": lambda: f"{rng.choice('ABCFX')}-{digits(rng, 3, 7)}",
        "account": lambda: digits(rng, 8, 12),
    }
    return makers[name]()


def _form(rng, phrases, faces, layout, max_side) -> Page:
    sheet = _Sheet(rng, faces, layout, "form", max_side)
    page, values = sheet.page, sheet.page.values
    title = rng.choice(
        (
            "Application form", "Registration", "Patient record", "Membership application", "Customer details",
            "Visitor form", "Enrolment form", "Change of details", "Library card", "Insurance claim",
        )
    )
    title = title.upper() if rng.random() < 0.4 else title
    values["title"] = sheet.line(title, rng.choice("lm"), True, rng.uniform(1.1, 1.5))
    sheet.next(0.5)
    fields = rng.sample(_FORM, rng.randint(3, 10))
    fields = [(name, labels[0] if layout == "two-column-form" else rng.choice(labels)) for name, labels in fields]
    column = sheet.left + max(length(sheet.font(True), label) for _, label in fields) + sheet.size
    two = layout == "two-column-form"
    step = sheet.pitch * (1.35 if layout != "dotted-form" else 1.1)
    middle = sheet.width / 2
    for number, (name, label) in enumerate(fields):
        value = _form_value(rng, phrases, name)
        empty = rng.random() < 0.12
        colon = rng.choice((":", "", ":"))
        x = middle if two and number % 2 else sheet.left
        if two:
            sheet.put(x, label, scale=0.8)
            sheet.y += sheet.size * 1.1
            start, end = x, (x + middle - sheet.left - sheet.size)
        else:
            sheet.put(x, label + colon, bold=rng.random() < 0.1)
            start, end = column, sheet.right
        base = sheet.y + sheet.size
        if layout == "boxed-form":
            page.draw.rectangle((start - 4, base - sheet.size * 1.15, end, base + sheet.size * 0.4), outline=sheet.ink)
        elif layout == "ruled-form" or two:
            page.draw.line((start, base + 3, end, base + 3), fill=sheet.ink)
        elif layout == "dotted-form":
            for dot in range(round(start), round(end), 5):
                page.draw.point((dot, base + 3), fill=sheet.ink)
        if not empty:
            font = sheet.font(hand=True)
            while value and length(font, value) > end - start - 6:
                value = value[:-1].rstrip()
            sheet.put(start + 2, value, ink=sheet.blue, hand=True)
            values[name] = value
            page.fact(value, f"What is written under {label}?" if two else f"What does the field {label} say?")
        if two:
            sheet.y -= sheet.size * 1.1
            if number % 2 or number == len(fields) - 1:
                sheet.y += sheet.pitch * 2.2
            page.row()
        else:
            sheet.y += step
            page.row()
    if two:
        page.read_rows = False  # labels and values stand in two columns: rows are not lines
    page.fact(str(len(fields)), "How many fields does the form have?")
    page.may = tuple(name for name, _ in _FORM) + ("company", "total")
    page.caption = f"A form: {values['title']}."
    return sheet.done()


def _invoice(rng, phrases, faces, layout, max_side) -> Page:
    sheet = _Sheet(rng, faces, layout, "invoice", max_side)
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
    values["recipient"] = sheet.line(rng.choice((person, company_name))(rng, phrases))
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
    )
    page.caption = f"An invoice from {values['company']} to {values['recipient']}, total {values['total']}."
    return sheet.done()


def _note(rng, phrases, faces, layout, max_side) -> Page:
    sheet = _Sheet(rng, faces, layout, "note", min(max_side, 560), mono=0.1, fancy=0.45)
    page, values = sheet.page, sheet.page.values
    to, sender = person(rng, phrases), person(rng, phrases)
    if layout in ("memo", "card"):
        values["title"] = sheet.line(
            rng.choice(("MEMO", "Memo", "Message", "NOTICE", "While you were out")), "m", True, 1.2
        )
        rows = [
            ("recipient", "To", to),
            ("sender", "From", sender),
            ("date", "Date", date_text(rng)),
            ("time", "Time", time_text(rng)),
            ("subject", "Subject", phrases.sentence(rng, 8, 24).rstrip(".!?")),
            ("phone", "Phone", phone_text(rng)),
        ]
        for name, label, value in rng.sample(rows, rng.randint(3, 6)):
            sheet.put(sheet.left, f"{label}:")
            values[name] = sheet.put(sheet.left + sheet.size * 5, value)
            sheet.next()
        sheet.rule()
        sheet.paragraph(" ".join(phrases.sentence(rng, 15, 60) for _ in range(rng.randint(1, 3))))
    elif layout == "slip":
        title = rng.choice(("Shopping list", "To do", "Packing list", "Inventory", "Menu", "Agenda"))
        values["title"] = sheet.line(title, "l", True, 1.15)
        mark = rng.choice(("- ", "", "* ", "{n}. ", "[ ] "))
        items = list(dict.fromkeys(goods_name(rng, phrases) for _ in range(rng.randint(2, 9))))
        printed = [
            sheet.line(mark.format(n=n) + item).removeprefix(mark.format(n=n)) for n, item in enumerate(items, 1)
        ]
        for n, item in enumerate(printed[:6]):
            page.fact(
                item,
                f"What is the {('first', 'second', 'third', 'fourth', 'fifth', 'sixth')[n]} item?",
                f"What is item {n + 1}?",
            )
        page.fact(printed[-1], "What is the last item?")
        page.fact(str(len(items)), "How many items are on the list?", "How many entries are there?")
    else:
        if rng.random() < 0.6:
            values["date"] = sheet.line(date_text(rng), rng.choice("lr"))
        values["recipient"] = to
        sheet.line(f"{rng.choice(('Dear', 'Hi', 'Hello', 'To'))} {to},")
        if rng.random() < 0.6:
            time, place = (
                time_text(rng),
                f"{rng.choice(('the', 'our'))} {rng.choice(_PLACES.split())}",
            )
            text = rng.choice(
                ("Please meet me at {p} at {t}.", "I shall wait at {p} from {t}.", "See you at {p}, {t}.")
            ).format(p=place, t=time)
            sheet.paragraph(text)
            values |= {"time": time, "place": place}
        sheet.paragraph(" ".join(phrases.sentence(rng, 15, 70) for _ in range(rng.randint(1, 2))))
        sheet.line(rng.choice(("Best wishes,", "Yours,", "Love,", "Thanks,", "See you soon,")))
        values["sender"] = sheet.line(sender)
    page.may = (
        "sender", "recipient", "date", "time", "place", "phone", "title", "subject", "email", "total", "company",
    )
    page.caption = {"slip": "A list.", "memo": "A memo.", "card": "A message."}.get(layout, f"A note to {to}.")
    return sheet.done()
