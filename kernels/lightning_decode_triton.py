"""Triton kernel of the lightning decode step: a part of one state is read once, updated in registers and written once.

Legend: T tokens, S sequences, N state slots, H heads, K head dim (keys and values).
"""

import triton
import triton.language as tl

from . import tuning
from .custom_op import Launcher, Op
from .lightning_parts_triton import _PLAIN, _expm1, _silu


@triton.jit(do_not_specialize=["H"])
def _lightning_decode(
    x_ptr, slopes_ptr, slots_ptr, starts_ptr, counts_ptr, states_ptr, o_ptr, after_ptr, H,
    K: tl.constexpr, BV: tl.constexpr, SILU: tl.constexpr, UPDATE: tl.constexpr, LOAD: tl.constexpr,
    STORE: tl.constexpr,
):  # fmt: skip
    """One sequence's tokens, one head, BV value channels; slot -1 is padding: output zero, no state touched.

    LOAD and STORE: what the caches are told of the state.
    """
    parts: tl.constexpr = K // BV
    pid = tl.program_id(0)
    part, h, sequence = pid % parts, pid // parts % H, pid // (parts * H)
    slot = tl.load(slots_ptr + sequence).to(tl.int64)
    ks, vs = tl.arange(0, K), part * BV + tl.arange(0, BV)
    if starts_ptr is None:
        begin, end = sequence.to(tl.int64), sequence.to(tl.int64) + 1
    else:
        begin, end = tl.load(starts_ptr + sequence).to(tl.int64), tl.load(starts_ptr + sequence + 1).to(tl.int64)
    if slot < 0:
        for t in range(begin, end):
            tl.store(o_ptr + (t * H + h) * K + vs, tl.zeros((BV,), dtype=o_ptr.dtype.element_ty))
    else:
        offsets = ks[:, None] * K + vs[None, :]
        state_ptrs = states_ptr + (slot * H + h) * (K * K) + offsets
        state = tl.load(state_ptrs, eviction_policy=LOAD)
        lost = _expm1(-tl.load(slopes_ptr + h).to(tl.float32))  # 1 + lost would be rounded where slopes are 1e-7
        if counts_ptr is not None:
            end = tl.minimum(end, begin + tl.load(counts_ptr + sequence).to(tl.int64))
        for t in range(begin, end):
            x_ptrs = x_ptr + (t * H + h) * (3 * K)
            q = _silu(tl.load(x_ptrs + ks), SILU, _PLAIN, tl.float32)
            k = _silu(tl.load(x_ptrs + K + ks), SILU, _PLAIN, tl.float32)
            v = _silu(tl.load(x_ptrs + 2 * K + vs), SILU, _PLAIN, tl.float32)
            state += state * lost + k[:, None] * v[None, :]
            o = tl.sum(q[:, None] * state, axis=0)
            tl.store(o_ptr + (t * H + h) * K + vs, o.to(o_ptr.dtype.element_ty))
            if after_ptr is not None:
                tl.store(after_ptr + (t * H + h) * (K * K) + offsets, state)
        if UPDATE:
            tl.store(state_ptrs, state, cache_modifier=STORE)


_launch = Launcher(_lightning_decode)


def _decode(x, states, slots, slopes, starts, counts, after, silu, update):
    (T, H, C), S = x.shape, slots.shape[0]
    K = C // 3
    o = x.new_empty((T, H, K)) if counts is None else x.new_zeros((T, H, K))
    config = tuning.config("lightning_decode", S=S, H=H, K=K)
    width = min(config["width"], K)
    hints = ("evict_first", ".cs") if config["streamed"] and starts is None else ("", "")  # a draft's is read again
    _launch(
        (S * H * (K // width), 1, 1), (x, slopes, slots, starts, counts, states, o, after), (H,),
        (K, width, silu, update, *hints), num_warps=config["num_warps"],
    )  # fmt: skip
    return o


def _fake(x, states, slots, slopes, starts, counts, after, silu, update):
    T, H, C = x.shape
    return x.new_empty((T, H, C // 3))


op = Op(
    "lightning_decode(Tensor x, Tensor(a!) states, Tensor slots, Tensor slopes, Tensor? starts, Tensor? counts, "
    "Tensor(b!)? after, bool silu, bool update) -> Tensor",
    _decode,
    _fake,
)
