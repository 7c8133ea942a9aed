"""WebDataset shards: writing them, streaming them, and reading any sample of them at random.

A shard is a tar. A sample is `<key>.json` and, under the same key, the files its messages name (`<key>.0.png`):
    {"source": str, "kind": "text", "text": str}
    {"source": str, "kind": "interleaved", "content": [PART, ...]}
    {"source": str, "kind": "caption" | "vqa" | "conversation", "messages": [
        {"role": "user", "content": [PART, ...]}, {"role": "assistant", "content": [PART, ...]}, ...]}
    {"source": str, "kind": "preference", "messages": [..., the last one the user's],
        "chosen": [PART, ...], "rejected": [PART, ...]}
where PART is {"type": "image", "file": "0.png"} or {"type": "text", "text": "..."}, and "meta" may hold anything; of
renderers it says what the picture "shows" ("bar chart") and of pages the "kinds" of the questions, a word each.
Plain `webdataset` reads these shards too. It is not what reads them here, because with every one of its handlers a tar
that was cut short ends silently, its last sample without some of its files; here damage is named and counted.
"""

import json
import mmap
import os
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple

import webdataset
from webdataset.tariterators import base_plus_ext

from mmvl.data.tar import TarDamage, members

KINDS = ("text", "caption", "interleaved", "vqa", "conversation", "preference")


class SampleError(ValueError):
    """One sample cannot be used; the message names the shard, the key and the reason."""


class ShardError(ValueError):
    """A shard as a whole cannot be trusted: unreadable, too many bad samples in a row, not as its manifest says."""


@dataclass(frozen=True)
class Sample:
    """A checked sample: every file its messages name is in `members` (name such as "0.png" -> bytes)."""

    key: str
    json: dict
    members: dict[str, bytes]


@dataclass
class ReadReport:
    """What reading came across: `samples` good ones, and one line in `problems` for every bad one."""

    samples: int = 0
    problems: list[str] = field(default_factory=list)


class ShardWriter:
    """Writes samples to `dir/prefix-00000.tar`, -00001, ...; a new shard starts when max_bytes would be passed.

    A shard appears under its name only when complete (it is `.part` before). The same samples give the same bytes.
    Use as a context manager; `shards` lists the finished paths, `samples` counts.
    """

    def __init__(self, dir: str | Path, prefix: str, max_bytes: int = 256 << 20, first: int = 0):
        self.dir, self.prefix, self.max_bytes, self.next_number = Path(dir), prefix, max_bytes, first
        self.dir.mkdir(parents=True, exist_ok=True)
        if "." in prefix or "/" in prefix:
            raise ValueError(f"shard prefix '{prefix}' must have no dot or slash: keys are cut at the first dot")
        self.shards: list[Path] = []
        self.samples = 0
        self._tar = None
        self._bytes = 0

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, kind, error, trace) -> None:
        self.close(keep=kind is None)

    def write(self, record: dict, members: dict[str, bytes] | None = None) -> str:
        """Append one sample (checked as a reader would) and return its key."""
        members = members or {}
        key = f"{self.prefix}-{self.next_number:05d}-{self.samples:07d}"
        payload = json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode()
        check(record, members, key)
        size = sum(1024 + len(data) for data in members.values()) + 1024 + len(payload)
        if self._tar is not None and self._bytes + size > self.max_bytes:
            self._finish()
            key = f"{self.prefix}-{self.next_number:05d}-{self.samples:07d}"
        if self._tar is None:
            self._path = self.dir / f"{self.prefix}-{self.next_number:05d}.tar"
            self._tar = webdataset.TarWriter(str(self._path) + ".part", encoder=False, mtime=0, compress=False)
            self._bytes = 0
        self._tar.write({"__key__": key, "json": payload, **members})
        self._bytes += size
        self.samples += 1
        return key

    def close(self, keep: bool = True) -> None:
        """Finish the open shard, or remove it when `keep` is False (after an error)."""
        if self._tar is None:
            return
        if keep:
            self._finish()
        else:
            self._tar.close()
            self._tar = None
            os.unlink(str(self._path) + ".part")

    def _finish(self) -> None:
        self._tar.close()
        self._tar = None
        os.replace(str(self._path) + ".part", self._path)
        self.shards.append(self._path)
        self.next_number += 1


