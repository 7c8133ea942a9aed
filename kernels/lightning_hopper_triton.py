"""Lightning attention for Hopper in Gluon, forward and backward: warps with different tasks in one program.

lightning_triton.py's programs do everything in turn: load, SiLU, products, store; each waits for the one before it.
Here a program has a warp that loads tiles by tensor maps, two warpgroups that apply SiLU where they lie, in turns, and
a warpgroup that holds the state and does the products. One program then fills a multiprocessor, two programs a head
fill the chip with 64 heads, so that one sequence need not be cut and nothing is read twice.

    loader      waits for `free`, loads the tiles of a chunk -> `loaded`
    activation  waits for `loaded`, SiLU in place, and c decayed to where the state is -> `ready`
    products    waits for `ready`; scores, outputs, state -> `free`

One kernel does all four passes, each the sum out_i = sum over j of decay(i, j) (a_i . b_j) c_j with the state
sum of b_j c_j^T:
    pass    a   b   c    over
    o       q   k   v    j <= i
    dq      do  v   k    j <= i
    dk      v   do  q    j >= i, walked from the end
    dv      k   q   do   j >= i, walked from the end
and a gradient is multiplied with SiLU's derivative, e, which the activation warps make of a tile of pre-activations.

Legend: as lightning_triton.py; BV output channels of a program.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

# Named anew after Triton 3.6.
_barrier = gl.barrier if hasattr(gl, "barrier") else gl.thread_barrier
_fetch = tma.async_load if hasattr(tma, "async_load") else tma.async_copy_global_to_shared
_put = tma.async_store if hasattr(tma, "async_store") else tma.async_copy_shared_to_global
_SEQUENCE, _FIRST, _LENGTH, _BEFORE, _AFTER, _SLOT, _TAIL, _COLUMNS = map(gl.constexpr, (0, 1, 2, 3, 4, 5, 6, 8))
_SLOPES = gl.constexpr(3)  # buffers for e
_SILU = gl.constexpr("""{
    .reg .b32 h, half, zero; .reg .f32 a, b, s, t;
    mov.b32 half, 0x3f003f00; mov.b32 zero, 0x80008000;
    fma.rn.bf16x2 h, $1, half, zero;
    shl.b32 a, h, 16; and.b32 b, h, 0xffff0000;
    tanh.approx.f32 s, a; tanh.approx.f32 t, b;
    fma.rn.f32 a, a, s, a; fma.rn.f32 b, b, t, b;
    cvt.rn.bf16x2.f32 $0, b, a;
}""")
# With h = x / 2 and t = tanh(h): SiLU'(x) = 1/2 + t/2 + h/2 (1 - t^2).
_SILU_SLOPE = gl.constexpr("""{
    .reg .b32 h, half, zero; .reg .f32 a, b, s, t, u, v;
    mov.b32 half, 0x3f003f00; mov.b32 zero, 0x80008000;
    fma.rn.bf16x2 h, $1, half, zero;
    shl.b32 a, h, 16; and.b32 b, h, 0xffff0000;
    tanh.approx.f32 s, a; tanh.approx.f32 t, b;
    mul.f32 u, a, s; mul.f32 v, b, t;
    neg.f32 u, u; neg.f32 v, v;
    fma.rn.f32 a, u, s, a; fma.rn.f32 b, v, t, b;
    add.f32 a, a, s; add.f32 b, b, t;
    fma.rn.f32 a, a, 0f3F000000, 0f3F000000; fma.rn.f32 b, b, 0f3F000000, 0f3F000000;
    cvt.rn.bf16x2.f32 $0, b, a;
}""")


@gluon.jit
def _by_pairs(x, code: gl.constexpr):
    return gl.inline_asm_elementwise(code, "=r,r", [x], dtype=gl.bfloat16, is_pure=True, pack=2)


@gluon.jit
def _expm1(x):
    """For x <= 0: a series where exp(x) - 1 would cancel."""
    series = x * (1 + x * (1 / 2) * (1 + x * (1 / 3) * (1 + x * (1 / 4) * (1 + x * (1 / 5) * (1 + x * (1 / 6))))))
    return gl.where(x > -0.25, series, gl.exp(x) - 1.0)


@gluon.jit
def _load(a_desc, b_desc, c_desc, e_desc, a_bufs, b_bufs, c_bufs, e_bufs, loaded, e_loaded, free, first, length, a_at,
          b_at, c_at, e_at, C: gl.constexpr, REVERSE: gl.constexpr, SLOPE: gl.constexpr,
          STAGES: gl.constexpr):  # fmt: skip
    lag: gl.constexpr = STAGES - _SLOPES if STAGES > _SLOPES else 0  # e is needed last and has fewer buffers
    chunks = gl.maximum(gl.cdiv(length, C), 1)
    for c in range(chunks + (lag if SLOPE else 0)):
        if c < chunks:
            s = c % STAGES
            row = first + ((chunks - 1 - c) if REVERSE else c) * C
            mbarrier.wait(free.index(s), (c // STAGES & 1) ^ 1)
            bar = loaded.index(s)
            mbarrier.expect(bar, a_desc.block_type.nbytes + b_desc.block_type.nbytes + c_desc.block_type.nbytes)
            _fetch(a_desc, [row, a_at], bar, a_bufs.index(s))
            _fetch(b_desc, [row, b_at], bar, b_bufs.index(s))
            _fetch(c_desc, [row, c_at], bar, c_bufs.index(s))
        if SLOPE:
            m = c - lag
            if m >= 0:
                if m >= _SLOPES:
                    mbarrier.wait(free.index((m - _SLOPES) % STAGES), (m - _SLOPES) // STAGES & 1)
                bar = e_loaded.index(m % _SLOPES)
                mbarrier.expect(bar, e_desc.block_type.nbytes)
                row = first + ((chunks - 1 - m) if REVERSE else m) * C
                _fetch(e_desc, [row, e_at], bar, e_bufs.index(m % _SLOPES))


@gluon.jit
def _activate(a_bufs, b_bufs, c_bufs, e_bufs, d_bufs, loaded, e_loaded, ready, free, length, slope,
              TURN: gl.constexpr, K: gl.constexpr, BV: gl.constexpr, C: gl.constexpr, REVERSE: gl.constexpr,
              SILU_A: gl.constexpr, SILU_B: gl.constexpr, SILU_C: gl.constexpr, SLOPE: gl.constexpr,
              STAGES: gl.constexpr):  # fmt: skip
    wide: gl.constexpr = gl.BlockedLayout([1, 8], [256 // K, K // 8], [4, 1], [1, 0])
    narrow: gl.constexpr = gl.BlockedLayout([1, 8], [256 // BV, BV // 8], [4, 1], [1, 0])
    i_wide = gl.arange(0, C, layout=gl.SliceLayout(1, wide))
    i = gl.arange(0, C, layout=gl.SliceLayout(1, narrow))
    chunks = gl.maximum(gl.cdiv(length, C), 1)
    for c in range(TURN, chunks, 2):
        s = c % STAGES
        n = gl.minimum(length - ((chunks - 1 - c) if REVERSE else c) * C, C)
        mbarrier.wait(loaded.index(s), c // STAGES & 1)
        a_buf, b_buf, c_buf = a_bufs.index(s), b_bufs.index(s), c_bufs.index(s)
        # All loads before all stores: a barrier between them, and only one.
        a = a_buf.load(wide) if SILU_A else 0
        b = b_buf.load(wide) if SILU_B else 0
        v = c_buf.load(narrow)
        if SILU_A:
            a_buf.store(_by_pairs(a, _SILU))
        if SILU_B:
            b_buf.store(_by_pairs(b, _SILU))
        if SILU_C:
            v = _by_pairs(v, _SILU)
            c_buf.store(v)
        if n < C:  # what follows are the next sequence's rows
            v = gl.where((i < n)[:, None], v, gl.zeros_like(v))
            c_buf.store(v)
            w = b_buf.load(wide)
            b_buf.store(gl.where((i_wide < n)[:, None], w, gl.zeros_like(w)))
        distance = (i + 1) if REVERSE else gl.maximum(n - 1 - i, 0)
        decay = gl.exp(-slope * distance.to(gl.float32))
        d = (v.to(gl.float32) * decay[:, None]).to(gl.bfloat16)
        if SLOPE:
            mbarrier.wait(e_loaded.index(c % _SLOPES), c // _SLOPES & 1)
            e_buf = e_bufs.index(c % _SLOPES)
            e_buf.store(_by_pairs(e_buf.load(narrow), _SILU_SLOPE))
        if c >= 2:
            mbarrier.wait(free.index((c - 2) % STAGES), (c - 2) // STAGES & 1)
        d_bufs.index(TURN).store(d)
        fence_async_shared()
        mbarrier.arrive(ready.index(s), count=1)


@gluon.jit
def _offsets(part, K: gl.constexpr, BV: gl.constexpr, TRANSPOSED: gl.constexpr, layout: gl.constexpr):
    ks = gl.arange(0, K, layout=gl.SliceLayout(1, layout))
    vs = part * BV + gl.arange(0, BV, layout=gl.SliceLayout(0, layout))
    return (ks[:, None] + vs[None, :] * K) if TRANSPOSED else (ks[:, None] * K + vs[None, :])


@gluon.jit
def _products(state, o_desc, o_ptr, a_bufs, b_bufs, c_bufs, e_bufs, d_bufs, o_buf, state_buf, ready, free, first,
              length, o_at, o_stride, slope, BV: gl.constexpr, C: gl.constexpr, REVERSE: gl.constexpr,
              SLOPE: gl.constexpr, STAGES: gl.constexpr, score_layout: gl.constexpr,
              o_layout: gl.constexpr):  # fmt: skip
    """A chunk's scores are begun before the last one's outputs are done, so that the tensor cores find work."""
    i = gl.arange(0, C, layout=gl.SliceLayout(1, score_layout))
    j = gl.arange(0, C, layout=gl.SliceLayout(0, score_layout))
    distance = (j[None, :] - i[:, None]) if REVERSE else (i[:, None] - j[None, :])
    within = gl.where(distance >= 0, gl.exp(-slope * gl.maximum(distance, 0).to(gl.float32)), 0.0)
    rows = gl.arange(0, C, layout=gl.SliceLayout(1, o_layout))
    vs = gl.arange(0, BV, layout=gl.SliceLayout(0, o_layout))
    no_scores = gl.zeros([C, C], gl.float32, layout=score_layout)
    nothing = gl.zeros([C, BV], gl.float32, layout=o_layout)
    p_layout: gl.constexpr = gl.DotOperandLayout(operand_index=0, parent=o_layout, k_width=2)
    chunks = gl.maximum(gl.cdiv(length, C), 1)
    state_buf.store(state.to(gl.bfloat16))
    fence_async_shared()
    _barrier()
    n = gl.minimum(length - ((chunks - 1) * C if REVERSE else 0), C)
    state += state * _expm1(-slope * n.to(gl.float32))
    mbarrier.wait(ready.index(0), 0)
    scores = warpgroup_mma(a_bufs.index(0), b_bufs.index(0).permute((1, 0)), no_scores, use_acc=False, is_async=True)
    for c in range(chunks):
        s = c % STAGES
        n = gl.minimum(length - ((chunks - 1 - c) if REVERSE else c) * C, C)
        o = warpgroup_mma(a_bufs.index(s), state_buf, nothing, use_acc=False, is_async=True)
        grown = warpgroup_mma(b_bufs.index(s).permute((1, 0)), d_bufs.index(c % 2), state, is_async=True)
        scores = warpgroup_mma_wait(num_outstanding=2, deps=(scores,))
        from_state = gl.exp(-slope * (gl.maximum(n - 1 - rows, 0) if REVERSE else rows + 1).to(gl.float32))
        p = gl.convert_layout((scores * within).to(gl.bfloat16), p_layout)
        u = gl.minimum(c + 1, chunks - 1)
        t = u % STAGES
        mbarrier.wait(ready.index(t), u // STAGES & 1)
        scores = warpgroup_mma(a_bufs.index(t), b_bufs.index(t).permute((1, 0)), no_scores, use_acc=False,
                               is_async=True)  # fmt: skip
        o = warpgroup_mma_wait(num_outstanding=2, deps=(o,))
        o = warpgroup_mma(p, c_bufs.index(s), o * from_state[:, None], is_async=True)
        state = warpgroup_mma_wait(num_outstanding=2, deps=(grown,))
        tma.store_wait(0)
        _barrier()  # all warps have read the old state, and the last outputs are on their way
        state_buf.store(state.to(gl.bfloat16))
        following = (chunks - 2 - c) if REVERSE else c + 1
        n_next = gl.where(c + 1 < chunks, gl.minimum(length - following * C, C), 0)
        state += state * _expm1(-slope * n_next.to(gl.float32))
        o = warpgroup_mma_wait(num_outstanding=0, deps=(o,))
        if SLOPE:
            o *= e_bufs.index(c % _SLOPES).load(o_layout).to(gl.float32)
        whole = n == C
        if whole:
            o_buf.store(o.to(gl.bfloat16))
        fence_async_shared()
        _barrier()
        mbarrier.arrive(free.index(s), count=1)
        begin = first + ((chunks - 1 - c) if REVERSE else c) * C
        if whole:
            _put(o_desc, [begin, o_at], o_buf)
        else:
            at = (begin + rows).to(gl.int64)[:, None] * o_stride + o_at + vs[None, :]
            gl.store(o_ptr + at, o.to(gl.bfloat16), mask=(rows < n)[:, None])
    warpgroup_mma_wait(num_outstanding=0, deps=(scores,))
    tma.store_wait(0)
    return (state,)


_SCALARS = ["H", "seg_tokens", "a_head", "b_head", "c_head", "o_head", "a_at", "b_at", "c_at", "o_at"]


@gluon.jit(do_not_specialize=_SCALARS)
def _lightning_pass(
    a_desc, b_desc, c_desc, e_desc, o_desc, o_ptr, slopes_ptr, initial_ptr, added_ptr, table_ptr, final_ptr, H,
    seg_tokens, a_head, b_head, c_head, o_head, a_at, b_at, c_at, o_at,
    K: gl.constexpr, BV: gl.constexpr, C: gl.constexpr, REVERSE: gl.constexpr, TRANSPOSED: gl.constexpr,
    SILU_A: gl.constexpr, SILU_B: gl.constexpr, SILU_C: gl.constexpr, SLOPE: gl.constexpr, STAGES: gl.constexpr,
    REGISTERS: gl.constexpr,
):  # fmt: skip
    """One pass over one segment's tokens, one head, BV output channels. Columns: head * x_head + x_at, e as o.

    TRANSPOSED: states in memory are [c channel, b channel]. The final state is stored after a sequence's last segment,
    REVERSE: after its first.
    """
    parts: gl.constexpr = K // BV
    pid = gl.program_id(0)
    part, h, row_ptr = pid % parts, pid // parts % H, table_ptr + (pid // (parts * H)) * _COLUMNS
    first, length = gl.load(row_ptr + _FIRST), gl.load(row_ptr + _LENGTH)
    before, after = gl.load(row_ptr + _BEFORE), gl.load(row_ptr + _AFTER)
    sequence, slot = gl.load(row_ptr + _SEQUENCE).to(gl.int64), gl.load(row_ptr + _SLOT).to(gl.int64)
    slope = gl.load(slopes_ptr + h).to(gl.float32)

    score_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, C, 16])
    o_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BV, 16])
    offsets = _offsets(part, K, BV, TRANSPOSED, o_layout)
    state = gl.zeros([K, BV], gl.float32, layout=o_layout)
    if initial_ptr is not None:
        given = gl.load(initial_ptr + (sequence * H + h) * (K * K) + offsets).to(gl.float32)
        if REVERSE:
            state = given * gl.exp(-slope * gl.load(row_ptr + _TAIL).to(gl.float32))
        else:
            state = given * gl.exp(-slope * before.to(gl.float32) * seg_tokens.to(gl.float32))
    if added_ptr is not None:
        slot += before if REVERSE else 0
        others = after if REVERSE else before
        for m in range(others):
            added = gl.load(added_ptr + ((slot + m) * H + h) * (K * K) + offsets)
            between = (m if REVERSE else before - 1 - m).to(gl.float32)
            state += added * gl.exp(-slope * between * seg_tokens.to(gl.float32))

    a_bufs = gl.allocate_shared_memory(gl.bfloat16, [STAGES, C, K], a_desc.layout)
    b_bufs = gl.allocate_shared_memory(gl.bfloat16, [STAGES, C, K], b_desc.layout)
    c_bufs = gl.allocate_shared_memory(gl.bfloat16, [STAGES, C, BV], c_desc.layout)
    d_bufs = gl.allocate_shared_memory(gl.bfloat16, [2, C, BV], c_desc.layout)
    e_bufs = d_bufs
    if SLOPE:
        e_bufs = gl.allocate_shared_memory(gl.bfloat16, [_SLOPES, C, BV], c_desc.layout)
    o_buf = gl.allocate_shared_memory(gl.bfloat16, [C, BV], o_desc.layout)
    state_layout: gl.constexpr = gl.NVMMASharedLayout.get_default_for([K, BV], gl.bfloat16)
    state_buf = gl.allocate_shared_memory(gl.bfloat16, [K, BV], state_layout)
    loaded = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    e_loaded = gl.allocate_shared_memory(gl.int64, [_SLOPES, 1], mbarrier.MBarrierLayout())
    ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for s in gl.static_range(STAGES):
        mbarrier.init(loaded.index(s), count=1)
        mbarrier.init(ready.index(s), count=1)
        mbarrier.init(free.index(s), count=1)
    for s in gl.static_range(_SLOPES):
        mbarrier.init(e_loaded.index(s), count=1)

    c_at += h * c_head + part * BV
    o_at += h * o_head + part * BV
    (state,) = gl.warp_specialize(
        [
            (_products, (state, o_desc, o_ptr, a_bufs, b_bufs, c_bufs, e_bufs, d_bufs, o_buf, state_buf, ready, free,
                         first, length, o_at, H * o_head, slope, BV, C, REVERSE, SLOPE, STAGES, score_layout,
                         o_layout)),
            (_activate, (a_bufs, b_bufs, c_bufs, e_bufs, d_bufs, loaded, e_loaded, ready, free, length, slope, 0, K,
                         BV, C, REVERSE, SILU_A, SILU_B, SILU_C, SLOPE, STAGES)),
            (_activate, (a_bufs, b_bufs, c_bufs, e_bufs, d_bufs, loaded, e_loaded, ready, free, length, slope, 1, K,
                         BV, C, REVERSE, SILU_A, SILU_B, SILU_C, SLOPE, STAGES)),
            (_load, (a_desc, b_desc, c_desc, e_desc, a_bufs, b_bufs, c_bufs, e_bufs, loaded, e_loaded, free, first,
                     length, h * a_head + a_at, h * b_head + b_at, c_at, o_at, C, REVERSE, SLOPE, STAGES)),
        ],
        [4, 4, 1], [REGISTERS, REGISTERS, 24],
    )  # fmt: skip
    if final_ptr is not None:
        if (before if REVERSE else after) == 0:
            gl.store(final_ptr + (sequence * H + h) * (K * K) + _offsets(part, K, BV, TRANSPOSED, o_layout), state)


_CHUNK = 64


def _map(tensor, columns):
    """A tensor map over (T, H, C), read in chunks of so many columns of (T, H * C)."""
    if tensor.data_ptr() % 16:  # a view that begins in the middle of what a map can address
        tensor = tensor.clone()
    layout = gl.NVMMASharedLayout.get_default_for([_CHUNK, columns], gl.bfloat16)
    width = tensor.shape[1] * tensor.shape[2]
    return TensorDescriptor(tensor, [tensor.shape[0], width], [width, 1], [_CHUNK, columns], layout)


def _run(a, b, c, out, slopes, initial, added, table, final, segment, silu, reverse, transposed, slope_of, config):
    """a, b, c, out: (tensor (T, H, C), its first column within a head). `slope_of`: pre-activations, where `out` is."""
    (a, a_at), (b, b_at), (c, c_at), (out, o_at) = a, b, c, out
    H, K, BV = slopes.shape[0], 128, config["width"]
    activated = [silu and t.shape[2] == 3 * K for t in (a, b, c)]
    slope = silu and slope_of is not None
    c_map = _map(c, BV)
    _lightning_pass[(table.shape[0] * H * (K // BV),)](
        _map(a, K), _map(b, K), c_map, _map(slope_of, BV) if slope else c_map, _map(out, BV), out, slopes, initial,
        added, table, final, H, segment, a.shape[2], b.shape[2], c.shape[2], out.shape[2], a_at, b_at, c_at, o_at,
        K=K, BV=BV, C=_CHUNK, REVERSE=reverse, TRANSPOSED=transposed, SILU_A=activated[0], SILU_B=activated[1],
        SILU_C=activated[2], SLOPE=slope, STAGES=config["stages"],
        REGISTERS=config["registers"], num_warps=4, maxnreg=128,
    )  # fmt: skip


def forward(x, slopes, initial, added, table, o, state, segment, silu, config):
    """Fill `o` (T, H, K) and, unless None, `state` (S, H, K, K), as lightning_triton._lightning_forward does."""
    _run((x, 0), (x, 128), (x, 256), (o, 0), slopes, initial, added, table, state, segment, silu, False, False, None,
         config)  # fmt: skip


def backward(do, x, slopes, initial, added, d_final, d_added, table, dx, d_initial, segment, silu, config):
    """Fill `dx` (T, H, 3K) and, unless None, `d_initial` (S, H, K, K)."""
    q, k, v, grad = (x, 0), (x, 128), (x, 256), (do, 0)
    _run(grad, v, k, (dx, 0), slopes, initial, added, table, None, segment, silu, False, True, x, config)
    _run(v, grad, q, (dx, 128), slopes, d_final, d_added, table, None, segment, silu, True, True, x, config)
    _run(k, q, grad, (dx, 256), slopes, d_final, d_added, table, d_initial, segment, silu, True, False, x, config)
