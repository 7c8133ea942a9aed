"""Pictures of labelled values: cards, tags, forms, lists of settings. Every label may be asked for, there or not.

What can be confused is kept apart: a label is asked for in vain only where none that could be meant by the same words
is printed ("date" is not, where a "Date of birth" stands). Some labels are odd words with odd values, so that labels
have to be read rather than known.
"""

import random
import string
from collections.abc import Callable

from mmvl.data.corpus import Phrases
from mmvl.data.invented import address_lines, company_name, date_text, digits, money, phone_text, proper, time_text
from mmvl.data.page import Faces, Page, length

LAYOUTS = ("lines", "aligned", "dotted", "under", "boxed", "ruled", "pairs")
HELD_OUT_LAYOUTS = ("right", "chips")

Value = Callable[[random.Random, Phrases], str]


def _person(rng: random.Random, phrases: Phrases) -> str:
    return f"{proper(rng, phrases)} {proper(rng, phrases)}"


def _amount(rng: random.Random, phrases: Phrases) -> str:
    sign = rng.choice(("", "", "$", "EUR ", "RM "))
    return sign + money(rng.choice((rng.randint(50, 9999), rng.randint(1000, 999999))), rng.random() < 0.3)


def _code(rng: random.Random, phrases: Phrases) -> str:
    letters = "".join(rng.choice(string.ascii_uppercase) for _ in range(rng.randint(1, 3)))
    number = digits(rng, 2, 6)
    return rng.choice((f"{letters}-{number}", f"{letters}{number}", number, f"{letters} {number}"))


def _number(low: int, high: int, *units: str) -> Value:
    def value(rng: random.Random, phrases: Phrases) -> str:
        unit = rng.choice(units) if units else ""
        text = str(rng.randint(low, high)) if rng.random() < 0.6 else f"{rng.randint(10 * low, 10 * high) / 10}"
        return f"{text} {unit}".strip() if unit != "%" else f"{text}%"

    return value


def _one_of(options: str) -> Value:
    return lambda rng, phrases: rng.choice(options.split("|"))


def _mail(rng: random.Random, phrases: Phrases) -> str:
    name = rng.choice((proper(rng, phrases), rng.choice(("info", "office", "contact", "sales")))).lower()
    return f"{name}@{proper(rng, phrases).lower()}.{rng.choice(('com', 'org', 'net', 'co.uk', 'my'))}"


def _site(rng: random.Random, phrases: Phrases) -> str:
    return f"www.{proper(rng, phrases).lower()}.{rng.choice(('com', 'org', 'net'))}"


def _street(rng: random.Random, phrases: Phrases) -> str:
    if rng.random() < 0.5:
        return address_lines(rng, phrases)[0].rstrip(",")
    return f"{rng.randint(1, 199)} {proper(rng, phrases)} {rng.choice(('Street', 'Road', 'Lane', 'Avenue', 'Close'))}"


def _words(rng: random.Random, phrases: Phrases) -> str:
    return phrases.fragment(rng, rng.randint(1, 4))[:28]


def _word(rng: random.Random, phrases: Phrases) -> str:
    return proper(rng, phrases)


def _date(rng: random.Random, phrases: Phrases) -> str:
    return date_text(rng, rng.random() < 0.8)


def _time(rng: random.Random, phrases: Phrases) -> str:
    return f"{rng.randint(0, 23)}:{rng.randint(0, 59):02d}" if rng.random() < 0.4 else time_text(rng)


_COLOURS = "red|blue|green|black|white|grey|yellow|brown|orange|purple|pink|dark green|light blue|silver|navy|beige"

