"""Decode steps as CUDA graphs: one launch for all layers, at a ladder of batch sizes and of lengths.

A graph reads its batch from tensors that stay where they are and are filled anew for every step, by one copy from the
host that nobody waits for. A batch is filled up to the next size of the ladder by rows without a sequence: they change
no state, and write their keys to a row that nobody reads.

S sequences, B rows of a graph, P pages of its tables' rows, D model width.
"""

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mmvl.kernels.lightning_attention import plan_blocks
from mmvl.kernels.paged_attention import PagePlan
from mmvl.text_backbone.cache import HybridCache
from mmvl.text_backbone.packed import KeyIndex, Packed

LADDER = (*range(1, 9), *range(12, 33, 4), *range(40, 65, 8), *range(80, 129, 16), 192, 256, 384, 512)
LEAST_PAGES, PAGES_TIMES = 16, 4  # tables are of 16 pages, 64, 256, ...


class _Staged:
    """Numbers on their way to `target_X` on the device: a few buffers in the host's memory, used in turn, so that the
    next step's can be written while the last one's are still being copied."""

    def __init__(self, target_X: Tensor):
        gpu = target_X.is_cuda
        self._target_X, self._turn = target_X, 0
        self._buffers = [torch.zeros(target_X.shape, dtype=target_X.dtype, pin_memory=gpu) for _ in range(1 + 2 * gpu)]
        self._copied = [torch.cuda.Event() for _ in self._buffers] if gpu else []

    def next(self) -> Tensor:
        """A buffer to write to; what it holds is old."""
        self._turn = (self._turn + 1) % len(self._buffers)
        if self._copied:
            self._copied[self._turn].synchronize()
        return self._buffers[self._turn]

    def send(self) -> None:
        """Copy the last one given, without waiting."""
        self._target_X.copy_(self._buffers[self._turn], non_blocking=True)
        if self._copied:
            self._copied[self._turn].record()


