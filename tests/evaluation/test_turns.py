"""The task turns: which picture a question is about, what is given before it, scores by kind."""

import json
from collections import Counter

import pytest

from mmvl.evaluation import task_turns
from mmvl.evaluation.run import evaluate
from mmvl.evaluation.task import text_of, without_images
from mmvl.evaluation.tasks import TASKS

TASK = TASKS["turns"]
PLACES = {"first": 0, "second": 1, "third": 2}


@pytest.fixture
def cards(monkeypatch):
    """The examples with their cards as lines of text where pictures would be."""
    monkeypatch.setattr(task_turns, "draw_lines", lambda lines, size: "\n".join(lines).encode())
    return TASK.load()


def images(messages):
    shown = [p["image"] for m in messages for p in m["content"] if p["type"] == "image"]
    return [dict(line.split(": ", 1) for line in image.decode().splitlines()) for image in shown]


def answer(pictures, question):
    """By the words of the question alone; None where several pictures could be meant."""
    if question.startswith("How many"):
        return str(len(pictures))
    label = question.rpartition(" the ")[2].rstrip("?").capitalize()
    named = [pictures[place] for word, place in PLACES.items() if question.startswith(f"In the {word} image")]
    found = [picture[label] for picture in named or pictures if label in picture]
    return found[0] if len(found) == 1 else None


def test_every_question_and_every_turn_before_it_has_one_answer(cards):
    assert Counter(e.meta["kind"] for e in cards) == dict.fromkeys(task_turns.KINDS, task_turns.EACH)
    assert len({e.key for e in cards}) == len(cards)
    for example in cards:
        turns = example.messages
        for n in range(0, len(turns), 2):
            said = example.reference if n == len(turns) - 1 else text_of(turns[n + 1]["content"])
            assert said == answer(images(turns[: n + 1]), text_of(turns[n]["content"])), example
        before = [text_of(m["content"]) for m in turns[1::2]]
        assert example.reference not in before and all(len(card) == 5 for card in images(turns))
    parts = {e.meta["kind"]: [sum(p["type"] == "image" for p in m["content"]) for m in e.messages] for e in cards[::-1]}
    assert parts == {
        "one picture": [1],
        "fourth question about one picture": [1, 0, 0, 0, 0, 0, 0],
        "two pictures, the label on one of them": [2],
        "a new picture in the second turn": [1, 0, 1],
        "first or second of two pictures": [2],
        "first, second or third of three pictures": [3],
        "second picture, new in the second turn": [1, 0, 1],
        "back to the first picture in the third turn": [1, 0, 1, 0, 0],
        "how many pictures": [1],
    }


def test_named_pictures_have_the_same_labels_and_other_values(cards):
    for example in cards:
        pictures = images(example.messages)
        if example.meta["kind"].startswith(("first", "second", "back")):
            assert len({frozenset(picture) for picture in pictures}) == 1
            assert sum(example.reference in picture.values() for picture in pictures) == 1
        elif example.meta["kind"].startswith(("two", "a new")):
            assert not set(pictures[0]) & set(pictures[1])
    assert {e.reference for e in cards if e.meta["kind"] == "how many pictures"} == set("12345")


def test_a_model_that_sees_the_first_picture_only_is_told_from_one_that_sees_all(cards):
    """The stand-in answers every question from the first picture."""
    answers = []
    for example in cards:
        question = text_of(example.messages[-1]["content"])
        label = question.rpartition(" the ")[2].rstrip("?").capitalize()
        answers.append(images(example.messages)[0].get(label, "1"))
    scores = {s.metric.removeprefix("exact match").lstrip(", "): s.interval.value for s in TASK.score(cards, answers)}
    assert scores["one picture"] == scores["back to the first picture in the third turn"] == 1
    assert scores["first or second of two pictures"] == 0.5 and scores["how many pictures"] == 0.2
    assert scores["second picture, new in the second turn"] == scores["a new picture in the second turn"] == 0
    perfect = TASK.score(cards, [f" {e.reference.upper()}. " for e in cards])
    assert [s.interval.value for s in perfect] == [1] * (1 + len(task_turns.KINDS)) and perfect[1].interval.low < 0.95
    always = TASK.score(cards, TASK.rivals(cards, None)["always the commonest"])
    assert all(s.interval.value <= 0.25 for s in always)


def test_the_pictures_are_the_same_every_time_and_none_is_left_without():
    examples = TASK.load()
    assert examples == TASK.load()
    assert all(p["type"] == "text" for e in examples for m in without_images(e.messages) for p in m["content"])


def test_a_whole_run(tiny_model_dir, tmp_path, capsys):
    result = evaluate("turns", model=tiny_model_dir, limit=6, device="cpu", json_path=tmp_path / "r.json")
    written = json.loads((tmp_path / "r.json").read_text())
    assert written["limit"] == 6 and len(written["predictions"]) == 6 and written["failed"] == 0
    assert {"prediction_without_the_image", "prediction_always_the_commonest"} <= set(written["predictions"][0])
    assert result.score("exact match").n == result.score("exact match, without the image").n == 6
    assert "exact match, always the commonest" in capsys.readouterr().out
