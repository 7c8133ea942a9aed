"""Triton kernels of lightning attention on packed tokens: forward, backward, and what segments add to the state.

A sequence is cut into segments, a segment is walked in chunks of C tokens by one program a head (and a part of the
value or key channels) with the state in registers. Where sequences have several segments, one kernel first finds what
each of them adds to the state by itself, and a segment's program sums up those before it: one long sequence then fills
the chip as many short ones do. The backward pass does the same with the state's gradient, from the end.

Decays are exp of minus slope times a distance >= 0. The state decays from chunk to chunk by adding expm1(-s n) of it,
which keeps slopes of 1e-7 exact over a million tokens, where the product with a rounded exp(-s n) would drift.

Legend: T tokens, S sequences, N segments, A segment states, H heads, K head dim (keys and values), C chunk,
x = pre-activations [q | k | v] of a head, i/j rows of a chunk.
"""

import torch
import triton
import triton.language as tl

from . import tuning
from .custom_op import Launcher, Op

# Columns of the table that lightning_attention.cut_segments makes, int32.
_SEQUENCE, _FIRST, _LENGTH, _BEFORE, _AFTER, _SLOT, _TAIL, _COLUMNS = map(tl.constexpr, (0, 1, 2, 3, 4, 5, 6, 8))
_SCALARS = ["H", "seg_tokens"]


# How sigmoid is computed: PLAIN for fp32, else by approximate instructions, whose unit is what these kernels wait for:
# TANH takes one of them a value, EXP two.
PLAIN, TANH, EXP = 0, 1, 2
_PLAIN, _TANH, _EXP = tl.constexpr(PLAIN), tl.constexpr(TANH), tl.constexpr(EXP)
_TANH_PAIR = tl.constexpr("""{
    .reg .b32 h, half, zero; .reg .f32 a, b, s, t;
    mov.b32 half, 0x3f003f00; mov.b32 zero, 0x80008000;
    fma.rn.bf16x2 h, $1, half, zero;
    shl.b32 a, h, 16; and.b32 b, h, 0xffff0000;
    tanh.approx.f32 s, a; tanh.approx.f32 t, b;
    fma.rn.f32 a, a, s, a; fma.rn.f32 b, b, t, b;
    cvt.rn.bf16x2.f32 $0, b, a;
}""")
_EXP_PAIR = tl.constexpr("""{
    .reg .f32 a, b, s, t;
    shl.b32 a, $1, 16; and.b32 b, $1, 0xffff0000;
    mul.f32 s, a, 0fBFB8AA3B; mul.f32 t, b, 0fBFB8AA3B;
    ex2.approx.ftz.f32 s, s; ex2.approx.ftz.f32 t, t;
    add.f32 s, s, 0f3F800000; add.f32 t, t, 0f3F800000;
    rcp.approx.ftz.f32 s, s; rcp.approx.ftz.f32 t, t;
    mul.f32 a, a, s; mul.f32 b, b, t;
    cvt.rn.bf16x2.f32 $0, b, a;
}""")
_EXP_ONE = tl.constexpr("""{
    .reg .f32 s;
    mul.f32 s, $1, 0fBFB8AA3B; ex2.approx.ftz.f32 s, s; add.f32 s, s, 0f3F800000; rcp.approx.ftz.f32 $0, s;
}""")


@triton.jit
def _sigmoid(x, SIGMOID: tl.constexpr):
    """Of fp32 values."""
    if SIGMOID == _TANH:
        t = tl.inline_asm_elementwise("tanh.approx.f32 $0, $1;", "=f,f", [0.5 * x], tl.float32, is_pure=True, pack=1)
        return 0.5 * t + 0.5
    if SIGMOID == _EXP:
        return tl.inline_asm_elementwise(_EXP_ONE, "=f,f", [x], tl.float32, is_pure=True, pack=1)
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def _silu(x, SILU: tl.constexpr, SIGMOID: tl.constexpr, DOT: tl.constexpr, ONCE: tl.constexpr = True):
    """SiLU, rounded to DOT. ONCE: the compiler would move it behind the change of layout of each product that uses it,
    and would read a transposed operand word by word; it may not move assembly with side effects.
    """
    if SILU and SIGMOID != _PLAIN and x.dtype == tl.bfloat16:
        code: tl.constexpr = _TANH_PAIR if SIGMOID == _TANH else _EXP_PAIR
        return tl.inline_asm_elementwise(code, "=r,r", [x], dtype=tl.bfloat16, is_pure=not ONCE, pack=2)
    if SILU:
        x = x.to(tl.float32)
        x = x * _sigmoid(x, SIGMOID)
    x = x.to(DOT)
    if ONCE and DOT == tl.bfloat16:
        x = tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [x], dtype=tl.bfloat16, is_pure=False, pack=2)
    return x


