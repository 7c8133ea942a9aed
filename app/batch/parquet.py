"""A folder of Parquet parts that grows row by row: rows wait in a file of JSON lines until they fill a part.

`part-00003.parquet` is made from `_rows-00003.jsonl` and gets its name in one step; lines whose part is there are a
leftover of a kill at that moment. Readers of Parquet folders leave out what begins with "_".
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path

from mmvl.app.batch.items import Item, clean
from mmvl.app.batch.rows import Known, LineFile, known
from mmvl.app.batch.sinks import Sink

_NUMBERS = ("page", "prompt_tokens", "image_tokens", "completion_tokens")


class ParquetSink(Sink):
    """Columns: those of rows (see `rows.py`), numbers as int64, all else as text (kept fields that are no text as
    JSON), so that every part has the same type for a name."""

    def __init__(self, folder: Path, per_part: int):
        self.path, self._per_part = folder, per_part
        self._waiting: LineFile | None = None
        self._count = 0

    def known(self) -> Iterator[Known]:
        import pyarrow.parquet

        for path in self._parts():
            try:
                names = [name for name in ("id", "settings", "error", "text") if name in _columns(path)]
                with pyarrow.parquet.ParquetFile(path, pre_buffer=False) as file:
                    for batch in file.iter_batches(batch_size=4096, columns=names):
                        yield from map(known, batch.to_pylist())
            except (pyarrow.ArrowException, KeyError) as error:
                raise ValueError(f"{path} is no part of answers that can be read ({error})") from None
        for path in sorted(self.path.glob("_rows-*.jsonl")):
            if self._part_of(path).exists():
                path.unlink()
                continue
            self._waiting, self._count = LineFile(path), 0
            for _, row in self._waiting.rows():
                self._count += 1
                yield known(row)

    def clear(self, failed_only: bool) -> None:
        for path in self._parts():
            if failed_only:
                self._rewrite(path)
            else:
                path.unlink()
        for path in self.path.glob("_rows-*.jsonl"):
            lines = LineFile(path)
            if failed_only:
                lines.keep(lambda row: not known(row).failed)
                self._count = sum(1 for _ in lines.rows())
            else:
                lines.clear()
                self._waiting, self._count = None, 0

    def write(self, item: Item, row: dict) -> None:
        if self._waiting is None:
            last = [int(path.stem.rpartition("-")[2]) for path in self._parts()[-1:]]
            number = last[0] + 1 if last else 0
            self._waiting, self._count = LineFile(self.path / f"_rows-{number:05d}.jsonl"), 0
        self._waiting.write(row)
        self._count += 1
        if self._count >= self._per_part:
            self._finish_part()

    def close(self) -> None:
        if self._waiting is not None:
            self._finish_part()

    def _finish_part(self) -> None:
        self._waiting.close()
        if self._count:
            _write_part(self._part_of(self._waiting.path), [row for _, row in self._waiting.rows()])
        self._waiting.clear()
        self._waiting, self._count = None, 0

    def _rewrite(self, path: Path) -> None:
        import pyarrow.compute
        import pyarrow.parquet

        table = pyarrow.parquet.read_table(path)
        good = table.filter(pyarrow.compute.is_null(table["error"]))
        if not len(good):
            path.unlink()
        elif len(good) < len(table):
            _write_table(path, good)

    def _parts(self) -> list[Path]:
        return sorted(self.path.glob("part-*.parquet"))

    def _part_of(self, rows: Path) -> Path:
        return self.path / f"part-{rows.stem.rpartition('-')[2]}.parquet"


def _columns(path: Path) -> list[str]:
    import pyarrow.parquet

    return pyarrow.parquet.read_schema(path).names


def _write_part(path: Path, rows: list[dict]) -> None:
    import pyarrow as pa

    names = list(dict.fromkeys(name for row in rows for name in row))
    names += [name for name in ("text", "error", "finish_reason", *_NUMBERS[1:]) if name not in names]
    arrays = []
    for name in names:
        values = [row.get(name) for row in rows]
        if name in _NUMBERS and all(value is None or isinstance(value, int) for value in values):
            arrays.append(pa.array(values, pa.int64()))
        else:
            arrays.append(pa.array([_text(value) for value in values], pa.string()))
    _write_table(path, pa.table(arrays, names=names))


def _text(value) -> str | None:
    if value is None or isinstance(value, str):
        return None if value is None else clean(value)
    return json.dumps(value, ensure_ascii=False)


def _write_table(path: Path, table) -> None:
    import pyarrow.parquet

    beside = path.with_name(f"_{path.name}.tmp")
    pyarrow.parquet.write_table(table, beside)
    with beside.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(beside, path)
