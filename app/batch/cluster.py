"""A job over a Ray cluster: one task reads the source, actors that hold the model answer, this process keeps the rows.

A Ray Data pipeline, so that what is read and not yet answered is bounded by Ray's back-pressure. Pictures travel as
paths: every machine must reach them under the same path. What came inside rows travels with them.
"""

import json
import logging
import os
import pickle
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

from mmvl.app.batch.answers import Answering
from mmvl.app.batch.ids import Ids
from mmvl.app.batch.items import Item
from mmvl.app.batch.journal import Journal
from mmvl.app.batch.progress import Tally, Told
from mmvl.app.batch.results import failure, row_of
from mmvl.app.batch.run import to_ask
from mmvl.app.batch.sources import Source
from mmvl.app.batch.templates import Template
from mmvl.app.batch.workers import end_if_broken
from mmvl.app.errors import UsageError

try:
    import ray
except ImportError:
    raise ValueError("--engine ray needs Ray: pip install 'mmvl[cluster]'") from None
import pyarrow
import ray.data
from ray.data.block import BlockMetadata
from ray.data.datasource import ReadTask

_BLOCK = 16  # items that are sent on together
_BLOCK_BYTES = 4096
_BATCH = 32  # items that an actor is given at once; it has two such batches in work
_OPENING_SECONDS = 3600  # that the actors have to open the model
_RESTARTS = 3  # of an actor, before the job is given up


@contextmanager
def joined() -> Iterator[str]:
    """The cluster that RAY_ADDRESS names or that runs on this machine, else one started here; what its models run on:
    "cuda" if it has GPUs, else "cpu"."""
    started = not ray.is_initialized()
    if started:
        # its dashboard would be a port through which anybody on this machine runs code, and a second more to wait
        ray.init(logging_level=logging.WARNING, log_to_driver=False, include_dashboard=False)
    try:
        yield "cuda" if ray.cluster_resources().get("GPU", 0) else "cpu"
    finally:
        if started:
            ray.shutdown()


def run_on_ray(
    source: Source, journal: Journal, template: Template, how: Answering, *, task: str, workers: int
) -> Tally:
    """As `run.run`, on the cluster that was `joined`.

    workers: actors; 0: as many as the cluster has GPUs, or one. Each takes a GPU if there are any.
    """
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.wait_for_min_actors_s = _OPENING_SECONDS  # else the first one there takes it all
    # Blocks are sent on when they have this size: by default all items would become one block, for one actor.
    context.target_max_block_size = context.target_min_block_size = _BLOCK_BYTES
    tally, by_actor = Tally(), Counter()
    with tempfile.TemporaryDirectory() as folder, Told(tally, task) as told:
        done = Path(folder) / "done"
        journal.ids.save(str(done))
        results = _results(_Items(source, template, str(done)), how, workers)
        first = next(results)  # once it is there, the model could be opened
        journal.begin()
        tally.begin()
        for item, result in chain([first], results):
            if item is None:
                tally.done, tally.repeated, tally.first_repeated = result["tally"]
                tally.fraction = result["fraction"]
                continue
            by_actor[result.pop("actor")] += 1
            if journal.record(item, row_of(item, result, task)):
                tally.add(result)
                told()
    if by_actor:
        print(f"rows by actor: {', '.join(map(str, by_actor.values()))}", file=sys.stderr)
    return tally


def _results(items: "_Items", how: Answering, workers: int) -> Iterator[tuple[Item | None, dict]]:
    gpus = int(ray.cluster_resources().get("GPU", 0))
    workers = workers or max(1, gpus)
    if gpus and workers > gpus:
        raise UsageError(f"--workers {workers} is more than the {gpus} GPUs of the cluster")
    answers = ray.data.read_datasource(items, override_num_blocks=1, num_cpus=0).map_batches(
        _Actor,
        fn_constructor_args=(how, os.getcwd()),
        batch_size=_BATCH,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=workers),
        num_gpus=1 if gpus else 0,
        num_cpus=1,
        max_concurrency=2,
        max_restarts=_RESTARTS,
        max_task_retries=_RESTARTS,
    )
    for block in answers.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        for row in block.to_pylist():
            yield pickle.loads(row["item"]), json.loads(row["told"])


class _Items(ray.data.Datasource):
    """The items that are to be asked, and, between them, how far the source has been read."""

    supports_distributed_reads = False  # the source, and the table of what is done, lie on this machine

    def __init__(self, source: Source, template: Template, done: str):
        self._source, self._template, self._done, self._folder = source, template, done, os.getcwd()

    def estimate_inmemory_data_size(self) -> None:
        return None

    def get_read_tasks(self, parallelism: int, *_, **__) -> list[ReadTask]:
        unknown = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
        return [ReadTask(self._blocks, unknown)]

    def _blocks(self) -> Iterator[pyarrow.Table]:
        os.chdir(self._folder)
        tally, block = Tally(), []
        for item in to_ask(self._source, self._template, Ids.load(self._done), None, tally):
            block.append((item, {}))
            if len(block) >= _BLOCK:
                yield _table([*block, _read_so_far(tally)])
                block = []
        tally.fraction = 1.0
        yield _table([*block, _read_so_far(tally)])


class _Actor:
    """Holds the model; answers a batch of rows."""

    def __init__(self, how: Answering, folder: str):
        os.chdir(folder)
        self._answerer = how.open()

    def __call__(self, batch: pyarrow.Table) -> pyarrow.Table:
        answered: list[tuple[Item | None, dict]] = []

        def to_answer() -> Iterator[Item]:
            for row in batch.to_pylist():
                item = pickle.loads(row["item"])
                if item is None:
                    answered.append((None, json.loads(row["told"])))
                elif item.error is not None:
                    answered.append((item, failure(item, item.error)))
                else:
                    yield item

        try:
            self._answerer.answer(to_answer(), lambda item, result: answered.append((item, result)))
        except Exception as error:
            end_if_broken(error)  # Ray starts it anew, and gives it the batch once more
            raise
        who = ray.get_runtime_context().get_actor_id()
        return _table([(item, told if item is None else told | {"actor": who}) for item, told in answered])


def _read_so_far(tally: Tally) -> tuple[None, dict]:
    return None, {"tally": [tally.done, tally.repeated, tally.first_repeated], "fraction": tally.fraction}


def _table(rows: list[tuple[Item | None, dict]]) -> pyarrow.Table:
    items = [pickle.dumps(item) for item, _ in rows]
    return pyarrow.table({"item": items, "told": [json.dumps(told) for _, told in rows]})
