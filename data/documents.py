"""Invents short documents: their lines, and the facts that can be asked about them. Drawing: render_documents.py."""

import random
import string
from dataclasses import dataclass, field

from mmvl.data.corpus import Phrases

_FIRST = """Anna Ben Clara David Emma Felix Grace Henry Ida James Kate Leo Maria Noah Olivia Paul Quinn Rosa Sam Tara
Umar Vera Walter Xenia Yusuf Zoe Alice Boris Carmen Dmitri Elena Farid Greta Hugo Irene Jonas Kenji Laura Mei Nadia
Oscar Priya Rahul Sofia Tom Ursula Victor Wendy Ali Bruno Chen Dana Erik Fatima Gina Hana Ivan Julia Karl""".split()
_LAST = """Smith Jones Brown Taylor Wilson Evans Thomas Johnson Roberts Walker Wright Thompson White Hughes Edwards
Green Hall Wood Harris Lewis Martin Jackson Clarke Turner Hill Cooper Morris Ward Moore Clark Lee King Baker Allen Scott
Nguyen Garcia Silva Kim Patel Novak Rossi Meyer Weber Fischer Larsen Petrov Tanaka Costa Dubois""".split()
_TOWNS = """London Paris Berlin Madrid Rome Vienna Oslo Dublin Boston Austin Denver Seattle Toronto Sydney Kyoto Lima
Prague Lisbon Athens Bristol York Leeds Oxford Geneva Hamburg Porto Turin Lyon Bergen Malmo""".split()
_STREETS = "High Street|Station Road|Park Avenue|Mill Lane|Church Street|Oak Drive|King Street|Green Lane|Main Street"
_GOODS = """Apples Bread Milk Butter Cheese Eggs Coffee Tea Sugar Rice Pasta Soup Salad Sandwich Juice Water Cake
Cookies Soap Towel Candle Notebook Pencil Stapler Paper Envelope Batteries Lamp Cable Umbrella Socks Gloves Shampoo
Honey Tomatoes Potatoes Onions Carrots Bananas Lemons Chicken Salmon Yoghurt Flour Salt Pepper Olives""".split()
_SHOPS = "Market|Store|Bakery|Cafe|Books|Grocers|Pharmacy|Hardware|Bistro|Supplies|Outlet|Corner Shop|Kitchen|Deli"
_PLACES = "the station|the library|the office|the cafe|the park|the museum|the market|the school|the harbour|the cinema"
_EVENTS = "Concert|Football Match|Theatre Play|Train to {town}|Flight to {town}|Film Night|Jazz Evening|Boat Trip"
_MONTHS = """January February March April May June July August September October November December""".split()


@dataclass
class Line:
    """One printed line. `right` stands at the right margin (a price); `big` is set larger; align: left or centre."""

    left: str
    right: str = ""
    big: bool = False
    align: str = "left"

    @property
    def text(self) -> str:
        return f"{self.left} {self.right}".strip()


@dataclass
class Document:
    """Lines in reading order, and `facts`: (ways of asking, answer)."""

    kind: str
    lines: list[Line] = field(default_factory=list)
    facts: list[tuple[tuple[str, ...], str]] = field(default_factory=list)

    def fact(self, answer: str, *questions: str) -> None:
        self.facts.append((questions, answer))


def invent(rng: random.Random, phrases: Phrases) -> Document:
    """A document of a random kind, 2 to 10 lines."""
    return rng.choice((_note, _note, _receipt, _receipt, _letterhead, _label, _ticket, _list, _paragraph))(rng, phrases)


def _choice(rng: random.Random, options: str) -> str:
    return rng.choice(options.split("|"))


def _first(rng: random.Random, phrases: Phrases) -> str:
    # A quarter are names nobody has: they have to be read, not guessed.
    return phrases.word(rng).capitalize()[:12] if rng.random() < 0.25 else rng.choice(_FIRST)


def _name(rng: random.Random, phrases: Phrases) -> str:
    last = phrases.word(rng).capitalize()[:12] if rng.random() < 0.25 else rng.choice(_LAST)
    return f"{_first(rng, phrases)} {last}"


def _town(rng: random.Random, phrases: Phrases) -> str:
    return phrases.word(rng).capitalize()[:12] if rng.random() < 0.2 else rng.choice(_TOWNS)


