"""Causal softmax attention of new tokens over keys and values in pages, with grouped key/value heads (GQA).

A pool holds pages of `page_size` tokens; a table lists each sequence's pages in order. The sequence's last tokens are
the queries (mask aligned bottom right), and their keys lie in the pages already. Sequences with few new tokens
(decoding) have their keys split over the device and the parts joined by their log-sum-exps; the others are cut into
tiles of queries. In both, the query heads of a group are rows of one product, so keys are read once a group.

Source of the formulas: FlashAttention-2 (arXiv 2307.08691) and Flash-Decoding (Dao et al., 2023).
Legend: T new tokens, S sequences, P pages of a table's row, W pieces of work, H query heads, G key/value heads, K head
dim, N tokens that the pools hold, U tokens with keys.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from . import tuning
from .backend import REFERENCE, choose
from .keys_8bit import read_8bit_rows

TILE_ROWS = 128  # (token, query head) pairs of one tile of a prompt
SHORT_ROWS = 64  # sequences with no more of them have their keys split


@dataclass(frozen=True)
class PagePlan:
    """Where the keys of a packed batch lie and how its attention is cut up; made once a batch by `plan_pages`."""

    page_size: int
    table_SP: torch.Tensor  # int32
    lengths_S: torch.Tensor  # int32: keys of each sequence, those of the new tokens included
    cu_keys_S1: torch.Tensor  # int32: their offsets if they lay one after the other
    cu_new_S1: torch.Tensor  # int32: offsets of the new tokens
    work_W2: torch.Tensor  # int32: sequence and first of its new tokens; the short sequences first
    write_T: torch.Tensor  # int64: rows of the pools for the new tokens
    group: int  # query heads a key head serves
    num_short: int
    short_rows: int  # most (token, query head) pairs of a short sequence
    num_keys: int  # U

    def rows_U(self) -> torch.Tensor:
        """int64: rows of the pools for all keys, sequence after sequence; for what cannot read through the table."""
        ids_S = torch.arange(len(self.lengths_S), device=self.table_SP.device)
        sequence_U = ids_S.repeat_interleave(self.lengths_S, output_size=self.num_keys)
        position_U = torch.arange(self.num_keys, device=ids_S.device) - self.cu_keys_S1[sequence_U]
        page_U = self.table_SP[sequence_U, position_U // self.page_size].long()
        return page_U * self.page_size + position_U % self.page_size


def plan_pages(
    pages: Sequence[Sequence[int]],
    starts: Sequence[int],
    lengths: Sequence[int],
    page_size: int,
    group: int,
    device,
) -> PagePlan:
    """Plan attention of `lengths` new tokens a sequence (each >= 1) behind `starts` old ones.

    `pages` are the pages of each sequence, enough for old and new tokens; `group` is H // G. Everything is computed on
    the host and brought to the device in one copy.
    """
    S = len(lengths)
    ends = [start + n for start, n in zip(starts, lengths, strict=True)]
    widest = max(map(len, pages))
    short = [s for s in range(S) if lengths[s] * group <= SHORT_ROWS]
    tile = max(TILE_ROWS // group, 1)
    long = [(s, i) for s in range(S) if lengths[s] * group > SHORT_ROWS for i in range(0, lengths[s], tile)]
    long.sort(key=lambda w: -(starts[w[0]] + w[1]))  # those with most keys first, so that none is left at the end
    table_SP = torch.tensor([[*row, *[0] * (widest - len(row))] for row in pages], dtype=torch.int32)
    cu_new = torch.tensor([0, *lengths]).cumsum(0)
    sequence_T = torch.arange(S).repeat_interleave(torch.tensor(lengths), output_size=sum(lengths))
    position_T = torch.arange(sum(lengths)) - (cu_new[:-1] - torch.tensor(starts))[sequence_T]
    write_T = table_SP[sequence_T, position_T // page_size].long() * page_size + position_T % page_size
    write_T, table_P, lengths_S, cu_keys_S1, cu_new_S1, work = _to_device(
        device, write_T, table_SP.flatten(), torch.tensor(ends), torch.tensor([0, *ends]).cumsum(0), cu_new,
        torch.tensor([(s, 0) for s in short] + long).flatten(),
    )  # fmt: skip
    return PagePlan(
        page_size=page_size,
        table_SP=table_P.view(S, widest),
        lengths_S=lengths_S,
        cu_keys_S1=cu_keys_S1,
        cu_new_S1=cu_new_S1,
        work_W2=work.view(-1, 2),
        write_T=write_T,
        group=group,
        num_short=len(short),
        short_rows=max((lengths[s] * group for s in short), default=0),
        num_keys=sum(ends),
    )


def _to_device(device, first: torch.Tensor, *others: torch.Tensor) -> list[torch.Tensor]:
    """`first` (int64) and `others` (as int32) on the device, by one copy; all start at multiples of 16 bytes."""
    device = torch.device(device)
    parts = [first.view(torch.int32), *(x.to(torch.int32) for x in others)]
    sizes = [len(x) for x in parts]
    padded = [-(-n // 4) * 4 for n in sizes]
    together = torch.zeros(sum(padded), dtype=torch.int32, pin_memory=device.type == "cuda")
    for x, room in zip(parts, together.split(padded), strict=True):
        room[: len(x)] = x
    rooms = together.to(device, non_blocking=True).split(padded)
    first, *others = (room[:n] for room, n in zip(rooms, sizes, strict=True))
    return [first.view(torch.int64), *others]


def paged_attention(
    q_THK: torch.Tensor,
    k_pool_NGK: torch.Tensor,
    v_pool_NGK: torch.Tensor,
    plan: PagePlan,
    scale: float,
    *,
    scales_NG2: torch.Tensor | None = None,
    backend: str | None = None,
) -> torch.Tensor:
    """softmax(scale * q k^T) v over each sequence's pages, causal; (T, H, K) in the dtype of `q_THK`. No gradient.

    With `scales_NG2` (bf16, of keys and of values) the pools are in 8 bits as keys_8bit.py has it. `scale` must be
    positive. Raises ValueError if the heads do not match the plan, or the pools are not contiguous (the kernels).
    """
    H, G = q_THK.shape[1], k_pool_NGK.shape[1]
    if G * plan.group != H:
        raise ValueError(f"{H} query heads and {G} key/value heads: the plan has {plan.group} a group")
    if choose(backend, q_THK, k_pool_NGK, v_pool_NGK, supported=supported(q_THK, plan.group)) == REFERENCE:
        return _reference(q_THK, k_pool_NGK, v_pool_NGK, plan, scale, scales_NG2)
    from .paged_attention_triton import op

    return op(
        q_THK, k_pool_NGK, v_pool_NGK, plan.table_SP, plan.lengths_S, plan.cu_new_S1, plan.work_W2, plan.page_size,
        plan.num_short, plan.short_rows, plan.num_keys, scale, scales_NG2,
    )  # fmt: skip


def supported(q_THK: torch.Tensor, group: int) -> bool:
    """Whether there is a kernel for these queries."""
    return (
        q_THK.dtype in (torch.bfloat16, torch.float16, torch.float32) and q_THK.shape[-1] <= 256 and group <= SHORT_ROWS
    )


def _reference(q_THK, k_pool_NGK, v_pool_NGK, plan, scale, scales_NG2):
    from .softmax_attention import softmax_attention

    rows_U, pools = plan.rows_U(), (k_pool_NGK, v_pool_NGK)
    if scales_NG2 is None:
        k_UGK, v_UGK = (pool.index_select(0, rows_U).to(q_THK.dtype) for pool in pools)
    else:
        k_UGK, v_UGK = (read_8bit_rows(pool, scales_NG2, n, rows_U, q_THK.dtype) for n, pool in enumerate(pools))
    new, keys = (tuple(cu.diff().tolist()) for cu in (plan.cu_new_S1, plan.cu_keys_S1))
    return softmax_attention(q_THK, k_UGK, v_UGK, plan.cu_new_S1, plan.cu_keys_S1, new, keys, scale)


def _keys(page, dtype):
    """Keys of a step: no more than a page holds, so that a step reads one entry of the table."""
    return min(16 if dtype.startswith("float32") else 64, max(page, 16))


def _small_keys(K, dtype):
    """Keys in 8 bits beside 16 of the queries, in heads whose buffers leave room for more stages."""
    return K <= 128 and "keys in" in dtype and not dtype.startswith("float32")


def _decode(K, page, dtype):
    """Keys in 8 bits: more parts and stages; on an H200 10 to 34% less time (fp8: 1, 8, 64 sequences; int8: 8)."""
    stages, waves = (5, 8) if _small_keys(K, dtype) else (3, 4)
    return {"keys": _keys(page, dtype), "num_warps": 4, "num_stages": stages, "waves": waves}


def _decode_candidates(K, page, dtype):
    return [
        {"keys": keys, "num_warps": warps, "num_stages": stages, "waves": waves}
        for keys in (32, 64) if keys <= page
        for warps, stages in ((4, 3), (4, 4), (4, 5))
        for waves in (4, 8)
    ]  # fmt: skip


def _prefill(K, page, dtype):
    """`ahead`: pages are looked up a step before; on an H200 6 to 8% faster with 8 warps, much slower with 4.

    Keys in 8 bits are converted in registers: two stages leave room for them, 14 to 17% less time.
    """
    ahead = K == 128 and page >= 64 and dtype in ("bfloat16", "float16")
    warps = 8 if ahead or dtype.startswith("float32") else 4
    stages = 2 if _small_keys(K, dtype) else 3
    return {"keys": _keys(page, dtype), "num_warps": warps, "num_stages": stages, "ahead": int(ahead)}


def _prefill_candidates(K, page, dtype):
    return [
        {"keys": keys, "num_warps": warps, "num_stages": stages, "ahead": ahead}
        for keys in (32, 64) if keys <= page
        for warps, stages, ahead in ((8, 2, 0), (8, 3, 0), (8, 3, 1), (4, 2, 0), (4, 3, 0), (4, 4, 0))
    ]  # fmt: skip


tuning.declare("paged_decode", default=_decode, exact=("K", "page"), candidates=_decode_candidates)
tuning.declare("paged_prefill", default=_prefill, exact=("K", "page"), candidates=_prefill_candidates)
