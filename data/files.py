"""The files of a data set, whether they lie in a folder, a tar or a zip: names, and bytes on demand."""

import bz2
import gzip
import json
import mmap
import zipfile
from collections.abc import Iterator
from pathlib import Path

from mmvl.data.tar import TarDamage, members


class Files:
    """`files.names` (sorted, with "/"), `files.read(name)`. Picklable by path; forked workers may share one.

    Raises FileNotFoundError where nothing is, ValueError for a damaged archive.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._spans: dict[str, tuple[int, int]] | None = None
        if self.path.is_dir():
            found = (p for p in self.path.rglob("*") if p.is_file())
            self.names = sorted(p.relative_to(self.path).as_posix() for p in found)
        elif not self.path.is_file():
            raise FileNotFoundError(f"no folder, tar or zip at {self.path}")
        elif zipfile.is_zipfile(self.path):
            with zipfile.ZipFile(self.path) as archive:
                self.names = sorted(i.filename for i in archive.infolist() if not i.is_dir())
        else:
            with open(self.path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as buffer:
                try:
                    self._spans = {m.name.removeprefix("./"): (m.offset, m.size) for m in members(buffer)}
                except TarDamage as error:
                    raise ValueError(f"{self.path}: {error} (a folder, a plain tar or a zip is wanted)") from error
            self.names = sorted(self._spans)
        self._known = set(self.names)
        if not self.names:
            raise FileNotFoundError(f"{self.path} holds no files")

    def __contains__(self, name: str) -> bool:
        return name in self._known

    def read(self, name: str) -> bytes:
        """FileNotFoundError names what is missing where; names cannot lead out of the folder."""
        if name not in self._known:
            raise FileNotFoundError(f"{self.path} has no file {name!r}")
        if self._spans is not None:
            offset, size = self._spans[name]
            with open(self.path, "rb") as file:
                file.seek(offset)
                return file.read(size)
        if self.path.is_dir():
            return (self.path / name).read_bytes()
        with zipfile.ZipFile(self.path) as archive:
            return archive.read(name)


def read_text(path: str | Path) -> str:
    """A UTF-8 text file, unpacked if it ends in .gz or .bz2. ValueError names the file that cannot be read."""
    path = Path(path)
    opener = {".gz": gzip.open, ".bz2": bz2.open}.get(path.suffix, open)
    try:
        with opener(path, "rt", encoding="utf-8") as file:
            return file.read()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text (byte {error.start})") from None
    except (EOFError, gzip.BadGzipFile) as error:
        raise ValueError(f"{path}: damaged ({error})") from None


def read_json(path: str | Path):
    """A JSON file. ValueError names the file that cannot be read."""
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: corrupt JSON ({error})") from None


def read_jsonl(path: str | Path) -> Iterator[tuple[int, dict | None]]:
    """(line number from 1, object) of every line that is not blank; None in place of one that is no JSON object."""
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if line.strip():
            try:
                value = json.loads(line)
            except json.JSONDecodeError:
                value = None
            yield number, value if isinstance(value, dict) else None
