"""WebDataset shards as the source and the destination of batch jobs: read from whoever made them, written so that a
process killed in the middle of a sample loses that sample only.
"""

import io
import json
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from webdataset.tariterators import base_plus_ext

from mmvl.data.shards import check, parts_of
from mmvl.data.tar import TarDamage, members

_TEXT_MEMBERS = ("txt", "cls", "caption", "question")
PICTURE_MEMBERS = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")


class _Slices:
    """The first `size` bytes of a file (all, by default) as something to slice, read when they are asked for.

    Mapped into memory, every page that was touched would count as this process's, and a file that somebody cuts short
    meanwhile would end it.
    """

    def __init__(self, file, size: int | None = None):
        self._file = file.fileno()
        self._size = os.fstat(self._file).st_size if size is None else size

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, part: slice) -> bytes:
        first, last, _ = part.indices(self._size)
        return os.pread(self._file, max(0, last - first), first)


@dataclass(frozen=True)
class FoundSample:
    """A sample of any shard. pictures: (member's name, first byte, size) in the order of their names, or, in a shard
    of ours, of its messages. fields: its JSON, and its text members by their extension. turns: of a shard of ours its
    (question, answer) pairs. error: why it cannot be used, or None."""

    key: str
    pictures: list[tuple[str, int, int]]
    fields: dict
    turns: list[tuple[str, str]]
    error: str | None = None


def find_samples(path: Path) -> Iterator[FoundSample]:
    """The samples of a shard, in their order; pictures are not read.

    Raises ValueError at damage, after the samples before it.
    """
    if not path.stat().st_size:
        raise ValueError(f"{path} is empty")
    with path.open("rb") as file:
        key, found, buffer = "", {}, _Slices(file)
        try:
            for member in members(buffer):
                this, extension = base_plus_ext(member.name)
                if this != key and found:
                    yield _found(key, found, buffer)
                    found = {}
                key = this
                if extension:
                    found[extension.lower()] = member
        except TarDamage as error:
            raise ValueError(f"{path}: {error}, after the sample '{key}'") from None
        if found:
            yield _found(key, found, buffer)


def _found(key: str, found: dict, buffer) -> FoundSample:
    def content(name: str) -> bytes:
        return buffer[found[name].offset : found[name].offset + found[name].size]

    fields = {}
    if "json" in found:
        try:
            record = json.loads(content("json"))
        except (ValueError, RecursionError) as error:
            return FoundSample(key, [], {}, [], f"sample '{key}' has JSON that cannot be read: {error}")
        fields = record if isinstance(record, dict) else {"json": record}
    fields |= {name: content(name).decode(errors="replace").strip() for name in _TEXT_MEMBERS if name in found}
    turns = _turns(fields)
    names = sorted(name for name in found if name.rsplit(".")[-1] in PICTURE_MEMBERS)
    if turns:
        ours = [part["file"] for part in parts_of(fields) if part["type"] == "image"]
        names = [name for name in dict.fromkeys(ours) if name in found]
    pictures = [(name, found[name].offset, found[name].size) for name in names]
    return FoundSample(key, pictures, fields, turns, None if pictures else f"sample '{key}' has no picture")


def _turns(record: dict) -> list[tuple[str, str]]:
    """(question, answer) of each turn, if this is a record as `mmvl.data.shards` documents them."""
    if not isinstance(record.get("messages"), list) or not isinstance(record.get("kind"), str):
        return []
    turns, asked = [], ""
    for message in record["messages"]:
        text = " ".join(part["text"] for part in message["content"] if part.get("type") == "text").strip()
        if message["role"] == "user":
            asked = text
        elif message["role"] == "assistant" and asked:
            turns.append((asked, text))
    return turns