@triton.jit
def _silu_backward(grad, x, SILU: tl.constexpr, SIGMOID: tl.constexpr):
    if SILU:
        x = x.to(tl.float32)
        sigmoid = _sigmoid(x, SIGMOID)
        grad *= sigmoid + x * sigmoid * (1.0 - sigmoid)
    return grad


@triton.jit
def _expm1(x):
    """For x <= 0: a series where exp(x) - 1 would cancel."""
    series = x * (1 + x * (1 / 2) * (1 + x * (1 / 3) * (1 + x * (1 / 4) * (1 + x * (1 / 5) * (1 + x * (1 / 6))))))
    return tl.where(x > -0.25, series, tl.exp(x) - 1.0)


@triton.jit
def _grow(state, a, b, slope, n, DOT: tl.constexpr):
    """exp(-slope n) state + a b. In 16 bits in place, for the sake of registers: the matrix units round towards zero,
    which a state that hardly decays feels after 100,000 tokens (see lightning_attention.LONGEST), so fp32 adds outside.
    """
    lost = state * _expm1(-slope * n.to(tl.float32))
    if DOT == tl.bfloat16:
        return tl.dot(a, b, state + lost)
    return state + tl.dot(a, b, lost, input_precision="ieee")


@triton.jit(do_not_specialize=_SCALARS)
def _lightning_added(
    x_ptr, grad_ptr, slopes_ptr, table_ptr, added_ptr, H, seg_tokens,
    K: tl.constexpr, BV: tl.constexpr, C: tl.constexpr, REVERSE: tl.constexpr, SILU: tl.constexpr,
    SIGMOID: tl.constexpr, DOT: tl.constexpr,
):  # fmt: skip
    """What a segment adds to the state at its end (k v^T), or REVERSE to the state's gradient at its start (q do^T)."""
    parts: tl.constexpr = K // BV
    pid = tl.program_id(0)
    part, h, row_ptr = pid % parts, pid // parts % H, table_ptr + (pid // (parts * H)) * _COLUMNS
    before, after = tl.load(row_ptr + _BEFORE), tl.load(row_ptr + _AFTER)
    if (before if REVERSE else after) > 0:
        first, length = tl.load(row_ptr + _FIRST).to(tl.int64), tl.load(row_ptr + _LENGTH)
        slot = tl.load(row_ptr + _SLOT).to(tl.int64) + before - (1 if REVERSE else 0)
        slope = tl.load(slopes_ptr + h).to(tl.float32)
        i, ks, vs = tl.arange(0, C), tl.arange(0, K), part * BV + tl.arange(0, BV)
        a_ptr = x_ptr + (first * H + h) * (3 * K) + (0 if REVERSE else K)
        a_stride = H * (3 * K)
        b_ptr = (grad_ptr + (first * H + h) * K) if REVERSE else (x_ptr + (first * H + h) * (3 * K) + 2 * K)
        b_stride = H * K if REVERSE else H * (3 * K)
        state = tl.zeros((K, BV), dtype=tl.float32)
        chunks = tl.cdiv(length, C)
        for c in tl.range(chunks, disable_licm=True):
            start = ((chunks - 1 - c) if REVERSE else c) * C
            n = tl.minimum(length - start, C)
            live = (i < n)[:, None]
            rows = (start + i)[:, None].to(tl.int64)
            a = _silu(tl.load(a_ptr + rows * a_stride + ks[None, :], mask=live, other=0.0), SILU, SIGMOID, DOT)
            b = tl.load(b_ptr + rows * b_stride + vs[None, :], mask=live, other=0.0)
            b = b.to(DOT) if REVERSE else _silu(b, SILU, SIGMOID, DOT)
            distance = (i + 1) if REVERSE else tl.maximum(n - 1 - i, 0)
            b = (b.to(tl.float32) * tl.exp(-slope * distance.to(tl.float32))[:, None]).to(DOT)
            state = _grow(state, tl.trans(a), b, slope, n, DOT)
        out = added_ptr + (slot * H + h) * (K * K) + ks[:, None] * K + vs[None, :]
        tl.store(out, state)


@triton.jit
def _state_before(
    state, initial_ptr, added_ptr, row_ptr, slope, h, offsets, H, seg_tokens, K: tl.constexpr
):  # fmt: skip
    """The state at a segment's start: the given one and what the segments before it added."""
    before = tl.load(row_ptr + _BEFORE)
    if initial_ptr is not None:
        sequence = tl.load(row_ptr + _SEQUENCE).to(tl.int64)
        initial = tl.load(initial_ptr + (sequence * H + h) * (K * K) + offsets).to(tl.float32)
        state = initial * tl.exp(-slope * before.to(tl.float32) * seg_tokens.to(tl.float32))
    if added_ptr is not None:
        slot = tl.load(row_ptr + _SLOT).to(tl.int64)
        for m in range(before):
            added = tl.load(added_ptr + ((slot + m) * H + h) * (K * K) + offsets)
            distance = (before - 1 - m).to(tl.float32) * seg_tokens.to(tl.float32)
            state += added * tl.exp(-slope * distance)
    return state


