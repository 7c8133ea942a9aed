"""Denotation accuracy of WikiTableQuestions (Pasupat and Liang 2015): typed values, compared as sets.

Follows the rules of the official evaluator (version 1.0.2), written anew. It differs in one input: there each reference
comes with a value made by CoreNLP ("1,000" is the number 1000, "June 5, 2001" a date); where only texts are at
hand, we read numbers with commas between thousands, and dates as yyyy-mm-dd with xx for what is unknown.
"""

import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

_QUOTES = str.maketrans({c: "'" for c in "\u2018\u2019\u00b4`"} | {c: '"' for c in "\u201c\u201d"})
_DASHES = str.maketrans({c: "-" for c in "\u2010\u2011\u2012\u2013\u2014\u2212"})


def normalise(text: str) -> str:
    """The official string normalisation, in its order.

    Accents off; curly quotes and dashes plain; then, again and again: citations ([1], [nb 2], daggers) off the end,
    parentheses with a space before them off the end unless they are all, surrounding quotes off; then one full stop off
    the end, white space collapsed, lower case.
    """
    text = "".join(c for c in unicodedata.normalize("NFKD", text) if unicodedata.category(c) != "Mn")
    text = text.translate(_QUOTES).translate(_DASHES)
    while True:
        before = text
        text = re.sub(r"((?<!^)\[[^\]]*\]|\[\d+\]|[\u2022\u2666\u2020\u2021*#+])*$", "", text.strip())
        text = re.sub(r"(?<!^)( \([^)]*\))*$", "", text.strip())
        text = re.sub(r'^"([^"]*)"$', r"\1", text.strip())
        if text == before:
            break
    text = text.removesuffix(".")
    return re.sub(r"\s+", " ", text).strip().lower()


@dataclass(frozen=True)
class Value:
    """A normalised text, with a number or a date (year, month, day; None for unknown) if it reads as one."""

    text: str
    number: float | None = None
    date: tuple[int | None, int | None, int | None] | None = None

    def matches(self, other: "Value") -> bool:
        """Equal texts, or numbers within 1e-6, or equal dates. A number never equals a date."""
        if self.text == other.text:
            return True
        if self.number is not None and other.number is not None:
            return abs(self.number - other.number) < 1e-6
        return self.date is not None and self.date == other.date


def value_of(text: str) -> Value:
    """The value a text denotes. A date with only its year known is a number, as in the official evaluator."""
    plain = normalise(text)
    bare = re.sub(r"(?<=\d),(?=\d{3}(?:\D|$))", "", plain)
    if re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", bare):
        number = float(bare)
        return Value(plain, number=number if math.isfinite(number) else None)
    if match := re.fullmatch(r"(\d{4}|xx|xxxx)-(\d{1,2}|xx)-(\d{1,2}|xx)", plain):
        year, month, day = (None if "x" in part else int(part) for part in match.groups())
        if (month is None or 1 <= month <= 12) and (day is None or 1 <= day <= 31):
            if month is None and day is None:
                return Value(plain, number=None if year is None else float(year))
            return Value(plain, date=(year, month, day))
    return Value(plain)


def same_denotation(predicted: Sequence[str], answers: Sequence[str]) -> bool:
    """As many different values as the reference has, and a match for each of the reference's."""
    got, wanted = ({value_of(text) for text in texts} for texts in (predicted, answers))
    return len(got) == len(wanted) and all(any(w.matches(g) for g in got) for w in wanted)


def denotation_match(prediction: str, answers: Sequence[str]) -> bool:
    """`same_denotation` of a model's text.

    The official evaluator gets lists; how a text becomes one is where implementations disagree (TAPEX joins with
    ", ", others with "|"). Here: the whole text as one value; else split at line breaks, "|" or ";"; else at ", ". The
    first reading that matches counts, which cannot help a wrong answer of one value: it would have to be split into
    exactly the reference's values.
    """
    text = prediction.strip()
    readings = [[text], re.split(r"\s*[\n|;]\s*", text), re.split(r",\s+(?:and\s+)?|\s+and\s+", text)]
    return any(same_denotation([part for part in reading if part], answers) for reading in readings)


# Words of comparing, ordering and arithmetic, which a question answered by reading one row lacks.
_REASONING = re.compile(
    r"\b(sum|average|mean|difference|differ|combined|altogether|more|less|fewer|most|least|fewest|highest|lowest|largest|"
    r"smallest|biggest|greatest|longest|shortest|oldest|youngest|earliest|latest|best|worst|top|bottom|last|next|"
    r"previous|prior|before|after|above|below|under|over|following|followed|preceding|other than|besides|except|same|"
    r"another|between|consecutive|not|never|or|than|maximum|minimum|older|younger|longer|shorter|higher|lower|larger|"
    r"smaller|quickest|fastest|immediately|directly|since|until|how many (?:times|different|total))\b"
)


def is_lookup(question: str, answers: Sequence[str], header: Sequence[str], rows: Sequence[Sequence[str]]) -> bool:
    """Whether a question is answered by finding one row and reading one of its cells.

    WikiTableQuestions has no such label, so this is ours: one answer; no word of comparing or ordering (`_REASONING`);
    one row of which more cells stand in the question than of any other (cells of at least 3 characters, or numbers);
    and the answer is another cell of that row. It may take a count for a look-up where the row holds the same number
    by chance. It is decided by question and table alone, never by what a model answered.
    """
    if len(answers) != 1 or _REASONING.search(question.lower()):
        return False
    wanted = value_of(answers[0])
    text = f" {_joined(question)} "
    named = [{i for i, cell in enumerate(row) if _stands(cell, text)} for row in rows]
    most = max(map(len, named), default=0)
    best = [n for n, cells in enumerate(named) if cells and len(cells) == most]
    if len(best) != 1:
        return False
    row = rows[best[0]]
    return any(
        cell.strip() and i not in named[best[0]] and value_of(cell).matches(wanted) for i, cell in enumerate(row)
    )


def _stands(cell: str, text: str) -> bool:
    joined = _joined(cell)
    return (len(joined) >= 3 or joined.isdigit()) and f" {joined} " in text


def _joined(text: str) -> str:
    return " ".join(re.findall(r"[^\W_]+", normalise(text)))
