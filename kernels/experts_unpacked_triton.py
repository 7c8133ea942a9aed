"""Triton kernel that unpacks int8 and int4 weights to 16 bits, for so many tokens that this is little of the work.

The kernels of many tokens reach twice the rate of those that unpack in registers, since nothing stands between memory
and the product there. A few experts at a time are unpacked into a workspace and multiplied from it.
Imported only where a kernel is launched.

Legend: T tokens, k choices, P = T * k pairs, E experts, N outputs, K inputs, G groups of 128 inputs, D model width,
I expert width.
"""

import torch
import triton
import triton.language as tl

from .experts_few_triton import GROUP_SIZE, _nibble
from .experts_large_triton import products
from .experts_triton import _shape, combine, gather


@triton.jit
def _unpack(w_ptr, scale_ptr, out_ptr, N, K, BITS: tl.constexpr, BN: tl.constexpr):
    """out[e, n, k] = scale * w for one group of inputs, BN outputs of one expert."""
    e, n, g = tl.program_id(2).to(tl.int64), tl.program_id(1) * BN + tl.arange(0, BN), tl.program_id(0)
    groups = tl.cdiv(K, GROUP_SIZE)
    inside = n < N
    row = e * N + n
    dtype: tl.constexpr = out_ptr.dtype.element_ty
    if BITS == 4:
        half = tl.arange(0, GROUP_SIZE // 2)
        at = row[:, None] * (groups * (GROUP_SIZE // 2)) + g * (GROUP_SIZE // 2) + half[None, :]
        packed = tl.load(w_ptr + at, mask=inside[:, None], other=0)
        scale = tl.load(scale_ptr + (e * groups + g) * N + n, mask=inside, other=0.0)[:, None]
        k = g * GROUP_SIZE + half
        out = out_ptr + row[:, None] * K + k[None, :]
        low = _nibble(packed & 15, dtype).to(tl.float32) * scale
        tl.store(out, low.to(dtype), mask=inside[:, None] & (k < K)[None, :])
        high = _nibble(packed >> 4, dtype).to(tl.float32) * scale
        tl.store(out + GROUP_SIZE // 2, high.to(dtype), mask=inside[:, None] & (k + GROUP_SIZE // 2 < K)[None, :])
    else:
        k = g * GROUP_SIZE + tl.arange(0, GROUP_SIZE)
        mask = inside[:, None] & (k < K)[None, :]
        at = row[:, None] * K + k[None, :]
        scale = tl.load(scale_ptr + row, mask=inside, other=0.0)[:, None]
        tl.store(out_ptr + at, (tl.load(w_ptr + at, mask=mask, other=0).to(tl.float32) * scale).to(dtype), mask=mask)


def unpack(w, scale, bits, out):
    """Fill `out` (E, N, K), in 16 bits, with what `w` and `scale` stand for (see experts_quantized.py)."""
    E, N, K = out.shape
    _unpack[(triton.cdiv(K, GROUP_SIZE.value), triton.cdiv(N, 64), E)](w, scale, out, N, K, BITS=bits, BN=64)
    return out


def forward(x, w1, w3, w2, scales, bits, weights, order, offsets, partial, workspace):
    """-> y (T, D); `partial` as in experts_few_triton.forward. workspace: bytes for unpacked weights, but at least one
    expert's are unpacked at a time."""
    (T, D), (E, I, _), k = x.shape, w1.shape, weights.shape[1]
    P = T * k
    h = torch.empty(P, I, dtype=x.dtype, device=x.device)
    pairs = (torch.zeros if partial else torch.empty)(P, D, dtype=x.dtype, device=x.device)
    sorted_x, shape = gather(x, order, k), _shape(P, E, I, D, x.dtype)
    step = max(1, min(E, workspace // (3 * I * D * x.element_size())))
    spaces = [torch.empty(step * I * D, dtype=x.dtype, device=x.device) for _ in range(3)]
    for first in range(0, E, step):
        count = min(step, E - first)
        here = slice(first, first + count)
        ready = [
            unpack(w[here], scale[here], bits, space[: count * I * D].view(count, *sizes))
            for w, scale, space, sizes in zip((w1, w3, w2), scales, spaces, ((I, D), (I, D), (D, I)), strict=True)
        ]
        parts = offsets[first : first + count + 1]
        products(sorted_x, None, *ready, None, weights, order, parts, shape, h, None, None, pairs)
    return combine(pairs, x, k)