# Field: (labels as printed, value, further ways of asking). A label is asked for by its own words as well.
FIELDS: dict[str, tuple[tuple[str, ...], Value, tuple[str, ...]]] = {
    "name": (("Name", "Full name"), _person, ("What is the person's name?", "Who is it?")),
    "company": (("Company", "Firm", "Employer"), company_name, ("Which company is given?",)),
    "date": (("Date",), _date, ("What date is given?",)),
    "birth date": (("Date of birth", "Birth date", "Born"), _date, ("When was the person born?",)),
    "due date": (("Due date", "Due"), _date, ("When is it due?",)),
    "start": (("Start date", "From"), _date, ("When does it start?",)),
    "expiry": (("Expiry", "Expires", "Valid until"), _date, ("When does it expire?",)),
    "time": (("Time",), _time, ("At what time is it?", "What time is given?")),
    "opening": (("Opens at", "Opening"), _time, ("When does it open?",)),
    "total": (("Total", "Total due"), _amount, ("How much is the total?", "What is the total amount?")),
    "price": (("Price", "Unit price"), _amount, ("How much does it cost?",)),
    "deposit": (("Deposit",), _amount, ("How much is the deposit?",)),
    "tax": (("Tax", "VAT", "GST"), _amount, ("How much is the tax?",)),
    "balance": (("Balance",), _amount, ("How much is the balance?",)),
    "fee": (("Fee",), _amount, ("How much is the fee?",)),
    "discount": (("Discount",), _number(1, 60, "%"), ("How much is the discount?",)),
    "phone": (("Phone", "Tel", "Telephone", "Mobile"), lambda r, p: phone_text(r), ("What is the phone number?",)),
    "fax": (("Fax",), lambda r, p: phone_text(r), ("What is the fax number?",)),
    "email": (("Email", "E-mail", "Mail"), _mail, ("What is the e-mail address?",)),
    "website": (("Website", "Web"), _site, ("What is the web address?",)),
    "address": (("Address", "Street"), _street, ("What is the street address?",)),
    "city": (("City", "Town"), _word, ("Which city is given?",)),
    "country": (("Country",), _one_of("France|Kenya|Peru|Japan|Norway|India|Chile|Canada"), ("Which country is it?",)),
    "postcode": (("Postcode", "Postal code", "ZIP"), lambda r, p: digits(r, 5, 5), ("What is the postal code?",)),
    "colour": (("Colour", "Color"), _one_of(_COLOURS), ("What colour is given?", "Which colour is it?")),
    "weight": (("Weight", "Net weight"), _number(1, 900, "g", "kg", "t", "lb"), ("How heavy is it?",)),
    "height": (("Height",), _number(1, 300, "cm", "m", "mm"), ("How high is it?",)),
    "length": (("Length",), _number(1, 300, "cm", "m", "mm", "km"), ("How long is it?",)),
    "width": (("Width",), _number(1, 300, "cm", "m", "mm"), ("How wide is it?",)),
    "size": (("Size",), _one_of("S|M|L|XL|36|38|40|42|A4|A5|small|medium|large"), ("Which size is it?",)),
    "volume": (("Volume", "Content"), _number(1, 900, "ml", "l", "cl"), ("How much is in it?",)),
    "temperature": (("Temperature",), _number(1, 99, "C", "F"), ("How warm is it?",)),
    "speed": (("Speed",), _number(5, 300, "km/h", "mph", "rpm"), ("How fast is it?",)),
    "power": (("Power",), _number(5, 3000, "W", "kW", "hp"), ("How much power does it have?",)),
    "room": (("Room",), _code, ("Which room is it?",)),
    "seat": (("Seat",), _code, ("Which seat is it?",)),
    "gate": (("Gate",), _code, ("Which gate is it?",)),
    "floor": (("Floor",), _number(1, 40), ("On which floor is it?",)),
    "order": (("Order", "Order no."), _code, ("What is the order number?",)),
    "invoice": (("Invoice", "Invoice no."), _code, ("What is the invoice number?",)),
    "customer": (("Customer", "Client"), _person, ("Who is the customer?",)),
    "account": (("Account",), lambda r, p: digits(r, 6, 10), ("What is the account number?",)),
    "serial": (("Serial no.", "Serial number"), _code, ("What is the serial number?",)),
    "model": (("Model",), _code, ("Which model is it?",)),
    "version": (("Version",), lambda r, p: f"{r.randint(0, 12)}.{r.randint(0, 20)}", ("Which version is it?",)),
    "quantity": (("Quantity", "Qty"), _number(1, 500), ("How many are there?",)),
    "age": (("Age",), _number(1, 99), ("How old is the person?",)),
    "department": (("Department", "Dept"), _one_of("Sales|Finance|Research|Legal|Support"), ("Which department?",)),
    "job": (("Job", "Occupation"), _one_of("Nurse|Teacher|Driver|Clerk|Cook|Pilot|Baker"), ("What job is it?",)),
    "manager": (("Manager",), _person, ("Who is the manager?",)),
    "doctor": (("Doctor",), _person, ("Who is the doctor?",)),
    "driver": (("Driver",), _person, ("Who is the driver?",)),
    "owner": (("Owner",), _person, ("Who is the owner?", "Who owns it?")),
    "author": (("Author",), _person, ("Who is the author?", "Who wrote it?")),
    "publisher": (("Publisher",), company_name, ("Who is the publisher?",)),
    "subject": (("Subject", "Re"), _words, ("What is it about?",)),
    "status": (("Status",), _one_of("open|closed|paid|pending|active|cancelled|shipped"), ("What status is it in?",)),
    "language": (("Language",), _one_of("English|French|Malay|German|Spanish|Hindi"), ("Which language is it?",)),
    "material": (("Material",), _one_of("cotton|steel|oak|glass|wool|plastic|leather|brass"), ("What is it made of?",)),
    "score": (("Score",), _number(0, 100), ("Which score was reached?",)),
    "class": (("Class",), _code, ("Which class is it?",)),
    "year": (("Year",), lambda r, p: str(r.randint(1900, 2030)), ("Which year is it?",)),
    "place": (("Place", "Location", "Venue"), _word, ("Where is it?",)),
    "distance": (("Distance",), _number(1, 900, "km", "m", "miles"), ("How far is it?",)),
    "duration": (("Duration",), _number(1, 90, "min", "h", "days", "weeks"), ("How long does it take?",)),
    "batch": (("Batch", "Lot"), _code, ("What is the batch number?",)),
    "note": (("Note", "Remarks"), _words, ("What does the note say?",)),
}  # fmt: skip

