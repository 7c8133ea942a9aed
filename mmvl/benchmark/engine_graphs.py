"""What CUDA graphs gain: steps of the decoder with and without one, and what of that the host takes to launch them.

Plain decoding, drafts with what takes those that held, and chunks of prompts at powers of two of tokens, half of which
are filled up by one token more than the smaller graph takes. Shows whether the rule for chunks (engine/graph_rule.py)
is right about a machine and a model: a chunk pays where the graph's milliseconds are fewer.

S sequences, T tokens, D model width.
"""

import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial

import torch
from torch import Tensor

from mmvl.benchmark.measure import relative_error
from mmvl.engine.graph_rule import SMALLEST, chunk_tokens_of
from mmvl.engine.graphs import Kind, StepGraphs
from mmvl.engine.memory import PAGE_SIZE
from mmvl.engine.spread import SpreadDecoder
from mmvl.text_backbone.tensor_parallel import FEW

PAST = 200  # tokens that each sequence has before
WIDEST = 8  # tokens of a sequence with its draft
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Row:
    """One kind of step; milliseconds are medians, from the launch until the device has finished, and of the host alone.

    error: ||with - without|| / ||without|| of the hidden states.
    """

    kind: Kind
    sequences: int
    tokens: int
    plain_ms: float
    plain_host_ms: float
    graph_ms: float
    graph_host_ms: float
    error: float
    ruled: bool  # whether an engine takes such a step by a graph

    @property
    def times(self) -> float:
        return self.plain_ms / self.graph_ms


def steps(most: int, sequences: int) -> Iterator[tuple[Kind, tuple[int, ...]]]:
    """(kind, new tokens of each sequence) of what is measured."""
    for count in dict.fromkeys((1, sequences)):
        yield "decode", (1,) * count
        for width in (2, 4, WIDEST):
            yield "draft", (width,) * count
    size = SMALLEST
    while size <= most:
        yield "chunk", (size,)
        yield "chunk", (size // 2 + 1,)
        if sequences > 1 and size > 2 * sequences:
            yield "chunk", (size - sequences + 1, *(1,) * (sequences - 1))
        size *= 2


@torch.inference_mode()
def measure(
    decoder, cache, graphs, chosen: Iterable[tuple[Kind, tuple[int, ...]]], repeats: int, most: int, progress: Progress
) -> list[Row]:
    """A row a step. `most`: tokens of the largest step with chunks that the rule takes."""
    generator = torch.Generator(cache.device).manual_seed(0)
    width, dtype = decoder.config.hidden_size, decoder.model.norm.weight.dtype

    def draw(tokens: int) -> Tensor:
        return torch.randn(tokens, width, device=cache.device, dtype=dtype, generator=generator)

    slot = cache.allocate()
    decoder(draw(PAST), cache.pack([(slot, PAST)]), cache)
    past = cache.checkpoint(slot)
    cache.free(slot)
    rows = []
    for kind, counts in chosen:
        progress(f"{kind}: {sum(counts)} tokens of {len(counts)} sequences")
        x_TD = draw(sum(counts))
        plain, want_TD = _seconds(partial(_without, decoder, cache, kind), cache, past, counts, x_TD, repeats)
        graph, got_TD = _seconds(partial(_with, graphs, cache, kind), cache, past, counts, x_TD, repeats)
        ruled = kind != "chunk" or sum(counts) <= most
        milliseconds = (1e3 * s for s in (*plain, *graph))
        rows.append(Row(kind, len(counts), sum(counts), *milliseconds, relative_error(got_TD, want_TD), ruled))
    cache.forget(past)
    return rows


def _without(decoder, cache, kind: Kind, slots: Sequence[int], counts: Sequence[int], x_TD: Tensor) -> Tensor:
    packed = cache.pack(list(zip(slots, counts, strict=True)), draft=kind == "draft")
    hidden_TD = decoder(x_TD, packed, cache).hidden_TD
    if packed.draft:
        cache.accept(packed, counts)
    return hidden_TD


def _with(graphs, cache, kind: Kind, slots: Sequence[int], counts: Sequence[int], x_TD: Tensor) -> Tensor:
    if kind == "decode":
        for slot in slots:
            cache.reserve(slot, 1)
        if graphs.prepare(slots) is not None:
            return graphs.run(slots, x_TD)
    elif graphs.takes(slots, counts, kind == "draft"):
        hidden_TD = graphs.run_ragged(slots, counts, x_TD)
        if kind == "draft":
            graphs.accept(slots, counts)
        return hidden_TD
    raise RuntimeError(f"no graph was captured for {kind} of {sum(counts)} tokens")


def _seconds(step, cache, past: int, counts: Sequence[int], x_TD: Tensor, repeats: int):
    """(Seconds until the device has finished, of the host alone), medians; the hidden states of the first time."""
    total, host, first_TD = [], [], None
    for _ in range(2 + repeats):  # the first two are not counted: kernels are compiled, graphs captured
        slots = [cache.resume(past) for _ in counts]
        try:
            _wait(cache.device)
            began = time.perf_counter()
            hidden_TD = step(slots, counts, x_TD)
            launched = time.perf_counter()
            _wait(cache.device)
            total.append(time.perf_counter() - began)
            host.append(launched - began)
            first_TD = hidden_TD.clone() if first_TD is None else first_TD
        finally:
            for slot in slots:
                cache.free(slot)
    return (statistics.median(total[2:]), statistics.median(host[2:])), first_TD


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def run(decoder, device: torch.device, dtype: torch.dtype, *, sequences: int, repeats: int, progress: Progress) -> dict:
    """Measure all steps of a decoder on a GPU, or of a rank's part of it; what is written as JSON.

    Raises ValueError without a GPU, RuntimeError where a graph cannot be captured.
    """
    if device.type != "cuda":
        raise ValueError("CUDA graphs are of a GPU: there is none")
    most = chunk_tokens_of(decoder, dtype)
    largest = max(most, FEW)
    cache = decoder.new_cache(
        max_sequences=sequences, max_tokens=(sequences + 2) * (PAST + 2 * PAGE_SIZE) + largest, page_size=PAGE_SIZE,
        max_checkpoints=1, device=device, dtype=dtype,
    )  # fmt: skip
    settings = (cache, decoder.config.hidden_size, dtype, sequences, (WIDEST, WIDEST * sequences), largest)
    graphs = decoder.new_graphs(*settings) if isinstance(decoder, SpreadDecoder) else StepGraphs(decoder, *settings)
    rows = measure(decoder, cache, graphs, steps(largest, sequences), repeats, most, progress)
    found = [asdict(row) | {"times": row.times} for row in rows]
    return {"rule": most, "past": PAST, "repeats": repeats, "rows": found}
