"""Moving rows of a tensor by index, with backward passes that are gathers or plain copies (no atomics, deterministic).

torch's own index_select has an index_add as its backward pass, which is slow and unordered on CUDA. Every index below
is a permutation or an injection, so the backward pass is known to be a gather or a copy.

Legend: T rows, N rows of the padded tensor (N >= T).
"""

import torch


class _Scatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, rows_T, num_rows):
        ctx.save_for_backward(rows_T)
        return x.new_zeros(num_rows, *x.shape[1:]).index_copy_(0, rows_T, x)

    @staticmethod
    def backward(ctx, grad):
        (rows_T,) = ctx.saved_tensors
        return grad.index_select(0, rows_T), None, None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, rows_T):
        ctx.save_for_backward(rows_T)
        ctx.num_rows = x.shape[0]
        return x.index_select(0, rows_T)

    @staticmethod
    def backward(ctx, grad):
        (rows_T,) = ctx.saved_tensors
        return grad.new_zeros(ctx.num_rows, *grad.shape[1:]).index_copy_(0, rows_T, grad), None


class _Permute(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, order_T, inverse_T):
        ctx.save_for_backward(inverse_T)
        return x.index_select(0, order_T)

    @staticmethod
    def backward(ctx, grad):
        (inverse_T,) = ctx.saved_tensors
        return grad.index_select(0, inverse_T), None, None


def scatter_rows(x: torch.Tensor, rows_T: torch.Tensor, num_rows: int) -> torch.Tensor:
    """(T, ...) -> (num_rows, ...): row t of `x` goes to row `rows_T[t]` (all different), the others are zero."""
    return _Scatter.apply(x, rows_T, num_rows)


def gather_rows(x: torch.Tensor, rows_T: torch.Tensor) -> torch.Tensor:
    """(N, ...) -> (T, ...): `x[rows_T]`; the indices must all be different."""
    return _Gather.apply(x, rows_T)


def permute_rows(x: torch.Tensor, order_T: torch.Tensor, inverse_T: torch.Tensor) -> torch.Tensor:
    """(T, ...) -> (T, ...): `x[order_T]`, with `inverse_T` the inverse permutation of `order_T`."""
    return _Permute.apply(x, order_T, inverse_T)
