"""Memory does not grow with the size of a job."""

import json
import multiprocessing
import resource
import tracemalloc

import pyarrow
import pyarrow.parquet
import pytest

FORK = multiprocessing.get_context("fork")


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


@pytest.fixture
def job(batch, tmp_path):
    """job(rows, kind) runs a job of so many rows from and to files of that kind."""

    def run(count: int, kind: str) -> None:
        source = tmp_path / f"{count}.{kind}"
        if kind == "jsonl":
            with source.open("w") as file:
                file.writelines(
                    json.dumps({"id": n, "image": f"{n}.png", "question": "?"}) + "\n" for n in range(count)
                )
        else:
            schema = pyarrow.schema(
                [("id", pyarrow.int64()), ("image", pyarrow.string()), ("question", pyarrow.string())]
            )
            with pyarrow.parquet.ParquetWriter(source, schema) as file:
                for first in range(0, count, 1000):
                    ids = list(range(first, first + 1000))
                    file.write(pyarrow.table([ids, [f"{n}.png" for n in ids], ["?"] * 1000], schema=schema))
        dest = tmp_path / f"answers-{count}.{kind}"
        tally = batch.run(source, dest, Window(batch), task="vqa", prompt="{{ question }}")
        assert (tally.good, tally.failed) == (count, 0)

    return run


@pytest.mark.parametrize(("kind", "most"), [("jsonl", 100_000), ("parquet", 30_000)])
def test_the_process_is_as_large_for_many_rows_as_for_1_000(job, kind, most):
    ours, theirs = FORK.Pipe()

    def measured() -> None:
        for count in (1_000, most):
            job(count, kind)
            theirs.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)

    child = FORK.Process(target=measured)
    child.start()
    child.join()
    few, many = ours.recv(), ours.recv()
    # The index of ids may hold 2 MB, buffers of Parquet a few more; 100,000 rows kept in memory would be over 100 MB.
    assert many - few < 24 << 10, f"grew by {many - few} kilobytes"


def test_python_holds_as_much_for_8_000_rows_as_for_1_000(job):
    job(10, "jsonl")  # what is imported and cached once
    tracemalloc.start()
    try:
        job(1_000, "jsonl")
        few = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        job(8_000, "jsonl")
        many = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert many < few + (200 << 10)
