"""Triton kernels of the router: choosing experts, sorting token-expert pairs by expert, and the gradient.

Two launches a layer (one for few tokens of a narrow model), nothing waits for the device, and the order is that of a
stable sort:
    _route    logits, softmax, top k, renormalised weights; each program's pairs per expert and sum of probabilities
    _scatter  every program adds up the counts of those before it, which gives each of its pairs a place
Imported only where a kernel is launched.

Legend: T tokens, k choices, P = T * k pairs, E experts, D model width, B programs (spans of tokens).
"""

import torch
import triton
import triton.language as tl

from .custom_op import Launcher

MAX_PROGRAMS = 1024  # each reads the counts of all


@triton.jit
def _probabilities(z, e, E):
    """Softmax over the experts that are there; `z` (T, E), one row a token."""
    z = tl.where(e[None, :] < E, z, -float("inf"))
    p = tl.exp(z - tl.max(z, axis=1)[:, None])
    return p / tl.sum(p, axis=1)[:, None]


@triton.jit
def _ranks(z, e, E, TOP: tl.constexpr):
    """Which choice of its token each expert is, or -1. NaN counts as least: TOP different ones are always found."""
    left = tl.where(z > -1e38, tl.minimum(z, 1e38), -1e38)
    left = tl.where(e[None, :] < E, left, -float("inf"))
    rank = tl.full(z.shape, -1, tl.int32)
    for j in tl.static_range(TOP):
        best = tl.argmax(left, axis=1)
        chosen = e[None, :] == best[:, None]
        rank = tl.where(chosen, j, rank)
        left = tl.where(chosen, -float("inf"), left)
    return rank


