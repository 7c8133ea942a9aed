"""Triton kernels of the experts: grouped matrix products over token-expert pairs sorted by expert.

    up        h = silu(x w1^T) * (x w3^T): one pass over x, which is gathered as it is loaded
    down      pair outputs, times the routing weight, written where the token's k outputs lie side by side
    combine   the sum over the k choices in fp32, in their order: deterministic, no atomics
The way back is in experts_backward_triton.py.
Each program finds its expert and its rows from where the experts begin, so that nothing waits for the device.
Imported only where a kernel is launched.

Legend: T tokens, k choices, P = T * k pairs, E experts, D model width, I expert width, B* tile sizes.
"""

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from . import tuning
from .custom_op import Launcher


@triton.jit
def _tile(
    pid, offsets_ptr, E: tl.constexpr, EP: tl.constexpr, BM: tl.constexpr, N_TILES: tl.constexpr, GROUP: tl.constexpr
):
    """Program -> expert, its first row, its end, the tile's first row, the tile's column; expert >= E: nothing to do.

    Tiles go expert by expert, GROUP row tiles together down the columns, so that what is read again is still in L2.
    """
    e = tl.arange(0, EP)
    begin = tl.load(offsets_ptr + e, mask=e < E, other=0)
    end = tl.load(offsets_ptr + e + 1, mask=e < E, other=0)
    tiles = (end - begin + BM - 1) // BM
    last = tl.cumsum(tiles, 0)
    expert = tl.sum((last * N_TILES <= pid).to(tl.int32), axis=0)
    here = e == expert
    m_tiles = tl.maximum(tl.sum(tl.where(here, tiles, 0), axis=0), 1)
    local = pid - tl.sum(tl.where(here, last - tiles, 0), axis=0) * N_TILES
    row_begin = tl.sum(tl.where(here, begin, 0), axis=0)
    row_end = tl.sum(tl.where(here, end, 0), axis=0)
    per_group: tl.constexpr = GROUP * N_TILES
    first = local // per_group * GROUP
    size = tl.minimum(m_tiles - first, GROUP)
    m = first + local % per_group % size
    n = local % per_group // size
    return expert, row_end, row_begin + m * BM, n


