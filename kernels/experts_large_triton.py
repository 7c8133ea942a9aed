"""Triton kernels of the experts for many tokens and wide experts: persistent programs, everything read by tensor maps.

One program a processor walks over the tiles, so that the next tile's loads run while the last one's results are stored.
Tensor maps cannot gather, so that the tokens are first copied into the order of their experts, which costs one part in
a hundred. In fp8 (e4m3) that copy also quantises: a scale for each row of x and h, and for each output of the weights.
Imported only where a kernel is launched.

Legend: T tokens, k choices, P = T * k pairs, E experts, D model width, I expert width, B* tile sizes.
"""

import functools

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from . import tuning
from .experts_triton import _descriptor, _launch_options, _shape, combine, gather

FP8_MAX = 448.0  # the largest e4m3


@triton.jit
def _list_tiles(offsets_ptr, table_ptr, last, E: tl.constexpr, EP: tl.constexpr, BM: tl.constexpr, ROWS: tl.constexpr):
    """table[m] = expert, first row, end of its rows, 0 for each row tile m; table[last] = number of row tiles."""
    e = tl.arange(0, EP)
    begin = tl.load(offsets_ptr + e, mask=e < E, other=0)
    end = tl.load(offsets_ptr + e + 1, mask=e < E, other=0)
    tiles = (end - begin + BM - 1) // BM
    past = tl.cumsum(tiles, 0)
    m = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    here = (past[None, :] > m[:, None]) & ((past - tiles)[None, :] <= m[:, None])
    expert = tl.sum(tl.where(here, e[None, :], 0), axis=1)
    first = tl.sum(tl.where(here, begin[None, :] - (past - tiles)[None, :] * BM, 0), axis=1) + m * BM
    stop = tl.sum(tl.where(here, end[None, :], 0), axis=1)
    live = m < last
    tl.store(table_ptr + m * 4, expert, mask=live)
    tl.store(table_ptr + m * 4 + 1, first, mask=live)
    tl.store(table_ptr + m * 4 + 2, stop, mask=live)
    if tl.program_id(0) == 0:
        tl.store(table_ptr + last * 4, tl.sum(tiles, axis=0))


@triton.jit
def _pick(tile, table_ptr, m_tiles, N_TILES: tl.constexpr, GROUP: tl.constexpr):
    """GROUP row tiles go down the columns together, so that what is read again is still in L2."""
    first = tile // (GROUP * N_TILES) * GROUP
    size = tl.minimum(m_tiles - first, GROUP)
    local = tile % (GROUP * N_TILES)
    at = table_ptr + (first + local % size) * 4
    return tl.load(at), tl.load(at + 1), tl.load(at + 2), local // size


