"""Invents and draws forms of labelled fields, ruled, boxed or dotted, some of them left empty."""

import random

from mmvl.data.corpus import Phrases
from mmvl.data.invented import address_lines, date_text, digits, person_name, phone_text, proper
from mmvl.data.page import Faces, Page, length
from mmvl.data.sheet import Sheet

LAYOUTS = ("ruled-form", "boxed-form", "dotted-form")
HELD_OUT_LAYOUTS = ("two-column-form",)

_TITLES = (
    "Application form", "Registration", "Patient record", "Membership application", "Customer details", "Visitor form",
    "Enrolment form", "Change of details", "Library card", "Insurance claim",
)  # fmt: skip
_JOBS = (
    "Teacher Nurse Engineer Driver Baker Clerk Lawyer Farmer Painter Plumber Student Manager Cook Architect Librarian"
)
_NATIONS = (
    "British French German Malaysian Indian Kenyan Brazilian Canadian Japanese Polish Turkish Irish Dutch Chilean"
)
_COUNTRIES = (
    "France Germany Malaysia India Kenya Brazil Canada Japan Poland Turkey Ireland Chile Norway Spain Ghana Peru"
)

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
        "name": lambda: person_name(rng, phrases),
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


def draw_form(rng: random.Random, phrases: Phrases, faces: Faces, layout: str, max_side: int) -> Page:
    """A form of 3 to 10 fields."""
    sheet = Sheet(rng, faces, layout, "form", max_side)
    page, values = sheet.page, sheet.page.values
    title = rng.choice(_TITLES)
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
            asked = f"What is written under {label}?" if two else f"What does the field {label} say?"
            page.fact(value, asked, field=True)
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
