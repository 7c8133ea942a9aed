"""What the Triton kernels of lightning attention share: SiLU as they load, the state's growth, what segments add to it.

Decays are exp of minus slope times a distance >= 0. The state decays from chunk to chunk by adding expm1(-s n) of it,
which keeps slopes of 1e-7 exact over a million tokens, where the product with a rounded exp(-s n) would drift.

Legend: as lightning_triton.py.
"""

import torch
import triton
import triton.language as tl

from . import tuning
from .custom_op import Launcher

# Columns of the table that lightning_plan.cut_segments makes, int32.
_SEQUENCE, _FIRST, _LENGTH, _BEFORE, _AFTER, _SLOT, _TAIL, _COLUMNS = map(tl.constexpr, (0, 1, 2, 3, 4, 5, 6, 8))
SCALARS = ["H", "seg_tokens"]

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
    which a state that hardly decays feels after 100,000 tokens (see lightning_tuning.LONGEST), so fp32 adds outside.
    """
    lost = state * _expm1(-slope * n.to(tl.float32))
    if DOT == tl.bfloat16:
        return tl.dot(a, b, state + lost)
    return state + tl.dot(a, b, lost, input_precision="ieee")


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


@triton.jit(do_not_specialize=SCALARS)
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


_launch_added = Launcher(_lightning_added)

SIGMOID_16_BITS = TANH


def constants(x, silu: bool) -> tuple:
    """SILU, SIGMOID, DOT. The matrix units take bf16 for all 16-bit inputs: fp16 would not hold the states."""
    if x.dtype == torch.float32:
        return silu, PLAIN, tl.float32
    if not x.is_cuda:  # Triton's interpreter knows neither bf16 products nor assembly
        return silu, PLAIN, tl.float32
    return silu, SIGMOID_16_BITS, tl.bfloat16


def options(config) -> dict:
    return {"num_warps": config["num_warps"], "num_stages": config["num_stages"]}


def launch_config(op, x):
    return tuning.config(op, K=x.shape[2] // 3, H=x.shape[1], T=x.shape[0], dtype=str(x.dtype)[6:])


def width_of(config, x) -> int:
    """Channels of a program. In 16 bits at least 64 of 128: with 32 the forward kernel was seen to leave its tensors at
    65,536 tokens, for a reason not found yet.
    """
    K = x.shape[2] // 3
    return min(max(config["width"], 32 if x.dtype == torch.float32 else 64), K)


def add_segments(x, grad, slopes, table, segment, split_rows, num_added, silu, reverse):
    """(A, H, K, K) fp32: what every segment but a sequence's last (reverse: first) adds; None if none is split."""
    if not num_added:
        return None
    config, H, K = launch_config("lightning_added", x), x.shape[1], x.shape[2] // 3
    out = x.new_empty((num_added, H, K, K), dtype=torch.float32)
    width = width_of(config, x)
    _launch_added(
        (split_rows * H * (K // width), 1, 1), (x, grad, slopes, table, out), (H, segment),
        (K, width, config["chunk"], reverse, *constants(x, silu)), **options(config),
    )  # fmt: skip
    return out
