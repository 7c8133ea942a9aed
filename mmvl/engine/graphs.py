"""Steps as CUDA graphs: one launch for all layers. Plain decoding at a ladder of batch sizes; drafts to be verified,
and chunks of prompts with whoever decodes beside them, at powers of two of tokens.

A graph reads its batch from tensors that stay where they are (`static_batch.py`). It is captured before the first
request (`warm_up.py`) or when first needed, in one pool of memory. Which chunks are worth one says `graph_rule.py`.

S sequences, B rows of a graph, T tokens, P pages of its tables' rows, D model width.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from mmvl.benchmark.measure import waiting_is_an_error
from mmvl.engine.memory import is_out_of_memory
from mmvl.engine.static_batch import PAGES_TIMES, OneTokenBatch, RaggedBatch
from mmvl.text_backbone.cache import HybridCache

LADDER = (*range(1, 9), *range(12, 33, 4), *range(40, 65, 8), *range(80, 129, 16), 192, 256, 384, 512)
ROWS = (1, 8, 64, 512)  # sequences of a draft or chunk: what is not there costs little
LEAST_PAGES = 16  # tables are of 16 pages, 64, 256, ...
LEAST_CHUNK = 16  # tokens
Kind = Literal["decode", "draft", "chunk"]


@dataclass(frozen=True)
class _Captured:
    """One graph and what it reads and writes; of a draft also the graph that takes what held."""

    graph: Any  # has `replay`
    batch: OneTokenBatch | RaggedBatch
    x_TD: Tensor
    hidden_TD: Tensor
    accept: Any = None


class StepGraphs:
    """Graphs of `decoder(x_TD, packed, cache)` on a cache.

    max_sequences: the largest batch. drafts: most tokens of a sequence with its draft, and of a step with drafts;
    chunk_tokens: most of a step with chunks. 0 for none.

    Use: `prepare`, then `run`; or `takes`, then `run_ragged`, and of a draft `accept`. Where capturing fails,
    a warning says so, and steps of this kind are not taken from then on.
    """

    def __init__(
        self,
        decoder: Callable,
        cache: HybridCache,
        width: int,
        dtype: torch.dtype,
        max_sequences: int,
        drafts: tuple[int, int] = (0, 0),
        chunk_tokens: int = 0,
    ):
        self._decoder, self._cache, self._width, self._dtype = decoder, cache, width, dtype
        self.ladder = [rows for rows in LADDER if rows < max_sequences] + [max_sequences]
        self._rows = [rows for rows in ROWS if rows < max_sequences] + [max_sequences]
        self._widest, most = drafts
        self._most = {"draft": most, "chunk": chunk_tokens}
        self._graphs: dict[tuple[Kind, int, int, int], _Captured] = {}
        self._broken: set[Kind] = set()
        self._pool = None
        self._ready: _Captured | None = None  # whose batch holds what `run` or `run_ragged` is to compute

    # Plain decoding.

    def prepare(self, slots: Sequence[int]) -> Tensor | None:
        """Bring these sequences' next tokens' places to the device, for `run`; the slots there (S,).

        None where there is no graph for them and none can be captured.
        """
        longest = max(len(self._cache.pages_of(slot)) for slot in slots)
        self._ready = self._get("decode", 1, len(slots), longest) if len(slots) <= self.ladder[-1] else None
        return None if self._ready is None else self._ready.batch.fill(slots)

    def run(self, slots: Sequence[int], x_SD: Tensor) -> Tensor:
        """One token of each sequence that was prepared: embeddings (S, D) -> hidden states (S, D), good until the next
        run; the cache is advanced."""
        hidden_SD = self._replay(x_SD)
        self._cache.advance_by(slots, (1,) * len(slots))
        return hidden_SD

    # Drafts and chunks.

    def takes(self, slots: Sequence[int], counts: Sequence[int], draft: bool) -> bool:
        """Whether there is, or can be, a graph for so many tokens of these sequences; their places are then on the
        device, for `run_ragged`. Raises CacheFull as `HybridCache.pack` does."""
        kind, tokens = "draft" if draft else "chunk", sum(counts)
        if tokens > self._most[kind] or len(slots) > self._rows[-1]:
            return False
        for slot, count in zip(slots, counts, strict=True):
            self._cache.reserve(slot, count)
        longest = max(len(self._cache.pages_of(slot)) for slot in slots)
        self._ready = self._get(kind, tokens, len(slots), longest)
        if self._ready is not None:
            self._ready.batch.fill(slots, counts)
        return self._ready is not None

    def run_ragged(self, slots: Sequence[int], counts: Sequence[int], x_TD: Tensor) -> Tensor:
        """What `takes` took: embeddings (T, D) -> hidden states (T, D), good until the next run.

        The cache is advanced, unless it is a draft, for which `accept` does that.
        """
        hidden_TD = self._replay(x_TD)
        if self._ready.accept is None:
            self._cache.advance_by(slots, counts)
        return hidden_TD

    def accept(self, slots: Sequence[int], counts: Sequence[int]) -> None:
        """Of the draft that was run last, how many of each sequence's tokens count; as `HybridCache.accept`."""
        self._ready.batch.fill_counts(counts)
        self._ready.accept.replay()
        self._cache.advance_by(slots, counts)

    # Before the first request.

    def shapes(self) -> Iterator[tuple[Kind, int, int]]:
        """(kind, tokens, sequences) of the graphs that most requests need; tokens of each sequence for "decode"."""
        for rows in self.ladder:
            yield "decode", 1, rows
        for kind in ("draft", "chunk"):
            for rows in self._rows[:2]:
                for tokens in self._sizes(kind):
                    if rows < tokens and (kind == "chunk" or tokens < 2 * self._widest * rows):
                        yield kind, tokens, rows

    def capture(self, kind: Kind, tokens: int, rows: int, context: int) -> bool:
        """See to it that there is a graph for `rows` sequences of at most `context` tokens; False if it cannot be."""
        return self._get(kind, tokens, rows, -(-context // self._cache.page_size)) is not None

    def _sizes(self, kind: Kind) -> Iterator[int]:
        """Tokens of its graphs."""
        size = 2 if kind == "draft" else LEAST_CHUNK
        most = self._most[kind]
        while size // 2 < most and most:
            yield size
            size *= 2

    def _get(self, kind: Kind, tokens: int, count: int, longest: int) -> _Captured | None:
        if kind in self._broken:
            return None
        rows = next(size for size in (self.ladder if kind == "decode" else self._rows) if size >= count)
        if kind != "decode":
            tokens = next(size for size in self._sizes(kind) if size >= tokens)
        pages, longest = LEAST_PAGES, max(longest, -(-tokens // self._cache.page_size))
        while pages < longest:
            pages *= PAGES_TIMES
        key = kind, tokens, rows, pages
        if key not in self._graphs:
            try:
                self._graphs[key] = self._capture(*key)
            except RuntimeError as error:
                if self._decoder.ranks > 1 and is_out_of_memory(error):
                    raise  # the other ranks may have had room, and would wait for this one in the next sum
                self._broken.add(kind)
                self._cache.forget_draft()
                what = {"decode": "decoding", "draft": "verifying drafts", "chunk": "short prompts"}[kind]
                warnings.warn(f"{what} without CUDA graphs, capturing one failed: {error}", stacklevel=2)
                return None
        return self._graphs[key]

    def _replay(self, x_TD: Tensor) -> Tensor:
        count, ready = len(x_TD), self._ready
        ready.x_TD[:count].copy_(x_TD)
        ready.graph.replay()
        return ready.hidden_TD[:count]

    def _capture(self, kind: Kind, tokens: int, rows: int, pages: int) -> _Captured:
        cache, draft = self._cache, kind == "draft"
        if kind == "decode":
            batch = OneTokenBatch(cache, rows, pages)
            batch.fill([])
        else:
            batch = RaggedBatch(cache, tokens, rows, pages, draft)
            batch.fill([], [])
        size = batch.packed.num_tokens
        x_TD = torch.zeros(size, self._width, dtype=self._dtype, device=cache.device)

        def compute() -> Tensor:
            return self._decoder(x_TD, batch.packed, cache).hidden_TD

        if draft:
            batch.fill_counts([])
        graph, hidden_TD = self._record(compute)
        if not draft:
            return _Captured(graph, batch, x_TD, hidden_TD)
        accept, _ = self._record(lambda: cache.take_draft(batch.packed, batch.counts_N))
        cache.forget_draft()
        return _Captured(graph, batch, x_TD, hidden_TD, accept)

    def _record(self, compute: Callable[[], Any]) -> tuple[Any, Any]:
        """A graph of it, and what it returned, which a replay writes anew."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            compute()  # once before, so that everything is compiled, cached and allocated
            with waiting_is_an_error():  # which in a capture would leave torch's allocator broken
                compute()
        torch.cuda.current_stream().wait_stream(stream)
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        # with "global", NCCL's watchdog, a thread of its own that asks for events meanwhile, would break the capture
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            result = compute()
        return graph, result
