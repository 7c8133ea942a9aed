"""Several pictures and several turns: is the right picture asked, whenever it was shown; made from a fixed seed.

Cards of five labelled lines, as those of the task refusals. What was said in the turns before the question is given:
their right answers, so that one mistake does not make another, none of which holds the answer.
"""

import random
from collections.abc import Sequence

from mmvl.evaluation import metrics
from mmvl.evaluation.draw import draw_lines
from mmvl.evaluation.task import ALWAYS, Example, Score, Task, commonest
from mmvl.vlm import user_turn

EACH = 40
_LINES = 5
_MOST_COUNTED = 5
_LABELS = {
    "Name": ("Nora Field", "Hugo Brandt", "Lucy Marsh", "Samir Aziz", "Greta Holm", "Tom Archer"),
    "Date": ("9 April 2026", "22 July 2027", "2026-11-03", "18/02/2025", "30 January 2024", "2023-06-21"),
    "Total": ("31.75", "208.40", "5.60", "74.95", "16.30", "940.00"),
    "Phone": ("555-0176", "020 7946 0883", "0171 555 042", "03-7785 6610", "555-0131", "04-2290 7754"),
    "Address": ("31 Hill Road", "9 Bridge Street", "57 Church Lane", "2 Garden Close", "14 Queen Street", "6 Dock Row"),
    "City": ("Bristol", "Lyon", "Turku", "Malacca", "Graz", "Dundee"),
    "Time": ("9:20", "13:05", "21:40", "7:55", "17:10", "11:25"),
    "Colour": ("green", "light grey", "brown", "yellow", "black", "dark red"),
    "Weight": ("3.1 kg", "480 g", "16 kg", "720 g", "5.5 kg", "95 g"),
    "Room": ("A 14", "318", "D 5", "27", "F 30", "112"),
    "Price": ("6.49", "22.00", "0.95", "145.00", "3.20", "58.90"),
    "Code": ("KX 481", "R-2207", "B 96", "TM 530", "Q-118", "V 7742"),
}  # fmt: skip

# A card: what stands behind its labels.
Card = dict[str, str]


def _cards(rng: random.Random, count: int, alike: bool) -> list[Card]:
    """Cards of _LINES labels each: of the same ones with other values each, or (at most two cards) of others."""
    labels = rng.sample(sorted(_LABELS), _LINES if alike else _LINES * count)
    values = {label: rng.sample(_LABELS[label], count) for label in labels}
    own = [labels if alike else labels[_LINES * n : _LINES * (n + 1)] for n in range(count)]
    return [{label: values[label][n] for label in rng.sample(own[n], _LINES)} for n in range(count)]


def _turn(shown: Sequence[Card], question: str, answer: str = "") -> list[dict]:
    """The user's turn, and the assistant's where an answer is given."""
    pictures = [draw_lines([f"{label}: {value}" for label, value in card.items()], size=20) for card in shown]
    said = [{"role": "assistant", "content": [{"type": "text", "text": answer}]}] if answer else []
    return user_turn(pictures, question) + said


def _of(label: str, place: int | None = None) -> str:
    question = f"What is the {label.lower()}?"
    return question if place is None else f"In the {('first', 'second', 'third')[place]} image: {question}"


# Every kind: (rng, number of the question) -> (messages, reference).
Made = tuple[list[dict], str]


def _one(rng: random.Random, n: int) -> Made:
    [card] = _cards(rng, 1, alike=True)
    label = rng.choice(list(card))
    return _turn([card], _of(label)), card[label]


def _fourth(rng: random.Random, n: int) -> Made:
    [card] = _cards(rng, 1, alike=True)
    *before, label = rng.sample(list(card), 4)
    first, second, third = (_turn([card] if not k else [], _of(b), card[b]) for k, b in enumerate(before))
    return [*first, *second, *third, *_turn([], _of(label))], card[label]


def _only_one_has_it(rng: random.Random, n: int) -> Made:
    cards = _cards(rng, 2, alike=False)
    label = rng.choice(list(cards[n % 2]))
    return _turn(cards, _of(label)), cards[n % 2][label]


def _later(rng: random.Random, n: int) -> Made:
    first, second = _cards(rng, 2, alike=False)
    before, label = rng.choice(list(first)), rng.choice(list(second))
    return [*_turn([first], _of(before), first[before]), *_turn([second], _of(label))], second[label]


def _named(count: int):
    def make(rng: random.Random, n: int) -> Made:
        cards = _cards(rng, count, alike=True)
        label = rng.choice(list(cards[0]))
        return _turn(cards, _of(label, n % count)), cards[n % count][label]

    return make


def _named_later(rng: random.Random, n: int) -> Made:
    first, second = _cards(rng, 2, alike=True)
    before, label = rng.sample(list(first), 2)
    return [*_turn([first], _of(before), first[before]), *_turn([second], _of(label, 1))], second[label]


def _asked_back(rng: random.Random, n: int) -> Made:
    first, second = _cards(rng, 2, alike=True)
    before, between, label = rng.sample(list(first), 3)
    said = [*_turn([first], _of(before), first[before]), *_turn([second], _of(between, 1), second[between])]
    return [*said, *_turn([], _of(label, 0))], first[label]


def _how_many(rng: random.Random, n: int) -> Made:
    count = 1 + n % _MOST_COUNTED
    return _turn(_cards(rng, count, alike=True), "How many images are there?"), str(count)


KINDS = {
    "one picture": _one,
    "fourth question about one picture": _fourth,
    "two pictures, the label on one of them": _only_one_has_it,
    "a new picture in the second turn": _later,
    "first or second of two pictures": _named(2),
    "first, second or third of three pictures": _named(3),
    "second picture, new in the second turn": _named_later,
    "back to the first picture in the third turn": _asked_back,
    "how many pictures": _how_many,
}


def _load() -> list[Example]:
    examples = []
    for number, (kind, make) in enumerate(KINDS.items()):
        rng = random.Random(20261126 + number)
        for n in range(EACH):
            messages, reference = make(rng, n)
            examples.append(Example(f"{number}-{n:02d}", messages, reference, {"kind": kind}))
    return examples


def _right(example: Example, prediction: str) -> float:
    return float(metrics.exact_match(prediction, example.reference))


def _score(examples: Sequence[Example], predictions: Sequence[str]) -> list[Score]:
    right = [bool(_right(e, p)) for e, p in zip(examples, predictions, strict=True)]
    rows = [Score("exact match", metrics.accuracy(right), len(right))]
    for kind in KINDS:
        part = [r for e, r in zip(examples, right, strict=True) if e.meta["kind"] == kind]
        if part:
            rows.append(Score(f"exact match, {kind}", metrics.accuracy(part), len(part)))
    return rows


def _always(examples: Sequence[Example]) -> list[str]:
    """The commonest answer of each kind."""
    answers = {kind: commonest(e.reference for e in examples if e.meta["kind"] == kind) for kind in KINDS}
    return [answers[e.meta["kind"]] for e in examples]


TASKS = (
    Task(
        name="turns",
        description="questions about one of several pictures, in the first turn and in later ones, by kind",
        load=_load, score=_score, max_tokens=32, right=_right, blind=True, headline=1 + len(KINDS),
        rivals=lambda examples, data: {ALWAYS: _always(examples)},
        notes="Earlier turns are given with their right answers.",
    ),
)  # fmt: skip
