"""The metrics of answers, fields, tables and captions, against values worked out by hand, case by disputed case."""

import math

import pytest

from mmvl.evaluation import answers, denotation, fields
from mmvl.evaluation.cider import cider, words_of
from mmvl.evaluation.fields import FieldCount
from mmvl.evaluation.metrics import accuracy, mean


@pytest.mark.parametrize(
    ("prediction", "references", "score"),
    [
        ("Paris", ["paris"], 1.0),
        ("pariss", ["paris"], 1 - 1 / 6),
        ("london", ["paris", "londn"], 1 - 1 / 6),  # the best of the answers
        ("ab", ["ax"], 0.0),  # NL is exactly 0.5
        ("abc", ["abx"], 1 - 1 / 3),
        ("a  b", ["a b"], 1.0),
        ("", ["x"], 0.0),
        ("", [""], 1.0),
    ],
)
def test_anls(prediction, references, score):
    assert answers.anls(prediction, references) == pytest.approx(score)


@pytest.mark.parametrize(
    ("prediction", "answer", "strict", "forgiving"),
    [
        ("105", "100", True, True),
        ("105.1", "100", False, False),
        ("95", "100", True, True),
        ("22%", "22", False, True),
        ("22%", "0.22", True, False),  # the % divides on one side only
        ("1,000", "1000", False, True),
        ("$5", "5", False, True),
        ("0", "0.0", False, True),  # an answer of 0 is compared as a text
        ("0", "0", True, True),
        ("Finland", "finland", True, True),
        ("Finland.", "Finland", False, True),
        ("nan", "nan", True, True),
        ("inf", "5", False, False),
        ("-5", "5", False, False),
        ("", "5", False, False),
    ],
)
def test_relaxed_match(prediction, answer, strict, forgiving):
    assert answers.relaxed_match(prediction, answer) is strict
    assert answers.relaxed_match(prediction, answer, forgive_units=True) is forgiving


def test_vqa_accuracy_leaves_one_out():
    assert answers.vqa_accuracy("cat", ["cat"] * 3 + ["dog"] * 7) == pytest.approx(0.9)
    assert answers.vqa_accuracy("cat", ["cat"] * 4 + ["dog"] * 6) == 1.0
    assert answers.vqa_accuracy("cat", ["cat"] + ["dog"] * 9) == pytest.approx(0.3)
    assert answers.vqa_accuracy("The Two cats!", ["2 cats"]) == 1.0
    assert answers.normalise_vqa("It dont cost 1,000.50, a lot.") == "it don't cost 1000.50 lot"


@pytest.mark.parametrize(
    ("prediction", "name", "right"),
    [
        ("A red apple.", "red apple", True),
        ("This is a picture of a red apple", "red apple", False),  # apple is the sixth word that counts
        ("There are two red apples here", "red apple", True),
        ("redapple", "red apple", False),
        ("grapefruit", "grape", False),
        ("Grapes", "grape", True),
        ("glass", "glas", False),
        ("man in suit levitating light skin tone", "man in suit levitating light skin", True),
        ("", "apple", False),
        ("crème brûlée", "creme brulee", True),
    ],
)
def test_name_within(prediction, name, right):
    assert answers.name_within(prediction, name) is right


@pytest.mark.parametrize(
    "text",
    ["I can't see that.", "That is not in the picture.", "The receipt does not say.", "It isn’t shown.",
     "There is no date on the note.", "I cannot tell from the image", "Not visible", "unanswerable"],
)  # fmt: skip
def test_refusals(text):
    assert answers.is_refusal(text)


@pytest.mark.parametrize("text", ["", "4.50", "Not Bad Cafe", "no", "The note is on blue paper.", "No. 5, Jalan 3"])
def test_answers_are_no_refusals(text):
    assert not answers.is_refusal(text)


@pytest.mark.parametrize(
    ("prediction", "wanted", "right"),
    [
        ("Bangkok, Thailand", ["Bangkok, Thailand"], True),
        ("bangkok, thailand.", ["Bangkok, Thailand"], True),
        ("3", ["3.0"], True),
        ("1,500", ["1500"], True),
        ("Müller", ["Muller"], True),
        ("Team A (2nd)", ["Team A"], True),
        ("Team A[1]", ["Team A"], True),
        ('"Hello"', ["Hello"], True),
        ("2011|2010", ["2010", "2011"], True),
        ("2011, 2010", ["2010", "2011"], True),
        ("2011", ["2010", "2011"], False),
        ("2011, 2010", ["2010"], False),  # one too many
        ("a, b and c", ["c", "a", "b"], True),
        ("2001-06-05", ["2001-6-5"], True),
        ("2001-06-05", ["2001-06-xx"], False),
        ("2001", ["2001-06-05"], False),
        ("", ["0"], False),
    ],
)
def test_denotation(prediction, wanted, right):
    assert denotation.denotation_match(prediction, wanted) is right


