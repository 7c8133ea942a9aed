"""The tasks and a whole run, with a tiny random model: the numbers are bad, the bookkeeping has to be right."""

import gzip
import json

import pytest

from mmvl.data.shards import ShardWriter
from mmvl.evaluation import run, tasks
from mmvl.evaluation.result import write_result
from mmvl.evaluation.run import choose, evaluate, list_tasks, model_digest
from mmvl.evaluation.tasks import TASKS, shard_examples, without_images


@pytest.fixture(scope="module")
def easy_vqa_examples():
    return TASKS["easy-vqa"].load()


def test_easy_vqa_is_the_whole_test_split(easy_vqa_examples):
    assert len(easy_vqa_examples) == 9673
    assert len({e.key for e in easy_vqa_examples}) == 9673
    first = easy_vqa_examples[0]
    assert [part["type"] for part in first.messages[0]["content"]] == ["image", "text"]
    assert {e.meta["answer_type"] for e in easy_vqa_examples} == {"yes or no", "colour", "shape"}
    assert len({e.reference for e in easy_vqa_examples}) == 13


def test_easy_vqa_scores_and_its_majority_baseline(easy_vqa_examples):
    task = TASKS["easy-vqa"]
    right = task.score(easy_vqa_examples, [f" {e.reference.upper()}. " for e in easy_vqa_examples])
    assert [score.interval.value for score in right] == [1.0] * 4
    assert sum(score.n for score in right[1:]) == right[0].n == 9673
    [baseline] = task.baselines(easy_vqa_examples)
    always_yes = task.score(easy_vqa_examples, ["yes"] * 9673)[0]
    assert baseline.metric == "accuracy, always 'yes'" and baseline.interval == always_yes.interval
    assert 0.3 < baseline.interval.value < 0.45


def test_a_limit_is_a_fixed_choice_in_the_old_order(easy_vqa_examples):
    chosen = choose(easy_vqa_examples, 50)
    assert len(chosen) == 50
    assert [e.key for e in chosen] == sorted(e.key for e in choose(easy_vqa_examples, 50))
    assert len({e.meta["image"] for e in chosen}) > 30  # not the questions about the first pictures
    assert choose(easy_vqa_examples, None) == choose(easy_vqa_examples, 10**6) == easy_vqa_examples


def test_without_images_keeps_the_question(easy_vqa_examples):
    messages = easy_vqa_examples[0].messages
    [turn] = without_images(messages)
    assert turn["content"] == messages[0]["content"][1:]


def line_shard(folder, picture_path, texts):
    with ShardWriter(folder, "lines") as writer:
        for n, text in enumerate(texts):
            record = {
                "source": "test",
                "kind": "vqa",
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "image", "file": "0.png"}, {"type": "text", "text": "Read it."}],
                    },
                    {"role": "assistant", "content": [{"type": "text", "text": text}]},
                ],
                "meta": {"font": "Serif" if n % 2 else "Mono"},
            }
            writer.write(record, {"0.png": picture_path.read_bytes()})
    return writer.shards[0]


def test_a_shard_becomes_examples_with_their_answers_taken_off(tmp_path, picture_path):
    [first, second] = shard_examples(line_shard(tmp_path, picture_path, ["abc", "de f"]))
    assert (first.reference, second.reference) == ("abc", "de f")
    assert [turn["role"] for turn in first.messages] == ["user"]
    assert first.messages[0]["content"][0] == {"type": "image", "image": picture_path.read_bytes()}
    with pytest.raises(FileNotFoundError, match="missing"):
        shard_examples(tmp_path / "none.tar")


def test_the_print_lines_that_come_with_mmvl():
    examples = TASKS["print-lines"].load()
    assert len(examples) == 400 and len({e.key for e in examples}) == 400
    assert all(10 <= len(e.reference) <= 45 and e.meta["font"] for e in examples)
    assert all([p["type"] for p in e.messages[0]["content"]] == ["image", "text"] for e in examples)