def _date(rng: random.Random) -> str:
    day, month, year = rng.randint(1, 28), rng.randint(1, 12), rng.randint(1985, 2035)
    name = _MONTHS[month - 1]
    return rng.choice((f"{year}-{month:02d}-{day:02d}", f"{day:02d}/{month:02d}/{year}", f"{name} {day}, {year}",
                       f"{day} {name} {year}", f"{day}.{month}.{year}", f"{day} {name[:3]} {year}"))  # fmt: skip


def _time(rng: random.Random) -> str:
    if rng.random() < 0.5:
        return f"{rng.randint(0, 23)}:{rng.choice((0, 15, 30, 45, rng.randint(0, 59))):02d}"
    return f"{rng.randint(1, 12)}:{rng.choice((0, 30, rng.randint(0, 59))):02d} {rng.choice(('am', 'pm'))}"


def _digits(rng: random.Random, shortest: int, longest: int) -> str:
    return "".join(rng.choice(string.digits) for _ in range(rng.randint(shortest, longest)))


def _code(rng: random.Random) -> str:
    letters = "".join(rng.choice(string.ascii_uppercase) for _ in range(rng.randint(1, 3)))
    return rng.choice((f"{letters}-{_digits(rng, 2, 5)}", f"{letters}{_digits(rng, 2, 5)}", _digits(rng, 3, 6)))


def _note(rng: random.Random, phrases: Phrases) -> Document:
    doc = Document("note")
    to, sender, date, time = _first(rng, phrases), _first(rng, phrases), _date(rng), _time(rng)
    place = _choice(rng, _PLACES)
    if rng.random() < 0.6:
        doc.lines.append(Line("", date) if rng.random() < 0.5 else Line(date))
        doc.fact(date, "What is the date?", "When was the note written?", "What date is on the note?")
    greeting = rng.choice(("Dear", "Hi", "Hello", "To"))
    doc.lines.append(Line(f"{greeting} {to},"))
    doc.fact(to, "Who is the note for?", "To whom is the note addressed?", "Who should read this?")
    if rng.random() < 0.7:
        verb = rng.choice(("Meet me at", "Please come to", "See you at", "Let us meet at"))
        doc.lines += [Line(f"{verb} {place}"), Line(f"at {time}.")]
        doc.fact(time, "At what time?", "What time is the meeting?", "When do they meet?")
        doc.fact(place, "Where do they meet?", "What is the place?")
    if rng.random() < 0.3:
        number = f"{rng.randint(200, 999)} {_digits(rng, 4, 4)}"
        doc.lines.append(Line(f"Call me: {number}"))
        doc.fact(number, "What is the phone number?", "Which number should be called?")
    for _ in range(rng.randint(0, 2)):
        doc.lines.append(Line(phrases.sentence(rng, 8, 34)))
    doc.lines += [Line(rng.choice(("Best wishes,", "Yours,", "Love,", "See you soon,", "Thanks,")))] * (
        rng.random() < 0.6
    )
    doc.lines.append(Line(sender) if rng.random() < 0.6 else Line(f"- {sender}"))
    doc.fact(sender, "Who wrote the note?", "Who signed it?", "From whom is the note?")
    return doc


def _receipt(rng: random.Random, phrases: Phrases) -> Document:
    doc = Document("receipt")
    shop = f"{rng.choice((_first(rng, phrases) + chr(39) + 's', _town(rng, phrases)))} {_choice(rng, _SHOPS)}"
    shop = shop.upper() if rng.random() < 0.4 else shop
    doc.lines.append(Line(shop, big=True, align="centre"))
    doc.fact(shop, "What is the name of the shop?", "Which shop is it?", "Where was this bought?")
    if rng.random() < 0.7:
        date = _date(rng)
        doc.lines.append(Line(rng.choice(("Date:", "", "")), date) if rng.random() < 0.5 else Line(date))
        doc.fact(date, "What is the date?", "When was this bought?", "What is the date on the receipt?")
    if rng.random() < 0.3:
        number = _code(rng)
        doc.lines.append(Line(rng.choice(("Receipt", "No.", "Order")), number))
        doc.fact(number, "What is the number of the receipt?", "What is the order number?")
    sign, cents = rng.choice(("$", "$", "", "EUR ")), 0
    goods = rng.sample(_GOODS, rng.randint(1, 4))
    for good in goods:
        price = rng.choice((rng.randint(50, 999), rng.randint(100, 4999)))
        cents += price
        doc.lines.append(Line(good, f"{sign}{price / 100:.2f}"))
        doc.fact(f"{sign}{price / 100:.2f}", f"How much is the {good.lower()}?", f"What is the price of {good}?",
                 f"What does {good} cost?")  # fmt: skip
    doc.fact(str(len(goods)), "How many items were bought?", "How many items are there?")
    if rng.random() < 0.3:
        tax = round(cents * rng.choice((0.05, 0.07, 0.1, 0.2)))
        cents += tax
        doc.lines.append(Line("Tax", f"{sign}{tax / 100:.2f}"))
        doc.fact(f"{sign}{tax / 100:.2f}", "How much is the tax?", "What is the tax?")
    total = f"{sign}{cents / 100:.2f}"
    doc.lines.append(Line(rng.choice(("Total", "TOTAL", "Total:", "Amount due")), total, big=rng.random() < 0.3))
    doc.facts += [(("What is the total?", "How much was paid?", "What is the total amount?"), total)] * 2
    if rng.random() < 0.4:
        doc.lines.append(Line(rng.choice(("Thank you!", "Please come again", "Paid by card", "CASH")), align="centre"))
    return doc