class StaticBatch:
    """The tensors of one token each of B sequences of at most P pages; `packed` is what the decoder is given."""

    def __init__(self, cache: HybridCache, rows: int, pages: int):
        self._cache, self._rows, self._pages = cache, rows, pages
        self._room = -(-rows // 4) * 4  # so that all begin at multiples of 16 bytes, as kernels like it
        size = 3 * self._room + -(-(self._room + rows * pages) // 2)
        numbers_X = torch.zeros(size, dtype=torch.int64, device=cache.device)
        self._staged = _Staged(numbers_X)
        (positions_B, slots_B, write_B), lengths_B, table_BP = self._parts(numbers_X)
        every_B1 = torch.arange(rows + 1, dtype=torch.int32, device=cache.device)
        plan = PagePlan(
            page_size=cache.page_size,
            table_SP=table_BP,
            lengths_S=lengths_B,
            cu_keys_S1=every_B1,  # for what reads keys in order, which is nothing here
            cu_new_S1=every_B1,
            work_W2=torch.stack((every_B1[:-1], torch.zeros_like(every_B1[:-1])), dim=1),
            write_T=write_B,
            group=cache.group,
            num_short=rows,
            short_rows=cache.group,
            num_keys=-(-rows * pages * cache.page_size // PAGES_TIMES),  # of a table that is hardly larger than needed
        )
        ones = (1,) * rows
        self.packed = Packed(
            lengths=ones, starts=ones, cu_seqlens_S1=every_B1, positions_T=positions_B,
            plan=plan_blocks(ones, cache.device), slots=(-1,) * rows, slots_S=slots_B,
            keys=KeyIndex(plan, ones, True), static=True,
        )  # fmt: skip

    def _parts(self, numbers_X: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Positions, slots and rows to write to (3, B) int64; lengths (B,) and tables (B, P) int32."""
        room, rows = self._room, self._rows
        long_3B = numbers_X[: 3 * room].view(3, room)[:, :rows]
        short_X = numbers_X[3 * room :].view(torch.int32)
        return long_3B, short_X[:rows], short_X[room : room + rows * self._pages].view(rows, self._pages)

    def fill(self, slots: Sequence[int]) -> None:
        """The next token of these sequences, whose pages must be there; the other rows stand for nobody."""
        cache, size, count = self._cache, self._cache.page_size, len(slots)
        long, lengths, table = (part.numpy() for part in self._parts(self._staged.next()))
        long[:, count:] = ((0,), (-1,), (cache.scratch_row,))
        lengths[count:] = 1
        table[count:, 0] = cache.scratch_row // size
        for row, slot in enumerate(slots):
            at, pages = cache.length(slot), cache.pages_of(slot)
            long[:, row] = at, slot, pages[at // size] * size + at % size
            lengths[row] = at + 1
            table[row, : len(pages)] = pages  # what stands behind them nobody reads
        self._staged.send()


class DecodeGraphs:
    """Graphs of `decoder(x_TD, packed, cache)` on a cache, captured before or when first needed, in one pool of memory.

    max_sequences: the largest batch. Where capturing fails, a warning says so and `fits` is False from then on.
    """

    def __init__(self, decoder: Callable, cache: HybridCache, width: int, dtype: torch.dtype, max_sequences: int):
        self._decoder, self._cache, self._width, self._dtype = decoder, cache, width, dtype
        self.ladder = [rows for rows in LADDER if rows < max_sequences] + [max_sequences]
        self._graphs: dict[tuple[int, int], tuple[torch.cuda.CUDAGraph, StaticBatch, Tensor, Tensor]] = {}
        self._pool = torch.cuda.graph_pool_handle()
        self._broken = False

    def fits(self, slots: Sequence[int]) -> bool:
        """Whether there is, or can be, a graph for these sequences; captures it."""
        return not self._broken and len(slots) <= self.ladder[-1] and self._of(slots) is not None

    def capture(self, rows: int, tokens: int) -> bool:
        """See to it that there is a graph for `rows` sequences of at most `tokens` tokens; False if there cannot be."""
        return not self._broken and self._get(rows, -(-tokens // self._cache.page_size)) is not None

    def run(self, slots: Sequence[int], x_SD: Tensor) -> Tensor:
        """One token of each sequence: embeddings (S, D) -> hidden states (S, D), good until the next run."""
        graph, batch, x_BD, hidden_BD = self._of(slots)
        batch.fill(slots)
        x_BD[: len(slots)].copy_(x_SD)
        graph.replay()
        self._cache.advance_by(slots, (1,) * len(slots))
        return hidden_BD[: len(slots)]

    def _of(self, slots: Sequence[int]):
        return self._get(len(slots), max(len(self._cache.pages_of(slot)) for slot in slots))

    def _get(self, count: int, longest: int):
        rows = next(size for size in self.ladder if size >= count)
        pages = LEAST_PAGES
        while pages < longest:
            pages *= PAGES_TIMES
        if (rows, pages) not in self._graphs:
            try:
                self._graphs[rows, pages] = self._capture(rows, pages)
            except RuntimeError as error:
                self._broken = True
                warnings.warn(f"decoding without CUDA graphs, capturing one failed: {error}", stacklevel=2)
                return None
        return self._graphs[rows, pages]

    def _capture(self, rows: int, pages: int):
        batch = StaticBatch(self._cache, rows, pages)
        x_BD = torch.zeros(rows, self._width, dtype=self._dtype, device=self._cache.device)
        batch.fill([])
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # once before, so that everything is compiled, cached and allocated
            self._decoder(x_BD, batch.packed, self._cache)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # with "global", NCCL's watchdog, a thread of its own that asks for events meanwhile, would break the capture
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            hidden_BD = self._decoder(x_BD, batch.packed, self._cache).hidden_TD
        return graph, batch, x_BD, hidden_BD
