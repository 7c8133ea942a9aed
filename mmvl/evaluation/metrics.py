"""Metrics of the evaluations, each defined where implementations disagree."""

import math
import re
import unicodedata
from collections.abc import Sequence
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


def error_rate(errors: Sequence[Errors], *, resamples: int = 2000, seed: int = 0) -> Interval:
    """Corpus-level rate: all edits over all reference units, not the mean of the lines' rates; it may exceed 1.

    The interval is the 95% percentile bootstrap over lines (Efron 1979), with a fixed seed.
    """
    counts_N2 = np.array([(e.edits, e.length) for e in errors], dtype=np.int64).reshape(-1, 2)
    edits, length = (int(total) for total in counts_N2.sum(axis=0))
    if length == 0:
        raise ValueError("no reference text to score against")
    rng = np.random.default_rng(seed)
    rates = []
    for _ in range(resamples):
        sample_edits, sample_length = counts_N2[rng.integers(0, len(counts_N2), len(counts_N2))].sum(axis=0)
        rates.append(sample_edits / max(sample_length, 1))
    low, high = np.percentile(rates, [2.5, 97.5])
    return Interval(edits / length, float(low), float(high))