@triton.jit(do_not_specialize=["last"])
def _up_large(
    x_desc, w_desc, w3_desc, h_ptr, gate_ptr, up_ptr, xs_ptr, s1_ptr, s3_ptr, table_ptr, last,
    D: tl.constexpr, I: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
    SAVE: tl.constexpr, SCALED: tl.constexpr, FLAT: tl.constexpr, JOINT: tl.constexpr, SWAPPED: tl.constexpr,
):  # fmt: skip
    """JOINT: one map over w1 and w3 (SWAPPED: w3 and w1) gives both tiles to one product, of double width."""
    N_TILES: tl.constexpr = (I + BN - 1) // BN
    m_tiles = tl.load(table_ptr + last * 4)
    for tile in tl.range(tl.program_id(0), m_tiles * N_TILES, tl.num_programs(0), flatten=FLAT):
        expert, row, row_end, n = _pick(tile, table_ptr, m_tiles, N_TILES, GROUP)
        if JOINT:
            acc = tl.zeros([BM, 2 * BN], tl.float32)
            for kb in range(0, D, BK):
                x = x_desc.load([row, kb])
                w = w_desc.load([0, expert * I + n * BN, kb]).reshape(2 * BN, BK)
                acc = tl.dot(x, w.T, acc)
            if SWAPPED:
                acc3, acc1 = acc.reshape(BM, 2, BN).permute(0, 2, 1).split()
            else:
                acc1, acc3 = acc.reshape(BM, 2, BN).permute(0, 2, 1).split()
        else:
            acc1 = tl.zeros([BM, BN], tl.float32)
            acc3 = tl.zeros([BM, BN], tl.float32)
            for kb in range(0, D, BK):
                x = x_desc.load([row, kb])
                w1 = w_desc.load([expert * I + n * BN, kb])
                w3 = w3_desc.load([expert * I + n * BN, kb])
                acc1 = tl.dot(x, w1.T, acc1)
                acc3 = tl.dot(x, w3.T, acc3)
        rows = row + tl.arange(0, BM)
        live = rows < row_end
        cols = n * BN + tl.arange(0, BN)
        inside = cols < I
        if SCALED:
            xs = tl.load(xs_ptr + rows, mask=live, other=0.0)[:, None]
            acc1 *= xs * tl.load(s1_ptr + expert * I + cols, mask=inside, other=0.0)[None, :]
            acc3 *= xs * tl.load(s3_ptr + expert * I + cols, mask=inside, other=0.0)[None, :]
        out = rows.to(tl.int64)[:, None] * I + cols[None, :]
        mask = live[:, None] & inside[None, :]
        if SAVE:
            tl.store(gate_ptr + out, acc1.to(gate_ptr.dtype.element_ty), mask=mask)
            tl.store(up_ptr + out, acc3.to(up_ptr.dtype.element_ty), mask=mask)
        h = acc1 / (1.0 + tl.exp(-acc1)) * acc3
        tl.store(h_ptr + out, h.to(h_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["last"])
def _down_large(
    h_desc, w2_desc, y_ptr, hs_ptr, s2_ptr, weights_ptr, order_ptr, table_ptr, last,
    D: tl.constexpr, I: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
    SCALED: tl.constexpr, FLAT: tl.constexpr,
):  # fmt: skip
    N_TILES: tl.constexpr = (D + BN - 1) // BN
    m_tiles = tl.load(table_ptr + last * 4)
    for tile in tl.range(tl.program_id(0), m_tiles * N_TILES, tl.num_programs(0), flatten=FLAT):
        expert, row, row_end, n = _pick(tile, table_ptr, m_tiles, N_TILES, GROUP)
        acc = tl.zeros([BM, BN], tl.float32)
        for kb in range(0, I, BK):
            h = h_desc.load([row, kb])
            w2 = w2_desc.load([expert * D + n * BN, kb])
            acc = tl.dot(h, w2.T, acc)
        rows = row + tl.arange(0, BM)
        live = rows < row_end
        cols = n * BN + tl.arange(0, BN)
        inside = cols < D
        pair = tl.load(order_ptr + rows, mask=live, other=0)
        scale = tl.load(weights_ptr + pair, mask=live, other=0.0).to(tl.float32)
        if SCALED:
            scale *= tl.load(hs_ptr + rows, mask=live, other=0.0)
            acc *= tl.load(s2_ptr + expert * D + cols, mask=inside, other=0.0)[None, :]
        acc *= scale[:, None]
        out = y_ptr + pair.to(tl.int64)[:, None] * D + cols[None, :]
        tl.store(out, acc.to(y_ptr.dtype.element_ty), mask=live[:, None] & inside[None, :])


@triton.jit
def _quantize_rows(
    x_ptr, out_ptr, scale_ptr, order_ptr, D: tl.constexpr, TOP: tl.constexpr, GATHER: tl.constexpr, BLOCK: tl.constexpr
):
    """Row by row: scale = max |x| / 448, out = x / scale in e4m3. GATHER: of the tokens of the sorted pairs."""
    row = tl.program_id(0).to(tl.int64)
    source = row
    if GATHER:
        source = (tl.load(order_ptr + row) // TOP).to(tl.int64)
    d = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + source * D + d, mask=d < D, other=0.0).to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(x), axis=0) / 448.0, 1e-20)
    tl.store(scale_ptr + row, scale)
    tl.store(out_ptr + row * D + d, (x / scale).to(out_ptr.dtype.element_ty), mask=d < D)


def quantize_rows(x, order=None, k=1):
    """e4m3 rows and their scales, of x or of the tokens of the sorted pairs."""
    rows, D = x.shape[0] if order is None else order.shape[0], x.shape[1]
    out = torch.empty(rows, D, dtype=torch.float8_e4m3fn, device=x.device)
    scale = torch.empty(rows, dtype=torch.float32, device=x.device)
    block = triton.next_power_of_2(D)
    _quantize_rows[(rows,)](
        x, out, scale, order, D=D, TOP=k, GATHER=order is not None, BLOCK=block, num_warps=8 if block > 2048 else 4
    )
    return out, scale


@functools.cache
def _processors(device):
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 3


