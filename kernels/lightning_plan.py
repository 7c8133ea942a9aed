"""How a packed batch's sequences are cut up for lightning attention: in segments for the kernels, in blocks for the
reference. The tables are made on the host, once a batch.

Legend: T tokens, S sequences, N blocks or segments, B rows a block, H heads.
"""

import functools
from dataclasses import dataclass, field

import torch

MAX_BLOCK = 64
MIN_BLOCK = 16
MAX_SEGMENT = 1024  # blocks whose states are found by one product with an N x N matrix of decays


@dataclass(frozen=True)
class Run:
    """A run of blocks; exponents are numbers of tokens, negative, -inf where nothing flows."""

    begin: int
    end: int
    exponents_NN: torch.Tensor  # [n, m]: from the end of block m to the start of block n
    carried_N: torch.Tensor | None  # [n]: from the start of the run to the start of block n; None: nothing comes in


@dataclass(frozen=True)
class Blocks:
    """The reference's tables: where each token lies once every sequence is cut into blocks."""

    block: int
    num_blocks: int
    longest: int  # blocks of the longest sequence
    rows_T: torch.Tensor | None  # row of each token among N * B; None if nothing is filled up
    exponents: torch.Tensor  # (B * B + 2B,): within a block, then from its start (for q), then to its end (for k)
    runs: tuple[Run, ...]
    sequence_N: torch.Tensor  # sequence of each block
    before_N: torch.Tensor  # exponent from the start of the sequence to the start of the block
    from_start_NB: torch.Tensor  # exponent from there, or from the block's start, to each row: decay of a given state
    last_S: torch.Tensor  # last block of each sequence
    last_tokens_S: torch.Tensor  # tokens in it


@dataclass(frozen=True)
class Segments:
    """The kernels' table: sequences cut every `tokens` tokens, those of split sequences first, the longest first."""

    table_N8: torch.Tensor  # int32, columns of `cut_segments`
    tokens: int
    split_rows: int  # segments of sequences that have more than one
    num_added: int  # states between segments


@dataclass(frozen=True)
class BlockPlan:
    """How a packed batch's sequences are cut; made once per batch by `plan_blocks`, tables when first needed."""

    lengths: tuple[int, ...]
    device: torch.device
    block: int | None = None
    fixed: Segments | None = None  # instead of what `segments` would cut, where the device alone knows the lengths
    _segments: dict[int, Segments] = field(default_factory=dict, repr=False, compare=False)

    @functools.cached_property
    def one_token(self) -> bool:
        """Whether every sequence has exactly one."""
        return max(self.lengths) == 1 and min(self.lengths) == 1

    @functools.cached_property
    def num_tokens(self) -> int:
        return sum(self.lengths)

    @functools.cached_property
    def blocks(self) -> Blocks:
        """For the reference."""
        return _cut_blocks(self.lengths, self.device, self.block)

    @functools.cached_property
    def not_empty(self) -> tuple["BlockPlan", torch.Tensor] | None:
        """The plan without its empty sequences, and the indices (int64) of the others; None if none is empty."""
        if min(self.lengths) > 0:
            return None
        kept = [s for s, n in enumerate(self.lengths) if n]
        plan = BlockPlan(tuple(self.lengths[s] for s in kept), self.device, self.block)
        return plan, torch.tensor(kept, dtype=torch.int64).to(self.device)

    def segments(self, tokens: int) -> Segments:
        """For the kernels; `tokens` is the longest that a segment may be. One copy to the device at the first call."""
        if self.fixed is not None:
            return self.fixed
        tokens = min(tokens, max(self.lengths)) or 1
        found = self._segments.get(tokens)
        if found is None:
            found = self._segments[tokens] = cut_segments(self.lengths, tokens, self.device)
        return found


def plan_blocks(lengths, device, block: int | None = None) -> BlockPlan:
    """A plan for sequences of `lengths` tokens (host integers >= 0), one after the other.

    `block` (tokens) is the reference's; it defaults to 64, or less if every sequence is shorter. Raises ValueError
    without any sequence or for a negative length.
    """
    lengths = tuple(int(n) for n in lengths)
    if not lengths or min(lengths) < 0:
        raise ValueError(f"lightning attention needs sequences of at least 0 tokens, got lengths {lengths}")
    return BlockPlan(lengths, torch.device(device), block)


