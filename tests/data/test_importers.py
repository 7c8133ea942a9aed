"""Importers: everything comes through, splits are kept apart, damage is named."""

import gzip
import io
import json
import string
from collections import Counter

import pytest
from PIL import Image

from mmvl.data.corpus import Phrases, corpus_files, documents
from mmvl.data.easy_vqa import import_easy_vqa, read_easy_vqa, turned
from mmvl.data.registry import IMPORTERS, RENDERERS
from mmvl.data.shards import read_shard
from mmvl.data.stamps import find_stamps, import_stamps
from mmvl.data.text import LONGEST, SHORTEST, build_corpus, import_text


def samples(shards):
    return [sample for path in shards for sample in read_shard(path)]


def pairs(sample):
    texts = [p["text"] for m in sample.json["messages"] for p in m["content"] if p["type"] == "text"]
    return list(zip(texts[::2], texts[1::2], strict=True))


def test_easy_vqa_keeps_every_question(tmp_path):
    """All 38,575 training questions, each with its picture; another turn asks the same in another order."""
    raw = read_easy_vqa("train")
    assert (len(raw), sum(len(q) for _, _, q in raw)) == (4000, 38575)
    got = samples(import_easy_vqa(tmp_path, 4100))
    assert len(got) == 4100
    for (number, png, questions), sample in zip(raw, got, strict=False):
        assert sample.json["meta"] == {"image": number, "turn": 0} and sample.members == {"0.png": png}
        assert Counter(pairs(sample)) == Counter(questions)
    assert any(pairs(got[i]) != pairs(got[4000 + i]) for i in range(100))
    assert all(Counter(pairs(got[i])) == Counter(pairs(got[4000 + i])) for i in range(100))


def test_the_eight_positions_of_a_picture():
    buffer = io.BytesIO()
    corner = Image.new("L", (2, 2))
    corner.putdata([10, 20, 30, 40])
    corner.save(buffer, "PNG")
    seen = [list(Image.open(io.BytesIO(turned(buffer.getvalue(), way))).getdata()) for way in range(8)]
    assert len({tuple(pixels) for pixels in seen}) == 8
    assert seen[0] == [10, 20, 30, 40] and seen[1] == [20, 40, 10, 30] and seen[4] == [20, 10, 40, 30]


def test_easy_vqa_test_split_is_another_one():
    assert len(read_easy_vqa("test")) == 1000
    assert sum(len(q) for _, _, q in read_easy_vqa("test")) == 9673
    with pytest.raises(ValueError, match="train and test, not 'dev'"):
        read_easy_vqa("dev")
    with pytest.raises(FileNotFoundError, match="no such wheel"):
        read_easy_vqa("train", wheel="/nowhere/easy_vqa.whl")


@pytest.fixture
def stamps(tmp_path):
    """A package tree of 60 stamps; one without caption, one mirrored."""
    base = tmp_path / "tuxpaint-stamps-default/usr/share/tuxpaint/stamps/animals"
    base.mkdir(parents=True)
    for i in range(60):
        name = f"beast{chr(97 + i % 26)}{chr(97 + i // 26)}"
        Image.new("RGBA", (500, 100 + i), (i, 200, 30, 255 if i % 2 else 0)).save(base / f"{name}.png")
        (base / f"{name}.txt").write_text(f"Beast number {i}.\nde.utf8=Tier {i}.\n")
    Image.new("RGB", (9, 9)).save(base / "nameless.png")
    Image.new("RGB", (9, 9)).save(base / "beastaa_mirror.png")
    (base / "beastaa_mirror.txt").write_text("A mirrored beast.")
    return tmp_path


def test_stamps(stamps, tmp_path):
    train, held = find_stamps(stamps), find_stamps(stamps, held_out=True)
    assert len(train) + len(held) == 60 and 1 <= len(held) <= 15
    got = samples(import_stamps(tmp_path / "out", packages=stamps, workers=1))
    assert [pairs(s)[0][1] for s in got] == [caption for _, caption in train]
    image = Image.open(io.BytesIO(got[0].members["0.webp"])).convert("RGB")
    assert image.width == 224 and got[0].json["kind"] == "caption"
    assert image.getpixel((100, 20))[0] > 250  # the first stamp is wholly transparent: white paper shows
    more = samples(import_stamps(tmp_path / "more", 3 * len(train), packages=stamps, workers=1))
    assert [s.members for s in more[: len(train)]] == [s.members for s in got]
    views = [more[k * len(train) + 1].members["0.webp"] for k in range(3)]
    assert len(set(views)) == 3, "the same stamp again is drawn otherwise"
    fixed = samples(import_stamps(tmp_path / "held", 2 * len(held), packages=stamps, held_out=True, workers=1))
    assert [s.members for s in fixed[: len(held)]] == [s.members for s in fixed[len(held) :]], "but not for evaluation"


def test_stamps_of_one_thing_are_held_out_together(tmp_path):
    base = tmp_path / "animals"
    base.mkdir()
    for name in [f"cat{'x' * i}_photo_{n}" for i in range(40) for n in (1, 2)]:
        Image.new("RGB", (9, 9)).save(base / f"{name}.png")
        (base / f"{name}.txt").write_text("A cat.")
    held = {path.stem.split("_")[0] for path, _ in find_stamps(tmp_path, held_out=True)}
    assert held and not held & {path.stem.split("_")[0] for path, _ in find_stamps(tmp_path)}