def _table(offsets, P, E, BM):
    last = min(P, P // BM + E)
    table = torch.empty(last + 1, 4, dtype=torch.int32, device=offsets.device)
    EP = triton.next_power_of_2(E)
    rows = max(16, min(1024, 4096 // EP))
    _list_tiles[(triton.cdiv(last, rows),)](offsets, table, last, E=E, EP=EP, BM=BM, ROWS=rows, num_warps=4)
    return table, last


def _up_maps(w1, w3, BN, BK):
    """One map over w1 and w3, wherever they lie: its first stride is their distance. Else (too far apart) two."""
    swapped = w3.data_ptr() < w1.data_ptr()
    first, second = (w3, w1) if swapped else (w1, w3)
    distance = second.data_ptr() - first.data_ptr()
    if distance % 16 or distance >= 1 << 40 or distance == 0:
        return _descriptor(w1, BN, BK), _descriptor(w3, BN, BK), False
    E, I, D = w1.shape
    strides = [distance // w1.element_size(), D, 1]
    return TensorDescriptor(first, [2, E * I, D], strides, [2, BN, BK]), None, swapped


def _programs(config, last, columns, device):
    tiles = last * triton.cdiv(columns, config["BN"])
    return (min(tiles, config["persistent"] * _processors(device)) if config["persistent"] else tiles,)


def forward(x, w1, w3, w2, scales, weights, order, offsets, save, partial=False):
    """-> y (T, D), and with `save` gate and up (P, I). `scales`: of e4m3 weights (E, outputs), None for 16-bit ones.

    partial: `offsets` do not cover all pairs; those left out add nothing.
    """
    (T, D), (E, I, _), k = x.shape, w1.shape, weights.shape[1]
    P = T * k
    h = torch.empty(P, I, dtype=x.dtype, device=x.device)
    gate = torch.empty_like(h) if save else None
    up = torch.empty_like(h) if save else None
    pairs = (torch.zeros if partial else torch.empty)(P, D, dtype=x.dtype, device=x.device)
    sorted_x, xs = (gather(x, order, k), None) if scales is None else quantize_rows(x, order, k)
    shape = _shape(P, E, I, D, w1.dtype)
    products(sorted_x, xs, w1, w3, w2, scales, weights, order, offsets, shape, h, gate, up, pairs)
    return combine(pairs, x, k), gate, up


def products(sorted_x, xs, w1, w3, w2, scales, weights, order, offsets, shape, h, gate, up, pairs):
    """Fill `h` (P, I), `pairs` (P, D) and, unless None, `gate` and `up`, in the rows of these experts, `offsets` say.

    xs: the scales of fp8 rows. shape: what launch parameters are looked up by.
    """
    (P, D), (E, I, _) = sorted_x.shape, w1.shape
    s1, s3, s2 = scales or (None, None, None)
    config = tuning.config("experts_up_large", **shape)
    BM, BN, BK = config["BM"], config["BN"], config["BK"]
    table, last = _table(offsets, P, E, BM)
    w_desc, w3_desc, swapped = _up_maps(w1, w3, BN, BK)
    joint = w3_desc is None
    _up_large[_programs(config, last, I, h.device)](
        _descriptor(sorted_x, BM, BK), w_desc, w3_desc, h, gate, up, xs, s1, s3, table, last,
        D=D, I=I, BM=BM, BN=BN, BK=BK, GROUP=config["GROUP"], SAVE=gate is not None, SCALED=xs is not None,
        FLAT=bool(config["persistent"]) and joint,  # two products in a flat loop would wait for each other
        JOINT=joint, SWAPPED=swapped, **_launch_options(config),
    )  # fmt: skip
    config = tuning.config("experts_down_large", **shape)
    if config["BM"] != BM:
        table, last = _table(offsets, P, E, config["BM"])
    BM, BN, BK = config["BM"], config["BN"], config["BK"]
    hs = None
    if xs is not None:
        h, hs = quantize_rows(h)
    _down_large[_programs(config, last, D, h.device)](
        _descriptor(h, BM, BK), _descriptor(w2, BN, BK), pairs, hs, s2, weights, order, table, last,
        D=D, I=I, BM=BM, BN=BN, BK=BK, GROUP=config["GROUP"], SCALED=xs is not None,
        FLAT=bool(config["persistent"]), **_launch_options(config),
    )  # fmt: skip


def fits(x, w1, w3, w2):
    """Whether tensor maps can be made of all: Hopper or newer (or the interpreter), rows of multiples of 16 bytes."""
    if x.is_cuda and torch.cuda.get_device_capability(x.device) < (9, 0):
        return False
    tensors = (x, w1, w3, w2)
    return all(
        a.element_size() <= 2 and a.shape[-1] * w1.element_size() % 16 == 0 and a.data_ptr() % 16 == 0 for a in tensors
    )
