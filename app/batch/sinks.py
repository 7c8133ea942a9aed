"""Where rows go: a file of JSON lines, a folder of Parquet parts, a folder of shards, or a .txt beside each picture.

What a sink keeps survives `kill -9` at any moment: an id is in it once or not at all, and the next run writes those
that are not.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

from mmvl.app.batch.ids import Ids
from mmvl.app.batch.items import FilePicture, Item, clean
from mmvl.app.batch.rows import Known, LineFile, known, sync

BESIDE = ".txt"
PER_PART = 5000  # rows of a Parquet part
PER_SHARD = 2000  # samples of a shard
ABOUT = "_settings.json"  # in a folder of rows: what made it; without it a folder is not ours
ROWS_BESIDE = "captions.jsonl"  # the rows of texts beside pictures: in the folder of the pictures


class Sink(ABC):
    """path: of the file or folder, beside or in which `journal.py` keeps what made it."""

    path: Path

    @abstractmethod
    def known(self) -> Iterator[Known]:
        """What is there, after a recovery from whatever an earlier run was killed in. ValueError if not ours."""

    @abstractmethod
    def clear(self, failed_only: bool) -> None:
        """Remove all rows, or those of failures."""

    def has(self, item: Item) -> bool:
        """Whether something that is not ours stands where the answer would go, and is to be left alone."""
        return False

    @abstractmethod
    def write(self, item: Item, row: dict) -> None:
        """Keep one row."""

    @abstractmethod
    def close(self) -> None:
        """Finish what is open."""


class JsonLinesSink(Sink):
    """One file; a row a line."""

    def __init__(self, path: Path):
        if path.is_dir():
            raise ValueError(f"{path} is a folder: name a file for the rows, for example {path / 'captions.jsonl'}")
        if not path.parent.is_dir():
            raise FileNotFoundError(f"no folder {path.parent} to write {path.name} into: make it first")
        self.path = path
        self._lines = LineFile(path)

    def known(self) -> Iterator[Known]:
        for number, row in self._lines.rows():
            try:
                yield known(row)
            except (KeyError, TypeError):
                raise ValueError(f"{self.path} line {number} is no row of answers: name another destination") from None

    def clear(self, failed_only: bool) -> None:
        if failed_only:
            self._lines.keep(lambda row: not known(row).failed)
        else:
            self._lines.clear()

    def write(self, item: Item, row: dict) -> None:
        self._lines.write(row)

    def close(self) -> None:
        self._lines.open()  # so that a job without rows leaves an empty file, not none
        self._lines.close()


class TextSink(Sink):
    """`x.txt` beside `x.png` with nothing but the answer, and all rows, failures too, in `captions.jsonl`.

    The row is written first: a text that a kill has prevented is written from its row by the next run. A .txt that no
    row speaks of is somebody else's; it is left alone unless everything is overwritten.
    """

    def __init__(self, folder: Path, overwrite: bool):
        self.path = folder / ROWS_BESIDE
        self._folder, self._overwrite = folder, overwrite
        self._rows = JsonLinesSink(self.path)
        self._ours = Ids()  # names of texts

    def known(self) -> Iterator[Known]:
        for _, row in LineFile(self.path).rows():
            if row.get("error") is None and "txt" in row:
                self._ours.add_before(row["txt"])
                if not (self._folder / row["txt"]).exists():
                    _replace(self._folder / row["txt"], row["text"])
        yield from self._rows.known()

    def clear(self, failed_only: bool) -> None:
        self._rows.clear(failed_only)

    def has(self, item: Item) -> bool:
        if self._overwrite or item.error is not None:
            return False
        return self._text_of(item).exists() and self._name_of(item) not in self._ours

    def write(self, item: Item, row: dict) -> None:
        if "error" not in row and not self._ours.write(self._name_of(item)):
            row = failed(item, row, f"{self._name_of(item)} is there already, of another picture of that name")
        if "error" in row:
            self._rows.write(item, row)
        else:
            self._rows.write(item, row | {"txt": self._name_of(item)})
            _replace(self._text_of(item), row["text"])

    def close(self) -> None:
        self._rows.close()

    def _text_of(self, item: Item) -> Path:
        picture = item.pictures[0]
        assert isinstance(picture, FilePicture), picture
        path = Path(picture.path)
        page = "" if picture.page is None else f".page-{picture.page}"
        return path.with_name(f"{path.stem}{page}.txt")

    def _name_of(self, item: Item) -> str:
        return clean(self._text_of(item).relative_to(self._folder).as_posix())


class ShardSink(Sink):
    """A folder of WebDataset shards that `mmvl train` reads; failures are rows of `_failed.jsonl` in it."""

    def __init__(self, folder: Path, task: str):
        from mmvl.answer_shards import AnswerShards

        self.path, self._task = folder, task
        self._failed = LineFile(folder / "_failed.jsonl")
        self._shards = AnswerShards(folder, PER_SHARD)

    def known(self) -> Iterator[Known]:
        for meta in self._shards.metas():
            yield known(meta)
        for _, row in self._failed.rows():
            yield known(row)

    def clear(self, failed_only: bool) -> None:
        self._failed.clear()
        if not failed_only:
            self._shards.clear()

    def write(self, item: Item, row: dict) -> None:
        if "error" in row:
            self._failed.write(row)
            return
        try:
            pictures = [picture.read() for picture in item.pictures]
        except (ValueError, OSError) as error:  # it was there when it was shown to the model
            self._failed.write(failed(item, row, f"no sample could be made: {error}"))
        else:
            self._shards.write(pictures, self._task, item.prompt, row["text"], row)

    def close(self) -> None:
        self._shards.close()
        self._failed.close()


def open_sink(dest: Path, task: str, sources: list[Path], *, overwrite: bool) -> Sink:
    """The sink that a destination's name asks for: `x.jsonl`, `x.parquet` (a folder of parts), `.txt` (beside each
    picture of one folder), or a folder for shards (a name without a suffix).

    Raises ValueError or OSError if it cannot be used.
    """
    if str(dest) == BESIDE:
        if len(sources) != 1 or not sources[0].is_dir():
            raise ValueError("-o .txt writes beside the pictures of one folder: give that folder as the only source")
        return TextSink(sources[0], overwrite)
    if dest.suffix == ".jsonl":
        return JsonLinesSink(dest)
    if dest.is_file():
        raise ValueError(f"{dest} is another file: name a .jsonl or .parquet, or a folder for shards")
    if dest.suffix not in ("", ".parquet"):
        raise ValueError(f"{dest} is none of x.jsonl, x.parquet, .txt (beside the pictures) and a folder for shards")
    if not dest.parent.is_dir():
        raise FileNotFoundError(f"no folder {dest.parent} to make {dest.name} in: make it first")
    if dest.is_dir() and not (dest / ABOUT).exists() and any(dest.iterdir()):
        raise ValueError(f"{dest} holds other files: name a new folder, or one that this command made")
    if dest.suffix == ".parquet":
        from mmvl.app.batch.parquet import ParquetSink

        return ParquetSink(dest, PER_PART)
    return ShardSink(dest, task)


def failed(item: Item, row: dict, reason: str) -> dict:
    """The row of an answer that cannot be kept."""
    return {name: row[name] for name in ("id", *item.shown, "settings")} | {"error": reason}


def _replace(path: Path, text: str) -> None:
    """Write a file in one step: there is never half of it."""
    beside = path.with_name(path.name + ".part")
    with beside.open("w", encoding="utf-8") as file:
        file.write(text)
        sync(file)
    os.replace(beside, path)
