"""Making samples on all cores: sample number i depends on (seed, i) alone, so the number of workers changes nothing."""

import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path

from mmvl.data.shards import ShardError, ShardWriter

# Makes sample number i: (record, members).
Make = Callable[[int], tuple[dict, dict[str, bytes]]]
Progress = Callable[[int, int], None]

_make: Make | None = None


def write_shards(
    out_dir: str | Path,
    prefix: str,
    count: int,
    make: Make,
    workers: int = 0,
    *,
    per_shard: int = 2000,
    progress: Progress | None = None,
    problems: list[str] | None = None,
    max_bad_in_row: int = 100,
) -> list[Path]:
    """Write samples 0 to count - 1 as `out_dir/prefix-NNNNN.tar` and return the shard paths in order.

    workers: processes; 0 means one a core. `progress(done, count)` is called in this process after every shard.
    problems: a sample whose making raises ValueError becomes a line here instead of an end; over max_bad_in_row of
    them one after the other within a shard are a ShardError, as nothing is right then.
    """
    if count < 1:
        raise ValueError(f"count is {count}; ask for at least one sample")
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    starts = range(0, count, per_shard)
    limit = None if problems is None else max_bad_in_row
    jobs = [(str(out_dir), prefix, n, start, min(start + per_shard, count), limit) for n, start in enumerate(starts)]
    workers = min(workers or os.cpu_count() or 1, len(jobs))
    global _make
    _make = make
    done, shards = 0, []
    try:
        if workers == 1:
            results = map(_write_one, jobs)
        else:
            # fork: fonts and corpora loaded once by the parent are shared by all.
            pool = multiprocessing.get_context("fork").Pool(workers)
            results = pool.imap(_write_one, jobs)
        for paths, tried, bad in results:
            shards += paths
            if problems is not None:
                problems += bad
            done += tried
            if progress:
                progress(done, count)
        return sorted(shards)
    finally:
        _make = None
        if workers > 1:
            pool.terminate()
            pool.join()


def _write_one(job: tuple[str, str, int, int, int, int | None]) -> tuple[list[Path], int, list[str]]:
    out_dir, prefix, number, start, stop, limit = job
    problems, in_row = [], 0
    with ShardWriter(out_dir, prefix, max_bytes=1 << 40, first=number) as writer:
        for index in range(start, stop):
            try:
                record, members = _make(index)
                writer.write(record, members)
                in_row = 0
            except ValueError as error:
                if limit is None:
                    raise
                problems.append(str(error))
                in_row += 1
                if in_row > limit:
                    raise ShardError(f"over {limit} unusable samples in a row, the last: {error}") from error
    return writer.shards, stop - start, problems
