"""RMS norm, alone, behind a scaled residual sum, or gated as after lightning attention. Statistics are fp32 at least.

Source of the formula: Root Mean Square Layer Normalization (arXiv 1910.07467).
Legend: T tokens, D channels (of this rank), C channels of all ranks.
"""

import torch
import torch.nn.functional as F

from .backend import REFERENCE, choose

_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_MAX_CHANNELS = 16_384  # a row has to fit one program's registers


def rms_norm(x_TD: torch.Tensor, weight_D: torch.Tensor, eps: float, *, backend: str | None = None) -> torch.Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last dim, in the dtype of `x_TD`.

    Of all in this file there are kernels for up to 16,384 channels in bf16, fp16 and fp32.
    """
    if _chosen(backend, x_TD, weight_D) == REFERENCE:
        return F.rms_norm(x_TD, weight_D.shape, weight_D, eps)
    return _triton(x_TD, weight_D, eps)[0]


def add_rms_norm(
    residual_TD: torch.Tensor | None,
    x_TD: torch.Tensor,
    alpha: float,
    beta: float,
    weight_D: torch.Tensor,
    eps: float,
    *,
    postnorm: bool,
    backend: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The next residual and the normed sum: sum = residual * alpha + x * beta, normed = rms_norm(sum); both (T, D).

    The next residual is the sum itself, or with `postnorm` the normed value; then the sum is never written, and the
    two results share their memory: write to neither. Without a residual (None) the sum is `x_TD`.
    """
    added = () if residual_TD is None else (residual_TD,)
    if _chosen(backend, x_TD, weight_D, *added) == REFERENCE:
        total = x_TD
        if residual_TD is not None:
            total = torch.add(x_TD if beta == 1 else x_TD * beta, residual_TD, alpha=alpha)
        normed = F.rms_norm(total, weight_D.shape, weight_D, eps)
        return (normed if postnorm else total), normed
    keep = not postnorm and residual_TD is not None
    normed, other, _ = _triton(x_TD, weight_D, eps, residual_TD, alpha, beta, keep=keep)
    if keep:
        return other, normed
    if not postnorm:
        return x_TD, normed
    return (other if other.numel() else normed), normed


def gated_rms_norm(
    x_TD: torch.Tensor,
    gate_TD: torch.Tensor,
    weight_D: torch.Tensor,
    eps: float,
    *,
    squares_T: torch.Tensor | None = None,
    channels: int | None = None,
    backend: str | None = None,
) -> torch.Tensor:
    """sigmoid(gate) * rms_norm(x), in the dtype of `x_TD`; `gate_TD` is what the gate projection gave.

    On a tensor-parallel rank, which holds D of C `channels`, `squares_T` is `sum_of_squares` added up over the ranks
    (fp32, with a gradient). Raises ValueError if only one of the two is given.
    """
    if (squares_T is None) != (channels is None):
        raise ValueError("gated_rms_norm takes squares_T and channels together: a shard's norm needs both")
    shared = () if squares_T is None else (squares_T,)
    if _chosen(backend, x_TD, weight_D, gate_TD, *shared) == REFERENCE:
        if squares_T is None:
            return torch.sigmoid(gate_TD) * F.rms_norm(x_TD, weight_D.shape, weight_D, eps)
        rstd_T1 = torch.rsqrt(squares_T / channels + eps)[..., None]
        return torch.sigmoid(gate_TD) * (x_TD * rstd_T1 * weight_D).to(x_TD.dtype)
    return _triton(x_TD, weight_D, eps, gate=gate_TD, squares=squares_T, channels=channels)[0]


def sum_of_squares(x_TD: torch.Tensor, *, backend: str | None = None) -> torch.Tensor:
    """(T,): the sum of x^2 over this rank's channels, fp32 (fp64 for fp64), with a gradient."""
    if _chosen(backend, x_TD) == REFERENCE:
        return x_TD.to(torch.promote_types(x_TD.dtype, torch.float32)).square().sum(-1)
    from .norm_triton import squares_op

    return squares_op(x_TD.reshape(-1, x_TD.shape[-1]).contiguous()).view(x_TD.shape[:-1])


def _chosen(backend, *tensors) -> str:
    supported = tensors[0].shape[-1] <= _MAX_CHANNELS
    for t in tensors:
        supported = supported and t.dtype in _DTYPES
    return choose(backend, *tensors, supported=supported)


def _triton(x, weight, eps, r=None, alpha=1.0, beta=1.0, gate=None, squares=None, channels=None, keep=False):
    from .norm_triton import op

    shape = x.shape
    if squares is not None:
        squares = squares.reshape(-1).contiguous()
    channels = shape[-1] if channels is None else channels
    if len(shape) == 2:
        return op(x, weight, eps, r, alpha, beta, gate, squares, channels, keep)
    x, r, gate = (None if t is None else t.reshape(-1, shape[-1]) for t in (x, r, gate))
    y, kept, rstd = op(x, weight, eps, r, alpha, beta, gate, squares, channels, keep)
    return y.view(shape), kept.view(shape) if kept.numel() else kept, rstd
