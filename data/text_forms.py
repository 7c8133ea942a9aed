"""Invented forms, lists and small tables as text, with the questions that they answer: for questions about texts."""

import random
from dataclasses import dataclass, field

from mmvl.data.corpus import Phrases
from mmvl.data.invented import goods_name, money, proper
from mmvl.data.labelled import FIELDS

ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth")
_COLUMNS = {
    "price": lambda rng: money(rng.randint(50, 9999)), "stock": lambda rng: str(rng.randint(0, 400)),
    "weight": lambda rng: f"{rng.randint(1, 900)} g", "shelf": lambda rng: f"{rng.choice('ABCD')}{rng.randint(1, 40)}",
    "score": lambda rng: str(rng.randint(0, 100)), "year": lambda rng: str(rng.randint(1950, 2030)),
    "seats": lambda rng: str(rng.randint(2, 90)), "colour": lambda rng: rng.choice(("red", "blue", "green", "black")),
}  # fmt: skip


@dataclass(frozen=True)
class Form:
    """A text of lines; (question, answer) pairs about it; absent: questions that it does not answer."""

    text: str
    pairs: list[tuple[str, str]]
    absent: list[str] = field(default_factory=list)


def labelled_lines(rng: random.Random, phrases: Phrases) -> Form:
    """A form or note: 3 to 9 labels with their values, a line each."""
    names = rng.sample(sorted(FIELDS), rng.randint(3, 9))
    between, start = rng.choice((": ", ": ", ": ", " = ", " - ", ":\t")), rng.choice(("", "", "", "- ", "* "))
    rows, pairs = [], []
    for name in names:
        labels, value, ways = FIELDS[name]
        label, said = rng.choice(labels), " ".join(value(rng, phrases).split())
        rows.append((label, said))
        pairs += [(_ask(rng, label), said), (rng.choice(ways) if ways else _ask(rng, label), said)]
    lines = [f"{start}{label}{between}{said}" for label, said in rows]
    place = rng.randrange(len(rows))
    pairs += [(f"How many {rng.choice(('labels', 'fields'))} are there?", str(len(rows))),
              (f"What is the {ORDINALS[place]} label?", rows[place][0])]  # fmt: skip
    values = [said for _, said in rows]
    pairs += [(f'Which label stands at "{said}"?', label) for label, said in rows if values.count(said) == 1][:2]
    shown = {word for label, _ in rows for word in label.lower().split()}
    # Values of one kind (dates, sums, people) could be meant one for the other: only other kinds are asked for in vain.
    kinds = {FIELDS[name][1] for name in names}
    absent = [
        _ask(rng, label)
        for name, (labels, value, _) in FIELDS.items()
        for label in labels[:1]
        if name not in names and value not in kinds and not shown & set(label.lower().split())
    ]
    title = (
        rng.choice((phrases.sentence(rng, 8, 30), "Form", "Note", "Details", "Order", "")) if rng.random() < 0.4 else ""
    )
    return Form("\n".join([*([title] if title else []), *lines]), _once(pairs), absent)


def _ask(rng: random.Random, label: str) -> str:
    plain = label.rstrip(".").lower()
    ways = (f"What is the {plain}?", f"What is the {plain}?", f"Which {plain} is given?", f"What {plain} is stated?",
            f'What is written for "{label}"?', f"{label.rstrip('.')}?")  # fmt: skip
    return rng.choice(ways)


def listing(rng: random.Random, phrases: Phrases) -> Form:
    """A list of 3 to 9 things, with numbers or without; which is where, what comes after what, how many there are."""
    names = list(dict.fromkeys(goods_name(rng, phrases) for _ in range(rng.randint(3, 9))))
    start = rng.choice(("- ", "* ", "", "{}. ", "{}) "))
    lines = [start.format(n + 1) + name for n, name in enumerate(names)]
    place = rng.randrange(len(names))
    pairs = [
        (f"What is the {ORDINALS[n]} {rng.choice(('item', 'thing', 'entry'))}?", names[n]) for n in range(len(names))
    ]
    pairs += [("How many items are there?", str(len(names))), ("What is the last item?", names[-1])]
    if place:
        pairs += [(f"What comes after {names[place - 1]}?", names[place]),
                  (f"What stands before {names[place]}?", names[place - 1])]  # fmt: skip
    absent = [f"What is the {ORDINALS[n]} item?" for n in range(len(names), len(ORDINALS))][:2]
    title = rng.choice(("Shopping list", "To buy", "Please order:", "In the box:", ""))
    return Form("\n".join([*([title] if title else []), *lines]), _once(pairs), absent)


def table(rng: random.Random, phrases: Phrases) -> Form:
    """A table of 2 to 6 rows and 1 to 3 columns beside their names; cells between bars, commas or tabs."""
    names = list(dict.fromkeys(proper(rng, phrases) for _ in range(rng.randint(2, 6))))
    first, columns = rng.choice(("name", "item", "place", "team")), rng.sample(sorted(_COLUMNS), rng.randint(1, 3))
    rows = [[name, *(_COLUMNS[column](rng) for column in columns)] for name in names]
    bar = rng.choice((" | ", ", ", "\t", "; "))
    head = [first, *columns]
    lines = [bar.join(row) for row in ([word.capitalize() for word in head], *rows)]
    if bar == " | " and rng.random() < 0.5:
        lines = [f"| {line} |" for line in lines]
        lines.insert(1, "|" + "---|" * len(head))
    pairs = [("How many rows are there?", str(len(rows)))]
    for n, column in enumerate(columns, 1):
        cells = [row[n] for row in rows]
        for row in rows:
            ways = (f"What is the {column} of {row[0]}?", f"Which {column} does {row[0]} have?", f"{row[0]}: {column}?")
            pairs.append((rng.choice(ways), row[n]))
            if cells.count(row[n]) == 1:
                pairs.append((f"Which {first} has the {column} {row[n]}?", row[0]))
    absent = [f"What is the {column} of {rng.choice(names)}?" for column in _COLUMNS if column not in columns]
    absent += [f"What is the {columns[0]} of {name}?" for name in (proper(rng, phrases),) if name not in names]
    return Form("\n".join(lines), _once(pairs), absent)


def _once(pairs: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Without questions that come with two answers."""
    answers: dict[str, set[str]] = {}
    for question, answer in pairs:
        answers.setdefault(question.lower(), set()).add(answer)
    return [(q, a) for q, a in dict.fromkeys(pairs) if len(answers[q.lower()]) == 1]