def cut_segments(lengths, tokens: int, device) -> Segments:
    """Cut every sequence after each `tokens` tokens; an empty sequence has one empty segment.

    Columns: sequence, first token, length, segments of its sequence before it and after it, its sequence's first state
    among those between segments, tokens of its sequence after it, unused.
    """
    length_S = torch.tensor(lengths)
    count_S = ((length_S + (tokens - 1)) // tokens).clamp_(min=1)
    between_S = count_S - 1
    N = int(count_S.sum())
    sequence_N = torch.arange(len(lengths)).repeat_interleave(count_S, output_size=N)
    before_N = torch.arange(N) - (count_S.cumsum(0) - count_S)[sequence_N]
    left_N = length_S[sequence_N] - before_N * tokens
    first_N = (length_S.cumsum(0) - length_S)[sequence_N] + before_N * tokens
    here_N = left_N.clamp(max=tokens)
    after_N = between_S[sequence_N] - before_N
    slot_N = (between_S.cumsum(0) - between_S)[sequence_N]
    rows = (sequence_N, first_N, here_N, before_N, after_N, slot_N, left_N - here_N, torch.zeros_like(first_N))
    split_N = before_N + after_N > 0
    order_N = (split_N * (1 << 40) + here_N).argsort(descending=True, stable=True)
    table_N8 = torch.stack(rows, dim=1)[order_N].int()
    split_rows, num_added = int(split_N.sum()), int(between_S.sum())
    return Segments(table_N8.to(device, non_blocking=True), tokens, split_rows, num_added)


def _cut_blocks(lengths, device, block) -> Blocks:
    if block is None:
        block = min(MAX_BLOCK, max(MIN_BLOCK, 1 << (max(lengths) - 1).bit_length()))
    blocks = [-(-n // block) for n in lengths]
    N, T = sum(blocks), sum(lengths)
    length_S, blocks_S = torch.tensor(lengths), torch.tensor(blocks)
    empty_S = blocks_S * block - length_S  # rows in front of the first token
    last_S = blocks_S.cumsum(0) - 1
    sequence_N = torch.arange(len(lengths)).repeat_interleave(blocks_S, output_size=N)
    ordinal_N = torch.arange(N) - (last_S - blocks_S + 1)[sequence_N]
    rows_T = None
    if N * block != T:
        rows_T = torch.arange(T) + empty_S.cumsum(0).repeat_interleave(length_S, output_size=T)
        rows_T = rows_T.to(device)
    at_B = torch.arange(block)
    distance_BB = at_B[:, None] - at_B
    within_BB = torch.where(distance_BB >= 0, -distance_BB.float(), -torch.inf)
    empty_N = torch.where(ordinal_N == 0, empty_S[sequence_N], 0)
    return Blocks(
        block=block,
        num_blocks=N,
        longest=max(blocks),
        rows_T=rows_T,
        exponents=torch.cat((within_BB.flatten(), -(at_B + 1.0), at_B + 1.0 - block)).to(device),
        runs=tuple(_cut_run(ordinal_N.to(device), begin, block) for begin in range(0, N, MAX_SEGMENT)),
        sequence_N=sequence_N.to(device),
        before_N=(empty_S[sequence_N] - ordinal_N * block).clamp(max=0).float().to(device),
        from_start_NB=(empty_N[:, None] - at_B - 1).clamp(max=0).float().to(device),
        last_S=last_S.to(device),
        last_tokens_S=torch.where(blocks_S == 1, length_S, block).float().to(device),
    )


def _cut_run(ordinal_N, begin, block):
    end = min(begin + MAX_SEGMENT, len(ordinal_N))
    ordinal_N = ordinal_N[begin:end]
    at_N = torch.arange(end - begin, device=ordinal_N.device)
    between_NN = at_N[:, None] - 1 - at_N  # whole blocks between m and n
    flows_NN = (between_NN >= 0) & (between_NN < ordinal_N[:, None])
    exponents_NN = torch.where(flows_NN, -block * between_NN.float(), -torch.inf)
    carried_N = torch.where(ordinal_N > at_N, -block * at_N.float(), -torch.inf) if begin else None
    return Run(begin, end, exponents_NN, carried_N)
