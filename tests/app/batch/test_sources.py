"""Sources: every kind gives items with ids, pictures and fields; whatever is wrong with a row is told in its row."""

import base64
import datetime
import io
import json
import tarfile

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from mmvl.app.batch.items import BytesPicture, FilePicture
from mmvl.app.batch.templates import Template


def png(colour="red") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (6, 4), colour).save(buffer, "PNG")
    return buffer.getvalue()


def write_lines(path, rows) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def sizes(item) -> list:
    return [page.image.size for picture in item.pictures for page in picture.open()]


@pytest.fixture
def shard(tmp_path):
    """A shard as others make them: two pictures with JSON and text, a sample without a picture."""
    path = tmp_path / "foreign-0.tar"
    members = {
        "a/001.png": png(),
        "a/001.json": b'{"tags": "x, y", "id": 7}',
        "a/001.txt": b"old caption\n",
        "a/002.jpg": png("blue"),
        "a/003.json": b"{}",
        "a/004.png": png(),
        "a/004.json": b"{broken",
    }
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def test_a_folder_by_name_to_the_bottom(batch, picture_folder):
    source = batch.open_source([picture_folder])
    items = {item.id: item for item in source}
    assert set(items) == {"red.png", "damaged.png", "two.pdf#page=1", "two.pdf#page=2", "inside/blue.jpg"}
    assert items["inside/blue.jpg"].fields["folder"] == "inside" and items["red.png"].fields["name"] == "red"
    assert sizes(items["red.png"]) == [(60, 40)] and len(sizes(items["two.pdf#page=2"])) == 1
    assert items["two.pdf#page=2"].shown == {"file": "two.pdf", "page": 2}
    assert source.fraction == 1.0
    assert [item.id for item in source] == list(items), "the same again, in the same order"


def test_a_pdf_that_cannot_be_read_is_a_failure_of_its_own(batch, tmp_path):
    (tmp_path / "bad.pdf").write_bytes(b"%PDF-1.7\nno more")
    (item,) = batch.open_source([tmp_path])
    assert item.id == "bad.pdf" and "bad.pdf" in item.error


def test_a_name_that_is_no_unicode(batch, tmp_path):
    (tmp_path / "caf\udce9.png").write_bytes(png())
    tally = batch.run(tmp_path, tmp_path / "rows.jsonl")
    assert tally.good == 1 and list(batch.rows(tmp_path / "rows.jsonl")) == ["caf\\udce9.png"]


