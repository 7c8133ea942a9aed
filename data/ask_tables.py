"""Questions about a table with exact answers: look-ups above all, neighbours, counts, comparisons; some without answer.

A look-up names a row by one of its cells and asks for another, or for the row by a value. Questions without answer are
asked in the same words, for a row or a column that is not there, so that no wording gives a refusal away.
"""

import random
from collections import Counter
from collections.abc import Sequence

from mmvl.data.charts import number
from mmvl.data.page import Page
from mmvl.data.public_formats import RealTable

_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")
_VALUE = (
    "What is the {column} of {key}?",
    "What is the {column} for {key}?",
    "What was the {column} of {key}?",
    "In the row of {key}, what is the {column}?",
    "What {column} does {key} have?",
    "What {column} did {key} have?",
    "Which {column} is listed for {key}?",
    "What is listed as {column} for {key}?",
    "{key}: what is the {column}?",
)
_NUMBER = (
    "How many {column} did {key} have?",
    "How many {column} did {key} get?",
    "How many {column} does {key} have?",
    "What is the number of {column} for {key}?",
    "What is the total {column} of {key}?",
)
_ROW = (
    "Which {keys} has {value} as {column}?",
    "What is the {keys} where the {column} is {value}?",
    "Which {keys} has a {column} of {value}?",
    "Which {keys} is listed with {value}?",
    "What {keys} had {value} as {column}?",
)
_SPECIAL = {
    "date": ("When was {key}?", "On what date was {key}?"),
    "year": ("In what year was {key}?", "What year was {key}?"),
    "name": ("Who is listed for {key}?", "What is the name for {key}?"),
    "location": ("Where was {key}?",),
    "venue": ("Where was {key}?",),
    "city": ("In which city is {key}?",),
    "country": ("Which country is {key} from?",),
    "team": ("Which team is {key} in?", "What team does {key} play for?"),
    "score": ("What was the score of {key}?",),
    "result": ("What was the result of {key}?",),
    "population": ("How many people live in {key}?",),
    "winner": ("Who won {key}?",),
    "director": ("Who directed {key}?",),
    "artist": ("Who sang {key}?",),
}


