"""Making samples on all cores: sample number i depends on (seed, i) alone, so the number of workers changes nothing."""

import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path

from mmvl.data.shards import ShardWriter

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
) -> list[Path]:
    """Write samples 0 to count - 1 as `out_dir/prefix-NNNNN.tar` and return the shard paths in order.

    workers: processes; 0 means one a core. `progress(done, count)` is called in this process after every shard.
    """
    if count < 1:
        raise ValueError(f"count is {count}; ask for at least one sample")
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    starts = range(0, count, per_shard)
    jobs = [(str(out_dir), prefix, n, start, min(start + per_shard, count)) for n, start in enumerate(starts)]
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
            results = pool.imap_unordered(_write_one, jobs)
        for path, samples in results:
            shards.append(Path(path))
            done += samples
            if progress:
                progress(done, count)
        return sorted(shards)
    finally:
        _make = None
        if workers > 1:
            pool.terminate()
            pool.join()


def _write_one(job: tuple[str, str, int, int, int]) -> tuple[str, int]:
    out_dir, prefix, number, start, stop = job
    with ShardWriter(out_dir, prefix, max_bytes=1 << 40, first=number) as writer:
        for index in range(start, stop):
            writer.write(*_make(index))
    return str(writer.shards[0]), stop - start
