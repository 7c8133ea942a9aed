"""Invented facts for documents: companies, addresses, dates, times, telephone numbers, goods and their prices."""

import random
import string
from dataclasses import dataclass

from mmvl.data.corpus import Phrases

_KINDS = """Trading Enterprise Hardware Bookstore Restaurant Cafe Bakery Mart Pharmacy Electrical Stationery
Motors Optical Furniture Supermarket Seafood Gallery Industries Services Supplies Holdings
Confectionery Kitchen Petrol Fashion Garden Printing Jewellery Minimarket Bistro Grocer Textiles
Tyres Cosmetics Aquarium Florist""".split()

_ENDS = (
    "Sdn Bhd", "Sdn. Bhd.", "(M) Sdn Bhd", "Ltd", "Pte Ltd", "Enterprise", "& Co.", "Trading", "Inc.", "LLC", "",
    "Ltd.", "& Sons", "Group", "S/B", "PLT",
)

_ROADS = (
    "Jalan {w}", "Jalan {w} {n}/{m}", "Jln {w} {n}", "Lorong {w}", "Persiaran {w}", "{w} Street", "{w} Road",
    "{w} Avenue", "Lebuh {w}", "{w} Lane", "Jalan SS{n}/{m}", "{w} Drive",
)

_AREAS = (
    "Taman {w}", "Bandar {w}", "Kampung {w}", "Seksyen {n}", "{w} Park", "Kawasan Perindustrian {w}", "{w} Centre",
    "Pusat Bandar {w}", "{w} Industrial Estate", "Desa {w}",
)

_CITIES = (
    "Kuala Lumpur", "Petaling Jaya", "Shah Alam", "Johor Bahru", "Klang", "Ipoh", "Penang", "Melaka", "Seremban",
    "Kajang", "Singapore", "Kuching", "London", "Leeds", "Dublin", "Boston", "Sydney", "Perth",
)

_STATES = ("Selangor", "Johor", "Selangor D.E.", "Perak", "Sabah", "Negeri Sembilan", "Pahang", "", "", "Malaysia")

_GOODS = """Apple Bread Milk Butter Cheese Egg Coffee Tea Sugar Rice Pasta Soup Salad Sandwich Juice Water Cake Biscuit
Soap Towel Candle Notebook Pencil Stapler Paper Envelope Battery Lamp Cable Umbrella Socks Gloves Shampoo Honey Tomato
Potato Onion Carrot Banana Lemon Chicken Salmon Yoghurt Flour Salt Pepper Olive Bolt Screw Nail Hammer Paint Brush Pipe
Tape Switch Bulb Hose Wire Socket Bracket Valve Glue Sponge Bucket Broom Filter Bottle Noodle Satay Kopi Teh Roti Fish
Prawn Squid Tofu Sauce Curry Mineral Syrup Chips Burger Nugget Fries Waffle Tart Muffin Donut Plate Cup Fork Spoon Knife
Mug File Folder Marker Eraser Ruler Ribbon Toner Card Stamp Tyre Oil Wiper Fuse Chain""".split()

_STYLES = """Big Small Hot Iced Fresh Mixed Black White Red Green Blue Fried Grilled Sweet Spicy Plain Double
Single Mini Jumbo Premium Classic Set Special Original Extra Steel Plastic Wooden Cotton Round
Square Long Short Heavy Light""".split()

_SIZES = (
    "500g",
    "1kg",
    "250ml",
    "1.5L",
    "A4",
    "12's",
    "x2",
    "2pcs",
    "10m",
    '3/4"',
    '1/2"',
    "100g",
    "L",
    "M",
    "XL",
    "18W",
    "(L)",
    "(S)",
    "6x330ml",
    "No.5",
    "(B)",
    "2.5kg",
    "B5",
    "70gsm",
)

_FIRST_NAMES = """Anna Ben Clara David Emma Felix Grace Henry Ida James Leo Maria Noah Olivia Paul Rosa Sam Tara Vera
Ali Mei""".split()


@dataclass(frozen=True)
class Item:
    """Something bought. price and amount in cents."""

    name: str
    code: str
    quantity: int
    price: int

    @property
    def amount(self) -> int:
        return self.quantity * self.price


def money(cents: int, comma: bool = False) -> str:
    sign, cents = ("-" if cents < 0 else ""), abs(cents)
    return f"{sign}{cents // 100:,}.{cents % 100:02d}" if comma else f"{sign}{cents // 100}.{cents % 100:02d}"


def digits(rng: random.Random, shortest: int, longest: int) -> str:
    return "".join(rng.choice(string.digits) for _ in range(rng.randint(shortest, longest)))


def proper(rng: random.Random, phrases: Phrases) -> str:
    """A name-like word that has to be read: out of the corpus, or of syllables."""
    if rng.random() < 0.5:
        return phrases.word(rng).capitalize()[:11]
    syllables = "".join(
        rng.choice("bcdfghjklmnprstvwyz") + rng.choice(("a", "e", "i", "o", "u", "ai", "an", "in", "ong", "er", "ah"))
        for _ in range(rng.randint(2, 3))
    )
    return syllables.capitalize()


