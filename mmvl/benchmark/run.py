"""Runs the cases: every contestant is checked against the fp64 reference first, and timed only if it is right."""

import gc
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import mmvl
from mmvl.benchmark.case import Case, Contestant, Shape
from mmvl.benchmark.cases import all_cases
from mmvl.benchmark.measure import GRAPH_BELOW_MS, Stopwatch, Timing, ceilings, relative_error

OK, WRONG, MISSING, FAILED = "ok", "wrong", "missing", "failed"
SECONDS = {"cuda": 0.12, "cpu": 0.02}
Progress = Callable[[str], None]


def choose_device(name: str | None) -> torch.device:
    """The device to measure on. Raises ValueError where there is no GPU and none but a GPU was asked for."""
    if name is None or name.startswith("cuda"):
        if not torch.cuda.is_available():
            raise ValueError(
                "no GPU is found, and these are GPU kernels; `mmvl bench kernels --device cpu --quick` runs the "
                "references on tiny shapes"
            )
        index = (name or "cuda:0").removeprefix("cuda").removeprefix(":") or "0"
        if not index.isdecimal() or int(index) >= torch.cuda.device_count():
            raise ValueError(f"there is no {name}: {torch.cuda.device_count()} GPUs are found")
        device = torch.device("cuda", int(index))
        torch.cuda.set_device(device)
        return device
    if name == "cpu":
        return torch.device("cpu")
    raise ValueError(f"--device {name}: the kernels run on cuda; cpu runs their references")


def choose_cases(wanted: Sequence[str]) -> list[Case]:
    """The cases whose names begin with one of `wanted`; all if none is. Raises ValueError for one that fits nothing."""
    cases = all_cases()
    for name in wanted:
        if not any(case.op.startswith(name) for case in cases):
            raise ValueError(f"--op {name}: there are {', '.join(case.op for case in cases)}")
    return [case for case in cases if not wanted or any(case.op.startswith(name) for name in wanted)]


def run(
    cases: Sequence[Case],
    device: torch.device,
    quick: bool,
    progress: Progress,
    done: Callable[[Case, list[dict], dict], None] = lambda case, rows, result: None,
) -> dict:
    """Measure them; returns what is written as JSON. `done(case, its rows, the result so far)` follows each case."""
    began = time.perf_counter()
    stopwatch = Stopwatch(device, SECONDS[device.type])
    progress("measuring what the machine can do")
    result = {**provenance(device), "ceilings": ceilings(stopwatch), "results": []}
    for case in cases:
        rows = [measure(case, s, stopwatch, result["ceilings"], progress) for s in case.shapes(device, quick)]
        case.release()
        free(device)
        result["results"] += rows
        result["seconds"] = round(time.perf_counter() - began, 1)
        if rows:
            done(case, rows, result)
    return result


def measure(case: Case, shape: Shape, stopwatch: Stopwatch, peak: dict[str, float], progress: Progress) -> dict:
    """One row: the operation at a shape, with all contestants."""
    row, reference = begin_row(case, shape, stopwatch, peak)
    title = describe(case, shape)
    row["contestants"] = []
    for contestant in case.contestants:
        progress(f"{title}: {contestant.name}")
        found = {"name": contestant.name, "ours": contestant.ours, "package": contestant.package}
        found |= _try(case, contestant, stopwatch, reference, row)
        row["contestants"].append(found)
        free(stopwatch.device)
    _compare(row)
    return row


def describe(case: Case, shape: Shape) -> str:
    return f"{case.op}, {_words(shape)}"


def _words(shape: Shape) -> str:
    return ", ".join(f"{key} {value:,}" for key, value in shape.items())


def begin_row(case: Case, shape: Shape, stopwatch: Stopwatch, peak: dict[str, float]) -> tuple[dict, tuple]:
    """A row without contestants, and the reference's outputs; costs are the mean over the sets of inputs to time."""
    device = stopwatch.device
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    inputs = case.inputs(shape, device, dtype, 0)
    costs = [_cost(case, inputs)]
    if device.type == "cuda" and 1e3 * max(_seconds(case, peak, *costs[0])) < GRAPH_BELOW_MS:
        for seed in range(1, stopwatch.num_sets(costs[0][0])):  # in which other experts may be hit
            costs.append(_cost(case, case.inputs(shape, device, dtype, seed)))
    num_bytes, flops = (sum(numbers) / len(costs) for numbers in zip(*costs, strict=True))
    by_bytes, by_flops = _seconds(case, peak, num_bytes, flops)
    row = {
        "op": case.op,
        "shape": dict(shape),
        "axis": case.axis,
        "dtype": str(dtype).removeprefix("torch."),
        "bytes": num_bytes,
        "flops": flops,
        "floor_ms": 1e3 * max(by_bytes, by_flops),
        "bound": "bytes" if by_bytes >= by_flops else "flops",
        "sets": len(costs),
        "goal_ms": case.goals.get(shape[case.axis]) if device.type == "cuda" else None,
        "tolerance": case.tolerance[dtype],
    }
    return row, tuple(t.detach() for t in case.reference(inputs))


def _cost(case: Case, inputs) -> tuple[float, float]:
    return float(case.bytes(inputs)), float(case.flops(inputs))


