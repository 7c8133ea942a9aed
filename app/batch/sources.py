"""Where a job's items come from: which kind of source a path is, and folders of pictures and PDFs.

A source is iterated for its items, as they are needed; nothing of it stays in memory. Its `fraction` says how much of
it has been read (0 to 1, None if unknown). The same source gives the same items in the same order with the same ids.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from mmvl.app.batch.ids import Ids
from mmvl.app.batch.items import FilePicture, Item, clean
from mmvl.app.batch.tables import JsonLines, ParquetRows
from mmvl.app.errors import UsageError
from mmvl.app.pages import IMAGE_SUFFIXES, MEDIA_SUFFIXES

KINDS = "pictures, PDFs, .jsonl, .parquet and .tar files, and folders of these"


class Source(Protocol):
    """`requests` is True for OpenAI batch files, whose rows bring their own messages."""

    fraction: float | None
    requests: bool

    def __iter__(self) -> Iterator[Item]: ...


@dataclass(frozen=True)
class Reading:
    """What a source is to read from rows: the field with the pictures, the one with the id (None: the usual names),
    and the fields to keep in the output."""

    image: str | None = None
    id: str | None = None
    keep: tuple[str, ...] = ()


def open_source(paths: Sequence[Path | str], reading: Reading | None = None) -> Source:
    """One source of all that `paths` name, in that order.

    Raises FileNotFoundError for what is not there, UsageError for what is no source, for a mixture of kinds, and where
    two folders hold the same name, ValueError for what is empty or damaged.
    """
    reading = reading or Reading()
    paths = [Path(path) for path in paths]
    kinds = {path: _kind(path) for path in paths}
    if len(set(kinds.values())) > 1:
        raise UsageError(f"sources of several kinds ({', '.join(sorted(set(kinds.values())))}): one job for each kind")
    kind = kinds[paths[0]]
    if kind == "pictures":
        return Folders(paths)
    files = [file for path in paths for file in (sorted(path.glob(f"*{kind}")) if path.is_dir() else [path])]
    if kind == ".tar":
        from mmvl.app.batch.shards import Shards

        parts = [Shards(file, reading) for file in files]
    elif kind == ".parquet":
        parts = [ParquetRows(file, reading) for file in files]
    else:
        parts = [JsonLines(file, reading) for file in files]
    if len({part.requests for part in parts}) > 1:
        raise UsageError("some of these files are OpenAI batch files and some are not: one job for each kind")
    return Chain(parts)


def _kind(path: Path) -> str:
    """ "pictures", or the suffix of the files that hold the rows."""
    if not path.exists():
        raise FileNotFoundError(f"no such file or folder: {path}")
    if not path.is_dir():
        suffix = path.suffix.lower()
        if suffix in MEDIA_SUFFIXES:
            return "pictures"
        if suffix in (".jsonl", ".parquet", ".tar"):
            return suffix
        raise UsageError(f"{path} is nothing to read pictures from: give {KINDS}")
    suffixes = {entry.suffix.lower() for entry in path.iterdir() if not entry.name.startswith((".", "_"))}
    if suffixes & MEDIA_SUFFIXES:
        return "pictures"  # also where a captions.jsonl lies beside the pictures that it is about
    return next((suffix for suffix in (".tar", ".parquet", ".jsonl") if suffix in suffixes), "pictures")


class Chain:
    """Sources of one kind, one after the other."""

    def __init__(self, parts: list):
        self._parts, self._at = parts, 0
        self.requests = parts[0].requests

    @property
    def fraction(self) -> float | None:
        now = self._parts[self._at].fraction if self._at < len(self._parts) else 0.0
        return None if now is None else min(1.0, (self._at + now) / len(self._parts))

    def __iter__(self) -> Iterator[Item]:
        for number, part in enumerate(self._parts):
            self._at = number
            yield from part
        self._at = len(self._parts)


class Folders:
    """Pictures and PDFs of folders, walked to the bottom by name, and single files.

    An item is a picture (its id is its path relative to the folder, or as given) or a page of a PDF (`x.pdf#page=2`).
    """

    requests = False

    def __init__(self, paths: list[Path]):
        self._paths = paths
        self._done = 0
        self.files = 0
        names = Ids() if len(paths) > 1 else None
        for _, name in self._walk():
            self.files += 1
            if names is not None and not names.add_before(name):
                raise UsageError(f"two sources both hold {name}: caption them into separate files")
        if not self.files:
            kinds = " ".join(sorted(MEDIA_SUFFIXES))
            raise ValueError(f"no picture and no PDF in {', '.join(map(str, paths))} (looked for {kinds})")

    @property
    def fraction(self) -> float:
        return min(1.0, self._done / self.files)

    def __iter__(self) -> Iterator[Item]:
        self._done = 0
        for path, name in self._walk():
            if path.suffix.lower() in IMAGE_SUFFIXES:
                yield _of_file(path, name, None)
            else:
                yield from _pages(path, name)
            self._done += 1

    def _walk(self) -> Iterator[tuple[Path, str]]:
        for root in self._paths:
            if not root.is_dir():
                yield root, str(root)
                continue
            for folder, inside, names in os.walk(root, onerror=_stop):
                inside.sort()
                for name in sorted(names):
                    path = Path(folder, name)
                    if path.suffix.lower() in MEDIA_SUFFIXES:
                        yield path, path.relative_to(root).as_posix()


def _pages(path: Path, name: str) -> Iterator[Item]:
    from mmvl.media import pdf_page_count

    try:
        count = pdf_page_count(path)
    except (ValueError, OSError) as error:
        yield replace(_of_file(path, name, None), error=str(error))
        return
    for page in range(1, count + 1):
        yield _of_file(path, name, page)


def _of_file(path: Path, name: str, page: int | None) -> Item:
    name = clean(name)
    shown = {"file": name} if page is None else {"file": name, "page": page}
    parts = {"name": path.stem, "folder": path.parent.name, "suffix": path.suffix.lower()}
    id = name if page is None else f"{name}#page={page}"
    return Item(id, (FilePicture(str(path), page),), fields=shown | parts, shown=shown)


def _stop(error: OSError) -> None:
    raise error
