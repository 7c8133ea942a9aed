"""Triton kernels of the experts for few tokens, and for quantised weights: the weights are the left operand.

A product w x^T has the weights' rows as its rows, so that 16 tokens fill a matrix instruction as well as 128 do, and
quantised weights can be unpacked in registers on their way into it. With at most as many tokens as a tile has columns
each expert that was hit is read exactly once, and nothing of it is copied.
Imported only where a kernel is launched.

Legend: T tokens, k choices, P = T * k pairs, E experts, D model width, I expert width, B* tile sizes.
"""

import torch
import triton
import triton.language as tl

from . import tuning
from .experts_triton import _descriptor, _launch_options, _shape, _tile, combine

GROUP_SIZE: tl.constexpr = tl.constexpr(128)  # weights that share a scale in int4


@triton.jit
def _nibble(packed, dtype: tl.constexpr):
    """0..15 (int32) -> -8..7. In bf16 by placing it in the mantissa of 128, which costs no conversion."""
    if dtype == tl.bfloat16:
        return (packed.to(tl.int16) | 0x4300).to(tl.bfloat16, bitcast=True) - 136.0
    return (packed.to(tl.int32) - 8).to(dtype)


@triton.jit
def _tile_of(w_ptr, w_desc, rows, row, k, kb, limit, width, TMA: tl.constexpr, EVEN: tl.constexpr):
    """Weights [BN, BK] from column `kb`: `rows` are their first elements' offsets, `row` the first row's number."""
    if TMA:
        return w_desc.load([row, kb])
    if EVEN:
        return tl.load(w_ptr + rows[:, None] * width + (k + kb)[None, :])
    return tl.load(w_ptr + rows[:, None] * width + (k + kb)[None, :], mask=(k + kb < limit)[None, :], other=0)