@triton.jit(do_not_specialize=["T"])
def _logits_part(
    x_ptr, gate_ptr, part_ptr, T,
    D: tl.constexpr, E: tl.constexpr, EP: tl.constexpr, BT: tl.constexpr, BK: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """What BK of the D channels give to the logits of at most BT tokens: parts (D / BK, T, E)."""
    pid = tl.program_id(0)
    e, t, d = tl.arange(0, EP), tl.arange(0, BT), pid * BK + tl.arange(0, BK)
    x = tl.load(x_ptr + t[:, None] * D + d[None, :], mask=(t < T)[:, None] & (d < D)[None, :], other=0.0)
    g = tl.load(gate_ptr + e[None, :] * D + d[:, None], mask=(e < E)[None, :] & (d < D)[:, None], other=0.0)
    if UPCAST:
        x, g = x.to(tl.float32), g.to(tl.float32)
    z = tl.dot(x, g, input_precision="ieee")
    out = part_ptr + (pid * T + t)[:, None] * E + e[None, :]
    tl.store(out, z, mask=(t < T)[:, None] & (e < E)[None, :])


@triton.jit(do_not_specialize=["T", "blocks"])
def _route(
    x_ptr, gate_ptr, part_ptr, logits_ptr, weights_ptr, indices_ptr, hist_ptr, psum_ptr,
    order_ptr, offsets_ptr, counts_ptr, balance_ptr,
    T, blocks,
    D: tl.constexpr, E: tl.constexpr, EP: tl.constexpr, TOP: tl.constexpr, BT: tl.constexpr, BK: tl.constexpr,
    PRODUCT: tl.constexpr, UPCAST: tl.constexpr, ALONE: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """PRODUCT: logits = x gate^T are computed here, or added up from PARTS. ALONE: one program, which sorts too."""
    pid = tl.program_id(0)
    e = tl.arange(0, EP)
    hist = tl.zeros([EP], tl.int32)
    psum = tl.zeros([EP], tl.float32)
    for b in range(blocks):
        t = (pid * blocks + b) * BT + tl.arange(0, BT)
        live = t < T
        t64 = t.to(tl.int64)
        if PARTS > 0:
            at = t[:, None] * E + e[None, :]
            mask = live[:, None] & (e < E)[None, :]
            z = tl.zeros([BT, EP], tl.float32)
            for part in tl.static_range(PARTS):
                z += tl.load(part_ptr + part * T * E + at, mask=mask, other=0.0)
            tl.store(logits_ptr + at, z, mask=mask)
        elif PRODUCT:
            d = tl.arange(0, BK)
            rows = tl.where(live, t64, 0)[:, None] * D
            z = tl.zeros([BT, EP], tl.float32)
            for k in range(0, D, BK):
                x = tl.load(x_ptr + rows + (k + d)[None, :], mask=(k + d < D)[None, :], other=0.0)
                g = tl.load(
                    gate_ptr + e[None, :] * D + (k + d)[:, None],
                    mask=(e < E)[None, :] & (k + d < D)[:, None],
                    other=0.0,
                )
                if UPCAST:
                    x, g = x.to(tl.float32), g.to(tl.float32)
                z = tl.dot(x, g, z, input_precision="ieee")
            tl.store(logits_ptr + t64[:, None] * E + e[None, :], z, mask=live[:, None] & (e < E)[None, :])
        else:
            z = tl.load(
                logits_ptr + t64[:, None] * E + e[None, :], mask=live[:, None] & (e < E)[None, :], other=0.0
            ).to(tl.float32)
        p = _probabilities(z, e, E)
        rank = _ranks(z, e, E, TOP)
        chosen = (rank >= 0) & live[:, None]
        share = tl.sum(tl.where(rank >= 0, p, 0.0), axis=1)
        for j in tl.static_range(TOP):
            w = tl.sum(tl.where(rank == j, p, 0.0), axis=1) / share
            i = tl.sum(tl.where(rank == j, e[None, :], 0), axis=1)
            tl.store(weights_ptr + t64 * TOP + j, w, mask=live)
            tl.store(indices_ptr + t64 * TOP + j, i.to(tl.int64), mask=live)
        psum += tl.sum(tl.where(live[:, None], p, 0.0), axis=0)
        here = chosen.to(tl.int32)
        hist += tl.sum(here, axis=0)
        if ALONE:
            begin = tl.cumsum(hist, 0) - hist
            place = begin[None, :] + tl.cumsum(here, 0) - here
            tl.store(order_ptr + place, (t[:, None] * TOP + rank), mask=chosen)
    if ALONE:
        _totals(hist, psum, offsets_ptr, counts_ptr, balance_ptr, T, e, E)
    else:
        tl.store(hist_ptr + pid * EP + e, hist)
        tl.store(psum_ptr + pid * EP + e, psum)


@triton.jit
def _totals(hist, psum, offsets_ptr, counts_ptr, balance_ptr, T, e, E):
    ends = tl.cumsum(hist, 0)
    tl.store(offsets_ptr + e, ends - hist, mask=e < E)
    tl.store(offsets_ptr + E, tl.sum(hist, axis=0))
    tl.store(counts_ptr + e, hist.to(tl.int64), mask=e < E)
    scale = E / (T.to(tl.float32) * T.to(tl.float32))
    tl.store(balance_ptr, tl.sum(tl.where(e < E, hist.to(tl.float32) * psum, 0.0), axis=0) * scale)


@triton.jit(do_not_specialize=["P", "blocks"])
def _count(
    indices_ptr, hist_ptr, psum_ptr, P, blocks,
    E: tl.constexpr, EP: tl.constexpr, TOP: tl.constexpr, BT: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """What `_route` leaves for `_scatter`, from given indices."""
    pid = tl.program_id(0)
    e = tl.arange(0, EP)
    hist = tl.zeros([EP], tl.int32)
    for b in range(blocks):
        at = tl.arange(0, BP)
        pair = (pid * blocks + b) * BT * TOP + at
        live = (at < BT * TOP) & (pair < P)
        index = tl.load(indices_ptr + pair, mask=live, other=-1).to(tl.int32)
        hist += tl.sum((index[:, None] == e[None, :]).to(tl.int32), axis=0)
    tl.store(hist_ptr + pid * EP + e, hist)
    tl.store(psum_ptr + pid * EP + e, tl.zeros([EP], tl.float32))


@triton.jit(do_not_specialize=["T", "blocks", "programs"])
def _scatter(
    indices_ptr, hist_ptr, psum_ptr, order_ptr, offsets_ptr, counts_ptr, balance_ptr, T, blocks, programs,
    E: tl.constexpr, EP: tl.constexpr, TOP: tl.constexpr, BT: tl.constexpr, BP: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    e = tl.arange(0, EP)
    r = tl.arange(0, ROWS)
    before = tl.zeros([EP], tl.int32)
    total = tl.zeros([EP], tl.int32)
    for begin in range(0, programs, ROWS):
        row = begin + r
        counts = tl.load(hist_ptr + row[:, None] * EP + e[None, :], mask=(row < programs)[:, None], other=0)
        total += tl.sum(counts, axis=0)
        before += tl.sum(tl.where((row < pid)[:, None], counts, 0), axis=0)
    if pid == 0:
        psum = tl.zeros([EP], tl.float32)
        for begin in range(0, programs, ROWS):
            row = begin + r
            mask = (row < programs)[:, None]
            psum += tl.sum(tl.load(psum_ptr + row[:, None] * EP + e[None, :], mask=mask, other=0.0), axis=0)
        _totals(total, psum, offsets_ptr, counts_ptr, balance_ptr, T, e, E)
    base = tl.cumsum(total, 0) - total + before
    for b in range(blocks):
        at = tl.arange(0, BP)
        pair = (pid * blocks + b) * BT * TOP + at
        live = (at < BT * TOP) & (pair < T * TOP)
        index = tl.load(indices_ptr + pair, mask=live, other=-1).to(tl.int32)
        hot = (index[:, None] == e[None, :]).to(tl.int32)
        place = tl.sum(hot * (base[None, :] + tl.cumsum(hot, 0) - 1), axis=1)
        tl.store(order_ptr + place, pair, mask=live & (index >= 0) & (index < E))
        base += tl.sum(hot, axis=0)


@triton.jit(do_not_specialize=["T", "blocks"])
def _route_backward(
    x_ptr, gate_ptr, logits_ptr, indices_ptr, counts_ptr, dweights_ptr, dbalance_ptr, dx_ptr, dgate_ptr,
    T, blocks,
    D: tl.constexpr, E: tl.constexpr, EP: tl.constexpr, TOP: tl.constexpr, BT: tl.constexpr, BD: tl.constexpr,
    PRODUCT: tl.constexpr, UPCAST: tl.constexpr, WEIGHTS: tl.constexpr, BALANCE: tl.constexpr,
):  # fmt: skip
    """PRODUCT: writes dx and this span's part of dgate (B, E, D); otherwise dx_ptr takes the logits' gradient."""
    pid = tl.program_id(0)
    e = tl.arange(0, EP)
    d = tl.program_id(1) * BD + tl.arange(0, BD)
    per_pair = tl.zeros([EP], tl.float32)
    if BALANCE:  # d balance / d p, the same for every token
        counts = tl.load(counts_ptr + e, mask=e < E, other=0).to(tl.float32)
        n = T.to(tl.float32)
        per_pair = counts * (tl.load(dbalance_ptr).to(tl.float32) * (E / (n * n)))
    if PRODUCT:
        g = tl.load(gate_ptr + e[:, None] * D + d[None, :], mask=(e < E)[:, None] & (d < D)[None, :], other=0.0)
        dgt = tl.zeros([BD, EP], tl.float32)
    for b in range(blocks):
        t = (pid * blocks + b) * BT + tl.arange(0, BT)
        live = t < T
        t64 = tl.where(live, t, 0).to(tl.int64)
        z = tl.load(logits_ptr + t64[:, None] * E + e[None, :], mask=(e < E)[None, :], other=0.0).to(tl.float32)
        p = _probabilities(z, e, E)
        dp = tl.zeros([BT, EP], tl.float32) + per_pair[None, :]
        if WEIGHTS:  # w_j = p_j / (sum of the chosen p)
            share = tl.zeros([BT], tl.float32)
            inner = tl.zeros([BT], tl.float32)
            for j in tl.static_range(TOP):
                hot = tl.load(indices_ptr + t64 * TOP + j).to(tl.int32)[:, None] == e[None, :]
                dw = tl.load(dweights_ptr + t64 * TOP + j).to(tl.float32)
                p_j = tl.sum(tl.where(hot, p, 0.0), axis=1)
                share += p_j
                inner += dw * p_j
            for j in tl.static_range(TOP):
                hot = tl.load(indices_ptr + t64 * TOP + j).to(tl.int32)[:, None] == e[None, :]
                dw = tl.load(dweights_ptr + t64 * TOP + j).to(tl.float32)
                dp += tl.where(hot, ((dw - inner / share) / share)[:, None], 0.0)
        dz = p * (dp - tl.sum(p * dp, axis=1)[:, None])
        dz = tl.where(live[:, None], dz, 0.0)
        if PRODUCT:
            # x is read transposed, so that no register tile has to be
            xt = tl.load(x_ptr + t64[None, :] * D + d[:, None], mask=live[None, :] & (d < D)[:, None], other=0.0)
            if UPCAST:
                dx = tl.dot(dz, g.to(tl.float32), input_precision="ieee")
                dgt = tl.dot(xt.to(tl.float32), dz, dgt, input_precision="ieee")
            else:
                dx = tl.dot(dz.to(g.dtype), g)
                dgt = tl.dot(xt, dz.to(xt.dtype), dgt)
            out = dx_ptr + t64[:, None] * D + d[None, :]
            tl.store(out, dx.to(dx_ptr.dtype.element_ty), mask=live[:, None] & (d < D)[None, :])
        else:
            out = dx_ptr + t64[:, None] * E + e[None, :]
            tl.store(out, dz.to(dx_ptr.dtype.element_ty), mask=live[:, None] & (e < E)[None, :])
    if PRODUCT:
        out = dgate_ptr + (pid * E + e)[None, :].to(tl.int64) * D + d[:, None]
        tl.store(out, dgt, mask=(e < E)[None, :] & (d < D)[:, None])


@triton.jit(do_not_specialize=["n", "parts"])
def _add_parts(part_ptr, out_ptr, n, parts, BLOCK: tl.constexpr, ROWS: tl.constexpr):
    """out = sum over the parts of (parts, n), always in the same order."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    r = tl.arange(0, ROWS)
    acc = tl.zeros([ROWS, BLOCK], tl.float32)
    for begin in range(0, parts, ROWS):
        row = (begin + r)[:, None]
        acc += tl.load(part_ptr + row * n.to(tl.int64) + i[None, :], mask=(row < parts) & (i < n)[None, :], other=0.0)
    tl.store(out_ptr + i, tl.sum(acc, axis=0).to(out_ptr.dtype.element_ty), mask=i < n)


_launch_part, _launch_route, _launch_count = Launcher(_logits_part), Launcher(_route), Launcher(_count)
_launch_scatter_kernel, _launch_backward, _launch_add = (
    Launcher(_scatter),
    Launcher(_route_backward),
    Launcher(_add_parts),
)


def add_parts(part, out):
    """Sum over the first dim of fp32 `part` into `out`, always in the same order."""
    n = out.numel()
    if n:
        _launch_add((triton.cdiv(n, 64), 1, 1), (part, out), (n, part.shape[0]), (64, 32), num_warps=4)
    return out


def _span(T, BT):
    """Blocks of BT tokens a program, and programs."""
    blocks = max(1, triton.cdiv(T, BT * MAX_PROGRAMS))
    return blocks, triton.cdiv(T, BT * blocks)


def _padded(E):
    return max(16, triton.next_power_of_2(E))


def route(x, gate, logits, top_k):
    """x and gate, or logits -> weights, indices, counts, balance, order, offsets, logits (all on the device)."""
    product = logits is None
    T, E = (x.shape[0], gate.shape[0]) if product else logits.shape
    D = x.shape[1] if product else 0
    device = x.device if product else logits.device
    if product:
        logits = torch.empty(T, E, dtype=torch.float32, device=device)
    weights = torch.empty(T, top_k, dtype=torch.float32, device=device)
    indices = torch.empty(T, top_k, dtype=torch.int64, device=device)
    counts = torch.empty(E, dtype=torch.int64, device=device)
    balance = torch.empty((), dtype=torch.float32, device=device)
    EP = _padded(E)
    alone = T <= 64
    # few tokens a program where there are few, so that all processors take part in reading x
    BT = max(16, triton.next_power_of_2(T if alone else min(128, 4096 // EP, T // 128)))
    blocks, programs = _span(T, BT)
    order = torch.empty(T * top_k, dtype=torch.int32, device=device)
    offsets = torch.empty(E + 1, dtype=torch.int32, device=device)
    hist = psum = None
    if not alone:
        hist = torch.empty(programs, EP, dtype=torch.int32, device=device)
        psum = torch.empty(programs, EP, dtype=torch.float32, device=device)
    upcast = product and (x.dtype != gate.dtype or x.dtype == torch.float32)
    parts, part = 0, None
    if alone and D >= 1024:  # one program would take longer to read the gate than others do to read an expert
        BK = 64 if upcast else 256
        parts = triton.cdiv(D, BK)
        part = torch.empty(parts, T, E, dtype=torch.float32, device=device)
        _launch_part((parts, 1, 1), (x, gate, part), (T,), (D, E, EP, BT, BK, upcast), num_warps=4)
    _launch_route(
        (programs, 1, 1),
        (x, gate, part, logits, weights, indices, hist, psum, order, offsets, counts, balance), (T, blocks),
        (D, E, EP, top_k, BT, 128 if alone else 64, product, upcast, alone, parts),
        num_warps=4, num_stages=4 if alone else 3,
    )  # fmt: skip
    if not alone:
        _launch_scatter(indices, hist, psum, order, offsets, counts, balance, T, blocks, programs, E, EP, top_k, BT)
    return weights, indices, counts, balance, order, offsets, logits


def _launch_scatter(indices, hist, psum, order, offsets, counts, balance, T, blocks, programs, E, EP, top_k, BT):
    _launch_scatter_kernel(
        (programs, 1, 1), (indices, hist, psum, order, offsets, counts, balance), (T, blocks, programs),
        (E, EP, top_k, BT, triton.next_power_of_2(BT * top_k), max(16, 4096 // EP)), num_warps=4,
    )  # fmt: skip


def sort(indices, num_experts):
    """Expert indices (T, k) -> pairs in the order of their experts (P,), and where each expert's begin (E + 1,)."""
    T, top_k = indices.shape
    EP = _padded(num_experts)
    BT = max(16, min(128, 4096 // EP))
    blocks, programs = _span(T, BT)
    device = indices.device
    order = torch.empty(T * top_k, dtype=torch.int32, device=device)
    offsets = torch.empty(num_experts + 1, dtype=torch.int32, device=device)
    hist = torch.empty(programs, EP, dtype=torch.int32, device=device)
    psum = torch.empty(programs, EP, dtype=torch.float32, device=device)
    counts = torch.empty(num_experts, dtype=torch.int64, device=device)
    balance = torch.empty((), dtype=torch.float32, device=device)
    _launch_count(
        (programs, 1, 1), (indices, hist, psum), (T * top_k, blocks),
        (num_experts, EP, top_k, BT, triton.next_power_of_2(BT * top_k)), num_warps=4,
    )  # fmt: skip
    _launch_scatter(
        indices, hist, psum, order, offsets, counts, balance, T, blocks, programs, num_experts, EP, top_k, BT
    )
    return order, offsets


def route_backward(x, gate, logits, indices, counts, dweights, dbalance):
    """Gradients of x and gate, or of the logits (then x is None): (dx, dgate) or (dlogits, None)."""
    product = x is not None
    T, E = logits.shape
    D = x.shape[1] if product else 0
    EP = _padded(E)
    upcast = product and (x.dtype != gate.dtype or x.dtype == torch.float32)
    BT = 16 if upcast else max(16, min(64, 2048 // EP))
    BD = min(32 if upcast else 128, triton.next_power_of_2(max(D, 16)))
    columns = triton.cdiv(D, BD) if product else 1
    programs = min(triton.cdiv(T, BT), max(1, 528 // columns) if product else 4096)
    blocks = triton.cdiv(T, BT * programs)
    programs = triton.cdiv(T, BT * blocks)
    dx = torch.empty_like(x if product else logits)
    parts = torch.empty(programs, E, D, dtype=torch.float32, device=logits.device) if product else None
    _launch_backward(
        (programs, columns, 1), (x, gate, logits, indices, counts, dweights, dbalance, dx, parts), (T, blocks),
        (D, E, EP, indices.shape[1], BT, BD, product, upcast, dweights is not None, dbalance is not None),
        num_warps=4, num_stages=2,
    )  # fmt: skip
    return dx, add_parts(parts, torch.empty_like(gate)) if product else None