def ask_table(
    page: Page, table: RealTable, rng: random.Random, other: RealTable | None = None, looks: int = 24
) -> None:
    """Put the table's questions into page.facts, those without answer into page.absent, and what it says as a whole.

    other: a table whose rows and columns are asked for in vain, where this one lacks them. looks: how many look-ups
    are tried; of a small table they are fewer.
    """
    ask = Asked(page, table, rng)
    for question, answers in table.qa:
        page.facts.append(((question,), ", ".join(answers)))
    for _ in range(looks if ask.keys and len(ask.named) > 1 else 0):
        ask.look_up()
    for _ in range(max(2, looks // 6)):
        ask.neighbour()
    for c in ask.named:
        ask.count(c)
        ask.compare(c)
    ask.size()
    ask.read()
    for _ in range(max(4, looks // 3)):
        ask.in_vain(other)


class Asked:
    """A table about to be asked about. named: columns with a name of their own; keys: those whose cells name rows."""

    lower_case = 0.4  # share of the questions that are typed without capitals

    def __init__(self, page: Page, table: RealTable, rng: random.Random):
        self.page, self.rng, self.header, self.rows = page, rng, table.header, table.rows
        self.columns = list(zip(*self.rows, strict=True))
        lower = [name.lower() for name in self.header]
        self.named = [c for c, name in enumerate(lower) if name and lower.count(name) == 1]
        self.counts = [Counter(cell.lower() for cell in column) for column in self.columns]
        self.keys = [
            c for c in self.named if sum(v == 1 for v in self.counts[c].values()) >= max(1, len(self.rows) * 0.7)
        ]
        self.cells = Counter(cell.lower() for row in self.rows for cell in row)

    def fact(self, answer: str, *questions: str) -> None:
        """An answer to a question in one of several wordings; none where the answer would be blank."""
        if not answer.strip():
            return
        if self.rng.random() < self.lower_case:
            questions = tuple(q.lower() for q in questions)
        self.page.facts.append((questions, answer))

    def names_one(self, c: int, row: Sequence[str]) -> bool:
        """Whether the row's cell in column c is text that stands in no other row of the column."""
        return bool(row[c].strip("-\u2013\u2014 ")) and self.counts[c][row[c].lower()] == 1

    def ways(self, key: str, c: int, value: str = "", k: int | None = None) -> tuple[str, ...]:
        """Wordings of a look-up of column c, of which value is an example, in the row of key, a cell of column k."""
        column = self.header[c].lower() if self.rng.random() < 0.7 else self.header[c]
        special = [ways for word, ways in _SPECIAL.items() if word in self.header[c].lower().split()]
        counted = number(value) is not None and not special and self.header[c].lower().endswith(("s", "gold", "silver"))
        forms = [*_VALUE, *(_NUMBER * 2 if counted else ()), *(way for ways in special for way in ways * 3)]
        return tuple(form.format(column=column, key=key) for form in self.rng.sample(forms, min(4, len(forms))))

    def ways_of(self, column: str, key: str) -> tuple[str, ...]:
        """Wordings of a look-up of a column that the table may lack."""
        return tuple(form.format(column=column, key=key) for form in self.rng.sample(_VALUE + _NUMBER, 2))

    def look_up(self) -> None:
        rng = self.rng
        k = self.keys[0] if rng.random() < 0.6 else rng.choice(self.keys)
        c = rng.choice([c for c in self.named if c != k])
        row = rng.choice(self.rows)
        if not self.names_one(k, row) or not row[c].strip():
            return
        if k != self.keys[0] and self.cells[row[k].lower()] > 1:  # another column's cell could be meant
            return
        if rng.random() < 0.75:
            self.fact(row[c], *self.ways(row[k], c, row[c], k))
        elif self.names_one(c, row):
            self.fact(row[k], *self.ask_row(k, c, row[c]))

    def ask_row(self, k: int, c: int, value: str) -> tuple[str, ...]:
        """Wordings that ask for the entry of column k in the one row with `value` in column c."""
        # "Listed with" would fit another column's cell as well.
        forms = [form for form in _ROW if "listed with" not in form or self.cells[value.lower()] == 1]
        values = {"keys": self.header[k].lower(), "column": self.header[c].lower(), "value": value}
        return tuple(form.format(**values) for form in forms)

    def neighbour(self) -> None:
        """What stands beside, above or below a cell; what is listed before or after a row, first or last."""
        rng, rows = self.rng, self.rows
        c, at = rng.randrange(len(self.header)), rng.randrange(len(rows))
        cell, name = rows[at][c], self.header[c].lower() or "entry"
        if not self.names_one(c, rows[at]):
            return
        if self.cells[cell.lower()] == 1:
            beside = [
                ("below", at + 1, c),
                ("above", at - 1, c),
                ("to the right of", at, c + 1),
                ("to the left of", at, c - 1),
            ]
            for where, i, j in rng.sample(beside, 2):
                if 0 <= i < len(rows) and 0 <= j < len(self.header) and rows[i][j].strip():
                    self.fact(rows[i][j], f'What is {where} "{cell}"?', f'Read the cell {where} "{cell}".')
        if at + 1 < len(rows) and rows[at + 1][c].strip():
            self.fact(rows[at + 1][c], f"Which {name} is listed after {cell}?", f"What {name} comes next after {cell}?",
                      f"Which {name} is listed below {cell}?", f"What comes after {cell}?")  # fmt: skip
        if at and rows[at - 1][c].strip():
            self.fact(rows[at - 1][c], f"Which {name} is listed before {cell}?", f"What {name} comes before {cell}?",
                      f"Which {name} is listed above {cell}?", f"What is the previous {name} to {cell}?")  # fmt: skip
        for n, word in ((0, "first"), (-1, "last")):
            if rows[n][c].strip():
                self.fact(rows[n][c], f"What is the {word} {name} listed?", f"Which {name} is listed {word}?",
                          f"What is the {word} {name} in the table?",
                          f"What is the {'top' if word == 'first' else 'bottom'} {name}?")  # fmt: skip

    def count(self, c: int) -> None:
        rng, name = self.rng, self.header[c]
        values = [v for v in self.columns[c] if v]
        if not values:
            return
        value = rng.choice(values)
        times, things = values.count(value), self.header[0].lower() or "row"
        if times > 1 and value.strip("-\u2013\u2014 "):
            ways = [f'How many rows have "{value}" as {name}?', f"How many times does {value} appear under {name}?"]
            if self.cells[value.lower()] == times:
                ways += [f"How many {things} have {value}?", f"How many are {value}?"]
            self.fact(str(times), *ways)
        if len(self.rows) <= 12:
            different = len({v.lower() for v in values})
            self.fact(str(different), f"How many different {name.lower()} entries are there?")

    def compare(self, c: int) -> None:
        """Highest, lowest, which of two, how many above: of a column of numbers, about the rows' first names."""
        rng, rows, name = self.rng, self.rows, self.header[c].lower()
        values = [number(v) for v in self.columns[c]]
        if None in values or len(rows) < 2 or not self.keys or c in self.keys[:1]:
            return
        k = self.keys[0]
        keys = self.header[k].lower()
        for best, words in (
            (max(values), ("highest", "most", "largest")),
            (min(values), ("lowest", "least", "smallest")),
        ):
            at = values.index(best)
            if values.count(best) == 1 and rows[at][k]:
                high, most, large = words
                self.fact(rows[at][k], f"Which {keys} has the {high} {name}?", f"Which {keys} had the {most} {name}?",
                          f"What {keys} has the {large} {name}?", f"Who or what has the {high} {name}?")  # fmt: skip
                self.fact(self.columns[c][at], f"What is the {high} {name}?", f"What is the {large} {name} listed?")
        limit = rng.choice(values)
        above = sum(v > limit for v in values)
        if above and len(rows) <= 12:
            self.fact(
                str(above),
                f"How many have more than {limit:g} {name}?",
                f"How many {keys} entries have a {name} above {limit:g}?",
            )
        a, b = rng.sample(range(len(rows)), 2)
        year = name.startswith(("year", "rank", "no"))
        if rows[a][k] != rows[b][k] and values[a] != values[b] and not year:
            self.fact(plain_number(abs(values[a] - values[b])),
                      f"What is the difference in {name} between {rows[a][k]} and {rows[b][k]}?")  # fmt: skip
            more, less = (a, b) if values[a] > values[b] else (b, a)
            self.fact(rows[more][k], f"Which has the higher {name}, {rows[a][k]} or {rows[b][k]}?",
                      f"Who had more {name}, {rows[a][k]} or {rows[b][k]}?")  # fmt: skip
            self.fact(rows[less][k], f"Which has the lower {name}, {rows[a][k]} or {rows[b][k]}?")
        if not year and "year" not in name and "rank" not in name and len(rows) <= 8:
            self.fact(plain_number(sum(values)), f"What is the sum of {name}?", f"What is the total of all {name}?")

    def size(self) -> None:
        rows, header = self.rows, self.header
        self.fact(str(len(rows)), "How many rows are there, without the head?", "How many entries does the table have?",
                  f"How many {header[0].lower() or 'row'} entries are listed?")  # fmt: skip
        self.fact(str(len(header)), "How many columns does the table have?", "How many columns are there?")

    def read(self) -> None:
        """Rows, a column, the head, the whole table to write down."""
        rng, rows, header = self.rng, self.rows, self.header
        at = rng.randrange(len(rows))
        if at < len(_ORDINALS):
            self.fact(" | ".join(rows[at]), f"Read the {_ORDINALS[at]} row.", f"What does the {_ORDINALS[at]} row say?")
        self.fact(" | ".join(rows[-1]), "Read the last row.", "What is in the last row?")
        self.fact(" | ".join(header), "What are the names of the columns?", "Read the head of the table.")
        if self.names_one(0, rows[at]):
            self.fact(" | ".join(rows[at]), f"Read the row of {rows[at][0]}.")
        c = rng.choice(self.named or [0])
        if len(rows) <= 12:
            self.fact(
                "\n".join(self.columns[c]), f"Read the column {header[c]}.", f"List all entries under {header[c]}."
            )
        whole = "\n".join(" | ".join(row) for row in [header, *rows])
        self.page.whole = ("Transcribe the table.", "Read the whole table.", "Write the table as text."), whole
        self.page.caption = f"A table of {len(rows)} rows: " + ", ".join(h for h in header if h) + "."

    def in_vain(self, other: RealTable | None) -> None:
        """A look-up for a row or a column that is not there, in the words of any look-up."""
        rng = self.rng
        if not self.keys or len(self.named) < 2:
            return
        said = " ".join(self.header).lower()
        k = self.keys[0]
        c = rng.choice([c for c in self.named if c != k])
        names = [row[0] for row in other.rows if row and row[0].strip()] if other else []
        heads = [" ".join(h.split()) for h in other.header] if other else []
        columns = [h for h in heads if len(h) > 2 and h.lower() not in said]
        key, draw = rng.choice(self.rows)[k], rng.random()
        if draw < 0.4 and columns and key.strip():
            column = rng.choice(columns).lower()
            if not set(column.split()) & set(said.split()):
                self._absent(*self.ways_of(column, key))
            return
        if draw < 0.75:
            key = _like(key, [row[k] for row in self.rows], rng)
        else:
            key = rng.choice(names) if names else ""
        near = any(key.lower() in cell or cell in key.lower() for cell in self.cells if len(cell) > 2)
        if key and not near and key.lower() not in self.cells:
            self._absent(*self.ways(key, c, self.rows[0][c], k))

    def _absent(self, *questions: str) -> None:
        self.page.absent += [q.lower() if self.rng.random() < self.lower_case else q for q in questions[:2]]


def _like(key: str, keys: Sequence[str], rng: random.Random) -> str:
    """A name such as the rows have, of parts of two of them, or another number; empty where that cannot be made."""
    if key.isdigit():
        return str(abs(int(key) + rng.choice((-1, 1)) * rng.randint(1, 12)))
    words, others = key.split(), rng.choice(keys).split()
    if len(words) < 2 or len(others) < 2 or words[0] == others[0]:
        return ""
    return " ".join([*words[:-1], others[-1]])


def plain_number(value: float) -> str:
    """Two digits after the point at most."""
    return f"{value:.2f}".rstrip("0").rstrip(".")
