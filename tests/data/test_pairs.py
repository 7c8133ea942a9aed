"""Preference pairs out of other shards."""

import random

import pytest

from mmvl.data.conversation import CANNOT_SEE
from mmvl.data.import_pairs import AFTER, CONTINUE, import_pairs, misread
from mmvl.data.shards import ShardWriter, read_shard
from mmvl.data.turns import assistant, user


def samples(paths) -> list:
    return [sample for path in paths for sample in read_shard(path)]


def test_pairs_of_questions(tmp_path):
    with ShardWriter(tmp_path / "vqa", "a") as writer:
        for i in range(6):
            turns = [user("Which number?", "0.png"), assistant(str(i)), user("Why?"), assistant("so"), user("Even?")]
            record = {"source": "n", "kind": "conversation", "messages": [*turns, assistant("yes" if i % 2 else "no")]}
            writer.write(record, {"0.png": b"%d" % i})
        writer.write({"source": "n", "kind": "vqa", "messages": [user("Alone?"), assistant("quite")]})
    made = samples(import_pairs(tmp_path / "out", 21, workers=1, shards=tmp_path / "vqa"))
    assert len(made) == 21
    assert {len(s.json["messages"]) for s in made} == {1, 5}  # what was said before belongs to the prompt
    for sample in made:
        chosen, rejected = (sample.json[name][0]["text"] for name in ("chosen", "rejected"))
        assert sample.json["kind"] == "preference" and chosen != rejected
        number = int(sample.members["0.png"])
        question = sample.json["messages"][-1]["content"][-1]["text"]
        assert chosen == (str(number) if question == "Which number?" else "yes" if number % 2 else "no")
    again = samples(import_pairs(tmp_path / "again", 21, workers=1, shards=tmp_path / "vqa"))
    assert [s.json for s in again] == [s.json for s in made]


def test_near_misses(tmp_path):
    with ShardWriter(tmp_path / "vqa", "a") as writer:
        for i in range(40):
            turns = [user("Total?", "0.png"), assistant(f"{i}.80"), user("Cash?"), assistant(f"{i + 50}.00")]
            turns += [user("Fax?"), assistant(CANNOT_SEE if i % 2 else f"{i}{i}")]
            writer.write({"source": "n", "kind": "conversation", "messages": turns}, {"0.png": b"%d" % i})
    made = samples(import_pairs(tmp_path / "out", 120, workers=1, shards=tmp_path / "vqa", near=1.0))
    rejected_of = {"beside": 0, "misread": 0, "refusal": 0, "foreign": 0}
    for sample in made:
        chosen, rejected = (sample.json[name][0]["text"] for name in ("chosen", "rejected"))
        number = int(sample.members["0.png"])
        assert chosen != rejected
        if chosen == CANNOT_SEE:
            rejected_of["foreign"] += 1  # of a refusal there is no near miss: another picture's answer
        elif rejected == CANNOT_SEE:
            rejected_of["refusal"] += 1
        elif rejected in (f"{number}.80", f"{number + 50}.00", f"{number}{number}"):
            rejected_of["beside"] += 1
        else:
            rejected_of["misread"] += 1
            assert sum(a != b for a, b in zip(chosen, rejected, strict=True)) == 1
    assert all(rejected_of.values())
    with pytest.raises(ValueError, match="near is 2"):
        import_pairs(tmp_path / "none", shards=tmp_path / "vqa", near=2)


def test_what_looks_like_nothing_else_is_doubled():
    assert misread("xx", random.Random(0)) == "xxx"


def test_pairs_of_text(tmp_path):
    with ShardWriter(tmp_path / "text", "a") as writer:
        for i in range(5):
            text = " ".join(f"w{i}-{n}" for n in range(80 if i else 10))
            writer.write({"source": "t", "kind": "text", "text": text})
    made = samples(import_pairs(tmp_path / "out", 20, workers=1, shards=tmp_path / "text"))
    assert len(made) == 20
    for sample in made:
        [prompt] = sample.json["messages"]
        last = prompt["content"][0]["text"].removeprefix(CONTINUE).split()[-1]
        chosen = sample.json["chosen"][0]["text"].split()
        assert not sample.json["rejected"][0]["text"].startswith(chosen[0].split("-")[0] + "-")
        document, number = last.removeprefix("w").split("-")
        assert chosen == [f"w{document}-{int(number) + 1 + n}" for n in range(AFTER)]


def test_of_pairs_no_pairs_are_made(tmp_path):
    with ShardWriter(tmp_path / "pages", "a") as writer:
        parts = [{"type": "text", "text": "x"}]
        writer.write({"source": "t", "kind": "interleaved", "content": parts})
    with pytest.raises(ValueError, match="questions or plain text, not of kind interleaved"):
        import_pairs(tmp_path / "out", shards=tmp_path / "pages")
