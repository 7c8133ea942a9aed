"""Triton kernels of lightning attention's backward pass: one walks forward for q, one from the end for k and v.

The gradients of q, k and v need the same products as the outputs, with do in the place of one of them; the state's
gradient flows from a sequence's end to its start.

Legend: as lightning_triton.py.
"""

import torch
import triton
import triton.language as tl

from .custom_op import Launcher
from .lightning_parts_triton import (
    _AFTER,
    _BEFORE,
    _COLUMNS,
    _FIRST,
    _LENGTH,
    _SEQUENCE,
    _SLOT,
    _TAIL,
    SCALARS,
    _grow,
    _silu,
    _silu_backward,
    _state_before,
    add_segments,
    constants,
    launch_config,
    options,
    width_of,
)


@triton.jit(do_not_specialize=SCALARS)
def _lightning_backward_q(
    x_ptr, grad_ptr, slopes_ptr, initial_ptr, added_ptr, table_ptr, dx_ptr, H, seg_tokens,
    K: tl.constexpr, BK: tl.constexpr, C: tl.constexpr, SILU: tl.constexpr, SIGMOID: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """d(q pre-activation) of one segment's tokens, one head, BK key channels: the forward walk, contracted over v."""
    parts: tl.constexpr = K // BK
    pid = tl.program_id(0)
    part, h, row_ptr = pid % parts, pid // parts % H, table_ptr + (pid // (parts * H)) * _COLUMNS
    first, length = tl.load(row_ptr + _FIRST).to(tl.int64), tl.load(row_ptr + _LENGTH)
    slope = tl.load(slopes_ptr + h).to(tl.float32)
    i, ks, vs = tl.arange(0, C), part * BK + tl.arange(0, BK), tl.arange(0, K)
    offsets = ks[:, None] * K + vs[None, :]
    state = tl.zeros((BK, K), dtype=tl.float32)
    state = _state_before(state, initial_ptr, added_ptr, row_ptr, slope, h, offsets, H, seg_tokens, K)

    distance = i[:, None] - i[None, :]
    within = tl.where(distance >= 0, tl.exp(-slope * tl.maximum(distance, 0).to(tl.float32)), 0.0)
    q_decay = tl.exp(-slope * (i + 1).to(tl.float32))[:, None]
    x_ptr += (first * H + h) * (3 * K)
    dx_ptr += (first * H + h) * (3 * K)
    grad_ptr += (first * H + h) * K
    for start in tl.range(0, length, C, disable_licm=True):
        n = tl.minimum(length - start, C)
        live = (i < n)[:, None]
        rows = (start + i)[:, None].to(tl.int64)
        q_offsets = rows * (H * (3 * K)) + ks[None, :]
        v_offsets = rows * (H * (3 * K)) + 2 * K + vs[None, :]
        k = _silu(tl.load(x_ptr + q_offsets + K, mask=live, other=0.0), SILU, SIGMOID, DOT)
        v = _silu(tl.load(x_ptr + v_offsets, mask=live, other=0.0), SILU, SIGMOID, DOT)
        do = tl.load(grad_ptr + rows * (H * K) + vs[None, :], mask=live, other=0.0).to(DOT)
        scores = tl.dot(do, tl.trans(v), input_precision="ieee") * within
        dq = tl.dot(do, tl.trans(state.to(DOT)), input_precision="ieee") * q_decay
        dq = tl.dot(scores.to(DOT), k, dq, input_precision="ieee")
        q = tl.load(x_ptr + q_offsets, mask=live, other=0.0)
        tl.store(dx_ptr + q_offsets, _silu_backward(dq, q, SILU, SIGMOID).to(dx_ptr.dtype.element_ty), mask=live)
        k_decay = tl.exp(-slope * tl.maximum(n - 1 - i, 0).to(tl.float32))
        v = (v.to(tl.float32) * k_decay[:, None]).to(DOT)
        state = _grow(state, tl.trans(k), v, slope, n, DOT)


@triton.jit(do_not_specialize=SCALARS)
def _lightning_backward_kv(
    x_ptr, grad_ptr, slopes_ptr, d_final_ptr, added_ptr, table_ptr, dx_ptr, d_initial_ptr, H, seg_tokens,
    K: tl.constexpr, C: tl.constexpr, SILU: tl.constexpr, SIGMOID: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """d(k, v pre-activations) of one segment's tokens, one head, walked from the end with the state's gradient."""
    pid = tl.program_id(0)
    h, row_ptr = pid % H, table_ptr + (pid // H) * _COLUMNS
    first, length = tl.load(row_ptr + _FIRST).to(tl.int64), tl.load(row_ptr + _LENGTH)
    sequence = tl.load(row_ptr + _SEQUENCE).to(tl.int64)
    before = tl.load(row_ptr + _BEFORE)
    slope = tl.load(slopes_ptr + h).to(tl.float32)
    i, ks = tl.arange(0, C), tl.arange(0, K)
    offsets = ks[:, None] * K + ks[None, :]
    d_state = tl.zeros((K, K), dtype=tl.float32)
    if d_final_ptr is not None:
        tail = tl.load(row_ptr + _TAIL).to(tl.float32)
        d_state = tl.load(d_final_ptr + (sequence * H + h) * (K * K) + offsets).to(tl.float32) * tl.exp(-slope * tail)
    if added_ptr is not None:
        slot = tl.load(row_ptr + _SLOT).to(tl.int64) + before  # of the segment after this one
        for m in range(tl.load(row_ptr + _AFTER)):
            added = tl.load(added_ptr + ((slot + m) * H + h) * (K * K) + offsets)
            d_state += added * tl.exp(-slope * tl.cast(m, tl.float32) * seg_tokens.to(tl.float32))

    distance = i[None, :] - i[:, None]  # transposed: rows are keys, columns are queries
    within = tl.where(distance >= 0, tl.exp(-slope * tl.maximum(distance, 0).to(tl.float32)), 0.0)
    q_decay = tl.exp(-slope * (i + 1).to(tl.float32))[:, None]
    x_ptr += (first * H + h) * (3 * K)
    dx_ptr += (first * H + h) * (3 * K)
    grad_ptr += (first * H + h) * K
    chunks = tl.cdiv(length, C)
    for c in tl.range(chunks, disable_licm=True):
        start = (chunks - 1 - c) * C
        n = tl.minimum(length - start, C)
        live = (i < n)[:, None]
        rows = (start + i)[:, None].to(tl.int64)
        x_offsets = rows * (H * (3 * K)) + ks[None, :]
        q = _silu(tl.load(x_ptr + x_offsets, mask=live, other=0.0), SILU, SIGMOID, DOT)
        k = _silu(tl.load(x_ptr + x_offsets + K, mask=live, other=0.0), SILU, SIGMOID, DOT)
        v = _silu(tl.load(x_ptr + x_offsets + 2 * K, mask=live, other=0.0), SILU, SIGMOID, DOT)
        do = tl.load(grad_ptr + rows * (H * K) + ks[None, :], mask=live, other=0.0).to(DOT)
        k_decay = tl.exp(-slope * tl.maximum(n - 1 - i, 0).to(tl.float32))[:, None]
        low = d_state.to(DOT)

        scores = tl.dot(v, tl.trans(do), input_precision="ieee") * within
        dk = tl.dot(v, tl.trans(low), input_precision="ieee") * k_decay
        dk = tl.dot(scores.to(DOT), q, dk, input_precision="ieee")
        x = tl.load(x_ptr + x_offsets + K, mask=live, other=0.0)
        dk = _silu_backward(dk, x, SILU, SIGMOID)
        tl.store(dx_ptr + x_offsets + K, dk.to(dx_ptr.dtype.element_ty), mask=live)

        scores = tl.dot(k, tl.trans(q), input_precision="ieee") * within
        dv = tl.dot(k, low, input_precision="ieee") * k_decay
        dv = tl.dot(scores.to(DOT), do, dv, input_precision="ieee")
        x = tl.load(x_ptr + x_offsets + 2 * K, mask=live, other=0.0)
        dv = _silu_backward(dv, x, SILU, SIGMOID)
        tl.store(dx_ptr + x_offsets + 2 * K, dv.to(dx_ptr.dtype.element_ty), mask=live)

        do = (do.to(tl.float32) * q_decay).to(DOT)
        d_state = _grow(d_state, tl.trans(q), do, slope, n, DOT)
    if d_initial_ptr is not None:
        if before == 0:
            tl.store(d_initial_ptr + (sequence * H + h) * (K * K) + offsets, d_state)


_launch_q, _launch_kv = Launcher(_lightning_backward_q), Launcher(_lightning_backward_kv)


def backward(
    do, d_final, x, slopes, initial, added, table, segment, split_rows, num_added, num_sequences, silu, special
):
    H, K, do = x.shape[1], x.shape[2] // 3, do.contiguous()
    dx = torch.empty_like(x)
    d_initial = None if initial is None else torch.empty_like(initial, dtype=torch.float32)
    if special:
        from . import lightning_hopper_triton

        d_added = add_segments(x, do, slopes, table, segment, split_rows, num_added, silu, True)
        lightning_hopper_triton.backward(
            do, x, slopes, initial, added if num_added else None, d_final, d_added, table, dx, d_initial, segment,
            silu, launch_config("lightning_specialized", x),
        )  # fmt: skip
        return dx, x.new_empty(0, dtype=torch.float32) if d_initial is None else d_initial
    config = launch_config("lightning_backward_q", x)
    width = width_of(config, x)
    _launch_q(
        (table.shape[0] * H * (K // width), 1, 1),
        (x, do, slopes, initial, added if num_added else None, table, dx), (H, segment),
        (K, width, config["chunk"], *constants(x, silu)), **options(config),
    )  # fmt: skip
    d_added = add_segments(x, do, slopes, table, segment, split_rows, num_added, silu, True)
    config = launch_config("lightning_backward_kv", x)
    _launch_kv(
        (table.shape[0] * H, 1, 1), (x, do, slopes, d_final, d_added, table, dx, d_initial), (H, segment),
        (K, config["chunk"], *constants(x, silu)), **options(config),
    )  # fmt: skip
    return dx, x.new_empty(0, dtype=torch.float32) if d_initial is None else d_initial
