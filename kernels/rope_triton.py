"""Rotary embedding of queries and keys in one launch, and the same with the keys and values stored into their pages.

A program takes some tokens and some heads. It computes the tokens' angles (cheaper than reading tables) and holds both
halves of every pair in one thread, so that it may write over what it read.

Legend: T tokens, H query heads, G key/value heads, K head dim, R rotary dim / 2, N tokens that the pools hold.
"""

import functools

import torch
import triton
import triton.language as tl

from .custom_op import Launcher, Op
from .keys_8bit_triton import exponent_of, largest_of, power_of_two, rounded


@triton.jit
def _rotate(
    x_ptr, out_ptr, pool_ptr, token, row, cos, sin, heads, first_head,
    HEADS: tl.constexpr, K: tl.constexpr, R: tl.constexpr, HALF: tl.constexpr, REST: tl.constexpr, COPY: tl.constexpr,
    mask,
):  # fmt: skip
    """Some heads of the tokens: rotated to `out` (the rest too if COPY), and whole to rows `row` of the pool."""
    head = first_head + tl.arange(0, HEADS)
    mask = mask[:, None, None] & (head < heads)[None, :, None]
    at = token[:, None, None] * (heads * K) + (head * K)[None, :, None]
    stored = row[:, None, None] * (heads * K) + (head * K)[None, :, None]
    i = tl.arange(0, HALF)[None, None, :]
    pair = mask & (i < R)
    a = tl.load(x_ptr + at + i, mask=pair, other=0.0).to(tl.float32)
    b = tl.load(x_ptr + at + i + R, mask=pair, other=0.0).to(tl.float32)
    first = a * cos - b * sin
    second = b * cos + a * sin
    tl.store(out_ptr + at + i, first.to(out_ptr.dtype.element_ty), mask=pair)
    tl.store(out_ptr + at + i + R, second.to(out_ptr.dtype.element_ty), mask=pair)
    if pool_ptr is not None:
        # rounded as in `out`, so that a key is the same whether it is read from there or from its page
        first = first.to(x_ptr.dtype.element_ty).to(pool_ptr.dtype.element_ty)
        second = second.to(x_ptr.dtype.element_ty).to(pool_ptr.dtype.element_ty)
        tl.store(pool_ptr + stored + i, first, mask=pair)
        tl.store(pool_ptr + stored + i + R, second, mask=pair)
    if 2 * R < K:
        if COPY or pool_ptr is not None:
            i = 2 * R + tl.arange(0, REST)[None, None, :]
            other = mask & (i < K)
            x = tl.load(x_ptr + at + i, mask=other)
            if COPY:
                tl.store(out_ptr + at + i, x, mask=other)
            if pool_ptr is not None:
                tl.store(pool_ptr + stored + i, x.to(pool_ptr.dtype.element_ty), mask=other)