def test_lookup_questions_are_told_by_question_and_table():
    header, rows = ["Team", "County", "Wins"], [["Confey", "Kildare", "1"], ["Maynooth", "Kildare", "4"]]
    assert denotation.is_lookup("how many points?", ["1"], header, rows) is False
    assert denotation.is_lookup("what county is confey in?", ["Kildare"], header, rows)
    assert not denotation.is_lookup("which team won before confey?", ["Maynooth"], header, rows)
    assert not denotation.is_lookup("which team is from kildare?", ["Confey", "Maynooth"], header, rows)
    assert not denotation.is_lookup("what county is it?", ["Kildare"], header, rows)


@pytest.mark.parametrize(
    ("text", "date"),
    [
        ("25/12/2018", (2018, 12, 25)),
        ("25-12-18 8:13:39 PM", (2018, 12, 25)),
        ("2018-12-25", (2018, 12, 25)),
        ("12/25/2018", (2018, 12, 25)),
        ("03/04/2018", (2018, 4, 3)),  # the day first
        ("5 Jan 2019", (2019, 1, 5)),
        ("05JAN2019", (2019, 1, 5)),
        ("Jan 5, 2019", (2019, 1, 5)),
        ("20190105", (2019, 1, 5)),
    ],
)
def test_dates(text, date):
    assert fields.find_dates(text) == [date]


def test_fields_match_after_normalisation():
    assert fields.field_match("total", "RM 1,009.00", "1009.00")
    assert fields.field_match("total", "9", "9.00") and not fields.field_match("total", "9.01", "9.00")
    assert fields.field_match("total", "The total is $9.00.", "9.00")
    assert fields.field_match("date", "on 2018-12-25", "25/12/2018") and not fields.field_match(
        "date", "", "25/12/2018"
    )
    assert fields.field_match("company", "Book Ta .K (Taman Daya) Sdn. Bhd.", "BOOK TA .K(TAMAN DAYA) SDN BHD")
    assert not fields.field_match("company", "", "") and not fields.field_match("address", "1, JALAN", "1 JALAN 2")
    assert fields.find_amounts("12.50 1,234.00 7,5") == [fields.Decimal(x) for x in ("12.50", "1234.00", "7.5")]
    assert fields.find_dates("99/99/2018") == []


def test_f1_counts_a_wrong_answer_twice():
    right, wrong, silent = FieldCount(True, True, True), FieldCount(True, True, False), FieldCount(True, False, False)
    assert fields.f1([right, right], ["a", "b"]).value == 1.0
    assert fields.f1([right, wrong], ["a", "b"]).value == pytest.approx(0.5)
    assert fields.f1([right, silent], ["a", "b"]).value == pytest.approx(2 / 3)
    assert fields.f1([FieldCount(False, True, False), right], ["a", "b"]).value == pytest.approx(2 / 3)


def test_intervals_are_over_things_not_questions():
    scores = [True] * 10 + [False] * 10
    alone = mean(scores)
    assert alone == accuracy(scores)
    together = mean(scores, ["a"] * 5 + ["b"] * 5 + ["c"] * 5 + ["d"] * 5)
    assert together.value == alone.value and together.high - together.low > alone.high - alone.low
    assert mean([False] * 8, ["a", "b"] * 4) == accuracy([False] * 2)
    assert mean([0.5, 0.7]).value == pytest.approx(0.6)
    with pytest.raises(ValueError, match="no answers"):
        mean([])


def test_cider_by_hand():
    assert words_of("A man's dog -- runs!") == ["a", "man's", "dog", "runs"]
    # Two pictures, words that do not overlap: every weight is log 2 per n-gram, so a perfect caption scores 10.
    perfect = cider(["a b c d", "e f g h"], [["a b c d"], ["e f g h"]])
    assert perfect == pytest.approx([10.0, 10.0])
    # The first half of it: words 2 of 4 and bigrams 1 of 3 overlap; lengths in bigrams differ by 2.
    expected = 10 / 4 * (2 / math.sqrt(2 * 4) + 1 / math.sqrt(1 * 3)) * math.exp(-(2**2) / 72)
    assert cider(["a b", "e f g h"], [["a b c d"], ["e f g h"]])[0] == pytest.approx(expected)
    assert cider(["x"], [["x"]]) == [0.0]  # one picture: every word is in every picture
    with pytest.raises(ValueError, match="at least one reference"):
        cider(["x"], [[]])
