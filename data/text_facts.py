"""Invented facts in a sentence each, with the questions that it answers: for questions about texts."""

import random
import string
from collections.abc import Callable
from dataclasses import dataclass

from mmvl.data.corpus import Phrases
from mmvl.data.invented import company_name, date_text, digits, money, person_name, phone_text, proper, time_text

# The evaluation's needle is the code of an anchor, a basket, ...: those words and that sentence are not here.
THINGS = """lamp bicycle ladder piano suitcase umbrella window tractor camera blanket carpet violin kitchen tower bridge
cottage lorry ferry fountain greenhouse locker cabinet wardrobe drawer toolbox freezer boiler printer scanner
telescope microscope generator pump trailer tent canoe sledge drum trumpet clock barometer
thermometer calendar ledger diary envelope parcel crate barrel bucket shovel wheelbarrow hedge orchard vineyard
stable barn mill bakery library museum chapel harbour lighthouse airport platform tunnel elevator staircase
balcony cellar attic studio workshop""".split()
_KINDS = ("project", "station", "hotel", "ship", "team", "school", "village", "flight", "street", "hall")
_LOOKS = ("old", "new", "red", "green", "blue", "small", "large", "northern", "broken", "second", "wooden", "white")
_JOBS = ("nurse", "pilot", "plumber", "librarian", "carpenter", "lawyer", "gardener", "tailor", "surgeon", "cook",
         "electrician", "journalist")  # fmt: skip
_COLOURS = (
    "crimson",
    "turquoise",
    "dark green",
    "pale yellow",
    "grey",
    "violet",
    "navy blue",
    "ivory",
    "orange",
    "black",
)

Value = Callable[[random.Random, Phrases], str]


@dataclass(frozen=True)
class Fact:
    """A sentence; (question, answer) pairs about it; subject: what no other fact of the text may be about too."""

    sentence: str
    pairs: list[tuple[str, str]]
    subject: str


def _mixed(rng: random.Random, phrases: Phrases) -> str:
    letters = "".join(rng.choice(string.ascii_uppercase) for _ in range(rng.randint(1, 3)))
    return rng.choice(
        (f"{letters}-{digits(rng, 2, 5)}", f"{letters}{digits(rng, 2, 4)}", f"{digits(rng, 2, 3)}{letters}")
    )


def _digits(shortest: int, longest: int) -> Value:
    return lambda rng, phrases: str(rng.randint(10 ** (shortest - 1), 10 ** rng.randint(shortest, longest) - 1))


def _amount(rng: random.Random, phrases: Phrases) -> str:
    return rng.choice(("", "$", "EUR ", "RM ")) + money(rng.randint(100, 99999))


def _measure(*units: str) -> Value:
    return lambda rng, phrases: f"{rng.randint(2, 900)} {rng.choice(units)}"


# What a thing can have, and values of it.
ATTRIBUTES: dict[str, Value] = {
    "access code": _digits(3, 6), "code": _digits(4, 5), "PIN": _digits(4, 4), "number": _digits(2, 6),
    "serial number": _mixed, "ticket number": _mixed, "password": lambda r, p: proper(r, p).lower() + digits(r, 1, 3),
    "reference": _mixed, "price": _amount, "rent": _amount, "deposit": _amount, "weight": _measure("kg", "g", "t"),
    "height": _measure("m", "cm"), "length": _measure("m", "km", "cm"), "capacity": _measure("litres", "seats"),
    "colour": lambda r, p: r.choice(_COLOURS), "owner": person_name, "manager": person_name, "builder": company_name,
    "address": lambda r, p: f"{r.randint(1, 199)} {proper(r, p)} {r.choice(('Street', 'Road', 'Lane'))}",
    "phone number": lambda r, p: phone_text(r), "opening date": lambda r, p: date_text(r),
    "closing time": lambda r, p: time_text(r), "room": _mixed, "nickname": proper, "age": _measure("years"),
}  # fmt: skip

