"""How much of a step is communication that nothing hides: from a profile, and by leaving the sending out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from mmvl.text_backbone import expert_parallel
from mmvl.training.ranks import Ranks

Spans = list[tuple[float, float]]  # beginnings and ends, in microseconds


def profiled(step: Callable[[], None], ranks: Ranks, progress: Callable[[str], None]) -> dict:
    """Of one step on the GPU: milliseconds of communication kernels, and the share that no other kernel runs beside.

    Empty, and said so, where torch's profiler does not work.
    """
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    ranks.wait()
    try:
        with profile(activities=[ProfilerActivity.CUDA]) as found:
            step()
            torch.cuda.synchronize(ranks.device)
    except RuntimeError as error:
        progress(f"no profile: {' '.join(str(error).split())}")
        return {}
    spans: dict[bool, Spans] = {True: [], False: []}
    for event in found.events():
        if event.device_type == DeviceType.CUDA:
            spans["nccl" in event.name.lower()].append((event.time_range.start, event.time_range.end))
    travel, work = (union(spans[kind]) for kind in (True, False))
    if not travel or not work:
        return {}
    whole = max(travel[-1][1], work[-1][1]) - min(travel[0][0], work[0][0])
    exposed = length(travel) - overlap(travel, work)
    return {
        "communication_ms": length(travel) / 1e3,
        "exposed_ms": exposed / 1e3,
        "exposed_share": exposed / whole,
        "idle_share": 1 - (length(travel) + length(work) - overlap(travel, work)) / whole,
    }


def union(spans: Spans) -> Spans:
    """The same time, in spans that do not touch, in order."""
    merged: Spans = []
    for begin, end in sorted(spans):
        if merged and begin <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((begin, end))
    return merged


def length(spans: Spans) -> float:
    """Microseconds in spans that do not overlap."""
    return sum(end - begin for begin, end in spans)


def overlap(a: Spans, b: Spans) -> float:
    """Microseconds that lie in both; neither's spans overlap among themselves."""
    return length(a) + length(b) - length(union(a + b))


@contextmanager
def sending(sent: bool) -> Iterator[None]:
    """Within, tokens travel or not; what the experts then compute has the same shapes, and no meaning."""
    real = expert_parallel.Exchange
    expert_parallel.Exchange = real if sent else CopiedOnTheSpot
    try:
        yield
    finally:
        expert_parallel.Exchange = real


class CopiedOnTheSpot(expert_parallel.Exchange):
    """As many rows come as would have come, copied from those that were to go."""

    def launch(self, x: Tensor, send: list[int], receive: list[int]) -> Tensor:
        rows = torch.arange(sum(receive), device=x.device)
        return x.index_select(0, rows % len(x)) if len(x) else x.new_zeros(len(rows), *x.shape[1:])
