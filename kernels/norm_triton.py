"""The norms' Triton kernels: one forward and one backward kernel for all of them, and shards' sums of squares.

A program holds whole rows in registers, so every tensor is read and written once. The backward kernel runs as many
programs as the device holds; each adds up its rows' part of the weight's gradient, and one ordered sum over programs
follows, so the result does not depend on timing.

Legend: T tokens, D channels, P programs.
"""

import functools

import torch
import triton
import triton.language as tl

from .custom_op import Launcher, Op, multiprocessors

MAX_CHANNELS = 16_384


@triton.jit(do_not_specialize=["T", "channels", "eps", "alpha", "beta"])
def _norm(
    a_ptr, r_ptr, gate_ptr, weight_ptr, squares_ptr, y_ptr, x_ptr, rstd_ptr, T, channels, eps, alpha, beta,
    D: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """x = r * alpha + a * beta (or a); y = x * rstd * weight (* sigmoid(gate)); squares: given sums, of all shards."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    mask = (row < T)[:, None] & (column < D)[None, :]
    at = row[:, None] * D + column[None, :]
    x = tl.load(a_ptr + at, mask=mask, other=0.0).to(tl.float32)
    if r_ptr is not None:
        x = tl.load(r_ptr + at, mask=mask, other=0.0).to(tl.float32) * alpha + x * beta
    if x_ptr is not None:
        tl.store(x_ptr + at, x.to(x_ptr.dtype.element_ty), mask=mask)
    if squares_ptr is None:
        squares = tl.sum(x * x, axis=1)
    else:
        squares = tl.load(squares_ptr + row, mask=row < T, other=0.0)
    rstd = 1.0 / tl.sqrt(squares / channels + eps)
    tl.store(rstd_ptr + row, rstd, mask=row < T)
    weight = tl.load(weight_ptr + column, mask=column < D, other=0.0).to(tl.float32)
    y = x * rstd[:, None] * weight[None, :]
    if gate_ptr is not None:
        y = y * tl.sigmoid(tl.load(gate_ptr + at, mask=mask, other=0.0).to(tl.float32))
    tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["T", "channels", "alpha", "beta"])
def _norm_backward(
    dy_ptr, dy2_ptr, dx_ptr, a_ptr, r_ptr, gate_ptr, weight_ptr, rstd_ptr, da_ptr, dr_ptr, dgate_ptr, dsquares_ptr,
    dweight_ptr, T, channels, alpha, beta,
    D: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Gradients of `_norm`: dy and dy2 come in for y, dx for x itself; dweight (P, D) gets one row a program."""
    column = tl.arange(0, COLUMNS)
    weight = tl.load(weight_ptr + column, mask=column < D, other=0.0).to(tl.float32)[None, :]
    dweight = tl.zeros((ROWS, COLUMNS), tl.float32)
    for block in range(tl.program_id(0), tl.cdiv(T, ROWS), tl.num_programs(0)):
        row = tl.cast(block, tl.int64) * ROWS + tl.arange(0, ROWS)
        mask = (row < T)[:, None] & (column < D)[None, :]
        at = row[:, None] * D + column[None, :]
        dy = tl.load(dy_ptr + at, mask=mask, other=0.0).to(tl.float32)
        if dy2_ptr is not None:
            dy += tl.load(dy2_ptr + at, mask=mask, other=0.0).to(tl.float32)
        x = tl.load(a_ptr + at, mask=mask, other=0.0).to(tl.float32)
        if r_ptr is not None:
            x = tl.load(r_ptr + at, mask=mask, other=0.0).to(tl.float32) * alpha + x * beta
        rstd = tl.load(rstd_ptr + row, mask=row < T, other=0.0)
        normed = x * rstd[:, None]
        if gate_ptr is not None:
            share = tl.sigmoid(tl.load(gate_ptr + at, mask=mask, other=0.0).to(tl.float32))
            dgate = dy * normed * weight * share * (1.0 - share)
            tl.store(dgate_ptr + at, dgate.to(dgate_ptr.dtype.element_ty), mask=mask)
            dy = dy * share
        dweight += dy * normed
        dy = dy * weight
        along = tl.sum(dy * normed, axis=1)
        if dsquares_ptr is None:
            dx = (dy - normed * (along / channels)[:, None]) * rstd[:, None]
        else:  # rstd came from the given sums, so what flows through it goes to them
            dx = dy * rstd[:, None]
            tl.store(dsquares_ptr + row, -0.5 * along * rstd * rstd / channels, mask=row < T)
        if dx_ptr is not None:
            dx += tl.load(dx_ptr + at, mask=mask, other=0.0).to(tl.float32)
        tl.store(da_ptr + at, (dx * beta).to(da_ptr.dtype.element_ty), mask=mask)
        if dr_ptr is not None:
            tl.store(dr_ptr + at, (dx * alpha).to(dr_ptr.dtype.element_ty), mask=mask)
    at = tl.program_id(0).to(tl.int64) * D + column
    tl.store(dweight_ptr + at, tl.sum(dweight, axis=0), mask=column < D)


@triton.jit(do_not_specialize=["T"])
def _squares(x_ptr, dsquares_ptr, out_ptr, T, D: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Row sums of x^2 or, with their gradient given, its way back: 2 * x * dsquares."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    mask = (row < T)[:, None] & (column < D)[None, :]
    at = row[:, None] * D + column[None, :]
    x = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
    if dsquares_ptr is None:
        tl.store(out_ptr + row, tl.sum(x * x, axis=1), mask=row < T)
    else:
        d = tl.load(dsquares_ptr + row, mask=row < T, other=0.0).to(tl.float32)
        tl.store(out_ptr + at, (2.0 * x * d[:, None]).to(out_ptr.dtype.element_ty), mask=mask)


_launch_norm, _launch_backward, _launch_squares = (Launcher(k) for k in (_norm, _norm_backward, _squares))


@functools.cache
def forward_config(D: int) -> tuple[int, int, int]:
    """ROWS, COLUMNS, num_warps: about 2,048 elements a program, 16 to 64 a thread."""
    columns = triton.next_power_of_2(D)
    rows = max(1, 2048 // columns)
    return rows, columns, min(max(rows * columns // 512, 1), 8 if columns <= 8192 else 16)


@functools.cache
def backward_config(D: int) -> tuple[int, int, int, int]:
    """ROWS, COLUMNS, num_warps, programs a multiprocessor."""
    columns = triton.next_power_of_2(D)
    rows = max(1, 2048 // columns)
    warps = min(max(rows * columns // 512, 1), 16)
    return rows, columns, warps, max(1, 16 // warps)


def _forward(a, weight, eps, r, alpha, beta, gate, squares, channels, keep):
    T, D = a.shape
    a = a.contiguous()
    r, gate = (t if t is None else t.contiguous() for t in (r, gate))
    y = torch.empty_like(a)
    x = torch.empty_like(a) if keep else None
    rstd = torch.empty(T, dtype=torch.float32, device=a.device)
    if T:
        rows, columns, warps = forward_config(D)
        _launch_norm(
            (-(-T // rows), 1, 1), (a, r, gate, weight, squares, y, x, rstd),
            (T, float(channels), float(eps), float(alpha), float(beta)), (D, rows, columns), num_warps=warps,
        )  # fmt: skip
    return y, a.new_empty(0) if x is None else x, rstd


def _fake(a, weight, eps, r, alpha, beta, gate, squares, channels, keep):
    a = a.contiguous()
    x = torch.empty_like(a) if keep else a.new_empty(0)
    return torch.empty_like(a), x, a.new_empty(a.shape[0], dtype=torch.float32)


def _setup_context(ctx, inputs, output):
    a, weight, _, r, alpha, beta, gate, squares, channels, keep = inputs
    _, x, rstd = output
    ctx.mark_non_differentiable(rstd)
    # what was added up is kept, or computed again from its parts where nobody else needs it
    ctx.save_for_backward(*((x, None) if keep else (a, r)), weight, rstd, gate)
    ctx.numbers = alpha, beta, channels, keep, r is not None, squares is not None


def _backward(ctx, dy, dx, _):
    a, r, weight, rstd, gate = ctx.saved_tensors
    alpha, beta, channels, keep, added, sharded = ctx.numbers
    dy, dx = (None if d is None else d.contiguous() for d in (dy, dx))
    if dy is None:  # nobody used the normed value
        if dx is None or not keep:
            dy, dx = (torch.zeros_like(a) if dx is None else dx), None
        else:
            dy = torch.zeros_like(a)
    da, dr, dgate, dsquares, dweight = backward_op(
        dy, dx, a, r, gate, weight, rstd, alpha, beta, channels, keep, added, sharded
    )
    return da, dweight, None, dr if added else None, None, None, dgate if gate is not None else None, (
        dsquares if sharded else None
    ), None, None  # fmt: skip


def _gradients(dy, dx, a, r, gate, weight, rstd, alpha, beta, channels, keep, added, sharded):
    T, D = a.shape
    a = a.contiguous()
    r, gate = (t if t is None else t.contiguous() for t in (r, gate))
    none = a.new_empty(0)
    da = torch.empty_like(a)
    dr = torch.empty_like(a) if added else none
    dgate = torch.empty_like(gate) if gate is not None else none
    dsquares = torch.empty_like(rstd) if sharded else none
    rows, columns, warps, resident = backward_config(D)
    programs = max(min(-(-T // rows), multiprocessors(a.device) * resident), 1)
    partial = torch.empty(programs, D, dtype=torch.float32, device=a.device)
    _launch_backward(
        (programs, 1, 1),
        (dy, None if keep else dx, dx if keep else None, a, r, gate, weight, rstd, da, dr if added else None,
         None if gate is None else dgate, dsquares if sharded else None, partial),
        (T, float(channels), float(alpha), float(beta)), (D, rows, columns), num_warps=warps,
    )  # fmt: skip
    return da, dr, dgate, dsquares, partial.sum(0).to(weight.dtype)


def _fake_gradients(dy, dx, a, r, gate, weight, rstd, alpha, beta, channels, keep, added, sharded):
    none, a, gate = a.new_empty(0), a.contiguous(), None if gate is None else gate.contiguous()
    return (
        torch.empty_like(a), torch.empty_like(a) if added else none, none if gate is None else torch.empty_like(gate),
        torch.empty_like(rstd) if sharded else none, torch.empty_like(weight),
    )  # fmt: skip


backward_op = Op(
    "norm_backward(Tensor dy, Tensor? dx, Tensor a, Tensor? r, Tensor? gate, Tensor weight, Tensor rstd, float alpha, "
    "float beta, int channels, bool keep, bool added, bool sharded) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _gradients,
    _fake_gradients,
)
op = Op(
    "norm(Tensor a, Tensor weight, float eps, Tensor? r, float alpha, float beta, Tensor? gate, Tensor? squares, "
    "int channels, bool keep) -> (Tensor, Tensor, Tensor)",
    _forward,
    _fake,
    _setup_context,
    _backward,
    # the normed value a second time, for the residual: the backward kernel then adds the two gradients itself
    aliases=lambda out: out if out[1].numel() else (out[0], out[0].detach(), out[2]),
)


def _sum(x, dsquares):
    T, D = x.shape
    out = torch.empty_like(x) if dsquares is not None else torch.empty(T, dtype=torch.float32, device=x.device)
    if T:
        rows, columns, warps = forward_config(D)
        _launch_squares((-(-T // rows), 1, 1), (x, dsquares, out), (T,), (D, rows, columns), num_warps=warps)
    return out


def _squares_backward(ctx, dsquares):
    (x,) = ctx.saved_tensors
    return None if dsquares is None else squares_backward_op(x, dsquares.contiguous())


squares_backward_op = Op(
    "squares_backward(Tensor x, Tensor dsquares) -> Tensor", _sum, lambda x, dsquares: torch.empty_like(x)
)
squares_op = Op(
    "squares(Tensor x) -> Tensor",
    lambda x: _sum(x, None),
    lambda x: x.new_empty(x.shape[0], dtype=torch.float32),
    lambda ctx, inputs, output: ctx.save_for_backward(inputs[0]),
    _squares_backward,
)