def _letterhead(rng: random.Random, phrases: Phrases) -> Document:
    doc = Document("letter")
    company = f"{rng.choice(_LAST)} {rng.choice(('& Sons', 'Ltd', 'Inc.', 'GmbH', 'Partners', 'Consulting', 'Group'))}"
    doc.lines.append(Line(company, big=True, align=rng.choice(("left", "centre"))))
    doc.fact(company, "Which company is it?", "What is the name of the company?", "Who sent the letter?")
    street = f"{rng.randint(1, 199)} {_choice(rng, _STREETS)}"
    town = f"{_town(rng, phrases)} {_digits(rng, 4, 5)}"
    doc.lines += [Line(street), Line(town)]
    doc.fact(f"{street}, {town}", "What is the address?")
    doc.fact(street, "What is the street?", "In which street is the company?")
    if rng.random() < 0.5:
        phone = f"{_digits(rng, 3, 3)}-{_digits(rng, 4, 4)}"
        doc.lines.append(Line(f"{rng.choice(('Tel.', 'Phone:', 'T:'))} {phone}"))
        doc.fact(phone, "What is the phone number?", "What is the telephone number?")
    if rng.random() < 0.4:
        mail = f"{rng.choice(('info', 'office', 'mail', 'hello'))}@{company.split()[0].lower()}.com"
        doc.lines.append(Line(mail))
        doc.fact(mail, "What is the e-mail address?", "What is the email?")
    if rng.random() < 0.7:
        date = _date(rng)
        doc.lines.append(Line(f"Date: {date}"))
        doc.fact(date, "What is the date?", "When was the letter written?")
    if rng.random() < 0.5:
        ref = _code(rng)
        doc.lines.append(Line(f"{rng.choice(('Ref.', 'Reference:', 'Our ref:'))} {ref}"))
        doc.fact(ref, "What is the reference?", "What is the reference number?")
    if rng.random() < 0.7:
        to = _name(rng, phrases)
        doc.lines.append(Line(f"{rng.choice(('Dear', 'To:', 'Attn:'))} {to}"))
        doc.fact(to, "Who is the letter for?", "To whom is the letter addressed?")
    return doc


def _label(rng: random.Random, phrases: Phrases) -> Document:
    doc = Document("label")
    brand = f"{phrases.word(rng).capitalize()[:12]} " if rng.random() < 0.6 else ""
    product = brand + rng.choice(_GOODS)
    doc.lines.append(Line(product, big=True, align="centre"))
    doc.fact(product, "What is the product?", "What is the name of the product?", "What does the label name?")
    weight = f"{rng.choice((rng.randint(1, 20), rng.randint(1, 40) * 25))} {rng.choice(('g', 'kg', 'ml', 'oz'))}"
    price = f"{rng.choice(('$', '$', 'EUR '))}{rng.randint(1, 99)}.{rng.randint(0, 99):02d}"
    fields = [
        ("Net weight:", weight, ("What is the net weight?", "How much does it weigh?")),
        ("Price:", price, ("What is the price?", "How much does it cost?")),
        ("Best before:", _date(rng), ("What is the best before date?", "Until when is it good?")),
        ("Lot:", _code(rng), ("What is the lot number?", "What is the lot?")),
        ("Made in", _town(rng, phrases), ("Where was it made?", "Where does it come from?")),
        ("Item no.", _code(rng), ("What is the item number?",)),
    ]
    for name, value, questions in rng.sample(fields, rng.randint(1, 4)):
        apart = rng.random() < 0.3
        doc.lines.append(Line(name, value) if apart else Line(f"{name} {value}"))
        doc.fact(value, *questions)
    return doc


