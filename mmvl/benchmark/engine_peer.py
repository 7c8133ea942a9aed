"""transformers' `generate` in a process of its own, for `mmvl bench engine`.

A fault of CUDA's stays with the process in which it happened, and must not end the run.

The child (this file as a program) loads the model and answers one load after another; both sides write a JSON object a
line. It says itself when memory ran out and lives on; anything else ends it, and then another one is started: with the
same batches and another way to compute if there is one, otherwise with the next smaller batches.
"""

import contextlib
import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from mmvl.benchmark.engine_contestants import Load, Progress, Transformers, batches, model_of
from mmvl.engine.memory import is_out_of_memory

NAME = "transformers"
_JUDGED = 8  # tokens of an answer after which a size of batches is judged
_FEW = 16384  # tokens of the batch that the search begins with, if the load has far more
# ways to compute on a GPU, the fastest first: how experts are done, by transformers' name for it, and whether attention
# may be cuDNN's; elsewhere it chooses itself
_WAYS = (("grouped_mm", True), ("grouped_mm", False), ("eager", False))
_OF_A_RANK = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class PeerError(Exception):
    """The child cannot be started; what it said last."""


class PeerEnded(PeerError):
    """The child ended with a load; what it said last."""


class Peer:
    """The child, seen from the benchmark. Start it by `with`; it is started again when it has ended."""

    command: Sequence[str] = (sys.executable, "-m", "mmvl.benchmark.engine_peer")

    def __init__(self, setup: dict, progress: Progress):
        """setup: the arguments of `model_of`; and `device`, `dtype`, `threads`."""
        self._setup, self._progress = setup, progress
        self._ways = _WAYS if setup["device"].startswith("cuda") else ((None, True),)
        self._child: subprocess.Popen | None = None

    def __enter__(self) -> "Peer":
        return self

    def __exit__(self, *_) -> None:
        self._end()

    @property
    def way(self) -> str | None:
        """How it computes; None: as transformers likes."""
        experts, cudnn = self._ways[0]
        return experts if cudnn else f"{experts} without cuDNN"

    def other_way(self) -> bool:
        """From the next start on compute in another way; False if there is none left."""
        more = len(self._ways) > 1
        self._ways = self._ways[more:]
        return more

    def run(self, load: Load, budget: int, new_tokens: int | None = None) -> dict | None:
        """What `Transformers.run` measures; None where the memory is too small.

        Raises PeerEnded if the child ends, PeerError if none can be started.
        """
        if self._child is None:
            self._start()
        self._write({"lengths": load.lengths, "new_tokens": load.new_tokens, "budget": budget, "made": new_tokens})
        return self._answer()["row"]

    def _start(self) -> None:
        self._progress(f"{NAME}: loading")
        self._said = tempfile.TemporaryFile(mode="w+b")
        self._child = subprocess.Popen(
            self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said, text=True,
            env={name: value for name, value in os.environ.items() if name not in _OF_A_RANK},
        )  # fmt: skip
        experts, cudnn = self._ways[0]
        self._write(self._setup | {"experts_by": experts, "cudnn": cudnn})
        try:
            self._answer()
        except PeerEnded as error:
            raise PeerError(str(error)) from None

    def _write(self, message: dict) -> None:
        with contextlib.suppress(BrokenPipeError):  # reading says why
            self._child.stdin.write(json.dumps(message) + "\n")
            self._child.stdin.flush()

    def _answer(self) -> dict:
        line = self._child.stdout.readline()
        if line.endswith("\n"):
            answer = json.loads(line)
            if "error" not in answer:
                return answer
            self._end()
            raise PeerEnded(answer["error"])
        code = self._child.wait()
        self._said.seek(0)
        last = (self._said.read().decode(errors="replace").strip().splitlines() or ["it said nothing"])[-1]
        self._end()
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        raise PeerEnded(f"{how}: {last}"[:300])

    def _end(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            for file in (self._child.stdin, self._child.stdout, self._said):
                with contextlib.suppress(BrokenPipeError):
                    file.close()
            self._child = None


def measure(peer: Peer, load: Load, repeats: int, made: int | None, progress: Progress) -> Iterator[dict]:
    """Rows of a load with the batches that suit the peer best; `made` tokens of each answer are made (None: all).

    A row has the batch's tokens, how it was computed (`way`), and in `failed` with which batches the
    child ended, if it did. Where none works there is one row, of nothing but that. Raises PeerError.
    """
    failures: list[str] = []
    whole = len(load.lengths) * max(load.lengths)

    def attempt(load: Load, budget: int, new_tokens: int | None) -> dict | None:
        by = f" by {peer.way}" if peer.way else ""
        try:
            return peer.run(load, budget, new_tokens)
        except PeerEnded as error:
            failures.append(f"failed{by} at a batch of {min(budget, whole):,} tokens: {error}")
            return attempt(load, budget, new_tokens) if peer.other_way() else None

    def judge(budget: int) -> dict | None:
        progress(f"{NAME}: {load.name} tokens, batches of up to {budget:,} tokens")
        return attempt(load, budget, min(load.new_tokens, _JUDGED))

    attempt(load.warm, sum(load.warm.lengths), None)
    budget = best_budget(judge, load)
    for repeat in range(repeats):
        row = None
        while row is None and budget is not None:
            progress(f"{NAME}: {load.name} tokens, {repeat + 1} of {repeats}")
            row = attempt(load, budget, made)
            if row is None:
                budget = max(budget // 2, max(load.lengths)) if budget > max(load.lengths) else None
        if row is None:
            break
        said = {"failed": "; ".join(failures)} if failures else {}
        way = {"way": peer.way} if peer.way else {}
        yield row | {"repeat": repeat, "batch_tokens": budget} | way | said
    if budget is None:
        said = "; ".join(failures) or f"no memory for a request of {max(load.lengths):,} tokens"
        yield {"repeat": repeat, "failed": said}


def best_budget(judge: Callable[[int], dict | None], load: Load) -> int | None:
    """Tokens of a batch, those that fill it up included, with which the load takes least time; None if none works.

    Begins with a few requests, or all if they are small, and doubles until it gets slower, fails, or would not fit by
    the memory that the last one took: a batch that is too large may end the child, and then its weights have to be made
    again. If that gained nothing it halves. judge: what the load takes with a batch (`seconds`; and `batch_bytes` of
    `free_bytes`, if that is known); None where it does not fit or fails.
    """
    longest, whole = max(load.lengths), len(load.lengths) * max(load.lengths)

    def cut(budget: int) -> list[tuple[int, int]]:
        return [(len(batch), len(batch[0])) for batch in batches([range(n) for n in load.lengths], budget)]

    def largest(budget: int) -> int:
        return max(requests * length for requests, length in cut(budget))

    first = budget = larger = min(max(longest, _FEW), whole)
    row = judge(budget)
    while row is not None and larger < whole:
        larger = min(2 * larger, whole)
        if cut(larger) == cut(budget):
            continue
        if row.get("batch_bytes", 0) * largest(larger) / largest(budget) > row.get("free_bytes", float("inf")):
            break
        found = judge(larger)
        if found is None or found["seconds"] >= row["seconds"]:
            break
        row, budget = found, larger
    smaller = budget
    while budget <= first and smaller > longest:
        smaller = max(smaller // 2, longest)
        if cut(smaller) == cut(budget):
            continue
        found = judge(smaller)
        if row is not None and (found is None or found["seconds"] >= row["seconds"]):
            break
        row, budget = found, smaller
    return None if row is None else budget


def _serve() -> None:
    """The child: a setup, then loads, from its input; an answer to each on its output, and nothing else there."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever prints

    def say(**message) -> None:
        out.write(json.dumps(message) + "\n")
        out.flush()

    try:
        setup = json.loads(sys.stdin.readline())
        device, dtype = torch.device(setup.pop("device")), getattr(torch, setup.pop("dtype"))
        torch.set_num_threads(setup.pop("threads"))
        directory, experts_by, cudnn = (setup.pop(name) for name in ("directory", "experts_by", "cudnn"))
        model = model_of(None if directory is None else Path(directory), **setup)
        contestant = Transformers(model, device, dtype, experts_by, cudnn)
        say(ready=True)
        for line in sys.stdin:
            asked = json.loads(line)
            say(
                row=_run(contestant, Load(tuple(asked["lengths"]), asked["new_tokens"]), asked["budget"], asked["made"])
            )
    except Exception as error:
        traceback.print_exc()
        say(error=f"{type(error).__name__}: {' '.join(str(error).split())}"[:300])
        os._exit(1)  # after a fault of CUDA's nothing else is sure to end


def _run(contestant: Transformers, load: Load, budget: int, made: int | None) -> dict | None:
    """The load's row, with the bytes that its largest batch took and those there are; None if they are too few."""
    device, cuda = contestant.device, contestant.device.type == "cuda"
    before = torch.cuda.memory_allocated(device) if cuda else 0
    row = None
    try:
        row = contestant.run(load, budget, made)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    if row is None:  # here the error is gone, and what its traceback held
        gc.collect()
        if cuda:
            torch.cuda.empty_cache()
    elif cuda:
        free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - before
        row |= {"batch_bytes": torch.cuda.max_memory_allocated(device) - before, "free_bytes": free}
    return row


if __name__ == "__main__":
    _serve()
