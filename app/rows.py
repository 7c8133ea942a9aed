"""A JSONL file that is written row by row and can be taken up again after a crash or Ctrl-C."""

import json
import os
from pathlib import Path
from typing import TextIO


class RowFile:
    """Appends rows to `path`; every row is a whole line on disk before `write` returns.

    on_existing: "skip" keeps the rows of an earlier run that have no "error" (a half-written last line and failed rows
    are dropped, so that they are tried again), "overwrite" starts afresh.
    settings: values that every row carries; rows of an earlier run made with others are refused, never mixed.
    done: the keys (file, page) of the rows kept.
    Raises ValueError for unusable arguments or contents, OSError if the file cannot be written.
    """

    def __init__(self, path: Path, *, on_existing: str, settings: dict):
        if on_existing not in ("skip", "overwrite"):
            raise ValueError(f"--on-existing is skip or overwrite, not {on_existing}")
        if path.is_dir():
            raise ValueError(f"{path} is a folder: name a file for the rows, for example {path / 'captions.jsonl'}")
        if not path.parent.is_dir():
            raise FileNotFoundError(f"no folder {path.parent} to write {path.name} into: make it first")
        self.settings = settings
        self.done: set[tuple[str, int | None]] = set()
        # The rows to keep go beside the file, which is then renamed over it: a crash here loses nothing.
        beside = path.with_name(path.name + ".part")
        with beside.open("w", encoding="utf-8") as kept:
            if on_existing == "skip" and path.exists():
                self._copy_good_rows(path, kept)
        os.replace(beside, path)
        self._file = path.open("a", encoding="utf-8")

    def write(self, row: dict) -> None:
        self._file.write(_line(row | self.settings))
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def _copy_good_rows(self, path: Path, kept: TextIO) -> None:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    row = json.loads(line)
                    key, failed = row_key(row), "error" in row
                except (ValueError, KeyError, TypeError):
                    if not line.endswith("\n"):
                        break  # the run before was killed while it wrote this line
                    raise ValueError(f"{path} line {number} is no row of captions: name another file") from None
                for name, value in self.settings.items():
                    if row.get(name) != value:
                        raise ValueError(
                            f"{path} line {number} was made with {name} {row.get(name)!r}, not {value!r}: "
                            "name another file or start afresh with --on-existing overwrite"
                        )
                if not failed:
                    self.done.add(key)
                    kept.write(_line(row))


def row_key(row: dict) -> tuple[str, int | None]:
    """What identifies a row: its file, and the page if the file is a PDF."""
    return row["file"], row.get("page")


def _line(row: dict) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"
