"""Memory does not grow with the size of a job.

For more rows: MMVL_TEST_ROWS=100000 pytest -s tests/app/batch/test_memory.py; docs/log.md has what that gave.
"""

import io
import json
import multiprocessing
import os
import resource
import tarfile
import time
import tracemalloc

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from mmvl.app.batch import sinks

FORK = multiprocessing.get_context("fork")
MOST = int(os.environ.get("MMVL_TEST_ROWS", "10000"))
QUESTION = "What is it? " * 80  # a kilobyte: rows that stay in memory are seen
PART = 500  # rows of a part or shard: smaller than the smallest job


class Window:
    """Holds 64 items at a time, as an engine does, and answers them all."""

    def __init__(self, batch):
        self._batch = batch

    def answer(self, items, keep) -> None:
        held = []
        for item in items:
            held.append(item)
            if len(held) == 64:
                for each in held:
                    keep(each, self._batch.answered("a few words about it"))
                held = []
        for each in held:
            keep(each, self._batch.answered("a few words about it"))


def write_jsonl(path, count: int) -> None:
    with path.open("w") as file:
        file.writelines(json.dumps({"id": n, "image": f"{n}.png", "question": QUESTION}) + "\n" for n in range(count))


def write_parquet(path, count: int) -> None:
    schema = pyarrow.schema([("id", pyarrow.int64()), ("image", pyarrow.string()), ("question", pyarrow.string())])
    with pyarrow.parquet.ParquetWriter(path, schema) as file:
        for first in range(0, count, PART):
            ids = list(range(first, first + PART))
            file.write(pyarrow.table([ids, [f"{n}.png" for n in ids], [QUESTION] * PART], schema=schema))


def write_tar(path, count: int) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "PNG")
    row = json.dumps({"question": QUESTION}).encode()
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for n in range(count):
            for suffix, data in (("png", buffer.getvalue()), ("json", row)):
                info = tarfile.TarInfo(f"{n:06d}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
            tar.members.clear()  # which would be what grows


KINDS = {"jsonl": (write_jsonl, ".jsonl"), "parquet": (write_parquet, ".parquet"), "tar": (write_tar, "")}


@pytest.fixture
def job(batch, tmp_path, monkeypatch):
    """job(rows, kind) runs a job of so many rows from and to files of that kind."""
    monkeypatch.setattr(sinks, "PER_PART", PART)
    monkeypatch.setattr(sinks, "PER_SHARD", PART)

    def run(count: int, kind: str) -> None:
        write, suffix = KINDS[kind]
        source = tmp_path / f"{count}.{kind}"
        write(source, count)
        dest = tmp_path / f"answers-{count}{suffix}"
        for done in (0, count):  # the second run finds all rows there
            tally = batch.run(source, dest, Window(batch), task="vqa", prompt="{{ question }}")
            assert (tally.good, tally.failed, tally.done) == (count - done, 0, done)

    return run


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kind", KINDS)
def test_the_process_is_as_large_for_many_rows_as_for_1_000(job, kind):
    ours, theirs = FORK.Pipe()

    def measured() -> None:
        for count in (1_000, MOST):
            start = time.monotonic()
            job(count, kind)
            theirs.send((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic() - start))

    child = FORK.Process(target=measured)
    child.start()
    child.join()
    assert child.exitcode == 0
    (few, _), (many, seconds) = ours.recv(), ours.recv()
    print(f"\n{kind}: {few >> 10} MiB for 1,000 rows, {many >> 10} MiB for {MOST:,}, in {seconds:.0f} s")
    # The index of ids may hold 2 MiB; 10,000 of these rows in memory would be over 10.
    assert many - few < 8 << 10, f"grew by {many - few} KiB"


def test_python_holds_as_much_for_3_000_rows_as_for_500(job):
    job(10, "jsonl")  # what is imported and cached once
    tracemalloc.start()
    try:
        job(500, "jsonl")
        few = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        job(3_000, "jsonl")
        many = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert many < few + (100 << 10)
