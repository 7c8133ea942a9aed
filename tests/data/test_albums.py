"""Several pictures, and questions that say which one they mean."""

import io
import random
import re

import pytest
from PIL import Image

from mmvl.data.album_turns import arrivals, by_topic, named, topic
from mmvl.data.conversation import CANNOT_SEE
from mmvl.data.import_albums import import_albums
from mmvl.data.shards import ShardWriter, read_shard
from mmvl.data.turns import assistant, user

PLACES = {word: n for n, word in enumerate("first second third fourth fifth sixth".split())}


def picture(width, height, shade=0):
    out = io.BytesIO()
    Image.new("L", (width, height), shade).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def shards(tmp_path):
    """Two folders; each picture has its own size and a name, a total on every second one, and one huge picture."""
    for k, folder in enumerate("ab"):
        with ShardWriter(tmp_path / folder, folder) as writer:
            for i in range(24):
                turns = [user("What is the name?", "0.png"), assistant(f"{folder}{i}")]
                turns += [user("Which total is given?"), assistant(f"{i}.00" if i % 2 else CANNOT_SEE)]
                turns += [user("All?"), assistant("two\nlines")]
                if i % 3 == 0:  # as importers of public formats write one
                    turns.insert(0, {"role": "system", "content": [{"type": "text", "text": "Be short."}]})
                record = {"source": folder, "kind": "conversation", "messages": turns}
                writer.write(record, {"0.png": picture(20 + i, 10 + k)})
            huge = {"source": "h", "kind": "vqa", "messages": [user("What is the name?", "0.png"), assistant("huge")]}
            writer.write(huge, {"0.png": picture(900, 900)})
            writer.write({"source": "t", "kind": "text", "text": "nothing to see"})
    return f"{tmp_path / 'a'}, {tmp_path / 'b'}"


def name_of(data):
    """The name that belongs to a picture of this size."""
    with Image.open(io.BytesIO(data)) as opened:
        return "ab"[opened.height - 10] + str(opened.width - 20)


def meant(question, shown, new):
    """Number of the picture, by the words of the question alone."""
    words = re.findall(r"\w+", question.lower())
    if "last" in words:
        return shown - 1
    found = [PLACES[w] for w in words if w in PLACES] + [int(w) - 1 for w in words if w.isdigit()]
    if not found:
        assert new == 1 or shown == 1, question
        return shown - 1
    assert len(found) == 1, question
    return found[0]


def made(out, shards, count=80, **settings):
    paths = import_albums(out, count, 3, workers=1, shards=shards, **settings)
    return paths, [sample for path in paths for sample in read_shard(path)]


def turns_of(sample):
    """(question, answer, pictures shown up to here, those of this turn)."""
    messages, files = sample.json["messages"], []
    for asked, said in zip(messages[::2], messages[1::2], strict=True):
        new = [p["file"] for p in asked["content"] if p["type"] == "image"]
        files += new
        yield asked["content"][-1]["text"], said["content"][0]["text"], list(files), len(new)
    assert files == [f"{n}.png" for n in range(len(sample.members))]


def test_every_answer_is_of_the_picture_that_is_meant(shards, tmp_path):
    paths, samples = made(tmp_path / "out", shards)
    assert {len(s.members) for s in samples} == {2, 3, 4, 5, 6}
    counts, totals = 0, 0
    for sample in samples:
        for question, answer, files, new in turns_of(sample):
            if question.startswith(("How many", "Count", "What is the number")):
                assert answer == str(len(files))
                counts += 1
                continue
            name = name_of(sample.members[files[meant(question, len(files), new)]])
            if "total" in question:
                totals += 1
                name = f"{name[1:]}.00" if int(name[1:]) % 2 else CANNOT_SEE
            assert answer == name, question
    assert counts > 20 and totals > 20
    assert {s.json["meta"]["from"][0][0] for s in samples} == {"a", "b"}
    again, _ = made(tmp_path / "again", shards)
    assert [p.read_bytes() for p in again] == [p.read_bytes() for p in paths]