@triton.jit
def _up_few(
    x_ptr, w1_ptr, w3_ptr, s1_ptr, s3_ptr, h_ptr, order_ptr, offsets_ptr, w1_desc, w3_desc,
    D: tl.constexpr, I: tl.constexpr, TOP: tl.constexpr, E: tl.constexpr, EP: tl.constexpr, BITS: tl.constexpr,
    BT: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """h = silu(x w1^T) * (x w3^T). BITS 16: plain weights; 8: scale (E, I); 4: two in a byte, scale (E, D / 128, I)."""
    N_TILES: tl.constexpr = (I + BN - 1) // BN
    expert, row_end, row, n = _tile(tl.program_id(0), offsets_ptr, E, EP, BT, N_TILES, GROUP)
    if expert >= E:
        return
    rows = row + tl.arange(0, BT)
    live = rows < row_end
    token = tl.load(order_ptr + rows, mask=live, other=0) // TOP
    i = n * BN + tl.arange(0, BN)
    i_safe = tl.where(i < I, i, 0)
    w_rows = expert.to(tl.int64) * I + i_safe
    first = expert * I + n * BN
    x_at = x_ptr + token.to(tl.int64)[None, :] * D
    acc1 = tl.zeros([BN, BT], tl.float32)
    acc3 = tl.zeros([BN, BT], tl.float32)
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    if BITS == 4:
        GROUPS: tl.constexpr = (D + 127) // 128
        half = tl.arange(0, 64)
        for g in range(GROUPS):
            lo_k, hi_k = g * 128 + half, g * 128 + 64 + half
            x_lo = tl.load(x_at + lo_k[:, None], mask=live[None, :] & (lo_k < D)[:, None], other=0.0)
            x_hi = tl.load(x_at + hi_k[:, None], mask=live[None, :] & (hi_k < D)[:, None], other=0.0)
            at = (expert * GROUPS + g).to(tl.int64) * I + i_safe
            p1 = _tile_of(w1_ptr, w1_desc, w_rows, first, half, g * 64, 0, GROUPS * 64, TMA, True)
            p3 = _tile_of(w3_ptr, w3_desc, w_rows, first, half, g * 64, 0, GROUPS * 64, TMA, True)
            part = tl.dot(_nibble(p1 & 15, dtype), x_lo, input_precision="ieee")
            part = tl.dot(_nibble(p1 >> 4, dtype), x_hi, part, input_precision="ieee")
            acc1 += part * tl.load(s1_ptr + at)[:, None]
            part = tl.dot(_nibble(p3 & 15, dtype), x_lo, input_precision="ieee")
            part = tl.dot(_nibble(p3 >> 4, dtype), x_hi, part, input_precision="ieee")
            acc3 += part * tl.load(s3_ptr + at)[:, None]
    else:
        k = tl.arange(0, BK)
        for kb in range(0, D, BK):
            x = tl.load(x_at + (k + kb)[:, None], mask=live[None, :] & (k + kb < D)[:, None], other=0.0)
            w1 = _tile_of(w1_ptr, w1_desc, w_rows, first, k, kb, D, D, TMA, D % BK == 0)
            w3 = _tile_of(w3_ptr, w3_desc, w_rows, first, k, kb, D, D, TMA, D % BK == 0)
            acc1 = tl.dot(w1.to(dtype), x, acc1, input_precision="ieee")
            acc3 = tl.dot(w3.to(dtype), x, acc3, input_precision="ieee")
        if BITS == 8:
            acc1 *= tl.load(s1_ptr + w_rows)[:, None]
            acc3 *= tl.load(s3_ptr + w_rows)[:, None]
    h = acc1 / (1.0 + tl.exp(-acc1)) * acc3
    out = h_ptr + rows.to(tl.int64)[None, :] * I + i[:, None]
    tl.store(out, h.to(dtype), mask=live[None, :] & (i < I)[:, None])


@triton.jit(do_not_specialize=["P"])
def _down_few(
    h_ptr, w2_ptr, s2_ptr, y_ptr, weights_ptr, order_ptr, offsets_ptr, w2_desc, P,
    D: tl.constexpr, I: tl.constexpr, E: tl.constexpr, EP: tl.constexpr, BITS: tl.constexpr,
    BT: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr, SPLIT: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """y[split, pair] = weight[pair] * h w2^T over this split's part of I, fp32 where it is split."""
    N_TILES: tl.constexpr = (D + BN - 1) // BN
    expert, row_end, row, n = _tile(tl.program_id(0), offsets_ptr, E, EP, BT, N_TILES, GROUP)
    if expert >= E:
        return
    split = tl.program_id(1)
    rows = row + tl.arange(0, BT)
    live = rows < row_end
    d = n * BN + tl.arange(0, BN)
    d_safe = tl.where(d < D, d, 0)
    w_rows = expert.to(tl.int64) * D + d_safe
    first = expert * D + n * BN
    h_at = h_ptr + tl.where(live, rows, row).to(tl.int64)[None, :] * I
    acc = tl.zeros([BN, BT], tl.float32)
    dtype: tl.constexpr = h_ptr.dtype.element_ty
    if BITS == 4:
        GROUPS: tl.constexpr = (I + 127) // 128
        SHARE: tl.constexpr = (GROUPS + SPLIT - 1) // SPLIT
        half = tl.arange(0, 64)
        for g in range(split * SHARE, tl.minimum(GROUPS, split * SHARE + SHARE)):
            lo_k, hi_k = g * 128 + half, g * 128 + 64 + half
            h_lo = tl.load(h_at + lo_k[:, None], mask=live[None, :] & (lo_k < I)[:, None], other=0.0)
            h_hi = tl.load(h_at + hi_k[:, None], mask=live[None, :] & (hi_k < I)[:, None], other=0.0)
            p = _tile_of(w2_ptr, w2_desc, w_rows, first, half, g * 64, 0, GROUPS * 64, TMA, True)
            part = tl.dot(_nibble(p & 15, dtype), h_lo, input_precision="ieee")
            part = tl.dot(_nibble(p >> 4, dtype), h_hi, part, input_precision="ieee")
            acc += part * tl.load(s2_ptr + (expert * GROUPS + g).to(tl.int64) * D + d_safe)[:, None]
    else:
        k = tl.arange(0, BK)
        SHARE: tl.constexpr = ((I + BK - 1) // BK + SPLIT - 1) // SPLIT * BK
        for kb in range(split * SHARE, tl.minimum(I, split * SHARE + SHARE), BK):
            h = tl.load(h_at + (k + kb)[:, None], mask=live[None, :] & (k + kb < I)[:, None], other=0.0)
            w2 = _tile_of(w2_ptr, w2_desc, w_rows, first, k, kb, I, I, TMA, I % BK == 0)
            acc = tl.dot(w2.to(dtype), h, acc, input_precision="ieee")
        if BITS == 8:
            acc *= tl.load(s2_ptr + w_rows)[:, None]
    pair = tl.load(order_ptr + rows, mask=live, other=0)
    acc *= tl.load(weights_ptr + pair, mask=live, other=0.0).to(tl.float32)[None, :]
    out = y_ptr + (split * P.to(tl.int64) + pair)[None, :] * D + d[:, None]
    tl.store(out, acc.to(y_ptr.dtype.element_ty), mask=live[None, :] & (d < D)[:, None])


def forward(x, w1, w3, w2, scales, bits, weights, order, offsets, partial=False):
    """-> y (T, D). `scales` are those of w1, w3 and w2, None for plain weights (`bits` 16).

    partial: `offsets` do not cover all pairs; those left out add nothing.
    """
    (T, D), E, I, k = x.shape, w1.shape[0], w1.shape[1], weights.shape[1]
    P = T * k
    shape = {**_shape(P, E, I, D, x.dtype), "bits": bits}
    EP = triton.next_power_of_2(E)
    s1, s3, s2 = scales or (None, None, None)
    h = torch.empty(P, I, dtype=x.dtype, device=x.device)
    config = tuning.config("experts_up_few", **shape)
    BT, tiles = _token_tile(T, P, E, config)
    w1_desc = w3_desc = None
    if tma := config["tma"] and _maps_fit(x, w1, w3):
        w1_desc, w3_desc = (_descriptor(w, config["BN"], 64 if bits == 4 else config["BK"]) for w in (w1, w3))
    _up_few[(tiles * triton.cdiv(I, config["BN"]),)](
        x, w1, w3, s1, s3, h, order, offsets, w1_desc, w3_desc,
        D=D, I=I, TOP=k, E=E, EP=EP, BITS=bits, BT=BT, BN=config["BN"], BK=config["BK"], GROUP=config["GROUP"],
        TMA=bool(tma), **_launch_options(config),
    )  # fmt: skip
    config = tuning.config("experts_down_few", **shape)
    BT, tiles = _token_tile(T, P, E, config)
    w2_desc = None
    if tma := config["tma"] and _maps_fit(x, w2):
        w2_desc = _descriptor(w2, config["BN"], 64 if bits == 4 else config["BK"])
    split = config["SPLIT"]
    dtype = torch.float32 if split > 1 or T <= 64 else x.dtype
    y = (torch.zeros if partial else torch.empty)(split, P, D, dtype=dtype, device=x.device)
    _down_few[(tiles * triton.cdiv(D, config["BN"]), split)](
        h, w2, s2, y, weights, order, offsets, w2_desc, P,
        D=D, I=I, E=E, EP=EP, BITS=bits, BT=BT, BN=config["BN"], BK=config["BK"], GROUP=config["GROUP"], SPLIT=split,
        TMA=bool(tma), **_launch_options(config),
    )  # fmt: skip
    return combine(y, x, k, split=split)


def _token_tile(T, P, E, config):
    """Tokens of a tile, and tiles enough for any split of the pairs over the experts."""
    BT = min(config["BT"], max(16, triton.next_power_of_2(T)))
    return BT, min(P, E) if BT >= T else min(P, P // BT + E)


def _maps_fit(x, *weights):
    if x.is_cuda and torch.cuda.get_device_capability(x.device) < (9, 0):
        return False
    return all(w.shape[-1] * w.element_size() % 16 == 0 and w.data_ptr() % 16 == 0 for w in weights)
