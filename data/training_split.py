"""A copy of what may be trained on of a set of real pictures or tables, to take to the machine that trains."""

import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path

from webdataset.tariterators import base_plus_ext

from mmvl.data.splits import split_of
from mmvl.data.tar import BLOCK, TarDamage, members


def copy_training_split(
    out_dir: str | Path,
    count: int = 0,
    seed: int = 0,
    workers: int = 1,
    *,
    file: str | Path,
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Copy a file that `public_formats` reads to out_dir/<its name>, without the samples that are kept for development.

    file: a tar of `key.webp` beside `key.json`, or a .jsonl or .jsonl.gz whose lines have an `id`; what is copied keeps
    its bytes and order. `count`, `seed` and `workers` change nothing. Returns [the copy]. FileNotFoundError without a
    file, ValueError where it is damaged, of another kind, or would be written over.
    """
    source, target = Path(file), Path(out_dir) / Path(file).name
    if not source.is_file():
        raise FileNotFoundError(f"{source}: no such file (a tar or a .jsonl.gz; a folder has no copy of its own)")
    if target.exists() and target.samefile(source):
        raise ValueError(f"{source}: the copy would be written over it; name another folder")
    kept = list(_lines(source) if ".jsonl" in source.suffixes else _members(source))
    if not kept:
        raise ValueError(f"{source}: nothing in it is of the training split")
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as out:
        if target.suffix == ".gz":
            with gzip.GzipFile(fileobj=out, mode="wb", filename="", mtime=0) as packed:
                packed.writelines(kept)
        else:
            out.writelines(kept)
            out.write(b"" if ".jsonl" in source.suffixes else bytes(2 * BLOCK))
    if progress:
        progress(len(kept), len(kept))
    return [target]


def _members(path: Path) -> Iterator[bytes]:
    """Header and padded content of every member of a training sample."""
    data = path.read_bytes()
    try:
        for member in members(data):
            key = base_plus_ext(member.name)[0] or member.name
            if split_of(key.rpartition("/")[2]) == "train":
                yield data[member.header : member.offset + -(-member.size // BLOCK) * BLOCK]
    except TarDamage as error:
        raise ValueError(f"{path} is damaged or no tar: {error}") from error


def _lines(path: Path) -> Iterator[bytes]:
    number = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            for line in file:
                number += 1
                if split_of(json.loads(line)["id"]) == "train":
                    yield line
    except (KeyError, TypeError, ValueError, OSError, EOFError) as error:
        raise ValueError(f"{path}, line {number}: not an object with an 'id' ({error})") from error
