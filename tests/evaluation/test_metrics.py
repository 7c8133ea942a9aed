"""Metrics against values worked out by hand or known from the literature."""

import pytest

from mmvl.evaluation import metrics
from mmvl.evaluation.metrics import Errors


@pytest.mark.parametrize(
    ("prediction", "reference", "same"),
    [
        ("yes", "yes", True),
        (" Yes. ", "yes", True),
        ('"RED"!', "red", True),
        ("light\n blue", "light  blue", True),
        ("ﬁve", "five", True),  # the ligature, NFKC
        ("it is red", "red", False),
        ("a circle", "circle", False),
        ("", "no", False),
        ("2", "two", False),
    ],
)
def test_exact_match_forgives_case_space_and_outer_punctuation_only(prediction, reference, same):
    assert metrics.exact_match(prediction, reference) is same


def test_wilson_interval():
    # Wilson (1927) as tabulated: 8 of 10 is 0.490 to 0.943, 0 of 20 is 0 to 0.161.
    got = metrics.accuracy([True] * 8 + [False] * 2)
    assert (got.value, round(got.low, 3), round(got.high, 3)) == (0.8, 0.490, 0.943)
    got = metrics.accuracy([False] * 20)
    assert (got.value, got.low, round(got.high, 3)) == (0.0, 0.0, 0.161)
    got = metrics.accuracy([True] * 20)
    assert (got.value, round(got.low, 3), got.high) == (1.0, 0.839, 1.0)
    with pytest.raises(ValueError, match="no answers"):
        metrics.accuracy([])


def test_character_errors_count_edits_and_reference_length():
    assert metrics.character_errors("kitten", "sitting") == Errors(edits=3, length=7)
    assert metrics.character_errors("", "abc") == Errors(3, 3)
    assert metrics.character_errors("abc", "") == Errors(3, 0)
    assert metrics.character_errors("ABC", "abc") == Errors(3, 3)
    assert metrics.character_errors(" a  b\n", "a b") == Errors(0, 3)
    assert metrics.character_errors("e\u0301", "\u00e9") == Errors(0, 1)  # composed or not is the same text


def test_word_errors_split_at_white_space():
    assert metrics.word_errors("the cat sat", "the cat sat down") == Errors(1, 4)
    assert metrics.word_errors("the cat, sat", "the cat sat") == Errors(1, 3)


def test_error_rate_is_of_the_corpus_not_the_mean_of_lines():
    got = metrics.error_rate([Errors(1, 1), Errors(0, 99)])
    assert got.value == 0.01
    assert 0 <= got.low <= got.value <= got.high <= 1
    assert metrics.error_rate([Errors(3, 1)]).value == 3.0
    with pytest.raises(ValueError, match="no reference"):
        metrics.error_rate([Errors(2, 0)])


def test_bootstrap_interval_repeats_and_narrows_with_more_lines():
    few = metrics.error_rate([Errors(n % 2, 2) for n in range(20)])
    many = metrics.error_rate([Errors(n % 2, 2) for n in range(2000)])
    assert few == metrics.error_rate([Errors(n % 2, 2) for n in range(20)])
    # The standard error of a share of 0.25 made of lines of 0 or 0.5: 0.25 / sqrt(n), 1.96 of it each side.
    assert many.high - many.low == pytest.approx(2 * 1.96 * 0.25 / 2000**0.5, rel=0.1)
    assert few.high - few.low > 5 * (many.high - many.low)