def test_rows_of_json(batch, tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    url = "data:image/png;base64," + base64.b64encode(png()).decode()
    source = tmp_path / "rows.jsonl"
    rows = [
        {"id": 1, "image": "a.png", "question": "q"},
        {"question_id": "two", "images": ["a.png", url]},
        {"file_name": str(tmp_path / "a.png")},
        {"id": "none"},
        {"id": "far", "image": "https://example.com/a.png"},
        {"id": "list", "image": [3]},
        {"id": "b64", "image": "data:image/png;base64,***"},
        ["no object"],
    ]
    write_lines(source, rows)
    with source.open("ab") as file:
        file.write(b'\n{"id": \xff}\n' + b"[" * 100_000 + b'\n{"cut')
    items = list(batch.open_source([source]))
    by_id = {item.id: item for item in items}
    assert [item.id for item in items][:3] == ["1", "two", "rows.jsonl#3"]
    assert sizes(by_id["1"]) == [(6, 4)] and sizes(by_id["two"]) == [(6, 4)] * 2
    assert by_id["1"].fields == {"id": 1, "question": "q", "name": "a", "image": "a.png"}
    errors = {item.id: item.error for item in items if item.error}
    assert "no picture" in errors["none"] and "download them first" in errors["far"]
    assert "not a picture" not in errors["list"] and "int" in errors["list"] and "base64 is damaged" in errors["b64"]
    assert "no JSON object but a list" in errors["rows.jsonl#8"]
    assert all("no JSON" in errors[f"rows.jsonl#{line}"] for line in (10, 11, 12))


def test_fields_by_other_names(batch, tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    write_lines(tmp_path / "rows.jsonl", [{"pic": "a.png", "uid": "u", "image": "not this"}, {"pic": "a.png"}])
    reading = batch.Reading(image="pic", id="uid", keep=("image", "gone"))
    first, second = batch.open_source([tmp_path / "rows.jsonl"], reading)
    assert first.id == "u" and first.pictures[0].path.endswith("a.png")
    assert first.shown == {"image": "not this", "gone": None}
    assert second.error == "no field 'uid' to be its id"


def test_a_line_without_an_end_does_not_fill_memory(batch, tmp_path, monkeypatch):
    monkeypatch.setattr("mmvl.app.batch.tables.MAX_LINE", 1000)
    (tmp_path / "a.png").write_bytes(png())
    source = tmp_path / "rows.jsonl"
    write_lines(source, [{"id": 1, "image": "a.png"}, {"id": 2, "image": "x" * 5000}, {"id": 3, "image": "a.png"}])
    items = list(batch.open_source([source]))
    assert [item.error for item in items] == [None, "line 2 has more than 0 MiB", None]
    assert items[2].id == "3"


def test_rows_of_parquet(batch, tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    images = [{"bytes": png(), "path": None}, {"bytes": None, "path": "a.png"}, None]
    when = [datetime.date(2026, 11, day) for day in (1, 2, 3)]
    table = pyarrow.table({"image": images, "question": ["1", "2", "3"], "when": when, "raw": [b"ab"] * 3})
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet")
    first, second, third = batch.open_source([tmp_path / "x.parquet"])
    assert isinstance(first.pictures[0], BytesPicture) and isinstance(second.pictures[0], FilePicture)
    assert sizes(first) == sizes(second) == [(6, 4)]
    assert (first.id, first.fields["question"]) == ("x.parquet#1", "1")
    assert "no picture" in third.error
    (kept, *_) = batch.open_source([tmp_path / "x.parquet"], batch.Reading(keep=("when", "raw")))
    assert kept.shown == {"when": "2026-11-01", "raw": "(2 bytes)"}
    with pytest.raises(ValueError, match="no column 'answer'; there are: image, question, when, raw"):
        batch.open_source([tmp_path / "x.parquet"], batch.Reading(keep=("answer",)))


def test_what_is_no_parquet(batch, tmp_path):
    (tmp_path / "x.parquet").write_text("hello")
    with pytest.raises(ValueError, match="no Parquet file"):
        batch.open_source([tmp_path / "x.parquet"])


def test_samples_of_foreign_shards(batch, shard):
    items = {item.id: item for item in batch.open_source([shard])}
    assert list(items) == [f"foreign-0.tar/a/00{n}" for n in (1, 2, 3, 4)]
    first, second, third, fourth = items.values()
    assert first.fields["tags"] == "x, y" and first.fields["txt"] == "old caption"
    assert sizes(first) == sizes(second) == [(6, 4)]
    assert "no picture" in third.error and "JSON that cannot be read" in fourth.error


def test_a_shard_that_was_cut_off_says_so_after_what_is_whole(batch, shard):
    data = shard.read_bytes()
    shard.write_bytes(data[: 512 * 9 + 100])
    items = list(batch.open_source([shard]))
    assert items[0].error is None
    assert items[-1].id == "foreign-0.tar#damage" and "cut short" in items[-1].error


def test_a_shard_that_somebody_cuts_short_while_it_is_read_ends_nothing(batch, shard):
    items = iter(batch.open_source([shard]))
    assert next(items).error is None
    with shard.open("rb+") as file:
        file.truncate(512 * 3)
    assert "cut short" in list(items)[-1].error


def test_shards_of_answers_are_a_source_again(batch, many_pictures, tmp_path):
    folder = many_pictures(3)
    batch.run(folder, tmp_path / "shards", task="vqa", prompt="What is {{ name }}?")
    items = list(batch.open_source([tmp_path / "shards"]))
    assert [item.fields["question"] for item in items] == [f"What is pic000{n}?" for n in range(3)]
    assert all(item.fields["answer"].startswith("What is") and sizes(item) for item in items)
    tally = batch.run(tmp_path / "shards", tmp_path / "again.jsonl", task="vqa", prompt="{{ question }}")
    assert tally.good == 3


def test_shards_of_several_turns_are_an_item_a_turn(batch, tmp_path):
    from mmvl.data.shards import ShardWriter

    def part(text):
        return [{"type": "text", "text": text}]

    messages = [
        {"role": "user", "content": [{"type": "image", "file": "0.png"}, *part("one?")]},
        {"role": "assistant", "content": part("1")},
        {"role": "user", "content": part("two?")},
        {"role": "assistant", "content": part("2")},
    ]
    with ShardWriter(tmp_path, "x") as writer:
        writer.write({"source": "s", "kind": "conversation", "messages": messages}, {"0.png": png()})
    first, second = batch.open_source([tmp_path / "x-00000.tar"], batch.Reading(keep=("answer",)))
    assert (first.fields["question"], first.shown) == ("one?", {"answer": "1"})
    assert (second.fields["question"], second.id) == ("two?", f"{first.id}#2")
    assert sizes(second) == [(6, 4)]


def test_ids_that_come_twice_are_told_and_the_first_is_kept(batch, tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    write_lines(tmp_path / "rows.jsonl", [{"id": i, "image": "a.png"} for i in (1, 2, 1, 1)])
    tally = batch.run(tmp_path / "rows.jsonl", tmp_path / "out.jsonl")
    assert (tally.good, tally.repeated, tally.first_repeated) == (2, 2, "1")
    tally = batch.run(tmp_path / "rows.jsonl", tmp_path / "out.jsonl")
    assert (tally.good, tally.done, tally.repeated) == (0, 2, 2)


def test_templates():
    assert Template("{{ a }} {% if b is defined %}{{ b }}{% endif %}.").fill({"a": 1}) == "1 ."
    assert Template('Answer as {"a": ...}').fill({}) == 'Answer as {"a": ...}'
    for text, says in [("{{ c }}", "there are: a"), ("{{ 1 / 0 }}", "division"), ("{{ '' }}", "once it is filled in")]:
        with pytest.raises(ValueError, match=says):
            Template(text).fill({"a": 1})
    with pytest.raises(ValueError, match="cannot be filled in|needs a field"):
        Template("{{ ''.__class__.__mro__[1].__subclasses__() }}").fill({})
