"""Several pictures, and questions that say which one they mean."""

import pytest

from mmvl.data.import_albums import import_albums
from mmvl.data.shards import ShardWriter, read_shard
from mmvl.data.turns import assistant, user


@pytest.fixture
def shards(tmp_path):
    for folder in ("a", "b"):
        with ShardWriter(tmp_path / folder, folder) as writer:
            for i in range(8):
                turns = [user("Which?", "0.png"), assistant(f"{folder}{i}"), user("All?"), assistant("two\nlines")]
                record = {"source": folder, "kind": "conversation", "messages": turns}
                writer.write(record, {"0.png": f"{folder}{i}".encode()})
            writer.write({"source": "t", "kind": "text", "text": "nothing to see"})
    return f"{tmp_path / 'a'}, {tmp_path / 'b'}"


def test_every_answer_is_of_the_picture_that_is_meant(shards, tmp_path):
    paths = import_albums(tmp_path / "out", 60, 3, workers=1, shards=shards)
    made = [sample for path in paths for sample in read_shard(path)]
    assert {len(s.members) for s in made} == {2, 3, 4}
    places = {"first": 0, "second": 1, "third": 2, "fourth": 3, "1": 0, "2": 1, "3": 2, "4": 3}
    for sample in made:
        messages = sample.json["messages"]
        files = [p["file"] for p in messages[0]["content"] if p["type"] == "image"]
        assert sorted(files) == sorted(sample.members) and all(len(m["content"]) == 1 for m in messages[1:])
        for asked, said in zip(messages[::2], messages[1::2], strict=True):
            question, answer = asked["content"][-1]["text"], said["content"][0]["text"]
            if question.startswith("How many"):
                assert answer == str(len(files))
                continue
            words = question.replace(":", " ").replace("(", " ").replace(")", " ").split()
            at = len(files) - 1 if "last" in words else next(places[w] for w in words if w in places)
            assert answer == sample.members[files[at]].decode() and "Which?" in question
    assert {s.json["meta"]["from"][0][0] for s in made} == {"a", "b"}
    again = import_albums(tmp_path / "again", 60, 3, workers=1, shards=shards)
    assert [p.read_bytes() for p in again] == [p.read_bytes() for p in paths]


def test_mistakes(shards, tmp_path):
    with pytest.raises(ValueError, match="from 2 to 6"):
        import_albums(tmp_path / "out", 1, shards=shards, fewest=1)
    with ShardWriter(tmp_path / "t", "t") as writer:
        writer.write({"source": "t", "kind": "text", "text": "nothing to see"})
    with pytest.raises(ValueError, match="hardly a sample"):
        import_albums(tmp_path / "out", 1, workers=1, shards=str(tmp_path / "t"))