@triton.jit(do_not_specialize=_SCALARS)
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


@triton.jit(do_not_specialize=_SCALARS)
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


@triton.jit(do_not_specialize=_SCALARS)
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


_launch_added, _launch_forward = Launcher(_lightning_added), Launcher(_lightning_forward)
_launch_q, _launch_kv = Launcher(_lightning_backward_q), Launcher(_lightning_backward_kv)


SIGMOID_16_BITS = TANH


def _constants(x, silu: bool) -> tuple:
    """SILU, SIGMOID, DOT. The matrix units take bf16 for all 16-bit inputs: fp16 would not hold the states."""
    if x.dtype == torch.float32:
        return silu, PLAIN, tl.float32
    if not x.is_cuda:  # Triton's interpreter knows neither bf16 products nor assembly
        return silu, PLAIN, tl.float32
    return silu, SIGMOID_16_BITS, tl.bfloat16


def _options(config) -> dict:
    return {"num_warps": config["num_warps"], "num_stages": config["num_stages"]}


def _config(op, x):
    return tuning.config(op, K=x.shape[2] // 3, H=x.shape[1], T=x.shape[0], dtype=str(x.dtype)[6:])


def _width(config, x) -> int:
    """Channels of a program. In 16 bits at least 64 of 128: with 32 the forward kernel was seen to leave its tensors at
    65,536 tokens, for a reason not found yet.
    """
    K = x.shape[2] // 3
    return min(max(config["width"], 32 if x.dtype == torch.float32 else 64), K)


def _add(x, grad, slopes, table, segment, split_rows, num_added, silu, reverse):
    """(A, H, K, K) fp32: what every segment but a sequence's last (reverse: first) adds; None if none is split."""
    if not num_added:
        return None
    config, H, K = _config("lightning_added", x), x.shape[1], x.shape[2] // 3
    out = x.new_empty((num_added, H, K, K), dtype=torch.float32)
    width = _width(config, x)
    _launch_added(
        (split_rows * H * (K // width), 1, 1), (x, grad, slopes, table, out), (H, segment),
        (K, width, config["chunk"], reverse, *_constants(x, silu)), **_options(config),
    )  # fmt: skip
    return out


def _forward(x, slopes, initial, table, segment, split_rows, num_added, num_sequences, silu, want_state, special):
    (T, H, C), config = x.shape, _config("lightning_forward", x)
    K = C // 3
    o = x.new_empty((T, H, K))
    state = x.new_empty((num_sequences, H, K, K), dtype=torch.float32) if want_state else None
    added = _add(x, None, slopes, table, segment, split_rows, num_added, silu, False)
    if special:
        from . import lightning_hopper_triton

        chosen = _config("lightning_specialized", x)
        lightning_hopper_triton.forward(x, slopes, initial, added, table, o, state, segment, silu, chosen)
    else:
        width = _width(config, x)
        _launch_forward(
            (table.shape[0] * H * (K // width), 1, 1), (x, slopes, initial, added, table, o, state), (H, segment),
            (K, width, config["chunk"], *_constants(x, silu)), **_options(config),
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


def _backward(
    do, d_final, x, slopes, initial, added, table, segment, split_rows, num_added, num_sequences, silu, special
):
    H, config = x.shape[1], _config("lightning_backward_q", x)
    K, do = x.shape[2] // 3, do.contiguous()
    dx = torch.empty_like(x)
    d_initial = None if initial is None else torch.empty_like(initial, dtype=torch.float32)
    if special:
        from . import lightning_hopper_triton

        d_added = _add(x, do, slopes, table, segment, split_rows, num_added, silu, True)
        lightning_hopper_triton.backward(
            do, x, slopes, initial, added if num_added else None, d_final, d_added, table, dx, d_initial, segment,
            silu, _config("lightning_specialized", x),
        )  # fmt: skip
        return dx, x.new_empty(0, dtype=torch.float32) if d_initial is None else d_initial
    width = _width(config, x)
    _launch_q(
        (table.shape[0] * H * (K // width), 1, 1),
        (x, do, slopes, initial, added if num_added else None, table, dx), (H, segment),
        (K, width, config["chunk"], *_constants(x, silu)), **_options(config),
    )  # fmt: skip
    d_added = _add(x, do, slopes, table, segment, split_rows, num_added, silu, True)
    config = _config("lightning_backward_kv", x)
    _launch_kv(
        (table.shape[0] * H, 1, 1), (x, do, slopes, d_final, d_added, table, dx, d_initial), (H, segment),
        (K, config["chunk"], *_constants(x, silu)), **_options(config),
    )  # fmt: skip
    return dx, x.new_empty(0, dtype=torch.float32) if d_initial is None else d_initial


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
    _backward,
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
