"""Checkpoints of a run: complete or absent, written while training goes on, read by any number of ranks.

    checkpoints/step-000000123/
        rank-00000-of-00008.safetensors ...   what each rank keeps: ranges of the flat master weights and Adam moments
        model/                                config, tokenizer and processor files: `mmvl convert` needs nothing else
        manifest.json                         where every fragment lies, and the state: step, seconds, ledger, loader

A rank copies its part to the host and goes on; a thread writes it. When all ranks' threads are done, the first rank
writes the manifest under another name and renames it: that moment makes the checkpoint. A directory without manifest is
the rest of a run that died and is removed by the next one. An old checkpoint loses its manifest first, so that at no
moment half of one could pass for a whole. The directory must be one that all ranks see.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

from mmvl.json_files import read_json
from mmvl.safetensors_stream import FlatReader, write_safetensors
from mmvl.training.fragments import Box, copy_overlap
from mmvl.training.ranks import Ranks

MANIFEST, MODEL = "manifest.json", "model"
FORMAT = 1


def complete(root: Path) -> list[Path]:
    """The whole checkpoints under `root`, oldest first."""
    return sorted(d for d in root.glob("step-*") if (d / MANIFEST).is_file())


def sync_directory(path: Path) -> None:
    """Make renames and new names in a directory outlive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class Piece:
    """A range of a parameter's box that this rank keeps: `what` is weight, exp_avg or exp_avg_sq, `step` Adam's."""

    def __init__(self, name: str, what: str, whole: tuple, box: Box, start: int, values: Tensor, step: float | None):
        self.name, self.what, self.whole, self.box = name, what, tuple(whole), box
        self.start, self.values, self.step = start, values, step

    def described(self) -> dict:
        return {
            "name": self.name,
            "what": self.what,
            "shape": list(self.whole),
            "offset": list(self.box.offset),
            "size": list(self.box.size),
            "start": self.start,
            "step": self.step,
        }


def write_rank_file(directory: Path, file: str, pieces: list[Piece], extra: Mapping[str, Tensor]) -> None:
    """One rank's part; `extra` are small tensors of its own (random states)."""
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {f"{i}": p.values for i, p in enumerate(pieces)} | {f"extra.{name}": t for name, t in extra.items()}
    layout = {name: (t.dtype, tuple(t.shape)) for name, t in tensors.items()}
    about = {"fragments": json.dumps([p.described() for p in pieces])}
    write_safetensors(directory / f"{file}.part", layout, tensors.__getitem__, about)
    (directory / f"{file}.part").replace(directory / file)
    sync_directory(directory)


def commit(directory: Path, files: list[str], state: dict) -> None:
    """Make a checkpoint whole: all ranks' files are on the disk."""
    parameters: dict[str, dict] = {}
    sizes = {}
    for number, file in enumerate(files):
        sizes[file] = (directory / file).stat().st_size
        with safe_open(directory / file, framework="pt") as f:
            fragments = json.loads(f.metadata()["fragments"])
        for key, d in enumerate(fragments):
            about = parameters.setdefault(d.pop("name"), {"shape": d["shape"], "fragments": []})
            del d["shape"]
            about["fragments"].append(d | {"file": number, "key": str(key)})
    manifest = {"format": FORMAT, "files": sizes, "parameters": parameters, "state": state}
    part = directory / f"{MANIFEST}.part"
    with part.open("w", encoding="utf-8") as f:
        json.dump(manifest, f)
        f.flush()
        os.fsync(f.fileno())
    part.replace(directory / MANIFEST)
    sync_directory(directory)


def remove(directory: Path) -> None:
    """Take a checkpoint away; from its first moment on it is no checkpoint any more."""
    (directory / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(directory, ignore_errors=True)


class Checkpoint:
    """A whole checkpoint, read range by range; a context manager that keeps its files open.

    Attributes: state (what `commit` got), shapes (parameter -> shape of the whole).

    Raises:
        FileNotFoundError: no such checkpoint, or half of one. ValueError: a file is damaged; one line that names it.
    """

    def __init__(self, directory: Path):
        self.directory = directory
        if not (directory / MANIFEST).is_file():
            raise FileNotFoundError(f"no whole checkpoint at {directory} (it has no {MANIFEST})")
        manifest = read_json(directory / MANIFEST)
        if manifest.get("format") != FORMAT:
            raise ValueError(f"{directory} has the format {manifest.get('format')}, this mmvl reads {FORMAT}")
        self.state: dict = manifest["state"]
        self._parameters: dict[str, dict] = manifest["parameters"]
        self.shapes = {name: tuple(d["shape"]) for name, d in self._parameters.items()}
        self._files = list(manifest["files"])
        self._open: dict[int, FlatReader] = {}
        self._stack = ExitStack()
        for file, size in manifest["files"].items():
            there = (directory / file).stat().st_size if (directory / file).is_file() else None
            if there != size:
                raise ValueError(
                    f"{directory / file} has {there or 0:,} bytes where {size:,} were written; remove {directory} "
                    "to go on from an older checkpoint"
                )

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *error) -> None:
        self._open.clear()
        self._stack.close()

    def _file(self, number: int) -> FlatReader:
        if number not in self._open:
            path = self.directory / self._files[number]
            try:
                self._open[number] = self._stack.enter_context(closing(FlatReader(path)))
            except ValueError as e:
                raise ValueError(f"{e}; remove {self.directory} to go on from an older checkpoint") from e
        return self._open[number]

    def read(self, name: str, what: str, box: Box, start: int, out: Tensor) -> float:
        """Fill `out` (1-D) with the elements of `box` of a parameter from `start` on; return Adam's step there.

        Raises:
            ValueError: the checkpoint does not hold all of it.
        """
        found, step = 0, 0.0
        for d in self._parameters.get(name, {"fragments": []})["fragments"]:
            if d["what"] == what:
                src = self._file(d["file"])[d["key"]]
                got = copy_overlap(src, Box(tuple(d["offset"]), tuple(d["size"])), d["start"], out, box, start)
                if got and d["step"] is not None:
                    step = max(step, d["step"])
                found += got
        if found != len(out):
            raise ValueError(
                f"{self.directory} holds {found:,} of {len(out):,} elements of {what} of {name}: it is of another "
                "model, or the recipe now trains other parts; begin the stage anew (another `out`) with init_from"
            )
        return step

    def extra(self, rank: int) -> dict[str, Tensor]:
        """The small tensors that a rank left."""
        f = self._file(rank)
        return {name.removeprefix("extra."): f[name][:] for name in f if name.startswith("extra.")}

    @property
    def world(self) -> int:
        """How many ranks wrote it."""
        return len(self._files)


