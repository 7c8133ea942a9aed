"""Batches whose tensors stay where they are, for CUDA graphs: filled anew for every step, by one copy from the host
that nobody waits for.

`OneTokenBatch` is the next token of each of B sequences. `RaggedBatch` is any tokens of some sequences, up to T of
them: drafts to be verified, or chunks of prompts with the next tokens of others beside them. What a batch has to spare
stands for nobody: it changes no state, and writes its keys to a row that nobody reads.

B rows, S sequences, N rows of a ragged batch's tables, T tokens, P pages of a row, W pieces of attention's work.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mmvl.kernels.lightning_attention import plan_blocks
from mmvl.kernels.lightning_plan import BlockPlan, Segments
from mmvl.kernels.paged_attention import SHORT_ROWS, TILE_ROWS, PagePlan
from mmvl.text_backbone.cache import HybridCache
from mmvl.text_backbone.packed import KeyIndex, Packed

PAGES_TIMES = 4  # a table is at most so many times as long as needed


class Staged:
    """Tensors on the device, by name, and what will be copied to all of them at once.

    A few buffers in the host's memory are used in turn, so that the next step's numbers can be written while the last
    one's are still being copied.
    """

    def __init__(self, device: torch.device, **parts: tuple[tuple[int, ...], torch.dtype]):
        gpu, self._turn = device.type == "cuda", 0
        words = sum(_words(*part) for part in parts.values())
        self._target_X = torch.zeros(words, dtype=torch.int32, device=device)
        self._buffers = [torch.zeros(words, dtype=torch.int32, pin_memory=gpu) for _ in range(1 + 2 * gpu)]
        self._copied = [torch.cuda.Event() for _ in self._buffers] if gpu else []
        self.on_device = _cut(self._target_X, parts)
        self._arrays = [{name: t.numpy() for name, t in _cut(b, parts).items()} for b in self._buffers]

    def next(self) -> dict[str, np.ndarray]:
        """Arrays to write to; what they hold is old."""
        self._turn = (self._turn + 1) % len(self._buffers)
        if self._copied:
            self._copied[self._turn].synchronize()
        return self._arrays[self._turn]

    def send(self) -> None:
        """Copy the last ones given, without waiting."""
        self._target_X.copy_(self._buffers[self._turn], non_blocking=True)
        if self._copied:
            self._copied[self._turn].record()


def _words(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    """Of 4 bytes, a multiple of 16 bytes in all: kernels like what begins there."""
    size = int(np.prod(shape)) * dtype.itemsize // 4
    return -(-size // 4) * 4


def _cut(buffer_X: Tensor, parts: dict[str, tuple[tuple[int, ...], torch.dtype]]) -> dict[str, Tensor]:
    found, at = {}, 0
    for name, (shape, dtype) in parts.items():
        size = int(np.prod(shape)) * dtype.itemsize // 4
        found[name] = buffer_X[at : at + size].view(dtype).view(shape)
        at += _words(shape, dtype)
    return found


class OneTokenBatch:
    """The tensors of one token each of B sequences of at most P pages; `packed` is what the decoder is given."""

    def __init__(self, cache: HybridCache, rows: int, pages: int):
        self._cache = cache
        long, short = torch.int64, torch.int32
        self._staged = Staged(
            cache.device, positions=((rows,), long), slots=((rows,), long), write=((rows,), long),
            lengths=((rows,), short), table=((rows, pages), short),
        )  # fmt: skip
        on = self._staged.on_device
        every_B1 = torch.arange(rows + 1, dtype=torch.int32, device=cache.device)
        plan = PagePlan(
            page_size=cache.page_size,
            table_SP=on["table"],
            lengths_S=on["lengths"],
            cu_keys_S1=every_B1,  # for what reads keys in order, which is nothing here
            cu_new_S1=every_B1,
            work_W2=torch.stack((every_B1[:-1], torch.zeros_like(every_B1[:-1])), dim=1),
            write_T=on["write"],
            group=cache.group,
            num_short=rows,
            short_rows=cache.group,
            num_keys=_keys_to_plan_for(rows, pages, cache),
        )
        ones = (1,) * rows
        self.packed = Packed(
            lengths=ones, starts=ones, cu_seqlens_S1=every_B1, positions_T=on["positions"],
            plan=plan_blocks(ones, cache.device), slots=(-1,) * rows, slots_S=on["slots"],
            keys=KeyIndex(plan, ones, True), static=True,
        )  # fmt: skip

    def fill(self, slots: Sequence[int]) -> Tensor:
        """The next token of these sequences, whose pages must be there; the slots on the device (S,)."""
        cache, size, count = self._cache, self._cache.page_size, len(slots)
        now, at = self._staged.next(), [cache.length(slot) for slot in slots]
        pages, table = [cache.pages_of(slot) for slot in slots], now["table"]
        for name, here, for_nobody in (
            ("positions", at, 0),
            ("slots", slots, -1),
            ("write", [row[n // size] * size + n % size for row, n in zip(pages, at, strict=True)], cache.scratch_row),
            ("lengths", [n + 1 for n in at], 1),
        ):
            now[name][:count], now[name][count:] = here, for_nobody
        table[count:, 0] = cache.scratch_row // size
        for row_P, own in zip(table, pages, strict=False):
            row_P[: len(own)] = own  # what stands behind them nobody reads
        self._staged.send()
        return self._staged.on_device["slots"][:count]


class RaggedBatch:
    """The tensors of up to T tokens of up to S sequences of at most P pages; `packed` is what the decoder is given.

    draft: the tokens are to be verified; `counts_N` is then how many of each row's tokens hold (`fill_counts`).

    Rows of the tables: S sequences, of which those that are not there have no tokens; then one of nobody's tokens that
    fill up T; then an empty one, for pieces of attention's work that nobody needs. A sequence that is not there has the
    state of the first one, and is written as that: the same numbers to the same place.
    """

    def __init__(self, cache: HybridCache, tokens: int, sequences: int, pages: int, draft: bool):
        self._cache, self.tokens, self.sequences = cache, tokens, sequences
        self._short = SHORT_ROWS // cache.group  # tokens of a sequence whose keys are split
        self._tile = max(TILE_ROWS // cache.group, 1)
        self._filler, self._nobody = sequences, sequences + 1
        rows, long, short = sequences + 2, torch.int64, torch.int32
        # each sequence that is long, and nobody's tokens, may end in a part of a tile
        tiles = -(-tokens // self._tile) + tokens // (self._short + 1) + 1
        self._staged = Staged(
            cache.device, positions=((tokens,), long), write=((tokens,), long),
            slots=((rows if draft else sequences,), long), source=((sequences,), long), lengths=((rows,), short),
            cu_new=((rows + 1,), short), table=((rows, pages), short), work=((sequences + tiles, 2), short),
            segments=((sequences + 1, 8), short),
        )  # fmt: skip
        self._counts = Staged(cache.device, counts=((rows,), short)) if draft else None
        on = self._staged.on_device
        plan = PagePlan(
            page_size=cache.page_size,
            table_SP=on["table"],
            lengths_S=on["lengths"],
            cu_keys_S1=on["cu_new"],  # for what reads keys in order, which is nothing here
            cu_new_S1=on["cu_new"],
            work_W2=on["work"],
            write_T=on["write"],
            group=cache.group,
            num_short=sequences,
            short_rows=self._short * cache.group,
            num_keys=_keys_to_plan_for(sequences, pages, cache),
        )
        segments = Segments(on["segments"], tokens, split_rows=0, num_added=0)
        lengths = (tokens, *(0,) * (rows - 1))
        self.packed = Packed(
            lengths=lengths, starts=(1,) * rows, cu_seqlens_S1=on["cu_new"], positions_T=on["positions"],
            plan=BlockPlan((tokens, *(0,) * (sequences - 1)), cache.device, fixed=segments),
            slots=(-1,) * rows, slots_S=on["slots"],
            keys=KeyIndex(plan, lengths, True), draft=draft, static=True, source_S=None if draft else on["source"],
        )  # fmt: skip

    @property
    def counts_N(self) -> Tensor:
        return self._counts.on_device["counts"]

    def fill_counts(self, counts: Sequence[int]) -> None:
        """How many tokens of each sequence hold, of those that `fill` was given last."""
        now = self._counts.next()["counts"]
        now[: len(counts)], now[len(counts) :] = counts, 0
        self._counts.send()

    def fill(self, slots: Sequence[int], counts: Sequence[int]) -> None:
        """The next `counts` tokens of these sequences, whose pages must be there."""
        cache, size, S = self._cache, self._cache.page_size, len(slots)
        now, filler = self._staged.next(), self._filler
        counts = np.array(counts, dtype=np.int64)
        starts = np.array([cache.length(slot) for slot in slots], dtype=np.int64)
        first = np.zeros(S + 1, dtype=np.int64)
        np.cumsum(counts, out=first[1:])
        used = int(first[S])
        rest = self.tokens - used

        lengths, table = now["lengths"], now["table"]
        lengths[:S], lengths[S:] = starts + counts, 0
        lengths[filler] = rest
        for row, slot in enumerate(slots):
            pages = cache.pages_of(slot)
            table[row, : len(pages)] = pages  # what stands behind them nobody reads
        table[filler] = cache.scratch_row // size
        cu_new = now["cu_new"]
        cu_new[: S + 1], cu_new[S + 1 : filler + 1], cu_new[filler + 1 :] = first, used, self.tokens

        positions, write = now["positions"], now["write"]
        row_T = np.repeat(np.arange(S), counts)
        positions[:used] = np.arange(used) + (starts - first[:-1])[row_T]
        positions[used:] = np.arange(rest)
        write[:used] = table[row_T, positions[:used] // size].astype(np.int64) * size + positions[:used] % size
        write[used:] = cache.scratch_row

        now["slots"][:S], now["source"][:S] = slots, np.arange(S)
        now["slots"][S:] = -1 if self.packed.draft else slots[0] if S else 0
        now["source"][S:] = 0
        self._cut_lightning(now["segments"], counts, first, used, rest)
        self._cut_attention(now["work"], counts, starts, rest)
        self._staged.send()

    def _cut_lightning(self, table_N8, counts, first, used, rest) -> None:
        """One segment a sequence; see `cut_segments` for the columns. One that seems to have another behind it leaves
        no state, which is so for nobody's tokens and for who is not there."""
        S = len(counts)
        table_N8[:] = 0
        table_N8[:S, 0], table_N8[:S, 1], table_N8[:S, 2] = np.arange(S), first[:-1], counts
        table_N8[S:-1, 0] = np.arange(S, len(table_N8) - 1)
        table_N8[max(S, 1) :, 4] = 1  # the first row's state is always left, as others are written as that
        table_N8[-1, 1], table_N8[-1, 2] = used if rest else 0, rest

    def _cut_attention(self, work_W2, counts, starts, rest) -> None:
        """The short ones of the sequences in their rows, then tiles of the others; as `plan_pages` does it."""
        S, tile = len(counts), self._tile
        work_W2[:, 0], work_W2[:, 1] = self._nobody, 0
        long = [(self._filler, i) for i in range(0, rest, tile)]
        for row, count in enumerate(counts):
            if count <= self._short:
                work_W2[row, 0] = row
            else:
                long += [(row, i) for i in range(0, count, tile)]
        # those with most keys first, so that none is left at the end
        long.sort(key=lambda piece: -(piece[1] + (int(starts[piece[0]]) if piece[0] < S else 0)))
        if long:
            work_W2[self.sequences : self.sequences + len(long)] = long


def _keys_to_plan_for(rows: int, pages: int, cache: HybridCache) -> int:
    """Of a table that is hardly larger than needed."""
    return -(-rows * pages * cache.page_size // PAGES_TIMES)