def test_pictures_of_one_folder_that_share_a_question_which_is_asked_of_several(shards, tmp_path):
    _, samples = made(tmp_path / "out", shards, 40, alike=1, counted=0)
    several = 0
    for sample in samples:
        assert len({key[0] for key in sample.json["meta"]["from"]}) == 1
        assert len(set(sample.json["meta"]["from"])) == len(sample.members)
        asked = [a for q, a, _, _ in turns_of(sample) if "name" in q.lower()]
        assert len(set(asked)) == len(asked)
        several += len(asked) > 1
    assert several > 30
    _, samples = made(tmp_path / "mixed", shards, 40, alike=0)
    assert any(len({key[0] for key in s.json["meta"]["from"]}) == 2 for s in samples)


@pytest.mark.parametrize("later", [0, 0.5, 1])
def test_a_share_shows_pictures_in_later_turns_and_asks_about_either(shards, tmp_path, later):
    _, samples = made(tmp_path / "out", shards, 60, later=later, counted=0)
    spread = [s for s in samples if len(s.json["meta"]["shown"]) > 1]
    assert {0: 0, 0.5: 20, 1: 60}[later] <= len(spread) <= {0: 0, 0.5: 40, 1: 60}[later]
    back = new_ones = 0
    for sample in spread:
        for question, _, files, new in turns_of(sample):
            if 1 < len(files) and len(files) != sample.json["meta"]["shown"][0] and question[0] != "H":
                place = meant(question, len(files), new)
                back, new_ones = back + (place < len(files) - 1), new_ones + (new == 1 and place == len(files) - 1)
    assert not spread or (back > 20 and new_ones > 20)


def test_no_album_has_more_pixels_than_it_may(shards, tmp_path):
    _, samples = made(tmp_path / "out", shards, 30, most_pixels=2 * 11 * 34)
    for sample in samples:
        sizes = [Image.open(io.BytesIO(data)).size for data in sample.members.values()]
        assert sum(width * height for width, height in sizes) <= 2 * 11 * 34
    _, samples = made(tmp_path / "all", shards, 60)
    assert not any("huge" in answer for s in samples for _, answer, _, _ in turns_of(s))


def test_topics():
    for question in ("What is the total?", "Total?", "which total is given?", 'What is written for "Total"?',
                     "What total is stated?", "What is the value of total?"):  # fmt: skip
        assert topic(question) == "total"
    assert topic("Who is it?") == "who is it"
    pictures = [[("Total?", "1")], [("What is the total?", "2"), ("Date?", "x")], [("Date?", "x")]]
    assert by_topic(pictures) == {"total": {0: ("Total?", "1"), 1: ("What is the total?", "2")}}
    assert by_topic([[("Total?", "1")], [("Total?", CANNOT_SEE)]]) == {}


def test_arrivals_and_names():
    rng = random.Random(1)
    for _ in range(200):
        shown = arrivals(rng, 5, 0.5)
        assert shown[-1] == 5 and shown == sorted(set(shown)) and shown[0] >= 1
    ways = {named(rng, "What is the total?", 1, 3, alone=False) for _ in range(900)}
    assert {"In the second image: What is the total?", "What is the total in image 2?"} <= ways
    assert {"In the second of the three images: What is the total?", "In the second image, what is the total?"} <= ways
    assert not any("last" in way or "new" in way or "this" in way for way in ways) and len(ways) > 12
    assert all(re.search("second|2", way, re.IGNORECASE) for way in ways)
    assert "In the last image: What?" in {named(rng, "What?", 2, 3, alone=False) for _ in range(900)}
    assert "What?" in {named(rng, "What?", 2, 3, alone=True) for _ in range(90)}


def test_mistakes(shards, tmp_path):
    with pytest.raises(ValueError, match="from 2 to 6"):
        import_albums(tmp_path / "out", 1, shards=shards, fewest=1)
    with pytest.raises(ValueError, match="later is 2; it is a share"):
        import_albums(tmp_path / "out", 1, shards=shards, later=2)
    with ShardWriter(tmp_path / "t", "t") as writer:
        writer.write({"source": "t", "kind": "text", "text": "nothing to see"})
    with pytest.raises(ValueError, match="hardly a sample"):
        import_albums(tmp_path / "out", 1, workers=1, shards=str(tmp_path / "t"))
