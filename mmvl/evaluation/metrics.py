"""Intervals, exact match and error rates: what every task shares.

Metrics of answers are in `answers.py`, of receipt fields in `fields.py`, of tables in `denotation.py`, of captions in
`cider.py`; each says where implementations disagree and which one it follows.
"""

import math
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jiwer
import numpy as np


@dataclass(frozen=True)
class Interval:
    """A value between two bounds of the same unit, at 95% confidence."""

    value: float
    low: float
    high: float


def normalise_answer(text: str) -> str:
    """Unicode NFKC, casefolded, white space collapsed, without white space or `.,!?;:` and quotes at both ends.

    Nothing else is changed: articles and number words count (unlike the VQA v2 normalisation).
    """
    text = re.sub(r"\s+", " ", unicodedata.normalize("NFKC", text).casefold())
    return text.strip(" .,!?;:'\"")


def exact_match(prediction: str, reference: str) -> bool:
    """Equal after `normalise_answer`: the whole answer, so "it is red" is not "red"."""
    return normalise_answer(prediction) == normalise_answer(reference)


def accuracy(correct: Sequence[bool]) -> Interval:
    """Share of correct answers with Wilson's 95% score interval (1927), which stays inside [0, 1]."""
    if not correct:
        raise ValueError("no answers to score")
    n, z = len(correct), 1.959963984540054
    p = sum(correct) / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return Interval(p, min(max(centre - half, 0.0), p), max(min(centre + half, 1.0), p))


def mean(values: Sequence[float | bool], groups: Sequence[str] | None = None, *, unit: float = 1.0) -> Interval:
    """Mean of scores in [0, unit], with an interval that knows which of them belong together.

    groups: what each question is about (the table, the receipt): questions on one thing rise and fall together, so the
    interval is the 95% bootstrap over things, not questions. It is Wilson's where every question has a thing of its own
    and scores are 0 or 1; and, over the number of things, where all are 0 or all 1 and a bootstrap sees no spread.
    """
    if not len(values):
        raise ValueError("no answers to score")
    groups = [str(n) for n in range(len(values))] if groups is None else groups
    alone = len(set(groups)) == len(groups)
    if (alone and all(v in (0, unit) for v in values)) or set(values) in ({0}, {unit}):
        share = sum(values) / unit / len(values)
        interval = accuracy([True] * round(share * len(set(groups))) + [False] * round((1 - share) * len(set(groups))))
        return Interval(unit * interval.value, unit * interval.low, unit * interval.high)
    table_N2 = np.stack([np.asarray(values, dtype=np.float64), np.ones(len(values))], axis=1)
    return bootstrap(table_N2, groups, lambda sums: sums[..., 0] / sums[..., 1])


def bootstrap(
    table_NC: np.ndarray, groups: Sequence, of_sums: Callable, *, resamples: int = 2000, seed: int = 0
) -> Interval:
    """`of_sums` of the column sums, with the 95% percentile bootstrap over groups of rows (Efron 1979), fixed seed.

    of_sums: array (..., C) of sums -> array (...).
    """
    if not len(table_NC):
        raise ValueError("no answers to score")
    _, which = np.unique(np.asarray(groups), return_inverse=True)
    sums_GC = np.zeros((which.max() + 1, table_NC.shape[1]))
    np.add.at(sums_GC, which, table_NC)
    rng = np.random.default_rng(seed)
    drawn = [sums_GC[rng.integers(0, len(sums_GC), len(sums_GC))].sum(axis=0) for _ in range(resamples)]
    low, high = np.percentile(of_sums(np.array(drawn)), [2.5, 97.5])
    return Interval(float(of_sums(sums_GC.sum(axis=0))), float(low), float(high))


@dataclass(frozen=True)
class Errors:
    """Edits that turn a reference into a prediction, and the length of the reference, in one unit."""

    edits: int
    length: int


def character_errors(prediction: str, reference: str) -> Errors:
    """Levenshtein distance over code points of the NFC texts (jiwer), white space runs collapsed and ends stripped.

    Case and punctuation count. Against an empty reference every character of the prediction is an insertion.
    """
    out = jiwer.process_characters(_plain(reference), _plain(prediction))
    return Errors(out.substitutions + out.deletions + out.insertions, out.hits + out.substitutions + out.deletions)


def word_errors(prediction: str, reference: str) -> Errors:
    """As `character_errors`, over words split at white space; punctuation stays part of its word."""
    out = jiwer.process_words(_plain(reference), _plain(prediction))
    return Errors(out.substitutions + out.deletions + out.insertions, out.hits + out.substitutions + out.deletions)


def _plain(text: str) -> str:
    return re.sub(r"\s+", " ", unicodedata.normalize("NFC", text)).strip()


def error_rate(
    errors: Sequence[Errors], groups: Sequence[str] | None = None, *, resamples: int = 2000, seed: int = 0
) -> Interval:
    """Corpus-level rate: all edits over all reference units, not the mean of the lines' rates; it may exceed 1.

    The interval is the bootstrap over lines, or over `groups` of lines (those of one receipt), with a fixed seed.
    """
    counts_N2 = np.array([(e.edits, e.length) for e in errors], dtype=np.float64).reshape(-1, 2)
    if not counts_N2[:, 1].sum():
        raise ValueError("no reference text to score against")
    groups = np.arange(len(counts_N2)) if groups is None else groups
    rate = lambda sums: sums[..., 0] / np.maximum(sums[..., 1], 1)  # noqa: E731
    return bootstrap(counts_N2, groups, rate, resamples=resamples, seed=seed)