@triton.jit
def _up(
    x_ptr, w1_ptr, w3_ptr, h_ptr, gate_ptr, up_ptr, order_ptr, offsets_ptr,
    D: tl.constexpr, I: tl.constexpr, TOP: tl.constexpr, E: tl.constexpr, EP: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
    SAVE: tl.constexpr,
):  # fmt: skip
    """SAVE: also keep both products, for the backward pass."""
    N_TILES: tl.constexpr = (I + BN - 1) // BN
    expert, row_end, row, n = _tile(tl.program_id(0), offsets_ptr, E, EP, BM, N_TILES, GROUP)
    if expert >= E:
        return
    rows = row + tl.arange(0, BM)
    live = rows < row_end
    k = tl.arange(0, BK)
    cols = n * BN + tl.arange(0, BN)
    token = tl.load(order_ptr + rows, mask=live, other=0) // TOP
    x_at = x_ptr + token.to(tl.int64)[:, None] * D + k[None, :]
    w_rows = expert.to(tl.int64) * I + tl.where(cols < I, cols, 0)
    w1_at = w1_ptr + w_rows[None, :] * D + k[:, None]
    w3_at = w3_ptr + w_rows[None, :] * D + k[:, None]
    acc1 = tl.zeros([BM, BN], tl.float32)
    acc3 = tl.zeros([BM, BN], tl.float32)
    for kb in range(0, D, BK):
        if D % BK == 0:
            x = tl.load(x_at + kb)
            w1 = tl.load(w1_at + kb)
            w3 = tl.load(w3_at + kb)
        else:
            x = tl.load(x_at + kb, mask=(k + kb < D)[None, :], other=0.0)
            w1 = tl.load(w1_at + kb, mask=(k + kb < D)[:, None], other=0.0)
            w3 = tl.load(w3_at + kb, mask=(k + kb < D)[:, None], other=0.0)
        acc1 = tl.dot(x, w1, acc1, input_precision="ieee")
        acc3 = tl.dot(x, w3, acc3, input_precision="ieee")
    out = rows.to(tl.int64)[:, None] * I + cols[None, :]
    mask = live[:, None] & (cols < I)[None, :]
    if SAVE:
        tl.store(gate_ptr + out, acc1.to(gate_ptr.dtype.element_ty), mask=mask)
        tl.store(up_ptr + out, acc3.to(up_ptr.dtype.element_ty), mask=mask)
    h = acc1 / (1.0 + tl.exp(-acc1)) * acc3
    tl.store(h_ptr + out, h.to(h_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _down(
    h_ptr, w2_ptr, y_ptr, weights_ptr, order_ptr, offsets_ptr,
    D: tl.constexpr, I: tl.constexpr, E: tl.constexpr, EP: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """y[pair] = weight[pair] * h[row] w2^T, for the pair in each sorted row."""
    N_TILES: tl.constexpr = (D + BN - 1) // BN
    expert, row_end, row, n = _tile(tl.program_id(0), offsets_ptr, E, EP, BM, N_TILES, GROUP)
    if expert >= E:
        return
    rows = row + tl.arange(0, BM)
    live = rows < row_end
    k = tl.arange(0, BK)
    cols = n * BN + tl.arange(0, BN)
    h_at = h_ptr + tl.where(live, rows, row).to(tl.int64)[:, None] * I + k[None, :]
    w2_at = w2_ptr + (expert.to(tl.int64) * D + tl.where(cols < D, cols, 0))[None, :] * I + k[:, None]
    acc = tl.zeros([BM, BN], tl.float32)
    for kb in range(0, I, BK):
        if I % BK == 0:
            h = tl.load(h_at + kb)
            w2 = tl.load(w2_at + kb)
        else:
            h = tl.load(h_at + kb, mask=(k + kb < I)[None, :], other=0.0)
            w2 = tl.load(w2_at + kb, mask=(k + kb < I)[:, None], other=0.0)
        acc = tl.dot(h, w2, acc, input_precision="ieee")
    pair = tl.load(order_ptr + rows, mask=live, other=0)
    acc *= tl.load(weights_ptr + pair, mask=live, other=0.0).to(tl.float32)[:, None]
    out = y_ptr + pair.to(tl.int64)[:, None] * D + cols[None, :]
    tl.store(out, acc.to(y_ptr.dtype.element_ty), mask=live[:, None] & (cols < D)[None, :])


@triton.jit(do_not_specialize=["T"])
def _combine(
    y_ptr, out_ptr, part_ptr, dweights_ptr, T,
    D: tl.constexpr, TOP: tl.constexpr, SPLIT: tl.constexpr, PARTS: tl.constexpr,
    BT: tl.constexpr, BD: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """out[t] = sum over splits and choices of y (SPLIT, T, k, D). PARTS > 0: dweights = sum of part (PARTS, P)."""
    t = tl.program_id(0).to(tl.int64) * BT + tl.arange(0, BT)
    d = tl.program_id(1) * BD + tl.arange(0, BD)
    mask = (t < T)[:, None] & (d < D)[None, :]
    acc = tl.zeros([BT, BD], tl.float32)
    for s in tl.static_range(SPLIT):
        for j in tl.static_range(TOP):
            at = y_ptr + ((s * T.to(tl.int64) + t) * TOP + j)[:, None] * D + d[None, :]
            acc += tl.load(at, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + t[:, None] * D + d[None, :], acc.to(out_ptr.dtype.element_ty), mask=mask)
    if PARTS > 0:
        if tl.program_id(1) == 0:  # BP, at least BT * TOP pairs
            i = tl.arange(0, BP)
            P = T.to(tl.int64) * TOP
            p = tl.program_id(0).to(tl.int64) * (BT * TOP) + i
            live = (i < BT * TOP) & (p < P)
            dw = tl.zeros([BP], tl.float32)
            for part in range(PARTS):
                dw += tl.load(part_ptr + part * P + p, mask=live, other=0.0)
            tl.store(dweights_ptr + p, dw.to(dweights_ptr.dtype.element_ty), mask=live)


@triton.jit
def _gather(x_ptr, out_ptr, order_ptr, D: tl.constexpr, TOP: tl.constexpr, BLOCK: tl.constexpr):
    """out[row] = x[token of the pair in that sorted row]."""
    row = tl.program_id(0).to(tl.int64)
    token = tl.load(order_ptr + row) // TOP
    for begin in tl.static_range(0, D, BLOCK):
        d = begin + tl.arange(0, BLOCK)
        tl.store(out_ptr + row * D + d, tl.load(x_ptr + token.to(tl.int64) * D + d, mask=d < D), mask=d < D)


_launch_up, _launch_down, _launch_combine = Launcher(_up), Launcher(_down), Launcher(_combine)


def _tiles(config):
    return config["BM"], config["BN"], config["BK"], config["GROUP"]


def _descriptor(tensor, rows, columns):
    """A tensor map over `tensor` seen as (all but the last dim, last dim), read in blocks."""
    width = tensor.shape[-1]
    return TensorDescriptor(tensor, [tensor.numel() // width, width], [width, 1], [rows, columns])


def _launch_options(config):
    return {"num_warps": config["num_warps"], "num_stages": config["num_stages"]}


def _shape(P, E, I, D, dtype):
    return {"P": P, "E": E, "I": I, "D": D, "dtype": str(dtype)[6:]}


def _grid(P, E, config, columns):
    """Enough programs for any split of P rows over E experts: each but the last may end in a part of a tile."""
    return min(P, P // config["BM"] + E) * triton.cdiv(columns, config["BN"]), 1, 1


def forward(x, w1, w3, w2, weights, order, offsets, save, partial=False):
    """-> y (T, D), and with `save` the two products (P, I) that the backward pass needs.

    partial: `offsets` do not cover all pairs; those left out add nothing.
    """
    (T, D), (E, I, _), k = x.shape, w1.shape, weights.shape[1]
    P = T * k
    shape = _shape(P, E, I, D, x.dtype)
    EP = triton.next_power_of_2(E)
    h = torch.empty(P, I, dtype=x.dtype, device=x.device)
    gate = torch.empty_like(h) if save else None
    up = torch.empty_like(h) if save else None
    config = tuning.config("experts_up", **shape)
    _launch_up(
        _grid(P, E, config, I), (x, w1, w3, h, gate, up, order, offsets), (),
        (D, I, k, E, EP, *_tiles(config), save), **_launch_options(config),
    )  # fmt: skip
    config = tuning.config("experts_down", **shape)
    pairs = (torch.zeros if partial else torch.empty)(P, D, dtype=x.dtype, device=x.device)
    _launch_down(
        _grid(P, E, config, D), (h, w2, pairs, weights, order, offsets), (),
        (D, I, E, EP, *_tiles(config)), **_launch_options(config),
    )  # fmt: skip
    return combine(pairs, x, k), gate, up


def gather(x, order, k):
    """Rows of x in the order of the sorted pairs, (P, D)."""
    D = x.shape[1]
    out = torch.empty(order.shape[0], D, dtype=x.dtype, device=x.device)
    block = min(2048, triton.next_power_of_2(D))
    _gather[(order.shape[0],)](x, out, order, D=D, TOP=k, BLOCK=block, num_warps=4)
    return out


def combine(pairs, like, k, split=1, part=None, dweights=None):
    """Sum of (split, T, k, D) over splits and choices -> (T, D); and `part` (n, P) over its first dim -> dweights."""
    T, D = like.shape
    out = torch.empty_like(like, memory_format=torch.contiguous_format)
    BD = min(1024, triton.next_power_of_2(D))
    BT = max(1, (2048 if T > 256 else 256) // BD)
    _launch_combine(
        (triton.cdiv(T, BT), triton.cdiv(D, BD), 1), (pairs, out, part, dweights), (T,),
        (D, k, split, 0 if part is None else part.shape[0], BT, BD, triton.next_power_of_2(BT * k)), num_warps=4,
    )  # fmt: skip
    return out
