"""Rotary position embedding on the first `rotary_dim` dims of a head; dim i pairs with dim i + rotary_dim / 2.

Angles are fp32, computed from the positions when needed: a table for the released 10,240,000 positions would take 5 GB
a layer. Source of the formula: RoFormer (arXiv 2104.09864) in the NeoX pairing.

Legend: T tokens, H heads, K head dim, R rotary dim / 2.
"""

import torch


def rope_tables(positions_T: torch.Tensor, rotary_dim: int, theta: float) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin (T, 1, R), fp32, of position * theta^(-2i / rotary_dim), the product rounded to fp32."""
    exponent_R = torch.arange(0, rotary_dim, 2, dtype=torch.float32, device=positions_T.device) / rotary_dim
    angle_TR = positions_T.float()[:, None] * (1.0 / theta**exponent_R)
    return angle_TR.cos()[:, None], angle_TR.sin()[:, None]


def apply_rope(x_THK: torch.Tensor, cos_T1R: torch.Tensor, sin_T1R: torch.Tensor) -> torch.Tensor:
    """Rotate the first 2R dims of every head in fp32, pass on the rest; (T, H, K) in the dtype of `x_THK`."""
    half = cos_T1R.shape[-1]
    a, b = x_THK[..., :half], x_THK[..., half : 2 * half]
    first = torch.addcmul(a * cos_T1R, b, sin_T1R, value=-1)
    second = torch.addcmul(b * cos_T1R, a, sin_T1R)
    return torch.cat((first, second, x_THK[..., 2 * half :]), dim=-1).to(x_THK.dtype)
