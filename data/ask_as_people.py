"""Questions about a table in the words that people use: "how many gold medals did italy win", not "the Gold of Italy".

People name a column by what it stands for and a row by what stands in it, mostly without capitals; they count, compare,
ask for the first, the next and the only one. Answers are exact, as in `ask_tables`.
"""

import random
import re
from collections import Counter
from collections.abc import Sequence

from mmvl.data import table_wordings as words
from mmvl.data.ask_tables import Asked, plain_number
from mmvl.data.charts import number
from mmvl.data.page import Page
from mmvl.data.public_formats import RealTable

_MONTH = re.compile(r"\b(jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\b.*\d")
_YEAR = re.compile(r"(1[5-9]|20)\d\d")
_LONGEST = 48  # characters of a cell that a question names


def ask_as_people(
    page: Page, table: RealTable, rng: random.Random, other: RealTable | None = None, looks: int = 24
) -> None:
    """As `ask_tables.ask_table`; people's own questions, where the table has them, come three times as often."""
    ask = _AsPeople(page, table, rng)
    for question, answers in table.qa:
        page.facts += [((question,), ", ".join(answers))] * 3
    for _ in range(looks if ask.keys and len(ask.named) > 1 else 0):
        ask.look_up()
    for _ in range(looks // 8):
        ask.pair()
        ask.neighbour()
        ask.another()
    for c in ask.named:
        ask.count(c)
        ask.compare(c)
        ask.first_and_last(c)
    ask.size()
    ask.read()
    for _ in range(max(4, looks // 3)):
        ask.in_vain(other)


def _plural(noun: str) -> str:
    if noun.endswith(("s", "people", "people attending")):
        return noun
    if noun.endswith("y") and noun[-2:-1] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + ("es" if noun.endswith(("x", "ch", "sh")) else "s")


def _says(cell: str) -> bool:
    return bool(cell.strip("-\u2013\u2014 "))


class _AsPeople(Asked):
    """An `Asked` table whose questions are put in people's words."""

    lower_case = 0.9

    def __init__(self, page: Page, table: RealTable, rng: random.Random):
        super().__init__(page, table, rng)
        self.kinds = [self._kind(c) for c in range(len(self.header))]
        # People name a row by its name rather than by its number.
        self.keys.sort(key=lambda c: ("person", "place", "", "year", "date", "rank", "count").index(self.kinds[c]) // 3)
        # A row of totals is no entry among others.
        self.entries = [row for row in self.rows if not any("total" in cell.lower() for cell in row[:2])]

    def _kind(self, c: int) -> str:
        """What the cells of a column are: year, date, rank, count, person, place, or "" for anything else."""
        head = set(re.findall(r"[a-z\-]+|#", self.header[c].lower()))
        cells = [cell for cell in self.columns[c] if _says(cell)]
        most = 0.7 * max(1, len(cells))
        if "year" in head or sum(bool(_YEAR.fullmatch(v)) for v in cells) > most:
            return "year"
        if "date" in head or sum(bool(_MONTH.search(v.lower())) for v in cells) > most:
            return "date"
        if head & words.RANKS and sum(v[:1].isdigit() for v in cells) > most:
            return "rank"
        if sum(number(v) is not None for v in cells) > most:
            return "count"
        return "person" if head & words.PERSONS else "place" if head & words.PLACES else ""

    def names_one(self, c: int, row: Sequence[str]) -> bool:
        return len(row[c]) <= _LONGEST and super().names_one(c, row)

    def say(self, answer: str, forms: Sequence[str], **what: str) -> None:
        """A fact in four of the forms at most, some without their question mark."""
        chosen = [form.format(**what) for form in self.rng.sample(forms, min(4, len(forms)))]
        self.fact(answer, *(q.rstrip("?") if self.rng.random() < 0.12 else q for q in chosen))

    def noun(self, c: int) -> str:
        """What a column is called: its head without what stands in brackets, or what that stands for."""
        head = re.sub(r"\s*[(\[].*", "", self.header[c].lower()).strip() or self.header[c].lower()
        return self.rng.choice((head, *words.NOUNS.get(head, ()) * 2))

    def things(self, c: int) -> str:
        """Several of what stands in a column."""
        return _plural("people" if self.header[c].lower() == "name" else self.noun(c))

    def which(self, c: int) -> str:
        """How a question for an entry of a column begins."""
        noun = self.noun(c)
        if self.kinds[c] == "person":
            return self.rng.choice(("who", "who", "who" if noun == "name" else f"which {noun}"))
        if self.kinds[c] == "year" and self.rng.random() < 0.1:
            return "in what year"
        return self.rng.choice((f"which {noun}", f"which {noun}", f"what {noun}"))

    def forms(self, of: dict[str, Sequence[str]], c: int) -> list[str]:
        """The wordings for column c: those of its kind twice as likely as those for all."""
        return [*of[""], *of.get(self.kinds[c], ()) * 2] if self.kinds[c] else list(of[""])

    def ways(self, key: str, c: int, value: str = "", k: int | None = None) -> tuple[str, ...]:
        noun, head = self.noun(c), self.header[c].lower()
        by = self.kinds[self.keys[0] if k is None else k]
        at = {"year": f"in {key}", "date": f"on {key}", "rank": f"at number {key}"}.get(by, "")
        forms = self.forms(words.VALUE_AT if at else words.VALUE_OF, c)
        if not at:
            forms += [f"who {deed} {{key}}?" for word, deed in words.DEEDS.items() if word in head] * 4
            forms += [f"how {how} {be} {{key}}?" for word, how in words.MEASURES.items() if word in head.split()
                      for be in ("is", "was")] * 3  # fmt: skip
            forms += ["how many people live in {key}?"] * (4 * ("population" in head))
        chosen = self.rng.sample(forms, min(4, len(forms)))
        return tuple(form.format(noun=noun, things=_plural(noun), key=key, at=at) for form in chosen)

    def ways_of(self, column: str, key: str) -> tuple[str, ...]:
        named = [form for forms in words.VALUE_OF.values() for form in forms if "{noun}" in form or "{things}" in form]
        forms = self.rng.sample(named, 2)
        return tuple(form.format(noun=column, things=_plural(column), key=key) for form in forms)

    def ask_row(self, k: int, c: int, value: str) -> tuple[str, ...]:
        noun = self.noun(c)
        what = {"which": self.which(k), "noun": noun, "things": _plural(noun), "one": self.noun(k), "key": value}
        return tuple(form.format(**what) for form in self.rng.sample(self.forms(words.ROW_WITH, c), 4))

    def pair(self) -> None:
        """A look-up that takes two cells: a name, and when or where."""
        rng = self.rng
        whens = [c for c in self.named if self.kinds[c] in ("year", "date", "place")]
        names = [c for c in self.named if self.kinds[c] in ("person", "")]
        if not whens or not names or len(self.named) < 3:
            return
        t, k, row = rng.choice(whens), rng.choice(names), rng.choice(self.rows)
        same = [r for r in self.rows if r[k].lower() == row[k].lower() and r[t].lower() == row[t].lower()]
        c = rng.choice([c for c in self.named if c not in (t, k)])
        if len(same) > 1 or not all(_says(row[i]) for i in (t, k, c)) or len(row[k] + row[t]) > _LONGEST:
            return
        at = f"{'on' if self.kinds[t] == 'date' else 'in'} {row[t]}"
        self.fact(row[c], *(f"{way.rstrip('?')} {at}?" for way in self.ways(row[k], c, row[c], k)))

    def neighbour(self) -> None:
        c, at = self.rng.choice(self.named or [0]), self.rng.randrange(len(self.rows))
        if not self.names_one(c, self.rows[at]):
            return
        for step, after, below, follows in ((1, "after", "below", "next"), (-1, "before", "above", "previous")):
            if 0 <= at + step < len(self.rows) and _says(self.rows[at + step][c]):
                what = {"which": self.which(c), "one": self.noun(c), "key": self.rows[at][c]}
                follows = f"{follows} {'after' if step == 1 else 'to'}" if self.rng.random() < 0.5 else follows
                forms = [f for f in words.NEXT if ("{next} {one}" in f) == (" " not in follows) or "{next}" not in f]
                self.say(self.rows[at + step][c], forms, after=after, below=below, next=follows, **what)

    def another(self) -> None:
        """The other one of two rows that share a cell; which of two rows comes first."""
        rng, rows = self.rng, self.entries
        if not self.keys or len(self.named) < 2 or len(rows) < 2:
            return
        k = self.keys[0]
        c = rng.choice([c for c in self.named if c != k])
        what = {"one": self.noun(k), "noun": self.noun(c), "which": self.which(k)}
        by: dict[str, list[int]] = {}
        for n, row in enumerate(rows):
            by.setdefault(row[c].lower(), []).append(n)
        twice = [at for value, at in by.items() if len(at) == 2 and _says(value)]
        twice = [at for at in twice if all(self.names_one(k, rows[n]) for n in at)]
        if twice and self.cells[rows[twice[0][0]][c].lower()] == 2:
            a, b = rng.sample(twice[0], 2)
            self.say(rows[b][k], words.OTHER, key=rows[a][k], value=rows[a][c], **what)
        a, b = rng.sample(range(len(rows)), 2)
        if self.names_one(k, rows[a]) and self.names_one(k, rows[b]):
            x, y = rows[a][k], rows[b][k]
            if rng.random() < 0.5:
                self.say("yes" if a < b else "no", (f"is {x} listed before {y}?", f"is {x} above {y} in the table?"))
            else:
                first = rng.random() < 0.5
                self.say(rows[min(a, b) if first else max(a, b)][k],
                         (f"{what['which']} is listed {'first' if first else 'last'}, {x} or {y}?",))  # fmt: skip

    def first_and_last(self, c: int) -> None:
        n, first, top = self.rng.choice(((0, "first", "top"), (-1, "last", "bottom")))
        if _says(self.rows[n][c]):
            self.say(self.rows[n][c], words.END, first=first, top=top, one=self.noun(c), which=self.which(c))

    def count(self, c: int) -> None:
        rng, kind, noun = self.rng, self.kinds[c], self.noun(c)
        k = self.keys[0] if self.keys else 0
        many = self.things(k if k != c else 0)
        values = [v for v in self.columns[c] if _says(v) and len(v) <= _LONGEST]
        if not values or len(self.rows) > 16:
            return
        counts = Counter(v.lower() for v in values)
        value = rng.choice(values)
        # "1" stands in "10", "Rome" in "Rome, Italy": people would count both.
        if kind != "count" and not any(value.lower() in v for v in counts if v != value.lower()):
            self.say(str(counts[value.lower()]), self.forms(words.HOW_OFTEN, c), value=value, noun=noun, many=many)
        most, second = (counts.most_common(2) + [("", 0)])[:2]
        if most[1] > second[1] and most[1] > 1 and kind not in ("count", "rank"):
            text = next(v for v in values if v.lower() == most[0])
            self.say(text, words.COMMONEST, which=self.which(c), noun=noun)
        if rng.random() < 0.4:
            things = self.things(c)
            self.say(
                str(len(counts)),
                (f"how many different {things} are there?", f"how many different {things} are listed?"),
            )

    def compare(self, c: int) -> None:
        rng, rows, kind, noun = self.rng, self.entries, self.kinds[c], self.noun(c)
        values = [number(row[c]) for row in rows]
        if None in values or len(rows) < 2 or not self.keys or c in self.keys[:1] or kind not in ("count", "year"):
            return
        k = self.keys[0]
        what = {
            "which": self.which(k),
            "one": self.noun(k),
            "many": self.things(k),
            "noun": noun,
            "things": _plural(noun),
        }
        for best, high in ((max(values), True), (min(values), False)):
            at = values.index(best)
            if values.count(best) > 1 or not _says(rows[at][k]):
                continue
            if kind == "year":
                highest = rng.choice(("latest", "most recent", "newest") if high else ("earliest", "first", "oldest"))
            else:
                highest = rng.choice(("highest", "largest", "greatest") if high else ("lowest", "smallest", "least"))
            most = rng.choice(
                ("most", "most", "highest number of") if high else ("least", "fewest", "lowest number of")
            )
            self.say(rows[at][k], words.EXTREME_ROW[kind], highest=highest, most=most, **what)
            self.say(rows[at][c], words.EXTREME, highest=highest, **what)
        a, b = rng.sample(range(len(rows)), 2)
        if values[a] != values[b] and self.names_one(k, rows[a]) and self.names_one(k, rows[b]):
            pair = what | {"a": rows[a][k], "b": rows[b][k]}
            up, down = (a, b) if values[a] > values[b] else (b, a)
            more, less = rows[up][k], rows[down][k]
            self.say(more, words.MORE if kind == "count" else words.LATER, **pair)
            self.say(less, words.LESS if kind == "count" else words.EARLIER, **pair)
            if kind == "count":
                self.say("yes" if up == a else "no", words.IS_MORE, **pair)
                self.say(plain_number(abs(values[a] - values[b])), words.GAP, more=more, less=less, **pair)
                self.say(plain_number(values[a] + values[b]), words.SUM, **pair)
        if kind == "count" and len(rows) <= 16:
            limit = rng.choice(values)
            above, below = sum(v > limit for v in values), sum(v < limit for v in values)
            for times, more in ((above, ("more than", "over", "above")), (below, ("less than", "under", "fewer than")),
                                (len(values) - below, ("at least",))):  # fmt: skip
                if times:
                    self.say(str(times), words.HOW_MANY, more=rng.choice(more), limit=f"{limit:g}", **what)

    def size(self) -> None:
        if len(self.entries) <= 24:
            self.say(str(len(self.entries)), words.SIZE, many=self.things(self.keys[0] if self.keys else 0))
