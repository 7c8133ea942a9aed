"""Items from rows: JSONL (our own plain rows, and OpenAI batch files) and Parquet, read a few rows at a time."""

import base64
import binascii
import json
import os
from collections.abc import Iterator
from pathlib import Path

from mmvl.app.batch.items import BytesPicture, FilePicture, Item, Picture, clean
from mmvl.app.errors import UsageError

IMAGE_FIELDS = ("image", "images", "file", "file_name", "path")
ID_FIELDS = ("id", "question_id", "key")
MAX_LINE = 256 << 20  # bytes: a row with its pictures inside
_PARQUET_ROWS = 16  # read at once; each may hold pictures
_BUFFER = 1 << 20  # bytes


class JsonLines:
    """An item a line. Pictures are paths relative to the file, or data: URLs. A line that is no row is a failure."""

    def __init__(self, path: Path, reading):
        self._path, self._reading = path, reading
        self._read, self._size = 0, path.stat().st_size
        self.requests = holds_requests(path)
        if not self._size:
            raise ValueError(f"{path} is empty: a line for each row was expected")

    @property
    def fraction(self) -> float:
        return min(1.0, self._read / self._size)

    def __iter__(self) -> Iterator[Item]:
        self._read = 0
        with self._path.open("rb") as file:
            number = 0
            while line := file.readline(MAX_LINE):
                number += 1
                self._read += len(line)
                id = f"{self._path.name}#{number}"
                if len(line) == MAX_LINE and not line.endswith(b"\n"):
                    while rest := file.readline(MAX_LINE):
                        self._read += len(rest)
                        if rest.endswith(b"\n"):
                            break
                    yield Item(id, request=self.requests, error=f"line {number} has more than {MAX_LINE >> 20} MiB")
                    continue
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError) as error:  # also what is not UTF-8, or nested without end
                    yield Item(id, request=self.requests, error=f"line {number} is no JSON: {error}")
                    continue
                if not isinstance(row, dict):
                    reason = f"line {number} is no JSON object but a {type(row).__name__}"
                    yield Item(id, request=self.requests, error=reason)
                elif self.requests:
                    yield request_item(row, id)
                else:
                    yield row_item(row, id, self._path, self._reading)


class ParquetRows:
    """An item a row. Pictures are bytes, {"bytes", "path"} as `datasets` writes them, paths, or lists of these."""

    requests = False

    def __init__(self, path: Path, reading):
        self._path, self._reading = path, reading
        self._read = 0
        with self._open() as file:
            self._rows = file.metadata.num_rows
            names = file.schema_arrow.names
        wanted = [*reading.keep, *(name for name in (reading.image, reading.id) if name)]
        missing = [name for name in wanted if name not in names]
        if missing:
            raise UsageError(f"{path} has no column {missing[0]!r}; there are: {', '.join(names)}")

    @property
    def fraction(self) -> float:
        return min(1.0, self._read / max(1, self._rows))

    def __iter__(self) -> Iterator[Item]:
        import pyarrow

        self._read = 0
        with self._open() as file:
            try:
                for batch in file.iter_batches(batch_size=_PARQUET_ROWS):
                    for row in batch.to_pylist():
                        self._read += 1
                        yield row_item(row, f"{self._path.name}#{self._read}", self._path, self._reading)
            except (pyarrow.ArrowException, OSError) as error:
                raise ValueError(f"{self._path} is damaged after row {self._read}: {error}") from None

    def _open(self):
        import pyarrow
        import pyarrow.parquet

        try:
            # A page of a column at a time; by default whole row groups, which may hold gigabytes of pictures.
            return pyarrow.parquet.ParquetFile(self._path, buffer_size=_BUFFER, pre_buffer=False)
        except (pyarrow.ArrowException, OSError) as error:
            raise ValueError(f"{self._path} is no Parquet file that can be read: {error}") from None


def holds_requests(path: Path) -> bool:
    """Whether the first line is of an OpenAI batch file: {"custom_id", "method", "url", "body"}."""
    with path.open("rb") as file:
        try:
            first = json.loads(file.readline(MAX_LINE))
        except (ValueError, RecursionError):
            return False
    return isinstance(first, dict) and {"custom_id", "body"} <= first.keys()


def request_item(row: dict, id: str) -> Item:
    """An item of a line of an OpenAI batch file."""
    name, body = row.get("custom_id"), row.get("body")
    if not isinstance(name, str) or not name:
        return Item(id, request=True, error="no custom_id: each request needs one of its own")
    name = clean(name)
    if row.get("url") != "/v1/chat/completions" or row.get("method", "POST") != "POST":
        return Item(name, request=True, error="only POST /v1/chat/completions is answered here")
    if not isinstance(body, dict):
        return Item(name, request=True, error="no body: the request itself is missing")
    return Item(name, chat=body, request=True)


def row_item(row: dict, id: str, path: Path, reading) -> Item:
    """An item of a row of `path`; its id is `id` unless a field names one. What is wrong with it is its `error`."""
    names = (reading.id,) if reading.id else ID_FIELDS
    found = next((row[name] for name in names if row.get(name) is not None), None)
    if found is not None:
        id = clean(str(found))
    elif reading.id:
        return Item(id, error=f"no field {reading.id!r} to be its id")
    shown = {name: _plain(row.get(name)) for name in reading.keep}
    names = (reading.image,) if reading.image else IMAGE_FIELDS
    where = next((name for name in names if row.get(name) is not None), None)
    fields = {name: value for name, value in row.items() if name != where}
    if where is None:
        return Item(id, fields=fields, shown=shown, error=f"no picture: none of the fields {', '.join(names)}")
    values = row[where] if isinstance(row[where], list) else [row[where]]
    try:
        pictures = tuple(picture_of(value, path.parent, f"{where} of {id}") for value in values)
    except ValueError as error:
        return Item(id, fields=fields, shown=shown, error=str(error))
    paths = [picture for picture in pictures if isinstance(picture, FilePicture)]
    fields |= (
        {"name": os.path.splitext(os.path.basename(paths[0].path))[0], where: values[0]}
        if paths and "name" not in fields
        else {}
    )
    return Item(id, pictures, fields, shown)


def _plain(value):
    """A value of Parquet's as JSON has it: dates and decimals as text, bytes by their number."""
    return json.loads(json.dumps(value, default=lambda v: f"({len(v)} bytes)" if isinstance(v, bytes) else str(v)))


def picture_of(value, folder: Path, name: str) -> Picture:
    """A path (relative to `folder`), a data: URL, bytes, or {"bytes": ..., "path": ...}. ValueError for all else."""
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return BytesPicture(value, name)
    if not isinstance(value, str) or not value:
        raise ValueError(f"{name} is neither a path nor a picture, but {type(value).__name__}")
    if value[:5].lower() == "data:":
        return BytesPicture(data_of(value, name), name)
    if "://" in value[:12]:
        raise ValueError(f"{name} is an address; pictures are not fetched from anywhere: download them first")
    return FilePicture(os.path.join(folder, value))


def data_of(url: str, name: str) -> bytes:
    """The bytes of a data: URL in base64. Raises ValueError."""
    head, comma, payload = url.partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise ValueError(f"{name} is a data: URL without ';base64,'")
    try:
        return base64.b64decode(payload, validate=True)
    except binascii.Error:
        raise ValueError(f"{name} is a data: URL whose base64 is damaged") from None
