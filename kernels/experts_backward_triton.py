"""Triton kernels of the experts' backward pass: four launches and two sums, see `backward`.

Imported only where a kernel is launched.

Legend: as experts_triton.py.
"""

import torch
import triton
import triton.language as tl

from . import tuning
from .custom_op import Launcher
from .experts_triton import _grid, _launch_options, _shape, _tile, _tiles, combine


@triton.jit(do_not_specialize=["P"])
def _down_backward(
    dy_ptr, w2_ptr, gate_ptr, up_ptr, weights_ptr, order_ptr, offsets_ptr, dgate_ptr, dup_ptr, hw_ptr, part_ptr, P,
    D: tl.constexpr, I: tl.constexpr, TOP: tl.constexpr, E: tl.constexpr, EP: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """dh = dy w2 and through SwiGLU: dgate, dup, hw = weight * h (for dw2), and this column tile's part of dweights."""
    N_TILES: tl.constexpr = (I + BN - 1) // BN
    expert, row_end, row, n = _tile(tl.program_id(0), offsets_ptr, E, EP, BM, N_TILES, GROUP)
    if expert >= E:
        return
    rows = row + tl.arange(0, BM)
    live = rows < row_end
    k = tl.arange(0, BK)
    cols = n * BN + tl.arange(0, BN)
    pair = tl.load(order_ptr + rows, mask=live, other=0)
    dy_at = dy_ptr + (pair // TOP).to(tl.int64)[:, None] * D + k[None, :]
    w2_at = w2_ptr + (expert.to(tl.int64) * D + k)[:, None] * I + cols[None, :]
    acc = tl.zeros([BM, BN], tl.float32)
    for kb in range(0, D, BK):
        if D % BK == 0:
            dy = tl.load(dy_at + kb)
        else:
            dy = tl.load(dy_at + kb, mask=(k + kb < D)[None, :], other=0.0)
        if D % BK == 0 and I % BN == 0:
            w2 = tl.load(w2_at)
        else:  # masked, not redirected: columns must stay adjacent for wide loads
            w2 = tl.load(w2_at, mask=(k + kb < D)[:, None] & (cols < I)[None, :], other=0.0)
        acc = tl.dot(dy, w2, acc, input_precision="ieee")
        w2_at += BK * I
    out = rows.to(tl.int64)[:, None] * I + cols[None, :]
    mask = live[:, None] & (cols < I)[None, :]
    g = tl.load(gate_ptr + out, mask=mask, other=0.0).to(tl.float32)
    u = tl.load(up_ptr + out, mask=mask, other=0.0).to(tl.float32)
    weight = tl.load(weights_ptr + pair, mask=live, other=0.0).to(tl.float32)
    sigmoid = 1.0 / (1.0 + tl.exp(-g))
    silu = g * sigmoid
    h = silu * u
    tl.store(part_ptr + n * P.to(tl.int64) + pair, tl.sum(tl.where(mask, acc * h, 0.0), axis=1), mask=live)
    acc *= weight[:, None]
    dg = acc * u * (sigmoid * (1.0 + g * (1.0 - sigmoid)))
    tl.store(dgate_ptr + out, dg.to(dgate_ptr.dtype.element_ty), mask=mask)
    tl.store(dup_ptr + out, (acc * silu).to(dup_ptr.dtype.element_ty), mask=mask)
    tl.store(hw_ptr + out, (h * weight[:, None]).to(hw_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _up_backward(
    dgate_ptr, dup_ptr, w1_ptr, w3_ptr, dx_ptr, order_ptr, offsets_ptr,
    D: tl.constexpr, I: tl.constexpr, E: tl.constexpr, EP: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """dx[pair] = dgate w1 + dup w3."""
    N_TILES: tl.constexpr = (D + BN - 1) // BN
    expert, row_end, row, n = _tile(tl.program_id(0), offsets_ptr, E, EP, BM, N_TILES, GROUP)
    if expert >= E:
        return
    rows = row + tl.arange(0, BM)
    live = rows < row_end
    k = tl.arange(0, BK)
    cols = n * BN + tl.arange(0, BN)
    a_at = tl.where(live, rows, row).to(tl.int64)[:, None] * I + k[None, :]
    w_at = (expert.to(tl.int64) * I + k)[:, None] * D + cols[None, :]
    acc = tl.zeros([BM, BN], tl.float32)
    for kb in range(0, I, BK):
        if I % BK == 0:
            dg = tl.load(dgate_ptr + a_at + kb)
            du = tl.load(dup_ptr + a_at + kb)
        else:
            dg = tl.load(dgate_ptr + a_at + kb, mask=(k + kb < I)[None, :], other=0.0)
            du = tl.load(dup_ptr + a_at + kb, mask=(k + kb < I)[None, :], other=0.0)
        if I % BK == 0 and D % BN == 0:
            w1 = tl.load(w1_ptr + w_at)
            w3 = tl.load(w3_ptr + w_at)
        else:
            in_weights = (k + kb < I)[:, None] & (cols < D)[None, :]
            w1 = tl.load(w1_ptr + w_at, mask=in_weights, other=0.0)
            w3 = tl.load(w3_ptr + w_at, mask=in_weights, other=0.0)
        acc = tl.dot(dg, w1, acc, input_precision="ieee")
        acc = tl.dot(du, w3, acc, input_precision="ieee")
        w_at += BK * D
    pair = tl.load(order_ptr + rows, mask=live, other=0)
    out = dx_ptr + pair.to(tl.int64)[:, None] * D + cols[None, :]
    tl.store(out, acc.to(dx_ptr.dtype.element_ty), mask=live[:, None] & (cols < D)[None, :])


@triton.jit
def _weight_gradient(
    x_ptr, dy_ptr, dgate_ptr, dup_ptr, hw_ptr, dw1_ptr, dw3_ptr, dw2_ptr, order_ptr, offsets_ptr,
    D: tl.constexpr, I: tl.constexpr, TOP: tl.constexpr, E: tl.constexpr,
    BI: tl.constexpr, BD: tl.constexpr, BR: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """dw1 = dgate^T x, dw3 = dup^T x (E, I, D) and dw2 = (hw^T dy)^T (E, D, I), of the rows of one expert and split."""
    I_TILES: tl.constexpr = (I + BI - 1) // BI
    which = tl.program_id(2)
    expert = tl.program_id(1) // SPLIT
    split = tl.program_id(1) % SPLIT
    i = tl.program_id(0) % I_TILES * BI + tl.arange(0, BI)
    d = tl.program_id(0) // I_TILES * BD + tl.arange(0, BD)
    begin = tl.load(offsets_ptr + expert)
    end = tl.load(offsets_ptr + expert + 1)
    if SPLIT > 1:
        share = ((end - begin + SPLIT - 1) // SPLIT + BR - 1) // BR * BR
        begin = begin + split * share
        end = tl.minimum(end, begin + share)
    a_ptr = dgate_ptr
    b_ptr = x_ptr
    if which == 1:
        a_ptr = dup_ptr
    if which == 2:
        a_ptr = hw_ptr
        b_ptr = dy_ptr
    acc = tl.zeros([BI, BD], tl.float32)
    in_i, in_d = (i < I)[:, None], (d < D)[None, :]
    for r in range(begin, end, BR):
        rows = r + tl.arange(0, BR)
        live = rows < end
        token = tl.load(order_ptr + rows, mask=live, other=0) // TOP
        a = tl.load(a_ptr + rows.to(tl.int64)[None, :] * I + i[:, None], mask=live[None, :] & in_i, other=0.0)
        b = tl.load(b_ptr + token.to(tl.int64)[:, None] * D + d[None, :], mask=live[:, None] & in_d, other=0.0)
        acc = tl.dot(a, b, acc, input_precision="ieee")
    mask = (i < I)[:, None] & (d < D)[None, :]
    at = (split * E + expert).to(tl.int64) * I * D
    if which == 2:
        out = dw2_ptr + at + d[None, :] * I + i[:, None]
        tl.store(out, acc.to(dw2_ptr.dtype.element_ty), mask=mask)
    else:
        out_ptr = dw1_ptr
        if which == 1:
            out_ptr = dw3_ptr
        out = out_ptr + at + i[:, None] * D + d[None, :]
        tl.store(out, acc.to(dw1_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["n"])
def _add_three(part_ptr, a_ptr, b_ptr, c_ptr, n, PARTS: tl.constexpr, BLOCK: tl.constexpr):
    """Sums over the second dim of (3, PARTS, n) in order, one for each output."""
    which = tl.program_id(1)
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    part_ptr += which.to(tl.int64) * PARTS * n
    acc = tl.zeros([BLOCK], tl.float32)
    for part in tl.static_range(PARTS):
        acc += tl.load(part_ptr + part * n.to(tl.int64) + i, mask=i < n, other=0.0)
    out_ptr = a_ptr
    if which == 1:
        out_ptr = b_ptr
    if which == 2:
        out_ptr = c_ptr
    tl.store(out_ptr + i, acc.to(a_ptr.dtype.element_ty), mask=i < n)


_launch_down_backward, _launch_up_backward = Launcher(_down_backward), Launcher(_up_backward)
_launch_weights, _launch_add_three = Launcher(_weight_gradient), Launcher(_add_three)


def backward(dy, x, w1, w3, w2, weights, order, offsets, gate, up):
    """-> dx, dw1, dw3, dw2, dweights.

    _down_backward gives what SwiGLU's inputs and the weights get, _up_backward what each pair gives to x, and
    _weight_gradient all three weights' gradients, over parts of the rows where one expert has too few tiles to fill
    the chip; two sums follow.
    """
    (T, D), (E, I, _), k = x.shape, w1.shape, weights.shape[1]
    P = T * k
    shape = _shape(P, E, I, D, x.dtype)
    EP = triton.next_power_of_2(E)
    config = tuning.config("experts_down_backward", **shape)
    dgate, dup, hw = (torch.empty_like(gate) for _ in range(3))
    part = torch.empty(triton.cdiv(I, config["BN"]), P, dtype=torch.float32, device=x.device)
    _launch_down_backward(
        _grid(P, E, config, I), (dy, w2, gate, up, weights, order, offsets, dgate, dup, hw, part), (P,),
        (D, I, k, E, EP, *_tiles(config)), **_launch_options(config),
    )  # fmt: skip
    config = tuning.config("experts_up_backward", **shape)
    pairs = torch.empty(P, D, dtype=x.dtype, device=x.device)
    _launch_up_backward(
        _grid(P, E, config, D), (dgate, dup, w1, w3, pairs, order, offsets), (),
        (D, I, E, EP, *_tiles(config)), **_launch_options(config),
    )  # fmt: skip
    dweights = torch.empty_like(weights)
    dx = combine(pairs, x, k, part=part, dweights=dweights)
    dw1, dw3, dw2 = weight_gradients(x, dy, dgate, dup, hw, w1, w3, w2, order, offsets, k, shape)
    return dx, dw1, dw3, dw2, dweights


def weight_gradients(x, dy, dgate, dup, hw, w1, w3, w2, order, offsets, k, shape):
    (E, I, D) = w1.shape
    config = tuning.config("experts_weights", **shape)
    split = config["SPLIT"]
    outs = [torch.empty_like(w, memory_format=torch.contiguous_format) for w in (w1, w3, w2)]
    parts = outs
    if split > 1:
        both = torch.empty(3, split, E * I * D, dtype=torch.float32, device=x.device)
        parts = both.unbind(0)
    _launch_weights(
        (triton.cdiv(I, config["BI"]) * triton.cdiv(D, config["BD"]), E * split, 3),
        (x, dy, dgate, dup, hw, *parts, order, offsets), (),
        (D, I, k, E, config["BI"], config["BD"], config["BR"], split), **_launch_options(config),
    )  # fmt: skip
    if split > 1:
        n = E * I * D
        _launch_add_three((triton.cdiv(n, 1024), 3, 1), (both, *outs), (n,), (split, 1024), num_warps=4)
    return outs
