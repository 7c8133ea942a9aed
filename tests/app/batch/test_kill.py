"""`kill -9` at any moment, also in the middle of a write: every id once, and the same rows as undisturbed."""

import functools
import multiprocessing
import os
import random
import signal
import time

import pytest
from PIL import Image

from mmvl.answer_shards import AnswerShards
from mmvl.app.batch import rows, sinks
from mmvl.app.batch.job import job

FORK = multiprocessing.get_context("fork")  # the job starts in milliseconds


class Slow:
    """Takes a little time over each answer; some are long, so that a write is something that can be interrupted."""

    def __init__(self, batch, pause: float, count=None):
        self._batch, self._pause, self._count = batch, pause, count

    def answer(self, items, keep) -> None:
        for item in items:
            time.sleep(self._pause)
            if int(item.id[3:7]) % 97 == 5:
                keep(item, {"error": f"no answer to {item.id}"})
            else:
                words = random.Random(item.id).choice((3, 30, 30, 3000))
                keep(item, self._batch.answered(f"{item.prompt} {item.id} {len(item.pictures[0].read()[1])} " * words))
            if self._count is not None:
                self._count.value += 1


def in_a_child(work):
    """Run `work` in a process of its own, quietly."""

    def quietly() -> None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        work()

    child = FORK.Process(target=quietly)
    child.start()
    return child


class Half:
    """A file whose `left`th write puts half of it down and ends the process as `kill -9` does."""

    def __init__(self, file, left: int):
        self._file, self._left = file, left

    def write(self, data) -> int:
        self._left -= 1
        if not self._left:
            self._file.write(data[: max(1, len(data) // 2)])
            self._file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        return self._file.write(data)

    def __getattr__(self, name):
        return getattr(self._file, name)


def killed_in_a_write(run, number: int) -> None:
    """A job that is killed when half of its `number`th write (to the files of any destination) is done."""

    def open_lines(self) -> None:
        if self._file is None:
            plain_lines(self)
            self._file = Half(self._file, number)

    def open_shard(self) -> None:
        plain_shard(self)
        self._tar.fileobj = self._file = Half(self._file, 3 * number)  # of header, content and padding

    plain_lines, rows.LineFile.open = rows.LineFile.open, open_lines
    plain_shard, AnswerShards._open = AnswerShards._open, open_shard
    run()


def kill_often(batch, folder, dest, kills: int) -> int:
    """Start the job again and again and kill it, mostly at random moments, each third time half-way in a write.

    Returns how many times it was killed while it was at work.
    """
    draw = random.Random(1)
    for killed in range(kills):
        count = FORK.RawValue("i", 0)
        calm = functools.partial(batch.run, folder, dest, Slow(batch, 0.0))
        slow = functools.partial(batch.run, folder, dest, Slow(batch, 0.0005, count))
        if killed % 3 == 2:
            child = in_a_child(functools.partial(killed_in_a_write, calm, draw.randint(1, 35)))
        else:
            child = in_a_child(slow)
            moment = draw.randint(0, 80)
            while child.is_alive() and count.value < moment:
                time.sleep(0.0005)
            time.sleep(draw.uniform(0, 0.002))
            os.kill(child.pid, signal.SIGKILL)
        child.join()
        if child.exitcode == 0:
            return killed
        assert child.exitcode == -signal.SIGKILL
    return kills


@pytest.fixture
def small_parts(monkeypatch):
    """Parts and shards small enough that kills fall on their ends as well."""
    monkeypatch.setattr(sinks, "PER_PART", 40)
    monkeypatch.setattr(sinks, "PER_SHARD", 40)


@pytest.mark.parametrize(
    ("name", "pictures", "kills"), [("rows.jsonl", 2000, 20), ("rows.parquet", 800, 12), ("shards", 800, 12)]
)
def test_killed_again_and_again(batch, many_pictures, tmp_path, small_parts, name, pictures, kills):
    folder = many_pictures(pictures)
    (tmp_path / "calm").mkdir()
    batch.run(folder, tmp_path / "calm" / name, Slow(batch, 0.0))
    undisturbed = batch.rows(tmp_path / "calm" / name)
    assert len(undisturbed) == pictures and any("error" in row for row in undisturbed.values())
    assert kill_often(batch, folder, tmp_path / name, kills) == kills, "done before it was killed so often"
    tally = batch.run(folder, tmp_path / name, Slow(batch, 0.0))
    assert tally.done > pictures / 10, "nothing was left of what the killed runs did"
    assert batch.rows(tmp_path / name) == undisturbed


def test_killed_while_texts_are_written_beside_the_pictures(batch, many_pictures):
    folder = many_pictures(600)
    assert kill_often(batch, folder, ".txt", 6) == 6
    batch.run(folder, ".txt", Slow(batch, 0.0))
    left = batch.rows(folder / "captions.jsonl")
    assert len(left) == 600
    texts = {path.name: path.read_text() for path in folder.glob("*.txt")}
    assert texts == {row["txt"]: row["text"] for row in left.values() if "text" in row}


def test_a_text_that_a_kill_prevented_is_written_from_its_row(batch, many_pictures):
    folder = many_pictures(3)
    batch.run(folder, ".txt")
    before = (folder / "pic0001.txt").read_text()
    (folder / "pic0001.txt").unlink()
    again = batch.Hashing()
    batch.run(folder, ".txt", again)
    assert (folder / "pic0001.txt").read_text() == before and not again.asked


def test_mmvl_tiny_killed_twice(batch, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(8):
        Image.new("RGB", (40, 40), (20 * number, 90, 200)).save(folder / f"{number}.png")

    def caption(dest) -> None:
        job("caption", [folder], dest, prompt="What is it?", sampling={"max_tokens": 5})

    caption(tmp_path / "calm.jsonl")
    dest = tmp_path / "rows.jsonl"
    for wanted in (2, 5):
        child = in_a_child(lambda: caption(dest))
        while child.is_alive() and (not dest.exists() or dest.read_bytes().count(b"\n") < wanted):
            time.sleep(0.005)
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        assert child.exitcode == -signal.SIGKILL and len(dest.read_bytes()) > 0
    caption(dest)
    assert batch.rows(dest) == batch.rows(tmp_path / "calm.jsonl")