def read_shard(
    path: str | Path, *, report: ReadReport | None = None, expected: int | None = None, max_bad_in_row: int = 20
) -> Iterator[Sample]:
    """Stream the good samples of one shard in file order.

    Bad ones (no JSON, corrupt JSON, a listed file missing, cut off) become a line in `report.problems`; without a
    report they raise SampleError. `expected` is the manifest's count. ShardError when more than `max_bad_in_row` follow
    one another, or when the shard was cut short or its count is wrong and there is no report to say so in.
    """
    spans = index_shard(path, problems=report.problems if report is not None else None, expected=expected)
    bad = 0
    with open(path, "rb") as file:
        for span in spans:
            try:
                sample = read_span(file, span.start, span.end, path)
            except SampleError as error:
                if report is None:
                    raise
                report.problems.append(str(error))
                bad += 1
                if bad > max_bad_in_row:
                    raise ShardError(f"{path}: over {max_bad_in_row} bad samples in a row, last: {error}") from error
                continue
            bad = 0
            if report is not None:
                report.samples += 1
            yield sample


class Span(NamedTuple):
    """The bytes of a shard, headers included, in which the members of one sample lie."""

    key: str
    start: int
    end: int


def index_shard(path: str | Path, *, problems: list[str] | None = None, expected: int | None = None) -> list[Span]:
    """Spans of the whole samples, from the tar headers alone. Damage goes to `problems`; if None, ShardError."""

    def damaged(reason: str) -> None:
        if problems is None:
            raise ShardError(f"{path}: {reason}")
        problems.append(f"{path}: {reason}")

    spans: list[Span] = []
    if os.path.getsize(path) == 0:
        damaged("empty file")
        return spans
    seen: set[str] = set()
    key, start, end = "", 0, 0

    def finish() -> None:
        if key in seen:
            damaged(f"key '{key}' occurs twice")
        elif key:
            seen.add(key)
            spans.append(Span(key, start, end))

    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as buffer:
        try:
            for member in members(buffer):
                this, extension = base_plus_ext(member.name)
                if not extension:
                    damaged(f"member '{member.name}' has no extension")
                    continue
                if this != key:
                    finish()
                    key, start = this, member.header
                end = member.offset + member.size
        except TarDamage as error:
            # The sample at the damage may lack members: it does not count.
            damaged(f"{error}, after {len(spans)} whole samples")
            return spans
    finish()
    if expected is not None and len(spans) != expected:
        damaged(f"{len(spans)} samples where the manifest says {expected}")
    return spans


def read_span(file: BinaryIO, start: int, end: int, path: str | Path) -> Sample:
    """Read and check the sample in bytes start to end of an open shard. SampleError names shard, key and reason."""
    file.seek(start)
    data = file.read(end - start)
    found: dict[str, bytes] = {}
    key = "?"
    try:
        for member in members(data, marked_end=False):
            key, name = base_plus_ext(member.name)
            found[name.lower()] = data[member.offset : member.offset + member.size]
    except TarDamage as error:
        raise SampleError(f"{path}: sample '{key}': {error}") from error
    where = f"{path}: sample '{key}'"
    payload = found.pop("json", None)
    if payload is None:
        raise SampleError(f"{where}: no .json member")
    try:
        record = json.loads(payload)
    except ValueError as error:
        raise SampleError(f"{where}: corrupt JSON ({error})") from error
    check(record, found, where)
    return Sample(key, record, found)


def check(record: dict, members: dict[str, bytes], where: str) -> None:
    """SampleError, which begins with `where`, unless the record has the documented shape and every file it names."""
    if not isinstance(record, dict) or record.get("kind") not in KINDS or not isinstance(record.get("source"), str):
        raise SampleError(f"{where}: needs 'source' and a 'kind' out of {', '.join(KINDS)}")
    if record["kind"] == "text":
        if not isinstance(record.get("text"), str) or not record["text"]:
            raise SampleError(f"{where}: kind 'text' without text")
        return
    if record["kind"] == "interleaved":
        _check_parts(record.get("content"), members, where, "the content")
        return
    messages = record.get("messages")
    if not isinstance(messages, list) or not messages:
        raise SampleError(f"{where}: no messages")
    for message in messages:
        if not isinstance(message, dict) or message.get("role") not in ("system", "user", "assistant"):
            raise SampleError(f"{where}: a message without a known role")
        _check_parts(message.get("content"), members, where, "a message")
    if record["kind"] == "preference":
        if messages[-1]["role"] != "user":
            raise SampleError(f"{where}: the prompt of a preference pair must end with the user's message")
        for name in ("chosen", "rejected"):
            _check_parts(record.get(name), members, where, f"'{name}'")
        if record["chosen"] == record["rejected"]:
            raise SampleError(f"{where}: the chosen and the rejected answer are the same")
    elif not any(message["role"] == "assistant" for message in messages):
        raise SampleError(f"{where}: nothing that the assistant says, so nothing to learn")


