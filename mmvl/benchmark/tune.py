"""Measures the declared candidates of every tunable kernel, and writes a GPU's table of launch parameters anew.

Candidates are compiled first, in as many processes as there are cores and memory for; they leave what they compiled in
Triton's cache, where this process finds it. Then each is run here: checked against the reference, and timed.
"""

import importlib
import json
import math
import multiprocessing
import os
import pkgutil
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

import mmvl.kernels
from mmvl.benchmark.case import as_tuple
from mmvl.benchmark.measure import Stopwatch, relative_error
from mmvl.benchmark.run import provenance
from mmvl.kernels import tuning

SECONDS = 0.05
WORTH_IT = 0.99  # the default stands unless another takes less than this part of its time
Progress = Callable[[str], None]


def import_kernels() -> None:
    """Every module of mmvl.kernels that declares something; those with the Triton code itself are left alone."""
    for module in pkgutil.iter_modules(mmvl.kernels.__path__):
        if not module.name.endswith("_triton"):
            importlib.import_module(f"mmvl.kernels.{module.name}")


def choose_tunables(wanted: Sequence[str]) -> list[tuning.Tunable]:
    """Those with shapes and a trial whose names begin with one of `wanted`; ValueError for one that fits none."""
    import_kernels()
    able = [t for t in tuning.declared().values() if t.shapes and t.trial]
    for name in wanted:
        if not any(t.op.startswith(name) for t in able):
            raise ValueError(f"--op {name}: what can be tuned is {', '.join(sorted(t.op for t in able)) or 'nothing'}")
    return [t for t in able if not wanted or any(t.op.startswith(name) for name in wanted)]


def tune(tunables: Sequence[tuning.Tunable], device: torch.device, progress: Progress) -> list[dict]:
    """Entries of a table: for every shape the fastest of the right candidates, and what it was chosen from."""
    stopwatch = Stopwatch(device, SECONDS)
    entries = []
    context = multiprocessing.get_context("spawn")  # a forked process cannot use CUDA
    with ProcessPoolExecutor(_cores(), mp_context=context) as pool:
        for tunable in tunables:
            for index, shape in enumerate(tunable.shapes):
                title = f"{tunable.op}, {', '.join(f'{key} {value}' for key, value in shape.items())}"
                entries.append(_tune_at(tunable, index, stopwatch, pool, title, progress))
                if device.type == "cuda":
                    torch.cuda.empty_cache()
    return entries


def _tune_at(tunable, index: int, stopwatch: Stopwatch, pool, title: str, progress: Progress) -> dict:
    shape, device = tunable.shapes[index], stopwatch.device
    candidates = tunable.candidates_at(shape)
    trial = tunable.trial(shape, device)
    references = as_tuple(trial.reference())
    failed = _compile(tunable, index, candidates, trial, device, pool, progress, title)
    times = [math.inf] * len(candidates)
    for number, candidate in enumerate(candidates):
        if failed[number]:
            continue
        progress(f"{title}: candidate {number + 1} of {len(candidates)}")
        with tuning.forced(tunable.op, candidate):
            try:
                errors = [relative_error(o, r) for o, r in zip(as_tuple(trial.run()), references, strict=True)]
                if max(errors) > trial.tolerance:
                    failed[number] = f"wrong: relative error {max(errors):.2e}"
                    continue
                times[number] = _time(stopwatch, trial.run)
            except Exception as error:  # not every combination fits on the device
                failed[number] = f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
    best = min(range(len(candidates)), key=times.__getitem__)
    if times[best] >= WORTH_IT * times[0]:
        best = 0
    if math.isinf(times[best]):
        raise ValueError(f"{title}: no candidate is right; the default: {failed[0]}")
    return {
        "op": tunable.op,
        "shape": dict(shape),
        "config": candidates[best],
        "ms": times[best],
        "default_ms": None if math.isinf(times[0]) else times[0],
        "candidates": len(candidates),
        "failed": [{"config": c, "why": why} for c, why in zip(candidates, failed, strict=True) if why],
    }


def _time(stopwatch: Stopwatch, run) -> float:
    """Of one call in a CUDA graph, so that launching costs little; of the bare call where it cannot be captured."""
    if stopwatch.device.type == "cuda":
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                kept = run()  # noqa: F841
        except RuntimeError:
            torch.cuda.synchronize(stopwatch.device)
        else:
            return stopwatch.one_by_one(graph.replay).ms
    return stopwatch.one_by_one(run).ms


def _compile(tunable, index, candidates, trial, device, pool, progress, title) -> list[str]:
    """Why each candidate cannot run, "" if it can; everything the others need is then compiled."""
    at_once = _cores()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        with tuning.forced(tunable.op, candidates[0]):
            try:
                trial.run()
            except Exception as error:
                progress(f"{title}: the default fails: {error}")
        free, _ = torch.cuda.mem_get_info(device)
        at_once = max(1, min(at_once, int(free / (torch.cuda.max_memory_allocated(device) + (1 << 30)))))
    keep = at_once >= _cores()  # several processes may each hold their inputs from one candidate to the next
    why, waiting = [], []
    for number, candidate in enumerate(candidates):
        progress(f"{title}: compiling, {number} of {len(candidates)} begun")
        if len(waiting) >= at_once:
            why.append(waiting.pop(0).result())
        waiting.append(pool.submit(_compile_one, tunable.op, index, candidate, str(device), keep))
    return why + [future.result() for future in waiting]


_held: dict[tuple, tuning.Trial] = {}  # in a worker process: the inputs it made last


def _compile_one(op: str, index: int, candidate: dict, device: str, keep: bool) -> str:
    import_kernels()
    tunable = tuning.declared()[op]
    key = (op, index)
    if key not in _held:
        _held.clear()
        _held[key] = tunable.trial(tunable.shapes[index], torch.device(device))
    try:
        with tuning.forced(op, candidate):
            _held[key].run()
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)
        return ""
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
    finally:
        if not keep:
            _held.clear()
            if device.startswith("cuda"):
                torch.cuda.empty_cache()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def write_table(entries: Sequence[dict], device: torch.device, path: Path | None = None) -> Path:
    """Write a table, by default where `tuning.config` looks for it; entries of other operations in it are kept."""
    made = provenance(device)
    name = made["gpu"] or "cpu"
    path = path or tuning.TABLES / f"{tuning.gpu_slug(name)}.json"
    new = {entry["op"] for entry in entries}
    kept = []
    if path.is_file():
        kept = [e for e in json.loads(path.read_text(encoding="utf-8"))["entries"] if e["op"] not in new]
    stamp = {key: made[key] for key in ("commit", "date", "torch", "triton")}
    table = {**made, "gpu": name, "entries": sorted([*kept, *({**e, **stamp} for e in entries)], key=lambda e: e["op"])}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    tuning.forget()
    return path
