"""Triton kernel of lightning attention on packed tokens, and the operation, forward and backward, as torch knows it.

A sequence is cut into segments, a segment is walked in chunks of C tokens by one program a head (and a part of the
value or key channels) with the state in registers. Where sequences have several segments, one kernel first finds what
each of them adds to the state by itself, and a segment's program sums up those before it: one long sequence then fills
the chip as many short ones do. The backward pass (lightning_backward_triton.py) does the same with the state's
gradient, from the end. What both share is in lightning_parts_triton.py.

Legend: T tokens, S sequences, N segments, A segment states, H heads, K head dim (keys and values), C chunk,
x = pre-activations [q | k | v] of a head, i/j rows of a chunk.
"""

import torch
import triton
import triton.language as tl

from .custom_op import Launcher, Op
from .lightning_backward_triton import backward
from .lightning_parts_triton import (
    _AFTER,
    _COLUMNS,
    _FIRST,
    _LENGTH,
    _SEQUENCE,
    SCALARS,
    _grow,
    _silu,
    _state_before,
    add_segments,
    constants,
    launch_config,
    options,
    width_of,
)


@triton.jit(do_not_specialize=SCALARS)
def _lightning_forward(
    x_ptr, slopes_ptr, initial_ptr, added_ptr, table_ptr, o_ptr, final_ptr, H, seg_tokens,
    K: tl.constexpr, BV: tl.constexpr, C: tl.constexpr, SILU: tl.constexpr, SIGMOID: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """Outputs of one segment's tokens, one head, BV value channels; the final state after a sequence's last segment."""
    parts: tl.constexpr = K // BV
    pid = tl.program_id(0)
    part, h, row_ptr = pid % parts, pid // parts % H, table_ptr + (pid // (parts * H)) * _COLUMNS
    first, length = tl.load(row_ptr + _FIRST).to(tl.int64), tl.load(row_ptr + _LENGTH)
    slope = tl.load(slopes_ptr + h).to(tl.float32)
    i, ks, vs = tl.arange(0, C), tl.arange(0, K), part * BV + tl.arange(0, BV)
    offsets = ks[:, None] * K + vs[None, :]
    state = tl.zeros((K, BV), dtype=tl.float32)
    state = _state_before(state, initial_ptr, added_ptr, row_ptr, slope, h, offsets, H, seg_tokens, K)

    distance = i[:, None] - i[None, :]
    within = tl.where(distance >= 0, tl.exp(-slope * tl.maximum(distance, 0).to(tl.float32)), 0.0)
    q_decay = tl.exp(-slope * (i + 1).to(tl.float32))[:, None]
    x_ptr += (first * H + h) * (3 * K)
    o_ptr += (first * H + h) * K
    for start in tl.range(0, length, C, disable_licm=True):
        n = tl.minimum(length - start, C)
        live = (i < n)[:, None]
        rows = (start + i)[:, None].to(tl.int64)
        qk_ptrs = x_ptr + rows * (H * (3 * K)) + ks[None, :]
        v_ptrs = x_ptr + rows * (H * (3 * K)) + 2 * K + vs[None, :]
        q = _silu(tl.load(qk_ptrs, mask=live, other=0.0), SILU, SIGMOID, DOT, False)
        k = _silu(tl.load(qk_ptrs + K, mask=live, other=0.0), SILU, SIGMOID, DOT)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * within
        o = tl.dot(q, state.to(DOT), input_precision="ieee") * q_decay
        v = _silu(tl.load(v_ptrs, mask=live, other=0.0), SILU, SIGMOID, DOT)
        o = tl.dot(scores.to(DOT), v, o, input_precision="ieee")
        tl.store(o_ptr + rows * (H * K) + vs[None, :], o.to(o_ptr.dtype.element_ty), mask=live)
        k_decay = tl.exp(-slope * tl.maximum(n - 1 - i, 0).to(tl.float32))
        v = (v.to(tl.float32) * k_decay[:, None]).to(DOT)
        state = _grow(state, tl.trans(k), v, slope, n, DOT)
    if final_ptr is not None:
        if tl.load(row_ptr + _AFTER) == 0:
            sequence = tl.load(row_ptr + _SEQUENCE).to(tl.int64)
            tl.store(final_ptr + (sequence * H + h) * (K * K) + offsets, state)


_launch_forward = Launcher(_lightning_forward)


def _forward(x, slopes, initial, table, segment, split_rows, num_added, num_sequences, silu, want_state, special):
    T, H, C = x.shape
    K = C // 3
    o = x.new_empty((T, H, K))
    state = x.new_empty((num_sequences, H, K, K), dtype=torch.float32) if want_state else None
    added = add_segments(x, None, slopes, table, segment, split_rows, num_added, silu, False)
    if special:
        from . import lightning_hopper_triton

        chosen = launch_config("lightning_specialized", x)
        lightning_hopper_triton.forward(x, slopes, initial, added, table, o, state, segment, silu, chosen)
    else:  # asked for only where they are used, or tuning would measure them for nothing
        config = launch_config("lightning_forward", x)
        width = width_of(config, x)
        _launch_forward(
            (table.shape[0] * H * (K // width), 1, 1), (x, slopes, initial, added, table, o, state), (H, segment),
            (K, width, config["chunk"], *constants(x, silu)), **options(config),
        )  # fmt: skip
    none = x.new_empty(0, dtype=torch.float32)
    return o, none if state is None else state, none if added is None else added


def _forward_fake(x, slopes, initial, table, segment, split_rows, num_added, num_sequences, silu, want_state, special):
    (T, H, C) = x.shape
    square = (H, C // 3, C // 3)
    return (
        x.new_empty((T, H, C // 3)),
        x.new_empty((num_sequences, *square) if want_state else 0, dtype=torch.float32),
        x.new_empty((num_added, *square) if num_added else 0, dtype=torch.float32),
    )


def _backward_fake(do, d_final, x, slopes, initial, added, table, *numbers):
    return torch.empty_like(x), x.new_empty(0 if initial is None else initial.shape, dtype=torch.float32)


def _setup_context(ctx, inputs, output):
    x, slopes, initial, table, *numbers, _, special = inputs
    ctx.save_for_backward(x, slopes, initial, output[2], table)
    ctx.numbers = *numbers, special
    ctx.mark_non_differentiable(output[2])


def _backward_of(ctx, do, d_final, _):
    x, slopes, initial, added, table = ctx.saved_tensors
    if do is None:
        do = x.new_zeros((x.shape[0], x.shape[1], x.shape[2] // 3))
    if d_final is not None:
        d_final = d_final.contiguous() if d_final.numel() else None
    dx, d_initial = backward_op(do, d_final, x, slopes, initial, added, table, *ctx.numbers)
    d_initial = d_initial.to(initial.dtype) if initial is not None and ctx.needs_input_grad[2] else None
    return dx, None, d_initial, *(None,) * 8


backward_op = Op(
    "lightning_backward(Tensor do, Tensor? d_final, Tensor x, Tensor slopes, Tensor? initial, Tensor added, "
    "Tensor table, SymInt segment, SymInt split_rows, SymInt num_added, SymInt num_sequences, "
    "bool silu, bool special) -> (Tensor, Tensor)",
    backward,
    _backward_fake,
)
op = Op(
    "lightning_attention(Tensor x, Tensor slopes, Tensor? initial, Tensor table, SymInt segment, SymInt split_rows, "
    "SymInt num_added, SymInt num_sequences, bool silu, bool want_state, bool special) -> (Tensor, Tensor, Tensor)",
    _forward,
    _forward_fake,
    _setup_context,
    _backward_of,
)
