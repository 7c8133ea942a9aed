"""Starts training runs by fork, so that one import serves many of them, and kills them: a script for test_kill.py.

    python forked_runs.py PLAN.json RESULT.json
"""

import json
import os
import random
import shutil
import signal
import socket
import sys
import time
from pathlib import Path

import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401  what is slow to import, once, before any fork
import matplotlib.pyplot  # noqa: F401
import torch
from rich.console import Console

import mmvl.training.checkpoints
from mmvl.training.report import read_metrics
from mmvl.training.train import train

torch.set_num_threads(1)


def slow_writes() -> None:
    """A moment between the tensors of a file, so that a kill often meets a checkpoint that is being written."""
    write = mmvl.training.checkpoints.write_safetensors

    def slowly(path, layout, tensor, metadata=None):
        def later(name):
            time.sleep(0.0003)
            return tensor(name)

        return write(path, layout, later, metadata)

    mmvl.training.checkpoints.write_safetensors = slowly


def start(recipe: str, overrides: list[str], world: int = 1) -> list[int]:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    pids = []
    for rank in range(world):
        if pid := os.fork():
            pids.append(pid)
            continue
        code = 1
        try:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            train(recipe, overrides, Console(quiet=True))
            code = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    return pids


def finish(pids: list[int]) -> None:
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    if any(codes):
        sys.exit(f"a run ended with {codes}")


def step_of(out: Path) -> int:
    path = out / "metrics.jsonl"
    records = read_metrics(path) if path.exists() else []
    return records[-1]["step"] if records else 0


def unfinished(out: Path) -> list[str]:
    found = (out / "checkpoints").glob("step-*")
    return sorted(d.name for d in found if not (d / "manifest.json").exists())


def kill_at(pids: list[int], out: Path, steps: int | None, delay: float) -> dict:
    """Kill after `steps` more steps than there were, or (None) when a checkpoint is begun; `delay` seconds later."""
    before, left = step_of(out), set(unfinished(out))
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        new = set(unfinished(out)) - left
        if (steps is None and new) or (steps is not None and step_of(out) >= before + steps):
            break
        time.sleep(0.001)
    time.sleep(delay)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    signals = [os.WTERMSIG(os.waitpid(pid, 0)[1]) for pid in pids]
    return {"signals": signals, "step": step_of(out), "unfinished": unfinished(out)}


def main(plan: dict) -> dict:
    rng, recipe, root, result = random.Random(plan["seed"]), plan["recipe"], Path(plan["root"]), {"kills": []}
    slow_writes()

    def at(name: str) -> list[str]:
        return [*plan["overrides"], f"out={root / name}"]

    finish(start(recipe, at("whole")))
    for i in range(10):
        steps = None if i % 2 else rng.randint(0, 3)
        pids = start(recipe, at("killed"))
        result["kills"].append(kill_at(pids, root / "killed", steps, rng.uniform(0, 0.03)))
    finish(start(recipe, at("killed")))

    four = ["data.batches_per_step=4", *plan["overrides"]]
    finish(start(recipe, [*four, f"out={root / 'two-whole'}"], 2))
    for name, parallel in plan["killed"].items():
        pids = start(recipe, [*four, f"parallel={json.dumps(parallel)}", f"out={root / name}"], 2)
        result["kills"].append(kill_at(pids, root / name, 4, rng.uniform(0, 0.03)))
    for name, (origin, world, parallel) in plan["resumed"].items():
        shutil.copytree(root / origin, root / name)
        finish(start(recipe, [*four, f"parallel={json.dumps(parallel)}", f"out={root / name}"], world))
    return result


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(main(json.loads(Path(sys.argv[1]).read_text()))))