_SAYS = (
    "The {a} for the {t} is {v}.", "The {t}'s {a} is {v}.", "The {t} has the {a} {v}.", "{v} is the {t}'s {a}.",
    "Note that the {a} belonging to the {t} is {v}.", "For the {t}, the {a} is {v}.", "The {t} ({a}: {v}) is known.",
    "As {a} for the {t} they wrote down {v}.", "Remember that the {t} has {v} as its {a}.", "{T}: {a} {v}.",
    "The {a} given for the {t} was {v}.",
)  # fmt: skip
_ASKS = (
    "What is the {t}'s {a}?", "Which {a} does the {t} have?", "What is the {a} for the {t}?", "{A} for the {t}?",
    "Tell me the {a} belonging to the {t}.", "What {a} was given for the {t}?", "Find the {t}'s {a}.",
    "According to the text, what is the {t}'s {a}?", "What does the text say is the {a} for the {t}?",
)  # fmt: skip


def thing(rng: random.Random, phrases: Phrases) -> str:
    """Something to tell of: "lamp", "old lamp", "station Hahruni"."""
    draw = rng.random()
    if draw < 0.2:
        return f"{rng.choice(_KINDS)} {proper(rng, phrases)}"
    return f"{rng.choice(_LOOKS)} {rng.choice(THINGS)}" if draw < 0.45 else rng.choice(THINGS)


def attribute_question(rng: random.Random, attribute: str, of: str) -> str:
    """A question for what a thing has."""
    return rng.choice(_ASKS).format(a=attribute, t=of, A=attribute[:1].upper() + attribute[1:])


def attribute_fact(rng: random.Random, phrases: Phrases, attribute: str = "") -> Fact:
    """What a thing has, one of ATTRIBUTES (drawn where none is given)."""
    attribute = attribute or rng.choice(sorted(ATTRIBUTES))
    of, value = thing(rng, phrases), ATTRIBUTES[attribute](rng, phrases).strip()
    sentence = rng.choice(_SAYS).format(a=attribute, t=of, v=value, T=of[:1].upper() + of[1:])
    sentence = sentence.replace("..", ".")  # of what ends in "Ltd."
    return Fact(sentence, [(attribute_question(rng, attribute, of), value)], f"{attribute} of {of}")


def person_fact(rng: random.Random, phrases: Phrases) -> Fact:
    """What somebody did, where, when, for how much: two or three questions about one sentence."""
    who, other, place = person_name(rng, phrases), person_name(rng, phrases), proper(rng, phrases)
    what, amount, day, hour = thing(rng, phrases), _amount(rng, phrases), date_text(rng), time_text(rng)
    job, firm = rng.choice(_JOBS), company_name(rng, phrases)
    sentence, pairs = rng.choice((
        (f"{who} lives in {place} and works as a {job}.",
         [(f"Where does {who} live?", place), (f"What is {who}'s job?", job), (f"Who lives in {place}?", who)]),
        (f"{who} paid {amount} for the {what}.",
         [(f"How much did {who} pay?", amount), (f"Who paid for the {what}?", who)]),
        (f"{who} met {other} in {place} on {day}.",
         [(f"Whom did {who} meet?", other), (f"Where did {who} meet {other}?", place),
          (f"When did {who} and {other} meet?", day)]),
        (f"The meeting with {who} begins at {hour} in {place}.",
         [(f"When does the meeting with {who} begin?", hour), (f"Where is the meeting with {who}?", place)]),
        (f"{firm} sold the {what} to {who} for {amount}.",
         [(f"Who sold the {what}?", firm), (f"For how much was the {what} sold?", amount),
          (f"Who bought the {what}?", who)]),
        (f"The {what} was found by {who} near {place}.",
         [(f"Who found the {what}?", who), (f"Where was the {what} found?", place)]),
        (f"You can reach {who} by calling {(phone := phone_text(rng))}.",
         [(f"What is {who}'s telephone number?", phone), (f"How can {who} be reached?", phone)]),
    ))  # fmt: skip
    return Fact(sentence, pairs, who)