# Where one of these is printed, another of the same set could be meant.
_ALIKE = (
    {"date", "birth date", "due date", "start", "expiry", "year"},
    {"total", "price", "fee", "balance", "deposit"},
    {"time", "opening", "duration"},
    {"address", "place", "city", "country"},
    {"name", "company", "publisher", "customer", "owner", "author", "driver", "doctor", "manager"},
    {"order", "invoice", "account", "serial", "batch", "model", "version"},
    {"size", "length", "height", "width", "volume", "distance"},
    {"note", "subject"}, {"room", "class", "floor"},
)  # fmt: skip


def _ask(label: str, ways: tuple[str, ...], rng: random.Random) -> list[str]:
    """Wordings that name the label as printed, and the field's own."""
    plain = label.rstrip(".").lower() if label.isascii() and not label.isupper() else label
    forms = (f"What is the {plain}?", f"What is the {plain}?", f"Which {plain} is given?", f"What {plain} is stated?",
             f'What is written for "{label}"?', f"{label}?", f"What is the value of {plain}?")  # fmt: skip
    asked = [rng.choice(forms), rng.choice(forms), rng.choice(ways) if ways else forms[0]]
    return [way.lower() if rng.random() < 0.3 else way for way in asked]


def draw_labelled(rng: random.Random, phrases: Phrases, faces: Faces, layouts=LAYOUTS, max_side: int = 560) -> Page:
    """2 to 10 labelled values on a picture of their size, no side over max_side; type of 11 to 30 pixels."""
    names = rng.sample(sorted(FIELDS), rng.randint(2, 9))
    fields: list[tuple[str, str, tuple[str, ...]]] = []
    for name in names:
        labels, value, ways = FIELDS[name]
        fields.append((rng.choice(labels), " ".join(value(rng, phrases).split())[:34], ways))
    odd = [phrases.word(rng).capitalize()[:14] for _ in range(4)]
    odd = [w for w in dict.fromkeys(odd) if w.isalpha() and len(w) > 3 and w.lower() not in FIELDS]
    for word in odd[: rng.choice((0, 0, 1, 2)) if len(odd) > 2 else 0]:
        fields.insert(rng.randint(0, len(fields)), (word, rng.choice((_code, _words, _amount))(rng, phrases), ()))
    if rng.random() < 0.1:
        fields = [(label.upper(), value, ways) for label, value, ways in fields]
    page = _draw(rng, fields, rng.choice(layouts), faces, phrases, max_side)
    shown = {label.lower() for label, _, _ in fields}
    values = [value for _, value, _ in fields]
    for label, value, ways in fields:
        page.fact(value, *_ask(label, ways, rng), field=True)
        if values.count(value) == 1:
            page.fact(label, f'Which label stands at "{value}"?', f"What is {value}?")
    page.fact(str(len(fields)), "How many fields are there?", "How many labels are there?")
    for name, (labels, _, ways) in FIELDS.items():
        near = {name}.union(*(group for group in _ALIKE if name in group))
        # "What is the due date?" has no answer where only a date is printed; "What is the date?" may have.
        free = not near & set(names) or (" " in name and name not in names)
        if free and not any(label.lower() in said or said in label.lower() for label in labels for said in shown):
            own = () if near & set(names) else ways
            page.absent += _ask(rng.choice(labels), own, rng)[: 2 if own else 1]
    rng.shuffle(page.absent)
    page.absent = page.absent[:12] + [_ask(word, (), rng)[0] for word in odd if word.lower() not in shown]
    page.caption = rng.choice(("A card with ", "A list of labelled values: ", "A form with ")) + ", ".join(
        label for label, _, _ in fields
    )
    return page


