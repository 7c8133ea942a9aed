"""Saved predictions scored again: the same scores without a model, repaired baselines, mistakes told in one line."""

import json

import pytest

from mmvl.data.shards import ShardWriter
from mmvl.data.turns import asked
from mmvl.evaluation import run, tasks
from mmvl.evaluation.draw import draw_lines
from mmvl.evaluation.run import evaluate
from mmvl.evaluation.task import Example
from mmvl.evaluation.task_rendered import is_field
from mmvl.evaluation.tasks import TASKS
from mmvl.vlm import user_turn

CANNOT = "I can't see that in the image."
TURNS = [("What is the date?", "1 May"), ("How many?", "7"), ("Read line 2.", "7"), ("Who?", CANNOT), ("Why?", CANNOT),
         ("Where?", CANNOT)]  # fmt: skip


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets") / "pages"
    with ShardWriter(folder, "pages") as writer:
        writer.write(*asked("pages/note", ("png", draw_lines(["1 May", "7"])), TURNS))
    return folder


def values(result):
    return {score.metric: score.interval.value for score in result.scores}


def test_the_commonest_answer_is_of_the_questions_that_have_one(pages):
    task = TASKS["rendered"]
    examples = task.load(pages, "all")
    assert task.always(examples) == "7"
    rows = task.score(examples, ["7"] * 6)[:3]
    assert [row.interval.value for row in rows] == [pytest.approx(2 / 3), 0, pytest.approx(2 / 3)]


def test_a_field_is_known_by_its_kind_else_by_its_wording():
    def question(text, **meta):
        return Example("k", user_turn(None, text), "x", {"answerable": True} | meta)

    assert is_field(question("What is the total?", source="receipts"))
    assert is_field(question("What is written under Postcode?", source="pages"))
    assert not is_field(question("What is the third line?", source="pages"))
    assert not is_field(question("What is the total?", source="tables"))  # the words of FIELDS are of documents
    assert is_field(question("due?", source="labelled", kind="field"))
    assert not is_field(question("What is the title?", source="tables", kind="field"))
    assert not is_field(question("What is the total?", source="receipts", kind="line"))


def test_rows_by_what_pictures_show():
    def about(source, **meta):
        return Example("k", user_turn(None, "?"), "x", {"source": source, "answerable": True} | meta)

    def names(*examples):
        scores = TASKS["rendered"].score(examples, ["x"] * len(examples))
        return [(row.metric.removeprefix("ANLS, "), row.n) for row in scores if row.metric.startswith("ANLS, ")]

    bar, pie = (about("charts", shows=f"{kind} chart") for kind in ("bar", "pie"))
    slip = about("receipts", shows="receipt")
    assert names(bar, pie, bar) == [("bar chart", 2), ("pie chart", 1)]
    assert names(bar, slip) == [("charts", 1), ("receipts", 1)]  # each source shows one thing: once is enough
    assert names(bar, pie, slip) == [
        ("charts", 2), ("receipts", 1), ("bar chart", 1), ("pie chart", 1), ("receipt", 1)
    ]  # fmt: skip
    assert names(about("charts"), about("charts")) == []  # shards of before renderers told
    texts = TASKS["rendered-text"].score([bar, pie], ["x", "y"])
    assert [(row.metric, row.interval.value) for row in texts[2:]] == [
        ("character error rate, bar chart", 0), ("character error rate, pie chart", 1)
    ]  # fmt: skip


def test_kinds_come_from_the_sample(tmp_path):
    picture = ("png", draw_lines(["x"]))
    with ShardWriter(tmp_path / "good", "a") as writer:
        writer.write(*asked("labelled", picture, TURNS[:2], kinds=["field", "count"]))
    assert [e.meta["kind"] for e in TASKS["rendered"].load(tmp_path / "good", "all")] == ["field", "count"]
    with ShardWriter(tmp_path / "plain", "a") as writer:  # a printed text that reads like a refusal is an answer
        turns = [("What is the first line?", "There are no refunds."), ("Due?", "I can't see that in the image.")]
        writer.write(*asked("receipts", picture, turns, kinds=["line", "absent"]))
    assert [e.meta["answerable"] for e in TASKS["rendered"].load(tmp_path / "plain", "all")] == [True, False]
    with ShardWriter(tmp_path / "bad", "a") as writer:
        writer.write(*asked("labelled", picture, TURNS[:2], kinds=["field"]))
    with pytest.raises(ValueError, match="has 1 kinds for 4 turns"):
        TASKS["rendered"].load(tmp_path / "bad", "all")


