"""Receipt fields: what counts as the same company, date, address and total, and F1 over fields."""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

import numpy as np

from mmvl.evaluation.metrics import Interval, accuracy, bootstrap

_MONTHS = {name: n for n, name in enumerate("jan feb mar apr may jun jul aug sep oct nov dec".split(), 1)}
_DATE = re.compile(
    r"(?<!\d)(?:(?P<y>\d{4})[-/. ]+(?P<m>\d{1,2})[-/. ]+(?P<d>\d{1,2})"
    r"|(?P<d2>\d{1,2})[-/. ]+(?P<m2>\d{1,2})[-/. ]+(?P<y2>\d{4}|\d{2})"
    r"|(?P<d3>\d{1,2})(?:st|nd|rd|th)?[-/., ]*(?P<m3>[a-z]{3,9})\.?[-/., ]*(?P<y3>\d{4}|\d{2})"
    r"|(?P<m4>[a-z]{3,9})\.?[-/., ]*(?P<d4>\d{1,2})(?:st|nd|rd|th)?[-/., ]+(?P<y4>\d{4}|\d{2})"
    r"|(?P<y5>20\d\d)(?P<m5>[01]\d)(?P<d5>[0-3]\d))(?!\d)"
)
_AMOUNT = re.compile(r"(?<![\d.,])-?\d{1,3}(?:,\d{3})+(?:\.\d+)?(?!\d)|(?<![\d.,])-?\d+(?:[.,]\d{1,2})?(?![\d])")


def find_dates(text: str) -> list[tuple[int, int, int]]:
    """Dates of a text as (year, month, day), in order. Day before month unless only the other way is a date; two digits
    of a year are of 2000 to 2099; a time after the date is passed over.
    """
    found = []
    for match in _DATE.finditer(unicodedata.normalize("NFKC", text).casefold()):
        parts = {name[0]: value for name, value in match.groupdict().items() if value}
        month = _MONTHS.get(parts["m"][:3]) if parts["m"].isalpha() else int(parts["m"])
        year, day = int(parts["y"]) + (2000 if len(parts["y"]) == 2 else 0), int(parts["d"])
        if month is not None and month > 12 >= day:
            month, day = day, month
        if month is not None and 1 <= month <= 12 and 1 <= day <= 31:
            found.append((year, month, day))
    return found


def find_amounts(text: str) -> list[Decimal]:
    """Amounts of money of a text, in order: digits, commas between thousands, a point or a comma before the cents."""
    found = []
    for match in _AMOUNT.finditer(re.sub(r"(?<=\d)\s*\.\s*(?=\d\d\b)", ".", text)):
        digits = match[0]
        digits = re.sub(r",(?=\d{1,2}$)", ".", digits).replace(",", "")
        found.append(Decimal(digits))
    return found


def normalise_field(name: str, text: str) -> str:
    """What is compared, exactly; "" is no answer.

    date: the first date of the text as yyyy-mm-dd. total: its last amount with two decimals, without currency. company
    and address (and a date or total that cannot be read): NFKC, casefolded, letters and digits only, so that neither
    case, spaces nor punctuation count. SROIE asks for the exact text, and its ground
    truth is upper case; papers on it differ in all three of these. Case is no error in any field here.
    """
    if name == "date" and (dates := find_dates(text)):
        return "{:04d}-{:02d}-{:02d}".format(*dates[0])
    if name == "total" and (amounts := find_amounts(text)):
        return f"{amounts[-1]:.2f}"
    return "".join(c for c in unicodedata.normalize("NFKC", text).casefold() if c.isalnum())


def field_match(name: str, prediction: str, reference: str) -> bool:
    """Equal after `normalise_field`, and not both empty."""
    wanted = normalise_field(name, reference)
    return bool(wanted) and normalise_field(name, prediction) == wanted


@dataclass(frozen=True)
class FieldCount:
    """One field of one document: is it there in the reference, was it answered, was the answer right."""

    wanted: bool
    given: bool
    right: bool


def f1(counts: Sequence[FieldCount], groups: Sequence[str]) -> Interval:
    """Micro F1 over all fields of all documents: 2 right / (wanted + given); a field is right or not.

    Many papers on SROIE count F1 over words labelled B-I-O instead, which is another number. A wrong answer is both a
    miss and a false alarm; no answer is only a miss. The interval is the bootstrap over documents (`groups`).
    """
    table_N3 = np.array([(c.right, c.wanted, c.given) for c in counts], dtype=np.float64).reshape(-1, 3)
    interval = bootstrap(table_N3, groups, lambda sums: 2 * sums[..., 0] / np.maximum(sums[..., 1] + sums[..., 2], 1))
    if interval.value in (0.0, 1.0):  # a bootstrap sees no spread here: Wilson's, over the documents
        return accuracy([interval.value == 1.0] * len(set(groups)))
    return interval