def _ticket(rng: random.Random, phrases: Phrases) -> Document:
    doc = Document("ticket")
    event = _choice(rng, _EVENTS).format(town=_town(rng, phrases))
    doc.lines.append(Line(event, big=True, align=rng.choice(("left", "centre"))))
    doc.fact(event, "What is the ticket for?", "What is the event?")
    fields = [
        ("Date:", _date(rng), ("What is the date?", "On which day is it?")),
        ("Time:", _time(rng), ("What time does it start?", "What is the time?")),
        (
            "Seat:",
            f"{rng.randint(1, 60)}{rng.choice(string.ascii_uppercase[:8])}",
            ("Which seat is it?", "What is the seat?"),
        ),  # fmt: skip
        ("Gate:", rng.choice(string.ascii_uppercase) + str(rng.randint(1, 30)), ("What is the gate?", "Which gate?")),
        ("Name:", _name(rng, phrases), ("Who is the ticket for?", "What is the name?", "Whose ticket is it?")),
        (
            "Price:",
            f"${rng.randint(2, 300)}.{rng.choice(('00', '50', '99'))}",
            ("What is the price?", "How much is the ticket?"),
        ),  # fmt: skip
        ("Row:", str(rng.randint(1, 40)), ("Which row is it?", "What is the row?")),
    ]
    for name, value, questions in rng.sample(fields, rng.randint(2, 5)):
        doc.lines.append(Line(f"{name} {value}"))
        doc.fact(value, *questions)
    return doc


_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")


def _list(rng: random.Random, phrases: Phrases) -> Document:
    doc = Document("list")
    title = rng.choice(("Shopping list", "To buy", "To do", "List", "Please bring", "Packing list", "Inventory"))
    doc.lines.append(Line(title, big=rng.random() < 0.5))
    doc.fact(title, "What is the title?", "What is the heading?")
    mark = rng.choice(("- ", "* ", "", "{n}. ", "{n}) "))
    items = rng.sample(_GOODS, rng.randint(2, 6))
    if rng.random() < 0.4:
        items = [phrases.word(rng).lower() for _ in items]
    for n, item in enumerate(items, 1):
        doc.lines.append(Line(mark.format(n=n) + item))
        doc.fact(item, f"What is the {_ORDINALS[n - 1]} item?", f"What is item {n}?")
    doc.fact(items[-1], "What is the last item?", "What comes last?")
    doc.fact(str(len(items)), "How many items are on the list?", "How many items are there?")
    return doc


def _paragraph(rng: random.Random, phrases: Phrases) -> Document:
    doc = Document("text")
    words = phrases.fragment(rng, rng.randint(6, 40)).split()
    width, line = rng.randint(18, 34), ""
    for word in words:
        if line and len(line) + 1 + len(word) > width:
            doc.lines.append(Line(line))
            line = word
        else:
            line = f"{line} {word}".strip()
    doc.lines.append(Line(line))
    del doc.lines[10:]
    return doc


def questions(doc: Document, rng: random.Random, fewest: int = 2, most: int = 5) -> list[tuple[str, str]]:
    """Between `fewest` and `most` different (question, answer) about a document, whole transcription among them."""
    pool = [(rng.choice(ways), answer) for ways, answer in doc.facts]
    rng.shuffle(pool)
    lines = [line.text for line in doc.lines]
    at = rng.randrange(min(len(lines), len(_ORDINALS)))
    extra = [
        (f"What is the {_ORDINALS[at]} line?", lines[at]),
        ("What is the last line?", lines[-1]),
        ("What is the first line?", lines[0]),
        ("How many lines are there?", str(len(lines))),
    ]
    rng.shuffle(extra)
    whole = rng.choice(("Read the text.", "Transcribe the document.", "What does it say?", "Read the whole text.",
                        "Write down all the text.", "Transcribe everything."))  # fmt: skip
    number = rng.randint(fewest, most)
    chosen = pool[: number - 1] + extra[: max(1, number - len(pool)) if rng.random() < 0.5 or not pool else 0]
    if rng.random() < 0.35 or len(chosen) < fewest:
        chosen.append((whole, "\n".join(lines)))
    seen: dict[str, str] = {}
    for question, answer in chosen + pool[number:] + extra:
        if len(seen) < number:
            seen.setdefault(question, answer)
    asked = list(seen.items())
    rng.shuffle(asked)
    return asked
