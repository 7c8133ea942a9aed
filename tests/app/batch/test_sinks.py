"""Destinations: what is kept, what --on-existing does, what is refused, and what other tools read of it."""

import errno
import json
import multiprocessing
import os

import pandas
import pyarrow.dataset
import pytest
from PIL import Image

from mmvl.answer_shards import AnswerShards
from mmvl.app.batch import sinks
from mmvl.app.batch.rows import LineFile

NAMES = ("rows.jsonl", "rows.parquet", "shards")


@pytest.fixture
def pictures(tmp_path):
    """Three pictures; `2.png` can be damaged and repaired."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(3):
        Image.new("RGB", (8, 8), (80 * number, 0, 0)).save(folder / f"{number}.png")
    return folder


def damage(pictures) -> bytes:
    """Make a file of one picture that is none; returns what it was."""
    before = (pictures / "2.png").read_bytes()
    (pictures / "2.png").write_bytes(b"no picture")
    return before


@pytest.mark.parametrize("name", NAMES)
def test_failures_are_rows_that_are_kept_or_tried_again(batch, pictures, tmp_path, name):
    dest, before = tmp_path / name, damage(pictures)
    assert batch.run(pictures, dest).failed == 1
    assert "damaged" in batch.rows(dest)["2.png"]["error"]
    (pictures / "2.png").write_bytes(before)
    skipping = batch.Hashing()
    assert batch.run(pictures, dest, skipping).done == 3 and not skipping.asked
    assert "error" in batch.rows(dest)["2.png"]
    trying = batch.Hashing()
    batch.run(pictures, dest, trying, on_existing="retry-failed")
    assert trying.asked == ["2.png"]
    rows = batch.rows(dest)
    assert set(rows) == {"0.png", "1.png", "2.png"} and "text" in rows["2.png"]


@pytest.mark.parametrize("name", NAMES)
def test_overwrite_starts_afresh(batch, pictures, tmp_path, name):
    dest = tmp_path / name
    batch.run(pictures, dest)
    (pictures / "0.png").unlink()
    assert batch.run(pictures, dest, prompt="Other.", on_existing="overwrite").good == 2
    assert {row["text"].split()[0] for row in batch.rows(dest).values()} == {"Other."}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("on_existing", ["skip", "retry-failed"])
def test_rows_of_other_settings_are_never_mixed_in(batch, pictures, tmp_path, name, on_existing):
    dest = tmp_path / name
    batch.run(pictures, dest)
    before = {path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()}
    with pytest.raises(ValueError, match=r"prompt was 'Describe\.', now 'Other\.'; max_tokens was 5, now 6"):
        batch.run(pictures, dest, prompt="Other.", max_tokens=6, on_existing=on_existing)
    assert {path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()} == before


def test_rows_without_their_settings_beside_them_are_compared_by_hash(batch, pictures, tmp_path):
    dest = tmp_path / "rows.jsonl"
    batch.run(pictures, dest)
    (tmp_path / "rows.jsonl.settings.json").write_text('{"cut')
    assert batch.run(pictures, dest).done == 3
    (tmp_path / "rows.jsonl.settings.json").unlink()
    with pytest.raises(ValueError, match="the settings differ"):
        batch.run(pictures, dest, prompt="Other.")


@pytest.mark.parametrize(
    "contents", ["no json\n", '{"other": 1}\n', "[1]\n", "no json\n{}", '{"id": 1, "text": "x"}\n']
)
def test_a_file_of_something_else_is_left_alone(batch, pictures, tmp_path, contents):
    dest = tmp_path / "rows.jsonl"
    dest.write_text(contents)
    with pytest.raises(ValueError, match="line 1 is no row of answers"):
        batch.run(pictures, dest)
    assert dest.read_text() == contents


def test_two_jobs_do_not_write_to_one_destination(batch, pictures, tmp_path):
    class Waiting:
        def answer(self, items, keep):
            child = multiprocessing.get_context("fork").Process(target=second_job)
            child.start()
            child.join()
            assert child.exitcode == 7, "the second job was not refused"
            batch.Hashing().answer(items, keep)

    def second_job():
        try:
            batch.run(pictures, dest)
        except ValueError as error:
            os._exit(7 if "another job is writing" in str(error) else 8)

    for name in NAMES:
        dest = tmp_path / name
        assert batch.run(pictures, dest, Waiting()).good == 3


def test_others_read_the_parquet_parts(batch, pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(sinks, "PER_PART", 2)
    damage(pictures)
    source = tmp_path / "rows.jsonl"
    rows = [{"id": n, "image": f"pictures/{n}.png", "n": n, "box": [n], "note": None} for n in range(3)]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    dest = tmp_path / "rows.parquet"
    batch.run(source, dest, task="vqa", prompt="{{ n }}?", reading=batch.Reading(keep=("n", "box", "note")))
    assert sorted(path.name for path in dest.iterdir()) == [
        "_settings.json",
        "part-00000.parquet",
        "part-00001.parquet",
    ]
    table = pyarrow.dataset.dataset(dest).to_table().to_pylist()
    assert [(row["id"], row["n"], row["box"], row["note"]) for row in table] == [
        (str(n), str(n), f"[{n}]", None) for n in range(3)
    ]
    assert [row["question"] for row in table] == ["0?", "1?", "2?"]
    assert list(pandas.read_parquet(dest)["id"]) == ["0", "1", "2"]
    assert [row["error"] is None for row in table] == [True, True, False]


def test_mmvl_train_reads_the_shards(batch, pictures, tmp_path):
    from mmvl.data.shards import ShardSource, parts_of

    damage(pictures)
    batch.run(pictures, tmp_path / "shards")
    source = ShardSource.from_dir(tmp_path / "shards")
    assert len(source) == 2 and not source.problems
    sample = source[0]
    assert sample.json["kind"] == "caption" and sample.members["0.png"] == (pictures / "0.png").read_bytes()
    assert [part.get("text") for part in parts_of(sample.json)][1] == "Describe."


def test_texts_of_others_are_left_alone(batch, pictures):
    (pictures / "0.txt").write_text("mine")
    tally = batch.run(pictures, ".txt")
    assert (tally.left, tally.good) == (1, 2)
    assert (pictures / "0.txt").read_text() == "mine"
    assert batch.run(pictures, ".txt", on_existing="overwrite").good == 3
    assert (pictures / "0.txt").read_text().startswith("Describe.")


def test_two_pictures_that_want_the_same_text(batch, pictures):
    Image.new("RGB", (9, 9)).save(pictures / "0.jpg")
    for _ in range(2):
        batch.run(pictures, ".txt")
        rows = batch.rows(pictures / "captions.jsonl")
        assert len(rows) == 4
        failed = [row for row in rows.values() if "error" in row]
        assert len(failed) == 1 and "0.txt is there already" in failed[0]["error"]


class Full:
    """A file that takes half of its `left`th write and then has no room, once."""

    def __init__(self, file, left: int):
        self._file, self._left = file, left

    def write(self, data) -> int:
        self._left -= 1
        if not self._left:
            self._file.write(data[: len(data) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        return self._file.write(data)

    def __getattr__(self, name):
        return getattr(self._file, name)


@pytest.mark.parametrize("left", [2, 5, 8])
@pytest.mark.parametrize("name", NAMES)
def test_a_full_disk_ends_the_job_and_leaves_nothing_half(batch, pictures, tmp_path, monkeypatch, name, left):
    def open_lines(self):
        if self._file is None:
            plain_lines(self)
            self._file = Full(self._file, 2)

    def open_shard(self):
        plain_shard(self)
        self._tar.fileobj = self._file = Full(self._file, left)

    plain_lines, plain_shard = LineFile.open, AnswerShards._open
    batch.run(pictures, tmp_path / f"calm-{name}")
    with monkeypatch.context() as full:
        full.setattr(LineFile, "open", open_lines)
        full.setattr(AnswerShards, "_open", open_shard)
        with pytest.raises(OSError, match="No space"):
            batch.run(pictures, tmp_path / name)
    full.undo()
    batch.run(pictures, tmp_path / name)
    assert batch.rows(tmp_path / name) == batch.rows(tmp_path / f"calm-{name}")


@pytest.mark.parametrize("cut", range(0, 200, 7))
def test_lines_cut_anywhere(tmp_path, cut):
    file = LineFile(tmp_path / "x")
    rows = [{"id": str(n), "text": "ü" * n, "settings": "s"} for n in range(4)]
    for row in rows:
        file.write(row)
    file.close()
    data = (tmp_path / "x").read_bytes()
    (tmp_path / "x").write_bytes(data[:cut])
    kept = [row for _, row in file.rows()]
    assert kept == rows[: data[:cut].count(b"\n")]
    for row in rows[len(kept) :]:
        file.write(row)
    file.close()
    assert (tmp_path / "x").read_bytes() == data


def test_shards_cut_anywhere(batch, many_pictures, tmp_path):
    folder, dest = many_pictures(4), tmp_path / "shards"
    batch.run(folder, dest)
    shard = dest / "answers-00000.tar"
    data = shard.read_bytes()
    for cut in range(0, len(data), 311):
        shard.unlink()
        (dest / "answers-00000.tar.part").write_bytes(data[:cut])
        batch.run(folder, dest)
        assert shard.read_bytes() == data, cut
