"""Launch parameters of the Triton kernels: a small table per GPU, measured once and kept in `tables/`.

An operation declares its tunable kernels beside them (`declare`: a default, and what to try), and asks for the
parameters at a shape where it launches one (`config`). The table of the GPU answers with its nearest entry; where there
is none, the default does. `mmvl bench kernels --tune` runs the operations with the declared candidates and writes the
table anew; nothing is tuned while a user waits.
"""

import functools
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

TABLES = Path(__file__).parent / "tables"
REACH = 3.0  # doublings: an entry says nothing about shapes farther away than that

Config = dict[str, Any]
Shape = Mapping[str, int | str | bool]


@dataclass(frozen=True)
class Tunable:
    """A kernel's launch parameters: see `declare`."""

    op: str
    default: Config | Callable[..., Config]
    exact: tuple[str, ...]
    candidates: Sequence[Config] | Callable[..., Sequence[Config]]

    def default_at(self, shape: Shape) -> Config:
        return dict(self.default(**shape) if callable(self.default) else self.default)

    def candidates_at(self, shape: Shape) -> list[Config]:
        """The default first, then what is declared, each once."""
        declared = self.candidates(**shape) if callable(self.candidates) else self.candidates
        found = [self.default_at(shape)]
        for candidate in declared:
            if dict(candidate) not in found:
                found.append(dict(candidate))
        return found


_declared: dict[str, Tunable] = {}
_forced: dict[tuple, Config] = {}
_asked: dict[tuple, tuple[str, Shape]] | None = None


def declare(
    op: str,
    *,
    default: Config | Callable[..., Config],
    exact: Sequence[str] = (),
    candidates: Sequence[Config] | Callable[..., Sequence[Config]] = (),
) -> None:
    """Make `op` known; called where the operation's module is imported, so it must not import triton.

    `default` are the parameters where no table has an entry, `candidates` (with the same keys) those that tuning tries
    beside it: both a value, or a function of the shape, called with its keys by name. A table's entry is used only
    where the keys in `exact` are equal, and texts and flags always are.
    """
    _declared[op] = Tunable(op, default, tuple(exact), candidates)
    _lookup.cache_clear()


def declared() -> dict[str, Tunable]:
    """The tunables of the modules imported so far, by name."""
    return dict(_declared)


def config(op: str, **shape: int | str | bool) -> Config:
    """Launch parameters of `op` at `shape`. Cached: do not change the dict. Raises ValueError if `op` is not declared.

    The nearest entry of this GPU's table: among those with the same keys, equal in texts, flags and the declared
    `exact` keys, the one with the smallest sum over the other numbers of |log2(asked / measured)|, at most `REACH`; the
    earlier of equals. The declared default if there is none, or no table. The GPU is the one current at the first call.
    """
    if _forced or _asked is not None:
        key = _key(op, shape)
        if _asked is not None:
            _asked[key] = (op, shape)
        for forced_key in (key, (op, None)):
            if forced_key in _forced:
                return _forced[forced_key]
    return _lookup(op, **shape)


@contextmanager
def forced(op: str, parameters: Config, shape: Shape | None = None) -> Iterator[None]:
    """Inside, `config(op)` gives `parameters` at `shape` (None: at any), in every thread: how candidates are tried."""
    key = _key(op, shape)
    before = _forced.get(key)
    _forced[key] = parameters
    try:
        yield
    finally:
        if before is None:
            del _forced[key]
        else:
            _forced[key] = before


@contextmanager
def asked() -> Iterator[list[tuple[str, Shape]]]:
    """Gives a list that holds, after the block, what `config` was asked for in it, each once, in that order."""
    global _asked
    found: list[tuple[str, Shape]] = []
    _asked = {}
    try:
        yield found
    finally:
        found += _asked.values()
        _asked = None


def _key(op: str, shape: Shape | None) -> tuple:
    return op, None if shape is None else frozenset(shape.items())


def gpu_slug(name: str) -> str:
    """ "NVIDIA H200" -> "nvidia-h200", the name of its table."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def nearest(entries: Sequence[Mapping], shape: Shape, exact: Sequence[str] = ()) -> Mapping | None:
    """The entry whose "shape" is nearest to `shape` by the rule of `config`; None if none may be used."""
    best, least = None, math.inf
    for entry in entries:
        distance = _distance(entry["shape"], shape, exact)
        if distance < least and distance <= REACH:
            best, least = entry, distance
    return best


def _distance(measured: Shape, asked: Shape, exact: Sequence[str]) -> float:
    if measured.keys() != asked.keys():
        return math.inf
    total = 0.0
    for key, value in asked.items():
        other = measured[key]
        if value == other:
            continue
        if key in exact or isinstance(value, str | bool) or isinstance(other, str | bool):
            return math.inf
        total += abs(math.log2(max(value, 0.5)) - math.log2(max(other, 0.5)))  # 0 counts as half of 1
    return total


@functools.lru_cache(maxsize=65536)
def _lookup(op: str, **shape) -> Config:
    tunable = _declared.get(op)
    if tunable is None:
        raise ValueError(f"no launch parameters are declared for {op!r}; declared are {', '.join(sorted(_declared))}")
    entry = nearest(_table().get(op, ()), shape, tunable.exact)
    default = tunable.default_at(shape)
    # A parameter added to the kernel after the table was measured keeps its default; one that is gone is left out.
    return default if entry is None else {key: entry["config"].get(key, value) for key, value in default.items()}


@functools.cache
def _table() -> dict[str, list[dict]]:
    """Entries of the current GPU's table by operation; empty where there is no GPU or no table for it."""
    if not torch.cuda.is_available():
        return {}
    return read_table(TABLES / f"{gpu_slug(torch.cuda.get_device_name())}.json")


def read_table(path: Path) -> dict[str, list[dict]]:
    """Entries of a table by operation; empty if there is no such file. Raises ValueError if it is not a table."""
    if not path.is_file():
        return {}
    entries: dict[str, list[dict]] = {}
    try:
        for entry in json.loads(path.read_text(encoding="utf-8"))["entries"]:
            entries.setdefault(entry["op"], []).append({"shape": entry["shape"], "config": entry["config"]})
    except (KeyError, TypeError, ValueError) as error:
        wrong = f"{path} is not a tuning table ({error!r}); make it anew: mmvl bench kernels --tune"
        raise ValueError(wrong) from error
    return entries


def forget() -> None:
    """Read the table again at the next `config`."""
    _table.cache_clear()
    _lookup.cache_clear()