class Writer:
    """Writes the checkpoints of a run under `root`, one at a time, while training goes on.

    `begin` returns at once; `done` of all ranks (summed by the caller in an exchange that it makes anyway) tells when
    `finish` will not wait.
    """

    def __init__(self, root: Path, ranks: Ranks, keep: int, tell: Callable[[str], None]):
        self.root, self.ranks, self.keep, self.tell = root, ranks, keep, tell
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self._directory: Path | None = None
        self._state: dict = {}

    def latest(self) -> Path | None:
        """The newest whole checkpoint, the same for all ranks; what dead runs left half done is removed.

        Raises:
            ValueError: checkpoints of DeepSpeed's own are there; they are not touched.
        """
        if (self.root / "latest").is_file():
            raise ValueError(f"{self.root} holds checkpoints in DeepSpeed's format; move it away or give another `out`")
        if self.ranks.first:
            for left in self.root.glob("step-*"):
                if not (left / MANIFEST).is_file():
                    shutil.rmtree(left, ignore_errors=True)
        newest = complete(self.root)[-1:] if self.ranks.first else []
        return next(iter(self.ranks.gather(newest)[0]), None)

    @property
    def busy(self) -> bool:
        return self._thread is not None

    @property
    def done(self) -> bool:
        """This rank has nothing left to write of the checkpoint begun."""
        return self._thread is not None and not self._thread.is_alive()

    def begin(
        self,
        step: int,
        pieces: list[Piece],
        extra: Mapping[str, Tensor],
        state: dict,
        write_model: Callable[[Path], None],
    ) -> None:
        """Start writing: `pieces` and `extra` lie on the host and are this object's now.

        `write_model(directory)` adds what is needed beside the weights; the first rank calls it.
        """
        assert not self.busy, "finish the one before first"
        directory = self.root / f"step-{step:09d}"
        file = _file_name(self.ranks.rank, self.ranks.world)

        def work():
            try:
                write_rank_file(directory, file, pieces, extra)
                if self.ranks.first:
                    write_model(directory / MODEL)
            except Exception as e:  # the tokenizer's own writer tells of a full disk by no OSError
                self._error = e

        self._directory, self._state, self._error = directory, state, None
        self._thread = threading.Thread(target=work, name="checkpoint", daemon=True)
        self._thread.start()

    def finish(self) -> bool:
        """Wait until all ranks have written, make the checkpoint whole and take old ones away; all ranks call it.

        Returns whether the newest state is now on the disk. A failed one is told in one line, its rest removed, and
        the old ones stay.
        """
        if self._thread is None:
            return True
        self._thread.join()
        self._thread = None
        directory, errors = self._directory, [e for e in self.ranks.gather(_say(self._error)) if e]
        if self.ranks.first and not errors:
            try:
                commit(directory, [_file_name(r, self.ranks.world) for r in range(self.ranks.world)], self._state)
                older = [d for d in complete(self.root) if d < directory]
                for old in older[: max(0, len(older) + 1 - self.keep)]:
                    remove(old)
            except OSError as e:
                errors = [_say(e)]
        errors = self.ranks.gather(errors)[0]
        if errors and self.ranks.first:
            remove(directory)
            before = complete(self.root)[-1:]
            kept = f"{before[0].name} stays the newest" if before else "there is none yet"
            self.tell(f"checkpoint {directory.name} could not be written ({errors[0]}); {kept}")
        return not errors


def _file_name(rank: int, world: int) -> str:
    return f"rank-{rank:05d}-of-{world:05d}.safetensors"


def _say(error: Exception | None) -> str:
    if error is None:
        return ""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.strerror}: {error.filename}"
    return " ".join(str(error).split()) or type(error).__name__