def company_name(rng: random.Random, phrases: Phrases) -> str:
    words = [proper(rng, phrases) for _ in range(rng.choice((1, 1, 2)))]
    if rng.random() < 0.12:
        words = [" ".join(rng.choice(string.ascii_uppercase) for _ in range(rng.randint(2, 3)))]
    if rng.random() < 0.7:
        words.append(rng.choice(_KINDS))
    end = rng.choice(_ENDS)
    return " ".join([*words, *([end] if end and end not in words else [])])


def person_name(rng: random.Random, phrases: Phrases) -> str:
    """A first name and a surname, at times with Mr, Ms or Dr before them."""
    first = rng.choice(_FIRST_NAMES) if rng.random() < 0.6 else proper(rng, phrases)
    return f"{rng.choice(('', '', '', 'Mr ', 'Ms ', 'Dr '))}{first} {proper(rng, phrases)}"


def address_lines(rng: random.Random, phrases: Phrases) -> list[str]:
    """Two to four lines of an address."""

    def fill(pattern: str) -> str:
        return pattern.format(w=proper(rng, phrases), n=rng.randint(1, 29), m=rng.randint(1, 99))

    number = rng.choice(
        (
            f"No. {rng.randint(1, 199)}",
            f"{rng.randint(1, 300)}",
            f"Lot {rng.randint(1, 999)}",
            f"No.{rng.randint(1, 99)}A",
            f"{rng.randint(1, 60)}-{rng.randint(1, 9)}",
            f"G-{rng.randint(1, 40)}",
        )
    )
    lines = [f"{number}, {fill(rng.choice(_ROADS))},"]
    if rng.random() < 0.7:
        lines.append(f"{fill(rng.choice(_AREAS))},")
    city = rng.choice(_CITIES) if rng.random() < 0.7 else proper(rng, phrases)
    lines.append(f"{digits(rng, 5, 5)} {city}" + rng.choice((",", ", ", " ")).rstrip(" "))
    state = rng.choice(_STATES)
    if state and rng.random() < 0.5:
        lines.append(state)
    elif state:
        lines[-1] = f"{lines[-1].rstrip(',')}, {state}"
    lines[-1] = lines[-1].rstrip(",") + rng.choice(("", ""))
    if len(lines) > 2 and rng.random() < 0.3:
        lines[0:2] = [f"{lines[0]} {lines[1]}"]
    return lines


def date_text(rng: random.Random, recent: bool = True) -> str:
    day, month = rng.randint(1, 28), rng.randint(1, 12)
    year = rng.randint(2008, 2027) if recent else rng.randint(1940, 2010)
    name = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")[month - 1]
    return rng.choice(
        (
            f"{day:02d}/{month:02d}/{year}",
            f"{day:02d}/{month:02d}/{year}",
            f"{day:02d}-{month:02d}-{year}",
            f"{day:02d}/{month:02d}/{year % 100:02d}",
            f"{year}-{month:02d}-{day:02d}",
            f"{day:02d} {name} {year}",
            f"{day}/{month}/{year}",
            f"{day:02d}-{name}-{year}",
            f"{name} {day}, {year}",
            f"{day:02d}.{month:02d}.{year}",
            f"{day:02d} {name.upper()} {year}",
            f"{year}/{month:02d}/{day:02d}",
            f"{day:02d}-{month:02d}-{year % 100:02d}",
        )
    )


def time_text(rng: random.Random) -> str:
    hour, minute, second = rng.randint(7, 22), rng.randint(0, 59), rng.randint(0, 59)
    half = "AM" if hour < 12 else "PM"
    twelve = hour % 12 or 12
    return rng.choice(
        (
            f"{hour:02d}:{minute:02d}",
            f"{hour:02d}:{minute:02d}:{second:02d}",
            f"{twelve:02d}:{minute:02d} {half}",
            f"{twelve}:{minute:02d}:{second:02d} {half}",
            f"{twelve:02d}:{minute:02d}{half}",
        )
    )


def phone_text(rng: random.Random) -> str:
    a, b = digits(rng, 4, 4), digits(rng, 4, 4)
    return rng.choice(
        (
            f"0{rng.randint(2, 9)}-{a}{b}",
            f"0{rng.randint(2, 9)}-{a} {b}",
            f"01{rng.randint(0, 9)}-{a[:3]} {b}",
            f"+60{rng.randint(3, 9)} {a} {b}",
            f"({digits(rng, 3, 3)}) {a[:3]}-{b}",
        )
    )


def goods_name(rng: random.Random, phrases: Phrases) -> str:
    parts = [rng.choice(_GOODS)]
    if rng.random() < 0.5:
        parts.insert(0, rng.choice(_STYLES))
    if rng.random() < 0.3:
        parts.insert(0, proper(rng, phrases))
    if rng.random() < 0.35:
        parts.append(rng.choice(_SIZES))
    return " ".join(parts)


def make_items(rng: random.Random, phrases: Phrases, most: int = 8) -> list[Item]:
    items, names = [], set()
    for _ in range(min(most, rng.choice((1, 1, 2, 2, 3, 3, 4, 5, 6, 8)))):
        name = goods_name(rng, phrases)
        if name.lower() not in names:
            names.add(name.lower())
            price = rng.choice(
                (rng.randint(5, 99) * 10, rng.randint(50, 999), rng.randint(100, 4999), rng.randint(10, 400) * 50)
            )
            items.append(Item(name, digits(rng, 4, 13), rng.choice((1, 1, 1, 1, 2, 2, 3, 4, 10)), price))
    return items