class AnswerShards:
    """Writes samples of pictures, prompt and answer, as `mmvl.data.shards` documents them, for `mmvl train` to read.

    `answers-00000.tar`, -00001, ...; the one being written ends in `.part`, is taken up again after a kill, and gets
    its name when it has `per_shard` samples or at `close`. A sample's JSON comes last, so what lacks it was cut off.
    """

    PREFIX = "answers"

    def __init__(self, folder: Path, per_shard: int):
        self._folder, self._per_shard = folder, per_shard
        self._file = self._tar = None
        self._samples = 0

    def metas(self) -> Iterator[dict]:
        """`meta` of every sample there is, whole ones of a shard that a kill left half written among them."""
        for path in sorted(self._folder.glob(f"{self.PREFIX}-*.tar")):
            yield from _metas(path, whole=True)
        for path in self._parts():
            yield from _metas(path, whole=False)

    def clear(self) -> None:
        for path in [*self._folder.glob(f"{self.PREFIX}-*.tar"), *self._parts()]:
            path.unlink()
        self._samples = 0

    def write(self, pictures: list[tuple[str, bytes]], task: str, prompt: str, answer: str, meta: dict) -> None:
        """pictures: (extension, bytes). Raises ValueError if a reader would not take the sample."""
        files = {f"{number}.{extension}": data for number, (extension, data) in enumerate(pictures)}
        question = [{"type": "image", "file": name} for name in files] + [{"type": "text", "text": prompt}]
        reply = [{"type": "text", "text": answer}]
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]
        record = {"source": f"mmvl {task}", "kind": task, "messages": messages, "meta": meta}
        if self._tar is None:
            self._open()
        key = f"{self._path.name.removesuffix('.tar.part')}-{self._samples:07d}"
        check(record, files, key)
        files["json"] = json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode()
        tar, self._tar = self._tar, None  # half a sample is nothing to be closed: `close` would cut it off first
        for name, data in files.items():
            info = tarfile.TarInfo(f"{key}.{name}")
            info.size, info.mode = len(data), 0o644
            tar.addfile(info, io.BytesIO(data))
        self._file.flush()
        self._tar = tar
        self._samples += 1
        if self._samples >= self._per_shard:
            self.close()

    def close(self) -> None:
        """Give the open shard its name, or one that an earlier run has left."""
        if self._tar is None and self._parts():
            self._open()
        if self._tar is not None and not self._samples:
            self._file.close()
            self._path.unlink()
        elif self._tar is not None:
            self._tar.close()
            os.fsync(self._file.fileno())
            self._file.close()
            os.replace(self._path, self._path.with_suffix(""))
        self._tar = self._file = None

    def _parts(self) -> list[Path]:
        return sorted(self._folder.glob(f"{self.PREFIX}-*.tar.part"))

    def _open(self) -> None:
        """Go on with the shard that an earlier run, or an error, has left, or begin the next one."""
        parts = self._parts()
        if parts:
            self._path = parts[0]
        else:
            finished = sorted(self._folder.glob(f"{self.PREFIX}-*.tar"))
            number = int(finished[-1].stem.rpartition("-")[2]) + 1 if finished else 0
            self._path = self._folder / f"{self.PREFIX}-{number:05d}.tar.part"
        if self._file is not None:
            self._file.close()
        self._file = self._path.open("ab")
        end, self._samples = _whole(self._path)
        self._file.truncate(end)
        self._file.seek(end)  # from here the archive counts how far it is
        self._tar = tarfile.open(fileobj=self._file, mode="w", format=tarfile.USTAR_FORMAT)


def _whole(path: Path) -> tuple[int, int]:
    """(bytes, samples) of the whole samples at the beginning of a shard that may have been cut off anywhere."""
    end = samples = 0
    if path.stat().st_size:
        with path.open("rb") as file:
            buffer = _Slices(file)
            try:
                for member in members(buffer, marked_end=False):
                    stop = member.offset + -(-member.size // 512) * 512
                    if member.name.endswith(".json") and stop <= len(buffer):
                        end, samples = stop, samples + 1
            except TarDamage:
                pass  # the kill was here
    return end, samples


def _metas(path: Path, whole: bool) -> Iterator[dict]:
    end = path.stat().st_size if whole else _whole(path)[0]
    if not end:
        return
    with path.open("rb") as file:
        buffer = _Slices(file, end)
        for member in members(buffer, marked_end=whole):
            if member.name.endswith(".json"):
                yield json.loads(buffer[member.offset : member.offset + member.size])["meta"]
