"""Tries the declared candidates of every tunable kernel, and writes a GPU's table of launch parameters anew.

The benchmark's cases say on what: a case is run once to see which kernels ask for parameters, and at which shapes. Then
each kernel's candidates are tried in turn, the others left as they are: compiled first, in as many processes as there
are cores and memory for, which leave what they compiled in Triton's cache; then checked against the case's reference
and timed as a whole operation.
"""

import json
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import torch

from mmvl.benchmark.case import Case, Contestant
from mmvl.benchmark.cases import all_cases
from mmvl.benchmark.measure import Stopwatch, ceilings
from mmvl.benchmark.run import begin_row, describe, error_of, free, make_inputs, one_line, provenance, time_contestant
from mmvl.kernels import tuning

SECONDS = 0.06
WORTH_IT = 0.99  # the default stands unless another takes less than this part of its time
Progress = Callable[[str], None]
Forced = list[tuple[str, dict, dict]]  # (kernel, its parameters, the shape)


def tune(cases: Sequence[Case], device: torch.device, progress: Progress) -> Iterator[dict]:
    """Entries of a table: for every kernel and shape the fastest right candidate, and what it was chosen from.

    One at a time, so that a run that is cut off leaves what it measured.
    """
    stopwatch = Stopwatch(device, SECONDS)
    peak = ceilings(stopwatch)
    context = multiprocessing.get_context("spawn")  # a forked process cannot use CUDA
    measured: set[tuple] = set()
    with ProcessPoolExecutor(_cores(), mp_context=context) as pool:
        for case in cases:
            for shape in case.shapes(device, False):
                for entry in _tune_at(case, shape, stopwatch, peak, pool, progress):
                    key = (entry["op"], *entry["shape"].items())
                    if key not in measured:
                        yield entry
                    measured.add(key)
            case.release()
            free(device)


def _tune_at(case: Case, shape, stopwatch: Stopwatch, peak, pool, progress: Progress) -> Iterator[dict]:
    device, title = stopwatch.device, describe(case, shape)
    contestant = next(c for c in case.contestants if c.ours)
    progress(f"{title}: what is tunable")
    row, reference = begin_row(case, shape, stopwatch, peak)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with tuning.asked() as asked:
        contestant.prepare(make_inputs(case, row, device))()
    free(device)
    at_once = _cores()
    if device.type == "cuda":  # several processes hold what this one did, and a context of their own
        held = torch.cuda.max_memory_allocated(device) + (1 << 30)
        at_once = max(1, min(at_once, int(torch.cuda.mem_get_info(device)[0] / held)))
    chosen: Forced = []
    for op, at in asked:
        candidates = tuning.declared()[op].candidates_at(at)
        if len(candidates) == 1:
            continue
        tried = [[*chosen, (op, candidate, dict(at))] for candidate in candidates]
        why = _compile(case, shape, row["dtype"], tried, at_once, device, pool, progress, f"{title}: {op}")
        times: list[float | None] = [None] * len(candidates)
        for number, forced in enumerate(tried):
            if not why[number]:
                progress(f"{title}: {op}, candidate {number + 1} of {len(candidates)}")
                times[number], why[number] = _measure(case, contestant, forced, stopwatch, reference, row)
                free(device)
        right = [n for n, ms in enumerate(times) if ms is not None]
        if not right:
            raise ValueError(f"{title}: no candidate of {op} is right; the default: {why[0]}")
        best = min(right, key=lambda n: times[n])
        if times[0] is not None and times[best] >= WORTH_IT * times[0]:
            best = 0
        chosen.append((op, candidates[best], dict(at)))
        yield {
            "op": op,
            "shape": dict(at),
            "config": candidates[best],
            "measured_in": title,
            "ms": times[best],
            "default_ms": times[0],
            "candidates": len(candidates),
            "failed": [{"config": c, "why": text} for c, text in zip(candidates, why, strict=True) if text],
        }


def _measure(case: Case, contestant: Contestant, forced: Forced, stopwatch, reference, row) -> tuple[float | None, str]:
    """Milliseconds of the whole operation, or None and why there are none."""
    with ExitStack() as stack:
        _force(forced, stack)
        try:
            inputs = make_inputs(case, row, stopwatch.device)
            error = error_of(case, contestant, inputs, reference)
            if error > row["tolerance"]:
                return None, f"wrong: relative error {error:.2e}"
            return time_contestant(case, contestant, stopwatch, inputs, row)[0].ms, ""
        except Exception as error:  # not every combination fits on the device
            return None, one_line(error)


def _force(forced: Forced, stack: ExitStack) -> None:
    for op, parameters, at in forced:
        stack.enter_context(tuning.forced(op, parameters, at))


def _compile(case: Case, shape, dtype: str, tried: list[Forced], at_once, device, pool, progress, title) -> list[str]:
    """Why each cannot run, "" if it can; what it needs is then compiled."""
    if device.type != "cuda":
        return [""] * len(tried)
    why, waiting = [], []
    for number, forced in enumerate(tried):
        progress(f"{title}, compiling {number + 1} of {len(tried)}")
        if len(waiting) >= at_once:
            why.append(waiting.pop(0).result())
        waiting.append(pool.submit(_compile_one, case.op, dict(shape), dtype, forced, str(device)))
    return why + [future.result() for future in waiting]


def _compile_one(case_op: str, shape: dict, dtype: str, forced: Forced, device: str) -> str:
    """In a process of its own: run the operation once."""
    case = next(case for case in all_cases() if case.op == case_op)
    contestant = next(c for c in case.contestants if c.ours)
    where = torch.device(device)
    torch.cuda.set_device(where)
    try:
        with ExitStack() as stack:
            _force(forced, stack)
            contestant.prepare(case.inputs(shape, where, getattr(torch, dtype), 0))()
        torch.cuda.synchronize(where)
        return ""
    except Exception as error:
        return one_line(error)
    finally:
        case.release()
        free(where)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def write_table(entries: Sequence[dict], device: torch.device, path: Path | None = None) -> Path:
    """Write a table, by default where `tuning.config` looks for it; what else is in it already is kept.

    Every entry says of which commit it is, as far as `run.commit` knows: MMVL_COMMIT says it where git is not.
    """
    made = provenance(device)
    name = made["gpu"] or "cpu"
    path = path or tuning.TABLES / f"{tuning.gpu_slug(name)}.json"
    stamp = {key: made[key] for key in ("commit", "date", "torch", "triton", "mmvl")}
    new = [{**entry, **stamp} for entry in entries]
    replaced = [(entry["op"], entry["shape"]) for entry in new]
    kept = json.loads(path.read_text(encoding="utf-8"))["entries"] if path.is_file() else []
    kept = [entry for entry in kept if (entry["op"], entry["shape"]) not in replaced]
    table = {**made, "gpu": name, "entries": sorted([*kept, *new], key=lambda entry: entry["op"])}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    tuning.forget()
    return path
