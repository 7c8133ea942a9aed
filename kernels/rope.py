"""Rotary position embedding on the first `rotary_dim` dims of a head; dim i pairs with dim i + rotary_dim / 2.

Angles are fp32, computed from the positions when needed: a table for the released 10,240,000 positions would take 5 GB
a layer. Source of the formula: RoFormer (arXiv 2104.09864) in the NeoX pairing.

Legend: T tokens, H query heads, G key/value heads, K head dim, R rotary dim / 2, N tokens that the pools hold.
"""

import functools
import struct
from dataclasses import dataclass

import torch

from .backend import REFERENCE, choose
from .keys_8bit import write_8bit_rows


def rope_frequencies(rotary_dim: int, theta: float, device) -> torch.Tensor:
    """theta^(-2i / rotary_dim), (R,) fp32, every step of it rounded to fp32; the same on every device."""
    device = torch.device(device)
    if torch._C._len_torch_dispatch_stack():  # fake tensors must not stay in the cache
        return torch.tensor(_frequencies(rotary_dim, theta), device=device)
    return _frequencies_on(rotary_dim, theta, device)


@functools.cache
def _frequencies_on(rotary_dim, theta, device):
    with torch.inference_mode(False):
        return torch.tensor(_frequencies(rotary_dim, theta), dtype=torch.float32).to(device)


def _frequencies(rotary_dim, theta):
    def fp32(x):
        return struct.unpack("f", struct.pack("f", x))[0]

    return [fp32(1 / fp32(theta ** fp32(i / rotary_dim))) for i in range(0, rotary_dim, 2)]


def rope_tables(positions_T: torch.Tensor, rotary_dim: int, theta: float) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin (T, 1, R), fp32, of position * theta^(-2i / rotary_dim), the product rounded to fp32."""
    return _tables(positions_T, rope_frequencies(rotary_dim, theta, positions_T.device))


def _tables(positions_T, frequencies_R):
    angle_TR = positions_T.float()[:, None] * frequencies_R
    return angle_TR.cos()[:, None], angle_TR.sin()[:, None]


def apply_rope(x_THK: torch.Tensor, cos_T1R: torch.Tensor, sin_T1R: torch.Tensor) -> torch.Tensor:
    """Rotate the first 2R dims of every head in fp32, pass on the rest; (T, H, K) in the dtype of `x_THK`."""
    half = cos_T1R.shape[-1]
    a, b = x_THK[..., :half], x_THK[..., half : 2 * half]
    first = torch.addcmul(a * cos_T1R, b, sin_T1R, value=-1)
    second = torch.addcmul(b * cos_T1R, a, sin_T1R)
    return torch.cat((first, second, x_THK[..., 2 * half :]), dim=-1).to(x_THK.dtype)


@dataclass
class Rotary:
    """Where the tokens of a batch stand: the kernels compute the angles from it, the references read its tables."""

    positions_T: torch.Tensor  # int64
    frequencies_R: torch.Tensor

    @classmethod
    def of(cls, positions_T: torch.Tensor, rotary_dim: int, theta: float) -> "Rotary":
        """Make one a batch; nothing is computed yet."""
        return cls(positions_T, rope_frequencies(rotary_dim, theta, positions_T.device))

    @functools.cached_property
    def tables(self) -> tuple[torch.Tensor, torch.Tensor]:
        """What `rope_tables` gives, computed at most once a batch."""
        return _tables(self.positions_T, self.frequencies_R)


def rope(
    q_THK: torch.Tensor, k_TGK: torch.Tensor, rotary: Rotary, *, backend: str | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries and keys rotated to their positions, in their dtype; the inputs stay as they are."""
    if not rotary.frequencies_R.shape[0]:
        return q_THK, k_TGK
    if choose(backend, q_THK, k_TGK, supported=_supported(q_THK)) == REFERENCE:
        rotated = apply_rope(torch.cat((q_THK, k_TGK), dim=1), *rotary.tables)
        return rotated.split((q_THK.shape[1], k_TGK.shape[1]), dim=1)
    from .rope_triton import op

    return op(q_THK, k_TGK, rotary.positions_T, rotary.frequencies_R, False)


def rope_into_pages(
    q_THK: torch.Tensor,
    k_TGK: torch.Tensor,
    v_TGK: torch.Tensor,
    rotary: Rotary,
    k_pool_NGK: torch.Tensor,
    v_pool_NGK: torch.Tensor,
    write_T: torch.Tensor,
    *,
    scales_NG2: torch.Tensor | None = None,
    backend: str | None = None,
) -> None:
    """Rotate queries and keys in place, and store keys and values at rows `write_T` (int64) of the pools; no gradient.

    The pools may have another dtype than the new keys: they are rounded as they are stored. With `scales_NG2` (bf16, of
    keys and of values) the pools are as keys_8bit.py has it, and the new keys and values become what was stored. The
    kernels raise ValueError for tensors that are not contiguous.
    """
    if choose(backend, q_THK, k_TGK, v_TGK, k_pool_NGK, supported=_supported(q_THK)) == REFERENCE:
        rotated = rope(q_THK, k_TGK, rotary, backend=REFERENCE)
        for x, y in zip((q_THK, k_TGK), rotated, strict=True):
            if y is not x:
                x.copy_(y)
        for which, (pool, new) in enumerate(((k_pool_NGK, k_TGK), (v_pool_NGK, v_TGK))):
            if scales_NG2 is None:
                pool.index_copy_(0, write_T, new.to(pool.dtype))
            else:
                new.copy_(write_8bit_rows(pool, scales_NG2, which, write_T, new))
        return
    from .rope_triton import pages_8bit_op, pages_op

    tensors = (q_THK, k_TGK, v_TGK, rotary.positions_T, rotary.frequencies_R, k_pool_NGK, v_pool_NGK)
    if scales_NG2 is None:
        pages_op(*tensors, write_T)
    else:
        pages_8bit_op(*tensors, scales_NG2, write_T)


def _supported(q_THK) -> bool:
    return q_THK.dtype in (torch.bfloat16, torch.float16, torch.float32) and q_THK.shape[-1] <= 1024