def _check_parts(parts, members: dict[str, bytes], where: str, what: str) -> None:
    if not isinstance(parts, list) or not parts:
        raise SampleError(f"{where}: {what} whose content is not a list of parts")
    for part in parts:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "image" and isinstance(part.get("file"), str):
            if part["file"] not in members:
                raise SampleError(f"{where}: file '{part['file']}' is named but missing")
        elif kind != "text" or not isinstance(part.get("text"), str):
            raise SampleError(f"{where}: a part that is neither image nor text")


def parts_of(record: dict) -> list[dict]:
    """Every part of a checked record, in the order it is read; a text counts as one part."""
    if record["kind"] == "text":
        return [{"type": "text", "text": record["text"]}]
    if record["kind"] == "interleaved":
        return record["content"]
    parts = [part for message in record["messages"] for part in message["content"]]
    return parts + record["chosen"] + record["rejected"] if record["kind"] == "preference" else parts


class ShardSource:
    """Random access to the samples of several shards: `len(source)`, `source[i] -> Sample`.

    Opening reads the tar headers only. Damage found then is in `problems`; a bad sample raises SampleError when read
    (a `Mixture` skips and counts it). Picklable; each process opens the files anew.
    """

    def __init__(self, shards: Sequence[str | Path], expected: dict[str, int] | None = None):
        """expected: samples a shard by its manifest (file name -> count). ShardError when there is no sample at all."""
        self.problems: list[str] = []
        self.shards = [str(path) for path in shards]
        # Flat arrays: a million samples take 24 MB, and forked workers share them untouched.
        numbers, starts, ends = array("q"), array("q"), array("q")
        for number, path in enumerate(self.shards):
            count = (expected or {}).get(os.path.basename(path))
            for span in index_shard(path, problems=self.problems, expected=count):
                numbers.append(number)
                starts.append(span.start)
                ends.append(span.end)
        if not numbers:
            names = ", ".join(self.shards[:3]) or "none given"
            raise ShardError(f"no samples in {len(self.shards)} shards ({names}) {'; '.join(self.problems[:1])}")
        self._spans = (numbers, starts, ends)
        self._files: dict[tuple[int, int], BinaryIO] = {}

    @classmethod
    def from_dir(cls, dir: str | Path, prefix: str = "") -> "ShardSource":
        """All `prefix*.tar` of a directory, in order of name; counts are held to manifest.json where there is one.

        FileNotFoundError when there is no shard, ShardError when the manifest is damaged or names one that is missing.
        """
        dir = Path(dir)
        shards = sorted(dir.glob(f"{prefix}*.tar"))
        if not shards:
            raise FileNotFoundError(f"no shards {dir}/{prefix}*.tar; write some with `mmvl data render` or `import`")
        expected = None
        if (dir / "manifest.json").exists():
            from mmvl.data.manifest import load_manifest  # which itself reads shards

            expected = {shard["name"]: shard["samples"] for shard in load_manifest(dir)["shards"]}
            gone = [name for name in expected if name.startswith(prefix) and not (dir / name).exists()]
            if gone:
                raise ShardError(f"{dir}: shards of the manifest are missing: {', '.join(gone)}")
        return cls(shards, expected)

    def __len__(self) -> int:
        return len(self._spans[0])

    def __getitem__(self, index: int) -> Sample:
        number, start, end = (column[index] for column in self._spans)
        # Keyed by process: a file position shared over fork would let workers read each other's bytes.
        handle = (os.getpid(), number)
        if handle not in self._files:
            self._files[handle] = open(self.shards[number], "rb", buffering=0)
        return read_span(self._files[handle], start, end, self.shards[number])

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_files": {}}
