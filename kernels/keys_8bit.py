"""Keys and values in 8 bits, fp8 (e4m3) or int8, with a power of two for each token and head.

    x = scale * q; the scale is the least power of two with which all |q| of the head are at most 448 (fp8) or 127

A power of two, because then
- a key or value that was stored is exact in bf16, so that who has it at hand (a prompt's first tokens) computes with
  just what others will read from its page, and any split of a sequence gives the same;
- scaling rounds nothing, so that every device stores the same;
- nothing has to be calibrated, and no scale that was chosen beforehand can be too small.
fp8 is off by at most 1/16 of each element, or 2^-18 of the head's largest if that is more; int8 by at most 1/127 of the
head's largest. Where the largest is less than some ten times the RMS, which it mostly is, int8 is nearer.

Source of the formats: E4M3 of FP8 (arXiv 2209.05433); powers of two as scales: OCP Microscaling Formats 1.0.

Legend: T tokens, U tokens with keys, G key/value heads, K head dim, N tokens that the pools hold.
"""

import torch

from .backend import capability

KINDS = {"fp8": torch.float8_e4m3fn, "int8": torch.int8}
SCALE_DTYPE = torch.bfloat16  # holds every power of two that fp32 has but the subnormal ones
SCALE_BYTES = 4  # of a token's key and value in one head
# a largest above 1.75 times its power of two takes the next, as does one above 1.984 in int8; q's own largest power
_CARRY = {torch.float8_e4m3fn: (0x1FFFFF, 8), torch.int8: (0x01FFFF, 6)}


def check_device(device: torch.device, dtype: torch.dtype) -> None:
    """Raises ValueError where keys of this dtype cannot be kept."""
    if device.type not in ("cpu", "cuda"):
        raise ValueError(
            f"keys and values in 8 bits are for cuda and cpu, not for {device.type}; leave them as they are"
        )
    if dtype == KINDS["fp8"] and device.type == "cuda" and capability(device) < (8, 9):
        has = ".".join(map(str, capability(device)))
        raise ValueError(
            f"keys and values in fp8 need a GPU of compute capability 8.9 (Ada, Hopper) or newer; {device} has {has}; "
            "int8 is for all"
        )


def quantize_keys(x_TGK: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Of keys or values: q (T, G, K) in one of the dtypes of `KINDS`, and scales (T, G) in bf16.

    Where a head is not finite its scale is infinite, so that what is read is not finite either.
    """
    x_TGK = x_TGK.detach().float()
    largest_TG = x_TGK.abs().amax(-1)
    carry, power = _CARRY[dtype]
    exponent_TG = (((largest_TG.view(torch.int32) + carry) >> 23) - power).clamp(min=1)
    q_TGK = x_TGK * ((254 - exponent_TG) << 23).view(torch.float32)[..., None]
    scale_TG = (exponent_TG << 23).view(torch.float32).masked_fill(~largest_TG.isfinite(), torch.inf)
    return (q_TGK.round() if dtype == torch.int8 else q_TGK).to(dtype), scale_TG.to(SCALE_DTYPE)


def dequantize_keys(q_TGK: torch.Tensor, scale_TG: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The inverse of `quantize_keys`, exact in bf16 and wider."""
    return q_TGK.to(dtype) * scale_TG.to(dtype)[..., None]


def write_8bit_rows(pool_NGK: torch.Tensor, scales_NG2: torch.Tensor, which: int, rows_T, x_TGK) -> torch.Tensor:
    """Store keys (`which` 0) or values (1) at rows (int64) of their pool; they as stored, in their own dtype."""
    q_TGK, scale_TG = quantize_keys(x_TGK, pool_NGK.dtype)
    pool_NGK.view(torch.uint8).index_copy_(0, rows_T, q_TGK.view(torch.uint8))  # fp8 cannot be indexed everywhere
    scales_NG2[..., which].index_copy_(0, rows_T, scale_TG)
    return dequantize_keys(q_TGK, scale_TG, x_TGK.dtype)


def read_8bit_rows(pool_NGK: torch.Tensor, scales_NG2: torch.Tensor, which: int, rows_U, dtype) -> torch.Tensor:
    """Keys or values (U, G, K) of these rows."""
    q_UGK = pool_NGK.view(torch.uint8).index_select(0, rows_U).view(pool_NGK.dtype)
    return dequantize_keys(q_UGK, scales_NG2[..., which].index_select(0, rows_U), dtype)