def _draw(rng: random.Random, fields, layout: str, faces: Faces, phrases: Phrases, max_side: int) -> Page:
    face, size = faces.pick(rng, mono=0.15, fancy=0.05), round(11 * (30 / 11) ** rng.random())
    bold, end = rng.random() < 0.4, rng.choice((":", ":", ":", "", " -", " ="))
    if layout in ("under", "boxed", "ruled", "chips"):
        end = rng.choice(("", "", ":"))
    title = phrases.fragment(rng, rng.randint(1, 3))[:24] if rng.random() < 0.35 else ""
    columns = 2 if layout == "pairs" or (layout in ("under", "boxed") and len(fields) > 3 and rng.random() < 0.6) else 1
    while True:
        head, font = face(size, bold), face(size)
        label_width = max(length(head, label + end) for label, _, _ in fields)
        value_width = max(length(font, value) for _, value, _ in fields)
        beside = layout not in ("under", "boxed")
        cell = (label_width + size + value_width if beside else max(label_width, value_width)) + 1.5 * size
        width = columns * cell + 2 * size
        step = round(size * (rng.uniform(1.3, 1.9) if beside else 2.9))
        rows = -(-len(fields) // columns)
        height = rows * step + 2.2 * size + (1.8 * size if title else 0)
        if max(width, height) <= max_side or size <= 11:
            break
        size = max(11, min(size - 1, round(size * max_side / max(width, height))))
    shade = rng.choice((255, 255, 250, 240))
    ink = rng.choice(((0, 0, 0), (30, 30, 30), (20, 30, 80), (60, 60, 60)))
    soft = ink if rng.random() < 0.6 else (110, 110, 110)
    page = Page.blank(round(width), round(height), "form", layout, (255, 255, shade))
    page.whole = (
        ("Read the text.", "Transcribe the document.", "What does it say?", "Write down all the text."),
        "",
    )
    y = 1.1 * size
    if title:
        page.row()
        page.print(size, y + size * 0.8, title, face(round(size * 1.15), True), "l", ink)
        y += 1.8 * size
    said = [title] if title else []
    for n, (label, value, _) in enumerate(fields):
        row, column = divmod(n, columns)
        x, top = size + column * cell, y + row * step
        base = top + size * 0.9
        if not column or not beside:
            page.row()
        if layout == "boxed":
            page.draw.rectangle((x - 4, top - 4, x + cell - 10, top + step - 8), outline=(130, 130, 130))
        elif layout == "ruled":
            page.draw.line(
                (size * 0.6, top + step - 0.3 * size, width - size * 0.6, top + step - 0.3 * size), fill=(150,) * 3
            )
        elif layout == "chips":
            page.draw.rounded_rectangle(
                (x - 4, top - 2, x + length(head, label + end) + 4, top + size + 4), 4, fill=(222, 228, 236)
            )
        if layout == "right":
            page.print(x + label_width, base, label + end, head, "r", soft)
        else:
            page.print(x, base, label + end, head, "l", soft)
        if not beside:
            page.row()
            page.print(x, base + 1.25 * size, value, font, "l", ink)
            said += [label + end, value]
            continue
        aligned = layout in ("aligned", "ruled", "right", "pairs")
        start = (
            x + (label_width if aligned else length(head, label + end)) + size * (0.8 if aligned or not end else 0.35)
        )
        if layout == "dotted":
            right = size + label_width + size + value_width
            page.print(right, base, value, font, "r", ink)
            dots, space = length(font, "."), right - length(font, value) - start - 0.6 * size
            page.draw.text(
                (start + 0.2 * size, base), "." * max(0, int(space / dots)), font=font, fill=soft, anchor="ls"
            )
        else:
            page.print(start, base, value, font, "l", ink)
        text = f"{label}{end} {value}"
        if column:
            said[-1] += " " + text
        else:
            said.append(text)
    page.read_rows = columns == 1
    page.whole = (page.whole[0], "\n".join(said))
    return page
