"""Triton kernels of the experts: grouped matrix products over token-expert pairs sorted by expert, both ways.

    up        h = silu(x w1^T) * (x w3^T): one pass over x, which is gathered as it is loaded
    down      pair outputs, times the routing weight, written where the token's k outputs lie side by side
    combine   the sum over the k choices in fp32, in their order: deterministic, no atomics
    backward  four launches and two sums: see `backward`
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


@triton.jit
def _gather(x_ptr, out_ptr, order_ptr, D: tl.constexpr, TOP: tl.constexpr, BLOCK: tl.constexpr):
    """out[row] = x[token of the pair in that sorted row]."""
    row = tl.program_id(0).to(tl.int64)
    token = tl.load(order_ptr + row) // TOP
    for begin in tl.static_range(0, D, BLOCK):
        d = begin + tl.arange(0, BLOCK)
        tl.store(out_ptr + row * D + d, tl.load(x_ptr + token.to(tl.int64) * D + d, mask=d < D), mask=d < D)


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


_launch_up, _launch_down, _launch_combine = Launcher(_up), Launcher(_down), Launcher(_combine)
_launch_down_backward, _launch_up_backward = Launcher(_down_backward), Launcher(_up_backward)
_launch_weights, _launch_add_three = Launcher(_weight_gradient), Launcher(_add_three)


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
