"""A packed row spread over processes: each holds a contiguous part of its tokens, documents are cut where that falls.

Lightning layers (LASP+, arXiv 2501.08313 section 3.2.2): each rank computes the state of the document that is open at
its end from nothing, one all-gather brings all of these together, and a rank decays and adds up those that its first
document continues. What it takes from rank j is exp(-slope * tokens between the end of j and its own beginning), and
nothing where that document began later than the end of j.
Softmax layers: keys and values are all-gathered; a rank's first document sees those of its past.

Both gathers run on all ranks or on none, also in the backward pass: a rank that needs nothing keeps them in its graph.

Legend: T tokens of this part, S documents in it, W ranks, H heads, G key/value heads, K head dim.
"""

import functools
from dataclasses import dataclass
from itertools import accumulate

import torch
import torch.distributed as dist

from mmvl.kernels.lightning_attention import BlockPlan, lightning_attention, plan_blocks

from .packed import Packed


@dataclass(frozen=True)
class RowPart:
    """Part `rank` of `size` of a packed row whose documents have `lengths` tokens; `group` are the ranks that share it.

    Raises ValueError if the row has fewer tokens than there are ranks.
    """

    lengths: tuple[int, ...]
    rank: int
    size: int
    group: dist.ProcessGroup | None = None

    def __post_init__(self):
        if sum(self.lengths) < self.size:
            raise ValueError(f"a row of {sum(self.lengths)} tokens cannot be spread over {self.size} ranks")

    @functools.cached_property
    def bounds(self) -> tuple[int, ...]:
        """Where each part begins, in tokens of the row, and the row's end."""
        total = sum(self.lengths)
        return tuple(total * r // self.size for r in range(self.size + 1))

    @property
    def begin(self) -> int:
        return self.bounds[self.rank]

    @property
    def end(self) -> int:
        return self.bounds[self.rank + 1]

    def document_start(self, rank: int) -> int:
        """Where in the row the document begins that holds the first token of part `rank`."""
        start = 0
        for stop in accumulate(self.lengths):
            if self.bounds[rank] < stop:
                return start
            start = stop
        return start

    @functools.cached_property
    def crosses(self) -> bool:
        """Whether any document lies on more than one rank."""
        return any(self.document_start(r) < self.bounds[r] for r in range(1, self.size))

    @functools.cached_property
    def past(self) -> int:
        """Tokens of this part's first document that lie on ranks before."""
        return self.begin - self.document_start(self.rank)

    @functools.cached_property
    def continues(self) -> bool:
        """Whether this part's last document goes on at the next rank."""
        return self.rank + 1 < self.size and self.document_start(self.rank + 1) < self.end

    @functools.cached_property
    def local_lengths(self) -> tuple[int, ...]:
        """Tokens of each document in this part."""
        stops = tuple(accumulate(self.lengths))
        inside = [min(stop, self.end) - max(stop - n, self.begin) for stop, n in zip(stops, self.lengths, strict=True)]
        return tuple(n for n in inside if n > 0)

    def pack(self, device) -> Packed:
        """This part's documents as a packed batch, with positions that go on where the rank before stopped."""
        lengths = self.local_lengths
        starts = (self.past, *(0,) * (len(lengths) - 1))
        return Packed.from_lengths(lengths, device, starts, part=_tables(self, device) if self.crosses else None)


@dataclass(frozen=True)
class PartTables:
    """What the layers need of a part of which documents are cut; made once per batch."""

    row: RowPart
    first: BlockPlan  # the first document
    others: BlockPlan | None  # those after it
    last: BlockPlan  # the last document alone
    distance_W: torch.Tensor  # fp64: tokens from the end of each part to the beginning of this; inf: nothing flows
    cu_keys_S1: torch.Tensor  # int32
    lengths_k: tuple[int, ...]


def _tables(row: RowPart, device) -> PartTables:
    lengths = row.local_lengths
    start = row.document_start(row.rank)
    ends = [row.bounds[j + 1] for j in range(row.size)]
    distance = [row.begin - end if j < row.rank and start < end else torch.inf for j, end in enumerate(ends)]
    lengths_k = (lengths[0] + row.past, *lengths[1:])
    return PartTables(
        row,
        plan_blocks(lengths[:1], device),
        plan_blocks(lengths[1:], device) if lengths[1:] else None,
        plan_blocks(lengths[-1:], device),
        torch.tensor(distance, dtype=torch.float64).to(device),
        torch.tensor((0, *accumulate(lengths_k)), dtype=torch.int32).to(device),
        lengths_k,
    )


def lightning_over_ranks(qkv_TC: torch.Tensor, slopes_H: torch.Tensor, tables: PartTables) -> torch.Tensor:
    """`lightning_attention` of this part of the row, (T, H, K); `qkv_TC` (T, H * 3K). All ranks of the row call it."""
    row, H = tables.row, slopes_H.shape[0]
    K = qkv_TC.shape[1] // H // 3
    n = tables.last.num_tokens
    if row.continues:
        state_HKK = lightning_attention(qkv_TC[-n:], slopes_H, plan=tables.last)[1][0]
    else:  # nothing to send; in the graph all the same
        dtype = torch.promote_types(qkv_TC.dtype, torch.float32)
        state_HKK = qkv_TC.new_zeros(H, K, K, dtype=dtype) + 0.0 * qkv_TC[0, 0].to(dtype)
    state_WHKK = gather_ranks(state_HKK, row)
    decay_WH = torch.exp(-tables.distance_W[:, None] * slopes_H).to(state_WHKK.dtype)
    initial_1HKK = (decay_WH[..., None, None] * state_WHKK).sum(0)[None]
    n = tables.first.num_tokens
    o_THK = lightning_attention(qkv_TC[:n], slopes_H, None, initial_1HKK, plan=tables.first, want_state=False)[0]
    if tables.others is None:
        return o_THK
    others = lightning_attention(qkv_TC[n:], slopes_H, plan=tables.others, want_state=False)[0]
    return torch.cat((o_THK, others))


def keys_over_ranks(k_TGK: torch.Tensor, v_TGK: torch.Tensor, tables: PartTables) -> tuple[torch.Tensor, torch.Tensor]:
    """This part's keys and values behind those of its first document's past, (past + T, G, K) each."""
    row, bounds = tables.row, tables.row.bounds
    longest = max(b - a for a, b in zip(bounds, bounds[1:], strict=False))
    kv_T2GK = torch.stack((k_TGK, v_TGK), 1)
    if len(kv_T2GK) < longest:
        kv_T2GK = torch.cat((kv_T2GK, kv_T2GK.new_zeros(longest - len(kv_T2GK), *kv_T2GK.shape[1:])))
    kv_WT2GK = gather_ranks(kv_T2GK, row)
    start = row.begin - row.past
    pieces = [kv_WT2GK[0, :0]]  # keeps the gather in the graph where there is no past
    for j in range(row.rank):
        pieces.append(kv_WT2GK[j, max(start - bounds[j], 0) : bounds[j + 1] - bounds[j]])
    past_k, past_v = torch.cat(pieces).unbind(1)
    return torch.cat((past_k, k_TGK)), torch.cat((past_v, v_TGK))


def gather_ranks(x: torch.Tensor, row: RowPart) -> torch.Tensor:
    """`x` of all ranks of the row, (W, *x.shape); the gradient of each is summed over the ranks."""
    return _Gather.apply(x, row.group, row.rank, row.size)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, group, rank, size):
        ctx.group, ctx.rank = group, rank
        out = x.new_empty(size, *x.shape)
        dist.all_gather(list(out.unbind(0)), x.contiguous(), group=group)
        return out

    @staticmethod
    def backward(ctx, grad):
        grad = grad.contiguous()
        if grad.is_cuda:
            mine = torch.empty_like(grad[0])
            dist.reduce_scatter_tensor(mine, grad.flatten(0, 1) if grad.ndim > 1 else grad, group=ctx.group)
        else:  # gloo
            grad = grad.clone()
            dist.all_reduce(grad, group=ctx.group)
            mine = grad[ctx.rank]
        return mine, None, None, None