@triton.jit
def _store_8bit(x, exponent, x_ptr, pool_ptr, at, stored, mask):
    """Part of some heads: in 8 bits to the pool, and as that reads to where it came from."""
    x = rounded(x, exponent, pool_ptr.dtype.element_ty == tl.int8)
    tl.store(pool_ptr + stored, x.to(pool_ptr.dtype.element_ty), mask=mask)
    tl.store(x_ptr + at, (x * power_of_two(exponent)).to(x_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _store_scale(exponent, scales_ptr, row, head, heads, WHICH: tl.constexpr, mask):
    """In bf16, of which the kernel sees the bits."""
    at = (row[:, None, None] * heads + head[None, :, None]) * 2 + WHICH
    tl.store(scales_ptr + at, (exponent << 7).to(tl.int16), mask=mask[:, None, None] & (head < heads)[None, :, None])


@triton.jit
def _keys_to_8bit(
    k_ptr, pool_ptr, scales_ptr, token, row, cos, sin, heads, first_head,
    HEADS: tl.constexpr, K: tl.constexpr, R: tl.constexpr, HALF: tl.constexpr, REST: tl.constexpr, mask,
):  # fmt: skip
    """Some heads of the tokens: rotated, quantised whole, to rows `row` of the pool and back to where they were."""
    head = first_head + tl.arange(0, HEADS)
    own = mask[:, None, None] & (head < heads)[None, :, None]
    at = token[:, None, None] * (heads * K) + (head * K)[None, :, None]
    stored = row[:, None, None] * (heads * K) + (head * K)[None, :, None]
    i = tl.arange(0, HALF)[None, None, :]
    j = 2 * R + tl.arange(0, REST)[None, None, :]
    pair = own & (i < R)
    other = own & (j < K)
    a = tl.load(k_ptr + at + i, mask=pair, other=0.0).to(tl.float32)
    b = tl.load(k_ptr + at + i + R, mask=pair, other=0.0).to(tl.float32)
    # rounded as a key that stays in its own dtype, which is what the reference quantises
    first = (a * cos - b * sin).to(k_ptr.dtype.element_ty).to(tl.float32)
    second = (b * cos + a * sin).to(k_ptr.dtype.element_ty).to(tl.float32)
    rest = tl.load(k_ptr + at + j, mask=other, other=0.0).to(tl.float32)
    nan: tl.constexpr = tl.PropagateNan.ALL
    largest = tl.maximum(tl.maximum(largest_of(first), largest_of(second), nan), largest_of(rest), nan)
    exponent = exponent_of(largest, pool_ptr.dtype.element_ty == tl.int8)
    _store_8bit(first, exponent, k_ptr, pool_ptr, at + i, stored + i, pair)
    _store_8bit(second, exponent, k_ptr, pool_ptr, at + i + R, stored + i + R, pair)
    _store_8bit(rest, exponent, k_ptr, pool_ptr, at + j, stored + j, other)
    _store_scale(exponent, scales_ptr, row, head, heads, 0, mask)


@triton.jit(do_not_specialize=["T", "sign"])
def _rope(
    q_ptr, k_ptr, v_ptr, q_out_ptr, k_out_ptr, k_pool_ptr, v_pool_ptr, scales_ptr, write_ptr, positions_ptr,
    frequencies_ptr, T, sign,
    H: tl.constexpr, G: tl.constexpr, K: tl.constexpr, R: tl.constexpr,
    TOKENS: tl.constexpr, HEADS: tl.constexpr, HALF: tl.constexpr, REST: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64) * TOKENS + tl.arange(0, TOKENS)
    mask = token < T
    position = tl.load(positions_ptr + token, mask=mask, other=0).to(tl.float32)
    i = tl.arange(0, HALF)
    angle = position[:, None] * tl.load(frequencies_ptr + i, mask=i < R, other=0.0)[None, :]
    # whole turns are taken off in fp64: cos and sin of large fp32 numbers are slow
    turns = angle.to(tl.float64) * 0.15915494309189535
    angle = ((turns - tl.floor(turns + 0.5)) * 6.283185307179586).to(tl.float32)
    cos = tl.cos(angle)[:, None, :]
    sin = (tl.sin(angle) * sign)[:, None, :]
    COPY: tl.constexpr = write_ptr is None
    q_blocks = tl.cdiv(H, HEADS)
    for block in range(tl.program_id(1), q_blocks + tl.cdiv(G, HEADS), tl.num_programs(1)):
        if block < q_blocks:
            head = block * HEADS
            _rotate(q_ptr, q_out_ptr, None, token, token, cos, sin, H, head, HEADS, K, R, HALF, REST, COPY, mask)
        else:
            head = (block - q_blocks) * HEADS
            if write_ptr is None:
                _rotate(k_ptr, k_out_ptr, None, token, token, cos, sin, G, head, HEADS, K, R, HALF, REST, COPY, mask)
            else:
                row = tl.load(write_ptr + token, mask=mask, other=0)
                if scales_ptr is None:
                    _rotate(
                        k_ptr, k_out_ptr, k_pool_ptr, token, row, cos, sin, G, head, HEADS, K, R, HALF, REST, COPY, mask
                    )
                else:
                    _keys_to_8bit(
                        k_ptr, k_pool_ptr, scales_ptr, token, row, cos, sin, G, head, HEADS, K, R, HALF, REST, mask
                    )
                heads = head + tl.arange(0, HEADS)
                d = tl.arange(0, WHOLE)[None, None, :]
                whole = mask[:, None, None] & (heads < G)[None, :, None] & (d < K)
                at = (heads * K)[None, :, None] + d
                new = token[:, None, None] * (G * K) + at
                stored = row[:, None, None] * (G * K) + at
                v = tl.load(v_ptr + new, mask=whole, other=0.0)
                if scales_ptr is None:
                    tl.store(v_pool_ptr + stored, v.to(v_pool_ptr.dtype.element_ty), mask=whole)
                else:
                    v = v.to(tl.float32)
                    exponent = exponent_of(largest_of(v), v_pool_ptr.dtype.element_ty == tl.int8)
                    _store_8bit(v, exponent, v_ptr, v_pool_ptr, new, stored, whole)
                    _store_scale(exponent, scales_ptr, row, heads, G, 1, mask)


_launch_rope = Launcher(_rope)


@functools.cache
def _config(T: int, H: int, G: int, K: int, R: int) -> tuple[tuple[int, int, int], tuple[int, ...]]:
    """Grid, and TOKENS, HEADS, HALF, REST, WHOLE: about 2,048 elements at a time, fewer where there are few tokens."""
    whole = triton.next_power_of_2(K)
    heads = min(triton.next_power_of_2(H), max(1, 2048 // whole))
    tokens = min(max(1, 2048 // (heads * whole)), triton.next_power_of_2(T))
    blocks = -(-H // heads) + -(-G // heads)
    half, rest = triton.next_power_of_2(max(R, 1)), triton.next_power_of_2(max(K - 2 * R, 1))
    programs = -(-T // tokens)
    # many tokens: a program takes all heads, so that angles are computed once
    return (programs, 1 if programs >= 1024 else blocks, 1), (tokens, heads, half, rest, whole)


def _launch(q, k, v, q_out, k_out, k_pool, v_pool, scales, write, positions, frequencies, sign):
    (T, H, K), G, R = q.shape, k.shape[1], frequencies.shape[0]
    if not T:
        return
    grid, config = _config(T, H, G, K, R)
    _launch_rope(
        grid, (q, k, v, q_out, k_out, k_pool, v_pool, scales, write, positions, frequencies), (T, sign),
        (H, G, K, R, *config), num_warps=4,
    )  # fmt: skip


def _forward(q, k, positions, frequencies, back):
    q, k = q.contiguous(), k.contiguous()
    q_out, k_out = torch.empty_like(q), torch.empty_like(k)
    _launch(q, k, None, q_out, k_out, None, None, None, None, positions, frequencies, -1.0 if back else 1.0)
    return q_out, k_out


def _fake(q, k, positions, frequencies, back):
    return torch.empty_like(q.contiguous()), torch.empty_like(k.contiguous())


def _setup_context(ctx, inputs, output):
    q, k, positions, frequencies, ctx.back = inputs
    ctx.save_for_backward(positions, frequencies)
    ctx.shapes = q.shape, k.shape


def _backward(ctx, dq, dk):
    if dq is None and dk is None:
        return None, None, None, None, None
    dq = dk.new_zeros(ctx.shapes[0]) if dq is None else dq
    dk = dq.new_zeros(ctx.shapes[1]) if dk is None else dk
    return *backward_op(dq, dk, *ctx.saved_tensors, not ctx.back), None, None, None


_SCHEMA = "(Tensor q, Tensor k, Tensor positions, Tensor frequencies, bool back) -> (Tensor, Tensor)"
backward_op = Op("rope_backward" + _SCHEMA, _forward, _fake)
op = Op("rope" + _SCHEMA, _forward, _fake, _setup_context, _backward)


def _into_pages(q, k, v, positions, frequencies, k_pool, v_pool, write):
    _check(q, k, v, k_pool, v_pool)
    _launch(q, k, v, q, k, k_pool, v_pool, None, write, positions, frequencies, 1.0)


def _into_8bit_pages(q, k, v, positions, frequencies, k_pool, v_pool, scales, write):
    _check(q, k, v, k_pool, v_pool, scales)
    _launch(q, k, v, q, k, k_pool, v_pool, scales.view(torch.int16), write, positions, frequencies, 1.0)


def _check(*tensors):
    for x in tensors:
        if not x.is_contiguous():
            raise ValueError("rope_into_pages needs contiguous tensors")


pages_op = Op(
    "rope_into_pages(Tensor(a!) q, Tensor(b!) k, Tensor v, Tensor positions, Tensor frequencies, Tensor(c!) k_pool, "
    "Tensor(d!) v_pool, Tensor write) -> ()",
    _into_pages,
    lambda *args: None,
)
pages_8bit_op = Op(
    "rope_into_8bit_pages(Tensor(a!) q, Tensor(b!) k, Tensor(c!) v, Tensor positions, Tensor frequencies, "
    "Tensor(d!) k_pool, Tensor(e!) v_pool, Tensor(f!) scales, Tensor write) -> ()",
    _into_8bit_pages,
    lambda *args: None,
)
