"""Keys and values in fp8: e4m3 with a power of two for each token and head.

    x = scale * q, q in e4m3; the scale is the least power of two with which all of the head's |q| are at most 448

A power of two, because e4m3 is a floating-point format itself: another factor would not make it any finer. Then
- a key or value that was stored is exact in bf16, so that who has it at hand (a prompt's first tokens) computes with
  just what others will read from its page, and any split of a sequence gives the same;
- scaling rounds nothing, so that every device stores the same;
- nothing has to be calibrated, and no scale that was chosen beforehand can be too small.
Each element is off by at most 1/16 of itself, or 2^-18 of the head's largest if that is more.

Source of the formats: E4M3 of FP8 (arXiv 2209.05433); powers of two as scales: OCP Microscaling Formats 1.0.

Legend: T tokens, G key/value heads, K head dim, N tokens that the pools hold.
"""

import torch

from .backend import capability

DTYPE = torch.float8_e4m3fn
SCALE_DTYPE = torch.bfloat16  # holds every power of two that fp32 has but the subnormal ones
SCALE_BYTES = 4  # of a token's key and value in one head


def check_device(device: torch.device) -> None:
    """Raises ValueError where keys in fp8 cannot be kept."""
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"keys and values in fp8 are for cuda and cpu, not for {device.type}; leave them as they are")
    if device.type == "cuda" and capability(device) < (8, 9):
        has = ".".join(map(str, capability(device)))
        raise ValueError(
            f"keys and values in fp8 need a GPU of compute capability 8.9 (Ada, Hopper) or newer; {device} has {has}"
        )


def quantize_keys(x_TGK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of keys or values: q (T, G, K) in e4m3 and scales (T, G) in bf16."""
    x_TGK = x_TGK.detach().float()
    bits_TG = x_TGK.abs().amax(-1).view(torch.int32)
    # the exponent of the largest, one more if it is above 1.75 times its power of two, less that of 256
    exponent_TG = (((bits_TG + 0x1FFFFF) >> 23) - 8).clamp(min=1)
    inverse_TG = ((254 - exponent_TG) << 23).view(torch.float32)
    return (x_TGK * inverse_TG[..., None]).to(DTYPE), (exponent_TG << 23).view(torch.float32).to(SCALE_DTYPE)


def dequantize_keys(q_TGK: torch.Tensor, scale_TG: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The inverse of `quantize_keys`, exact in bf16 and wider."""
    return q_TGK.to(dtype) * scale_TG.to(dtype)[..., None]


def write_fp8_rows(pool_NGK: torch.Tensor, scales_NG2: torch.Tensor, which: int, rows_T, x_TGK) -> torch.Tensor:
    """Store keys (`which` 0) or values (1) at rows (int64) of their pool; they as stored, in their own dtype."""
    q_TGK, scale_TG = quantize_keys(x_TGK)
    pool_NGK.view(torch.uint8).index_copy_(0, rows_T, q_TGK.view(torch.uint8))  # fp8 cannot be indexed everywhere
    scales_NG2[..., which].index_copy_(0, rows_T, scale_TG)
    return dequantize_keys(q_TGK, scale_TG, x_TGK.dtype)


def read_fp8_rows(pool_NGK: torch.Tensor, scales_NG2: torch.Tensor, which: int, rows_U, dtype) -> torch.Tensor:
    """Keys or values (U, G, K) of these rows."""
    q_UGK = pool_NGK.view(torch.uint8).index_select(0, rows_U).view(DTYPE)
    return dequantize_keys(q_UGK, scales_NG2[..., which].index_select(0, rows_U), dtype)
