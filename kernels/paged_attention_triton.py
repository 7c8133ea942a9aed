"""Paged attention's Triton kernels: one that attends, over all of a sequence's keys or over a part, and one that joins.

Legend: T new tokens, S sequences, P pages of a table's row, W pieces of work, H query heads, G key/value heads, K head
dim; M rows of a tile, each a (token, query head of the group), N keys of a step.
"""

import torch
import triton
import triton.language as tl

from . import paged_attention as paged
from . import tuning
from .custom_op import Launcher, Op, multiprocessors
from .keys_8bit_triton import key_scale, value_scale

MAX_SPLITS = 128
LONG = 2048  # keys


@triton.jit
def _step(
    q, acc, total, most, k_ptr, v_ptr, scales_ptr, row_ptr, page, start, limit, g, scale,
    G: tl.constexpr, K: tl.constexpr, KP: tl.constexpr, PAGE: tl.constexpr, N: tl.constexpr, MASKED: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """One step of the online softmax, over keys start..start + N; row i of the tile sees keys up to limit[i].

    page: the one that the step begins in.
    """
    n = tl.arange(0, N)
    d = tl.arange(0, KP)
    if PAGE % N == 0:  # then a step never leaves its page
        row = page.to(tl.int64) * PAGE + start % PAGE + n
    else:
        inside = start + n <= tl.max(limit, axis=0)
        row = tl.load(row_ptr + (start + n) // PAGE, mask=inside, other=0).to(tl.int64) * PAGE + (start + n) % PAGE
    at = row * (G * K) + g * K
    if scales_ptr is not None:  # of keys in 8 bits; they and the values are exact in q's dtype without their scales
        if MASKED:
            scales = tl.load(scales_ptr + row * G + g, mask=start + n <= tl.max(limit, axis=0), other=0)
        else:
            scales = tl.load(scales_ptr + row * G + g)
    if K == KP:
        k = tl.load(k_ptr + at[None, :] + d[:, None])
    else:
        k = tl.load(k_ptr + at[None, :] + d[:, None], mask=(d < K)[:, None], other=0.0)
    scores = tl.dot(q, k.to(q.dtype), input_precision=PRECISION)
    if scales_ptr is not None:
        scores *= key_scale(scales)[None, :]
    if MASKED:
        scores = tl.where((start + n)[None, :] <= limit[:, None], scores, float("-inf"))
        higher = tl.maximum(most, tl.max(scores, axis=1))
        finite = tl.where(higher == float("-inf"), 0.0, higher)  # a row may see no key of this step or part
    else:
        higher = tl.maximum(most, tl.max(scores, axis=1))
        finite = higher
    p = tl.exp2(scores * scale - (finite * scale)[:, None])
    fade = tl.exp2((most - finite) * scale)
    total = total * fade + tl.sum(p, axis=1)
    acc = acc * fade[:, None]
    if MASKED:  # what lies behind the last key may be anything, and 0 * NaN is NaN
        real = (start + n <= tl.max(limit, axis=0))[:, None] & (d < K)[None, :]
        v = tl.load(v_ptr + at[:, None] + d[None, :], mask=real, other=0.0)
    elif K == KP:
        v = tl.load(v_ptr + at[:, None] + d[None, :])
    else:
        v = tl.load(v_ptr + at[:, None] + d[None, :], mask=(d < K)[None, :], other=0.0)
    v = v.to(q.dtype)
    if scales_ptr is not None:
        p *= value_scale(scales)[None, :]
    acc = tl.dot(p.to(q.dtype), v, acc, input_precision=PRECISION)
    return acc, total, higher


@triton.jit(do_not_specialize=["P", "split_keys", "scale"])
def _attend(
    q_ptr, k_ptr, v_ptr, scales_ptr, table_ptr, lengths_ptr, cu_new_ptr, work_ptr, o_ptr, part_ptr, lse_ptr,
    P, split_keys, scale,
    H: tl.constexpr, G: tl.constexpr, K: tl.constexpr, KP: tl.constexpr, PAGE: tl.constexpr, M: tl.constexpr,
    N: tl.constexpr, AHEAD: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Program (w, g, part): the tile w of key head g, over one part of its keys or (no `part_ptr`) over all of them.

    AHEAD: the next step's page is looked up a step before, so that the loads of its keys wait for nothing.
    """
    GROUP: tl.constexpr = H // G
    TILE: tl.constexpr = M // GROUP
    w = tl.program_id(0)
    g = tl.program_id(1)
    s = tl.load(work_ptr + 2 * w)
    i0 = tl.load(work_ptr + 2 * w + 1)
    first = tl.load(cu_new_ptr + s)
    new = tl.load(cu_new_ptr + s + 1) - first
    keys = tl.load(lengths_ptr + s)
    m = tl.arange(0, M)
    i = i0 + m // GROUP
    real = (i < new) & (m < TILE * GROUP)
    d = tl.arange(0, KP)
    at = (first + i).to(tl.int64)[:, None] * (H * K) + ((g * GROUP + m % GROUP) * K)[:, None] + d[None, :]
    mask = real[:, None] & (d < K)[None, :]
    q = tl.load(q_ptr + at, mask=mask, other=0.0)

    seen = keys - new + tl.minimum(i0 + TILE, new)  # keys that the tile's last token sees
    limit = tl.minimum(keys - new + i, seen - 1)
    low = 0
    high = seen
    if part_ptr is not None:
        low = tl.program_id(2) * split_keys
        high = tl.minimum(low + split_keys, seen)
    # the tile's first token sees all keys before this one, in whole steps
    open_end = low + tl.maximum(tl.minimum(keys - new + i0 + 1, high) - low, 0) // N * N
    row_ptr = table_ptr + s.to(tl.int64) * P
    acc = tl.zeros((M, KP), tl.float32)
    total = tl.zeros((M,), tl.float32)
    most = tl.full((M,), float("-inf"), tl.float32)
    if AHEAD:
        following = tl.load(row_ptr + low // PAGE, mask=low < high, other=0)
    for start in range(low, open_end, N):
        if AHEAD:
            page = following
            following = tl.load(row_ptr + (start + N) // PAGE, mask=start + N < high, other=0)
        else:
            page = tl.load(row_ptr + start // PAGE)
        acc, total, most = _step(
            q, acc, total, most, k_ptr, v_ptr, scales_ptr, row_ptr, page, start, limit, g, scale, G, K, KP, PAGE, N,
            False, PRECISION,
        )  # fmt: skip
    for start in range(open_end, high, N):
        page = tl.load(row_ptr + start // PAGE)
        acc, total, most = _step(
            q, acc, total, most, k_ptr, v_ptr, scales_ptr, row_ptr, page, start, limit, g, scale, G, K, KP, PAGE, N,
            True, PRECISION,
        )  # fmt: skip
    some = total > 0
    acc = acc / tl.where(some, total, 1.0)[:, None]
    if part_ptr is None:
        tl.store(o_ptr + at, acc.to(o_ptr.dtype.element_ty), mask=mask)
    else:
        slot = ((w * tl.num_programs(1) + g).to(tl.int64) * tl.num_programs(2) + tl.program_id(2)) * M + m
        lse = tl.where(some, most * scale + tl.log2(tl.where(some, total, 1.0)), float("-inf"))
        tl.store(lse_ptr + slot, lse, mask=real)
        tl.store(part_ptr + slot[:, None] * K + d[None, :], acc, mask=mask & some[:, None])


@triton.jit(do_not_specialize=["splits"])
def _join(
    part_ptr, lse_ptr, work_ptr, cu_new_ptr, o_ptr, splits,
    H: tl.constexpr, G: tl.constexpr, K: tl.constexpr, KP: tl.constexpr, M: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Program (w, g, m): one row of a tile, the parts' outputs weighted by the exps of their log-sum-exps."""
    GROUP: tl.constexpr = H // G
    w = tl.program_id(0)
    g = tl.program_id(1)
    m = tl.program_id(2)
    s = tl.load(work_ptr + 2 * w)
    first = tl.load(cu_new_ptr + s)
    new = tl.load(cu_new_ptr + s + 1) - first
    i = m // GROUP
    if i < new:
        part = tl.arange(0, PARTS)
        slot = ((w * G + g).to(tl.int64) * splits + part) * M + m
        lse = tl.load(lse_ptr + slot, mask=part < splits, other=float("-inf"))
        weight = tl.exp2(lse - tl.max(lse, axis=0))
        d = tl.arange(0, KP)
        o = tl.load(
            part_ptr + slot[:, None] * K + d[None, :], mask=(lse > float("-inf"))[:, None] & (d < K)[None, :], other=0.0
        )
        o = tl.sum(o * weight[:, None], axis=0) / tl.sum(weight, axis=0)
        at = (first + i).to(tl.int64) * (H * K) + (g * GROUP + m % GROUP) * K + d
        tl.store(o_ptr + at, o.to(o_ptr.dtype.element_ty), mask=d < K)


_launch_attend, _launch_join = Launcher(_attend), Launcher(_join)


def _shape(q, page_size, k_pool, scales):
    dtype = str(q.dtype).removeprefix("torch.")
    kind = "" if scales is None else f", keys in {'int8' if k_pool.dtype == torch.int8 else 'fp8'}"
    return {"K": q.shape[-1], "page": page_size, "dtype": dtype + kind}


def _forward(q, k_pool, v_pool, table, lengths, cu_new, work, page_size, num_short, short_rows, num_keys, scale,
             scales):  # fmt: skip
    (_, H, K), G = q.shape, k_pool.shape[1]
    q = q.contiguous()
    for pool in (k_pool, v_pool, scales):
        if pool is not None and not pool.is_contiguous():
            raise ValueError("paged_attention needs contiguous pools")
    scales = None if scales is None else scales.view(torch.int32)  # of key and value together
    o = torch.empty_like(q)
    padded = max(16, triton.next_power_of_2(K))
    shape = (H, G, K, padded, page_size)
    precision = "ieee" if q.dtype == torch.float32 else "tf32"
    scale *= 1.4426950408889634  # powers of 2 are cheaper
    tensors = (q, k_pool, v_pool, scales, table, lengths, cu_new)
    short, long = work[:num_short], work[num_short:]
    of = _shape(q, page_size, k_pool, scales)
    if num_short:
        p = tuning.config("paged_decode", **of)
        rows, keys = max(16, triton.next_power_of_2(short_rows)), p["keys"]
        # parts of equal size, so that the device is full some waves over whatever the lengths are
        wanted = -(-num_keys * G // (multiprocessors(q.device) * p["waves"]))
        longest = table.shape[1] * page_size
        split_keys = triton.next_power_of_2(max(wanted, 4 * keys, -(-longest // MAX_SPLITS)))
        if split_keys >= longest > LONG:
            split_keys //= 2  # whole sequences would end too far apart
        splits = -(-longest // split_keys)
        part = lse = None
        if splits > 1:
            part = torch.empty(num_short, G, splits, rows, K, dtype=torch.float32, device=q.device)
            lse = torch.empty(num_short, G, splits, rows, dtype=torch.float32, device=q.device)
        _launch_attend(
            (num_short, G, splits), (*tensors, short, o, part, lse), (table.shape[1], split_keys, scale),
            (*shape, rows, keys, False, precision), num_warps=p["num_warps"], num_stages=p["num_stages"],
        )  # fmt: skip
        if splits > 1:
            _launch_join(
                (num_short, G, short_rows), (part, lse, short, cu_new, o), (splits,),
                (H, G, K, padded, rows, triton.next_power_of_2(splits)), num_warps=4,
            )  # fmt: skip
    if len(long):
        p = tuning.config("paged_prefill", **of)
        rows = max(paged.TILE_ROWS, 16) if q.dtype != torch.float32 else paged.TILE_ROWS
        _launch_attend(
            (len(long), G, 1), (*tensors, long, o, None, None), (table.shape[1], 0, scale),
            (*shape, rows, p["keys"], bool(p["ahead"]), precision),
            num_warps=p["num_warps"], num_stages=p["num_stages"],
        )  # fmt: skip
    return o


op = Op(
    "paged_attention(Tensor q, Tensor k_pool, Tensor v_pool, Tensor table, Tensor lengths, Tensor cu_new, Tensor work, "
    "int page_size, int num_short, int short_rows, int num_keys, float scale, "
    "Tensor? scales) -> Tensor",
    _forward,
    lambda q, *args: torch.empty_like(q.contiguous()),
)