def _seconds(case: Case, peak: dict[str, float], num_bytes: float, flops: float) -> tuple[float, float]:
    """What the bytes and the floating-point operations take at best."""
    return num_bytes / peak["bytes"], flops / peak[case.matrix if case.matrix in peak else "bf16"]


def make_inputs(case: Case, row: dict, device: torch.device, seed: int = 0):
    return case.inputs(row["shape"], device, getattr(torch, row["dtype"]), seed)


def error_of(case: Case, contestant: Contestant, inputs, reference: tuple) -> float:
    """The largest relative error among its outputs."""
    outputs = contestant.view(contestant.prepare(inputs)(), inputs)
    return max(relative_error(o, r) for o, r in zip(case.part(outputs, inputs), reference, strict=True))


def _try(case: Case, contestant: Contestant, stopwatch: Stopwatch, reference: tuple, row: dict) -> dict:
    if why := contestant.missing(stopwatch.device):
        return {"status": MISSING, "note": why}
    note = {"note": contestant.note} if contestant.note else {}
    if contestant.package:
        note["version"] = _version(contestant.package)
    try:
        inputs = make_inputs(case, row, stopwatch.device)
        error = error_of(case, contestant, inputs, reference)
        if error > contestant.slack * row["tolerance"]:
            return {"status": WRONG, "error": error, **note}
        timing, more = time_contestant(case, contestant, stopwatch, inputs, row)
    except Exception as error:  # a peer may fail in any way; it is named in the table, and the others go on
        return {"status": FAILED, "note": one_line(error)}
    return {"status": OK, "error": error, **_rates(timing, row), **more, **note}


def time_contestant(case: Case, contestant: Contestant, stopwatch: Stopwatch, inputs, row: dict) -> tuple[Timing, dict]:
    """Its timing: in a CUDA graph if the floor is under a millisecond and it can be captured, else call by call."""
    eager = stopwatch.one_by_one(contestant.prepare(inputs))
    if stopwatch.device.type == "cpu" or row["floor_ms"] >= GRAPH_BELOW_MS:
        return eager, {}
    try:
        sets = [inputs, *(make_inputs(case, row, stopwatch.device, seed) for seed in range(1, row["sets"]))]
        timing = stopwatch.in_graph([contestant.prepare(one) for one in sets], row["floor_ms"])
    except Exception as error:  # a host sync inside, say: then the calls one by one are what it can do
        torch.cuda.synchronize(stopwatch.device)
        return eager, {"no_graph": one_line(error)}
    return timing, {"eager_ms": eager.ms}


def one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:600]


def _rates(timing: Timing, row: dict) -> dict:
    seconds = timing.ms / 1e3
    return {
        **asdict(timing),
        "tb_s": row["bytes"] / seconds / 1e12,
        "tflop_s": row["flops"] / seconds / 1e12,
        "of_roofline": row["floor_ms"] / timing.ms,
    }


def _compare(row: dict) -> None:
    """Adds the best peer and how many times faster than it ours is; None where either is not there."""
    timed = [c for c in row["contestants"] if c["status"] == OK]
    ours = next((c for c in timed if c["ours"]), None)
    peers = [c for c in timed if not c["ours"]]
    best = min(peers, key=lambda c: c["ms"], default=None)
    row["ms"] = ours and ours["ms"]
    row["best_peer"] = best and best["name"]
    row["times_faster"] = best["ms"] / ours["ms"] if ours and best else None


def our_failures(result: dict) -> list[str]:
    """A line a row in which our own kernels were wrong or failed: the operation, its shape and why."""
    found = []
    for row in result["results"]:
        for c in row["contestants"]:
            if c["ours"] and c["status"] in (WRONG, FAILED):
                why = c["note"] if c["status"] == FAILED else f"relative error {c['error']:.1e}"
                found.append(f"{row['op']}, {_words(row['shape'])}: {c['status']}: {why}")
    return found


def free(device: torch.device) -> None:
    """Give back what nothing holds any more, so that the next one finds the device as the first one did."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def provenance(device: torch.device) -> dict:
    """Where, when, with what and by which command it was measured."""
    return {
        "command": shlex.join(["mmvl", *sys.argv[1:]]),
        "commit": commit(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "driver": driver() if device.type == "cuda" else None,
        "cuda": torch.version.cuda,
        "torch": torch.__version__,
        "triton": _version("triton"),
        "mmvl": mmvl.__version__,
    }


def commit() -> str | None:
    """The commit of the working tree this code runs from, "-dirty" added if it was changed.

    MMVL_COMMIT in the environment says it for a copy without a repository; None if nothing does.
    """
    if said := os.environ.get("MMVL_COMMIT"):
        return said
    here = Path(mmvl.__file__).resolve().parent
    try:
        said = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=10", "--exclude=*"],
            cwd=here, capture_output=True, text=True, timeout=20,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return said.stdout.strip() or None if said.returncode == 0 else None


def driver() -> str | None:
    """Version of the GPU's driver, as nvidia-smi says it."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return said.stdout.split("\n")[0].strip() or None


_DISTRIBUTIONS = {"fla": "fla-core", "lightning_attn": "lightning-attn"}


def _version(package: str) -> str | None:
    try:
        return version(_DISTRIBUTIONS.get(package, package))
    except PackageNotFoundError:
        return None