def test_a_run_scored_again_is_the_run(pages, tiny_model_dir, tmp_path):
    first = evaluate("rendered", model=tiny_model_dir, data=pages, device="cpu", json_path=tmp_path / "a.json.gz",
                     progress=False)  # fmt: skip
    for more in ({}, {"data": pages}):
        again = evaluate("rendered", predictions=tmp_path / "a.json.gz", json_path=tmp_path / "b.json",
                         page=tmp_path / "b.html", progress=False, **more)  # fmt: skip
        assert again.scores == first.scores and again.predictions == first.predictions
        written = json.loads((tmp_path / "b.json").read_text())
        assert {"commit", "mmvl_version"} == set(written["scored_again"])
        assert written["model"] == first.run["model"] and written["started"] == first.run["started"]
        assert written["notes"] == first.run["notes"] and "Why?" in (tmp_path / "b.html").read_text()


def test_an_old_file_gets_its_new_rows_and_its_right_baseline(pages, tmp_path):
    rows = [
        {"key": f"pages-00000-0000000/{n}", "question": question, "reference": answer, "prediction": answer,
         "meta": {"source": "pages", "answerable": answer != CANNOT}, "prediction_always_the_commonest": CANNOT,
         "prediction_without_the_image": "1 May"}
        for n, (question, answer) in enumerate(TURNS)
    ]  # fmt: skip
    old = {"task": "rendered", "scores": [], "model": {"name": "m"}, "failed": 0, "predictions": rows}
    (tmp_path / "old.json").write_text(json.dumps(old))
    result = evaluate("rendered", predictions=tmp_path / "old.json", progress=False)
    found = values(result)
    assert found["ANLS"] == found["ANLS, field questions"] == 1.0 and result.score("ANLS, field questions").n == 1
    assert found["ANLS, always the commonest"] == pytest.approx(2 / 3)
    assert found["ANLS, field questions, without the image"] == 1.0
    assert "false refusals, without the image" not in found
    assert result.predictions[0]["group"] == "pages-00000-0000000" and result.predictions[0]["score"] == 1.0


def test_a_set_that_comes_with_its_task_gives_its_baselines(tmp_path, monkeypatch):
    monkeypatch.setattr(tasks.tesseract, "version", lambda: "5.3.0")
    monkeypatch.setattr(tasks.tesseract, "read", lambda picture, mode: f"{len(picture) > 100}")
    examples = TASKS["print-lines"].load()[:3]
    rows = [{"key": e.key, "question": e.messages[-1]["content"][1]["text"], "reference": e.reference,
             "prediction": e.reference, "meta": e.meta} for e in examples]  # fmt: skip
    saved = {"task": "print-lines", "scores": [], "model": {"name": "m"}, "predictions": rows}
    (tmp_path / "p.json").write_text(json.dumps(saved))
    result = evaluate("print-lines", predictions=tmp_path / "p.json", progress=False)
    assert result.predictions[1]["prediction_tesseract"] == "True" and result.run["notes"] == ["Tesseract 5.3.0"]
    assert result.predictions[1]["prediction_always_the_commonest"] == examples[0].reference
    assert values(result)["character error rate, Tesseract"] > 0.5
    rows[1]["reference"] = "other"
    (tmp_path / "p.json").write_text(json.dumps(saved))
    with pytest.raises(ValueError, match=f"not the one that was asked: {rows[1]['key']} has another"):
        evaluate("print-lines", predictions=tmp_path / "p.json", progress=False)


def test_mistakes_in_saved_predictions_are_told_in_one_line(tmp_path, tiny_model_dir):
    (tmp_path / "text.json").write_text("no")
    (tmp_path / "empty.json").write_text('{"task": "rendered", "predictions": []}')
    for task, arguments, message in (
        ("rendered", {"predictions": tmp_path / "none.json"}, "no such file: .*none.json"),
        ("rendered", {"predictions": tmp_path / "text.json"}, "is not what mmvl eval --json writes"),
        ("rendered", {"predictions": tmp_path / "empty.json"}, "no predictions: ask the model again"),
        ("refusals", {"predictions": tmp_path / "empty.json"}, "of the task 'rendered', not of 'refusals'"),
        ("rendered", {"predictions": tmp_path / "empty.json", "model": tiny_model_dir}, "leave out the model"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            run.evaluate(task, **arguments)
