"""RMS norm, and the gated norm that follows lightning attention. Statistics are fp32 for 16-bit inputs.

Source of the formula: Root Mean Square Layer Normalization (arXiv 1910.07467).
Legend: T tokens, D channels.
"""

import torch
import torch.nn.functional as F


def rms_norm(x_TD: torch.Tensor, weight_D: torch.Tensor, eps: float) -> torch.Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last dim, in the dtype of `x_TD`."""
    return F.rms_norm(x_TD, weight_D.shape, weight_D, eps)


def gated_rms_norm(x_TD: torch.Tensor, gate_TD: torch.Tensor, weight_D: torch.Tensor, eps: float) -> torch.Tensor:
    """sigmoid(gate) * rms_norm(x), in the dtype of `x_TD`; `gate_TD` is what the gate projection gave."""
    return torch.sigmoid(gate_TD) * rms_norm(x_TD, weight_D, eps)
