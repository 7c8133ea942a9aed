"""Preference pairs out of other shards."""

import pytest

from mmvl.data.drawing import assistant, user
from mmvl.data.import_pairs import AFTER, CONTINUE, import_pairs
from mmvl.data.shards import ShardWriter, read_shard


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