def test_no_stamps(tmp_path):
    with pytest.raises(FileNotFoundError, match="no stamps"):
        import_stamps(tmp_path / "out", packages=tmp_path)


SENTENCE = "Every administrator should read the whole manual before touching anything at all, that much is certain. "


@pytest.fixture
def packages(tmp_path):
    """Unpacked packages in small: a manual in HTML, a file of fortunes, a dictionary of the dictd kind."""
    manual = tmp_path / "debian-handbook/usr/share/html/en-US"
    manual.mkdir(parents=True)
    (manual / "one.html").write_text(
        "<html><head><title>No title please</title><style>p {}</style></head><body>"
        "<div class='navheader'>Next Prev</div><h1>A heading of some length</h1>"
        f"<p>{SENTENCE}<em>Smart \u201cquotes\u201d</em> &amp; dashes\u2014here. {SENTENCE}</p>"
        f"<pre>rm -rf /</pre><p>{SENTENCE} Write to someone@example.org.</p>"
        "<table><tr><td>cell</td></tr></table></body></html>"
    )
    fortunes = tmp_path / "fortunes/usr/share/games/fortunes"
    fortunes.mkdir(parents=True)
    entries = [f"{SENTENCE}Number {word}.\n%\n" for word in ("one", "two", "two")]
    (fortunes / "wisdom").write_text("".join(entries))
    (fortunes / "wisdom.dat").write_bytes(b"\0\1\2")
    book = tmp_path / "dict-foldoc/usr/share/dictd"
    book.mkdir(parents=True)
    entries = [f"{word}\n   {SENTENCE} See {{manual}}.\n" for word in ("alpha", "beta", "gamma")]
    with gzip.open(book / "foldoc.dict.dz", "wb") as file:
        file.write("".join(entries).encode())
    offset, index = 0, []
    for word, entry in zip(("alpha", "beta", "gamma"), entries, strict=True):
        index.append(f"{word}\t{number(offset)}\t{number(len(entry))}")
        offset += len(entry)
    (book / "foldoc.index").write_text("\n".join(index))
    return tmp_path


def number(value: int) -> str:
    """The dictd way of writing numbers: the digits of base64, most significant first."""
    digits = string.ascii_uppercase + string.ascii_lowercase + string.digits + "+/"
    return "".join(digits[value // 64**place % 64] for place in (3, 2, 1, 0)).lstrip("A") or "A"


def test_building_a_corpus(packages, tmp_path):
    totals = build_corpus(packages, tmp_path / "corpus")
    assert set(totals) == {"debian-handbook", "fortunes", "foldoc"} and all(t["licence"] for t in totals.values())
    texts = {d["source"]: d["text"] for d in documents(tmp_path / "corpus")}
    assert all(SHORTEST <= len(text) <= LONGEST for text in texts.values())
    manual = texts["debian-handbook"]
    assert manual.startswith("A heading of some length\n") and 'Smart "quotes" & dashes-here.' in manual
    assert not any(word in manual for word in ("title", "rm -rf", "cell", "Next Prev", "@"))
    assert "Number one." in texts["fortunes"] and "%" not in texts["fortunes"]
    assert texts["foldoc"].count("See manual.") == 3 and texts["foldoc"].startswith("alpha Every")


def test_text_shards_leave_the_held_out_source_alone(corpus, tmp_path):
    got = samples(import_text(tmp_path, 0, 1, corpus=corpus))
    assert Counter(s.json["source"] for s in got) == {"text/manual": 30, "text/stories": 30}
    assert samples(import_text(tmp_path / "few", 7, 1, corpus=corpus))[3].json == got[3].json


def test_phrases_of_training_and_held_out_text_are_apart(corpus):
    assert [f.name for f in corpus_files(corpus, held_out=True)] == ["devil.jsonl.gz"]
    assert "unseen" not in str(Phrases(corpus)._documents)
    assert "fox" not in str(Phrases(corpus, held_out=True)._documents)


def test_damaged_corpora_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no corpus files"):
        list(documents(tmp_path))
    path = tmp_path / "a.jsonl.gz"
    with gzip.open(path, "wt") as file:
        file.write(json.dumps({"source": "a", "text": "fine"}) + "\n{broken\n")
    with pytest.raises(ValueError, match="a.jsonl.gz: line 2 is not a document"):
        list(documents(tmp_path))
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(ValueError, match="a.jsonl.gz"):
        list(documents(tmp_path))
    with pytest.raises(FileNotFoundError, match="none of the packages"):
        build_corpus(tmp_path / "none", tmp_path / "out")


def test_the_registry_names_what_the_command_line_lists():
    assert set(RENDERERS) >= {"text-lines", "documents", "emoji"}
    public = {"llava", "coco", "folder", "jsonl", "text-files", "sroie", "chartqa", "docvqa", "wikitablequestions"}
    assert set(IMPORTERS) >= {"easy-vqa", "stamps", "text"} | public
    assert all(tool.help.endswith(".") for tool in [*RENDERERS.values(), *IMPORTERS.values()])
