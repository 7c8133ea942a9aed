"""Rows of a job's output: what is in them, the two shapes of a line of JSON, and a file of such lines.

A row: {"id", what the item shows ("file", "page", kept fields), "text", "finish_reason", "prompt_tokens",
"image_tokens", "completion_tokens", "settings"}, or {"id", ..., "error", "settings"} for a failure.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple


class Known(NamedTuple):
    """What a row that is there already tells: its id, the hash of its settings, whether it is a failure."""

    id: str
    settings: str
    failed: bool


def known(row: dict) -> Known:
    """Of a row in either shape. Raises KeyError or TypeError for what is no row of ours."""
    if "custom_id" in row:
        response = row["response"]
        return Known(row["custom_id"], row["settings"], not response or response["status_code"] != 200)
    if "text" not in row and "error" not in row:
        raise KeyError("text")
    return Known(row["id"], row["settings"], row.get("error") is not None)


def line_of(row: dict) -> bytes:
    """The row as a line. Names that are no Unicode (file names may hold any bytes) are escaped."""
    try:
        return json.dumps(row, ensure_ascii=False).encode() + b"\n"
    except UnicodeEncodeError:
        return json.dumps(row).encode() + b"\n"


class LineFile:
    """Lines of JSON that are appended one by one; each is whole in the file before `write` returns.

    After a kill the last line may be cut off: reading leaves it out, and `open` cuts it off.
    """

    def __init__(self, path: Path):
        self.path = path
        self._file = None

    def rows(self) -> Iterator[tuple[int, dict]]:
        """(number of the line from 1, row) of what is there. Raises ValueError for a line that is no JSON object."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    return
                try:
                    row = json.loads(line)
                except ValueError:
                    row = None
                if not isinstance(row, dict):
                    raise ValueError(f"{self.path} line {number} is no row of answers: name another destination")
                yield number, row

    def open(self) -> None:
        """Be ready to append."""
        if self._file is None:
            self._file = self.path.open("ab")
            self._file.truncate(_end_of_last_line(self.path))

    def write(self, row: dict) -> None:
        self.open()
        self._file.write(line_of(row))
        self._file.flush()

    def keep(self, wanted) -> None:
        """Leave out the rows that `wanted(row)` is not true of; the file is replaced in one step."""
        self.close()
        if not self.path.exists():
            return
        beside = self.path.with_name(self.path.name + ".part")
        with beside.open("wb") as kept:
            for _, row in self.rows():
                if wanted(row):
                    kept.write(line_of(row))
            sync(kept)
        os.replace(beside, self.path)

    def clear(self) -> None:
        self.close()
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        if self._file is not None:
            sync(self._file)
            self._file.close()
            self._file = None


def sync(file) -> None:
    """What was written is on the disk when this returns."""
    file.flush()
    os.fsync(file.fileno())


def _end_of_last_line(path: Path) -> int:
    """Bytes up to and with the last end of a line."""
    with path.open("rb") as file:
        at = file.seek(0, os.SEEK_END)
        while at > 0:
            start = max(0, at - (1 << 16))
            file.seek(start)
            found = file.read(at - start).rfind(b"\n")
            if found >= 0:
                return start + found + 1
            at = start
    return 0