def test_print_lines_scores_by_corpus_and_by_font(tmp_path, picture_path):
    examples = shard_examples(line_shard(tmp_path, picture_path, ["abcd", "ef", "gh ij", "kl"]))
    scores = {s.metric: s for s in TASKS["print-lines"].score(examples, ["abcX", "ef", "gh ij", ""])}
    assert scores["character error rate"].interval.value == 3 / 13
    assert scores["word error rate"].interval.value == 2 / 5
    assert scores["lines without an error"].interval.value == 0.5
    assert scores["character error rate, Mono"].interval.value == 1 / 9
    assert (scores["character error rate, Serif"].interval.value, scores["character error rate, Serif"].n) == (0.5, 2)


def test_a_run_writes_every_prediction_and_how_it_was_made(tiny_model_dir, tmp_path, capsys):
    path = tmp_path / "result.json"
    result = evaluate("easy-vqa", model=tiny_model_dir, limit=12, json_path=path, device="cpu", batch_size=4)
    written = json.loads(path.read_text())
    assert written == json.loads(json.dumps(result.to_json()))
    write_result(tmp_path / "result.json.gz", result)
    assert gzip.decompress((tmp_path / "result.json.gz").read_bytes()) == path.read_bytes()
    assert len(written["predictions"]) == 12
    row = written["predictions"][0]
    assert {"key", "question", "reference", "prediction", "prediction_without_the_image", "finish_reason"} <= set(row)
    assert written["model"]["digest"] == model_digest(tiny_model_dir)
    assert written["mmvl_version"] and written["command"] and written["limit"] == 12 and written["failed"] == 0
    metrics = [score["metric"] for score in written["scores"]]
    assert metrics[0] == "accuracy" and metrics[-2:] == ["accuracy, without the image", "accuracy, always 'yes'"]
    again = evaluate("easy-vqa", model=tiny_model_dir, limit=12, device="cpu", batch_size=7, progress=False)
    assert again.predictions == result.predictions and again.scores == result.scores
    shown = capsys.readouterr().out
    assert "accuracy, without the image" in shown and shown.count("easy-vqa") == 1


def test_a_question_that_cannot_be_asked_counts_as_wrong_and_is_named(
    tiny_model_dir, tmp_path, picture_path, monkeypatch
):
    examples = shard_examples(line_shard(tmp_path, picture_path, ["a", "b", "c"]))
    examples[1].messages[0]["content"][0]["image"] = b"not a picture"
    task = tasks.Task("broken", "", lambda: examples, TASKS["print-lines"].score, max_tokens=2)
    monkeypatch.setitem(run.TASKS, "broken", task)
    result = evaluate("broken", model=tiny_model_dir, device="cpu", progress=False)
    assert result.run["failed"] == 1
    assert result.predictions[1]["prediction"] == "" and result.predictions[1]["error"]
    assert result.score("character error rate").n == 3


def test_the_digest_changes_with_any_file_of_the_model(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    before = model_digest(tmp_path)
    (tmp_path / "README.md").write_text("not part of the model")
    assert model_digest(tmp_path) == before
    (tmp_path / "model.safetensors").write_bytes(b"weighty")
    assert model_digest(tmp_path) != before


def test_mistakes_are_told_before_the_work(tiny_model_dir, tmp_path):
    assert {"easy-vqa", "print-lines", "receipts", "chartqa", "docvqa", "tables", "captions"} <= set(list_tasks())
    with pytest.raises(ValueError, match="unknown task 'easy_vqa'; there are: easy-vqa"):
        evaluate("easy_vqa", model=tiny_model_dir)
    with pytest.raises(ValueError, match="limit"):
        evaluate("easy-vqa", model=tiny_model_dir, limit=0)
    with pytest.raises(FileNotFoundError, match="folder that exists"):
        evaluate("easy-vqa", model=tiny_model_dir, json_path=tmp_path / "no" / "result.json")
    with pytest.raises(FileNotFoundError, match="no-model"):
        evaluate("easy-vqa", model=tmp_path / "no-model", limit=1)
