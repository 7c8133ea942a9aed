"""How a call is timed, checked, and what the machine could do at best.

On a GPU device time is read from CUDA events. A call whose floor is under a millisecond is captured in a CUDA graph
that runs it many times over, so that the launches' own cost stays out; it goes round several sets of inputs that
together are larger than the L2 cache, so that nothing is read from there that a model would read from memory. Longer
calls run one by one, the cache overwritten before each. On a CPU the wall clock is read.
"""

import math
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

GRAPH_BELOW_MS = 1.0
L2_TIMES = 3  # between two uses of a set of inputs, the others read so many times the L2 cache
MAX_SETS = 64
MAX_SETS_BYTES = 24 << 30
Run = Callable[[], Any]


@dataclass(frozen=True)
class Timing:
    """Milliseconds a call: the median, the 10th and 90th percentile of `repeats`; how: graph, events or clock."""

    ms: float
    low: float
    high: float
    repeats: int
    how: str

    @classmethod
    def of(cls, samples: Sequence[float], how: str) -> "Timing":
        ordered = sorted(samples)
        at = [ordered[min(int(q * len(ordered)), len(ordered) - 1)] for q in (0.1, 0.9)]
        return cls(statistics.median(ordered), *at, len(ordered), how)


def relative_error(out: torch.Tensor, ref: torch.Tensor) -> float:
    """||out - ref|| / ||ref|| in fp64; infinite if anything is not finite or the shapes differ."""
    if out.shape != ref.shape:
        return math.inf
    ref = ref.double()
    error = ((out.double() - ref).norm() / ref.norm().clamp(min=1e-300)).item()
    return error if math.isfinite(error) else math.inf


@contextmanager
def waiting_is_an_error() -> Iterator[None]:
    """Inside, an operation of torch that waits for the device raises RuntimeError."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the mode is a prototype
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


class Stopwatch:
    """Times calls on one device; `seconds` is how long each may be measured for."""

    def __init__(self, device: torch.device, seconds: float):
        self.device, self.seconds = device, seconds
        self.l2_bytes = 0
        if device.type == "cuda":
            self.l2_bytes = torch.cuda.get_device_properties(device).L2_cache_size
            self._flush = torch.empty(max(4 * self.l2_bytes, 1 << 20), dtype=torch.uint8, device=device)

    def num_sets(self, bytes_a_call: float) -> int:
        """How many sets of inputs a graph should go round, so that they do not stay in the cache."""
        wanted = 1 + math.ceil(L2_TIMES * self.l2_bytes / max(bytes_a_call, 1))
        return max(1, min(wanted, MAX_SETS, int(MAX_SETS_BYTES / max(bytes_a_call, 1))))

    def one_by_one(self, run: Run, flush: bool = True) -> Timing:
        """Calls as a program makes them; the host's work shows where it is longer than the device's."""
        if self.device.type == "cpu":
            return self._by_clock(run)
        first = self._event_ms(run, flush)
        repeats = self._repeats(min(first, self._event_ms(run, flush)))
        return Timing.of([self._event_ms(run, flush) for _ in range(repeats)], "events")

    def in_graph(self, runs: Sequence[Run], floor_ms: float) -> Timing:
        """Calls of `runs`, one after the other, in one CUDA graph. Raises RuntimeError if they cannot be captured.

        Who waits for the device is found before the capture begins: one that fails would leave torch's allocator in it,
        where memory that is free is never given back, until nothing is left for others.
        """
        rounds = max(1, math.ceil(min(64, 0.5 / max(floor_ms, 1e-4)) / len(runs)))
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            for run in runs:
                run()
            with waiting_is_an_error():
                for run in runs:
                    run()
        torch.cuda.current_stream(self.device).wait_stream(stream)
        torch.cuda.synchronize(self.device)
        graph = torch.cuda.CUDAGraph()
        # the outer context: a capture that fails leaves its stream current
        with torch.cuda.stream(torch.cuda.current_stream(self.device)), torch.cuda.graph(graph, stream=stream):
            for _ in range(rounds):
                for run in runs:
                    run()
        calls = rounds * len(runs)
        try:
            self._event_ms(graph.replay, False)
            repeats = self._repeats(self._event_ms(graph.replay, False))
            samples = [self._event_ms(graph.replay, False) / calls for _ in range(repeats)]
        finally:
            graph.reset()  # its pool is given back even to someone who keeps the error
        return Timing.of(samples, "graph")

    def _event_ms(self, run: Run, flush: bool) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        if flush:
            self._flush.zero_()
        begin.record()
        run()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end)

    def _by_clock(self, run: Run) -> Timing:
        samples = []
        run()
        end = time.perf_counter() + self.seconds
        while len(samples) < 3 or (time.perf_counter() < end and len(samples) < 100):
            begin = time.perf_counter()
            run()
            samples.append(1e3 * (time.perf_counter() - begin))
        return Timing.of(samples, "clock")

    def _repeats(self, ms: float) -> int:
        return max(7, min(100, int(1e3 * self.seconds / max(ms, 1e-3))))


def ceilings(stopwatch: Stopwatch) -> dict[str, float]:
    """What this machine does at best, measured now: {"bytes": bytes/s of a large copy, reads and writes counted,
    "bf16": FLOP/s of a large matrix product of random bf16 numbers, "fp8": the same in e4m3 where there is hardware}.

    On a CPU both are fp32.
    """
    device = stopwatch.device
    gpu = device.type == "cuda"
    count, n, dtype = (1 << 30, 8192, torch.bfloat16) if gpu else (1 << 22, 256, torch.float32)
    found = {"bytes": _copy_rate(stopwatch, torch.randn(count, device=device, dtype=dtype))}
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    found["bf16"] = 2 * n**3 / _seconds(stopwatch.one_by_one(lambda: a @ b))
    if gpu and torch.cuda.get_device_capability(device) >= (8, 9):
        one = torch.ones((), device=device)
        a8, b8 = a.to(torch.float8_e4m3fn), b.to(torch.float8_e4m3fn).t()
        product = lambda: torch._scaled_mm(a8, b8, one, one, out_dtype=torch.bfloat16)  # noqa: E731
        found["fp8"] = 2 * n**3 / _seconds(stopwatch.one_by_one(product))
    return found


def _copy_rate(stopwatch: Stopwatch, source: torch.Tensor) -> float:
    target = torch.empty_like(source)
    return 2 * source.nbytes / _seconds(stopwatch.one_by_one(lambda: target.copy_(source)))


def _seconds(timing: Timing) -> float:
    return timing.ms / 1e3
