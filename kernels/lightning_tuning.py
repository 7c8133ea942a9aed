"""Launch parameters of lightning attention's kernels: defaults by shape, what tuning tries beside them, how to cut.

Parameters: width channels and chunk tokens of a program; a device's multiprocessor gets about `programs` segments of a
head, none much shorter than `least` tokens.
Legend: T tokens, S sequences, H heads, K head dim.
"""

import torch

from . import tuning
from .backend import capability
from .custom_op import multiprocessors

SEGMENT_MULTIPLE = 128  # whole chunks, whatever their size
LONGEST = 131072  # tokens of a segment: the matrix units add to the state with an error that grows with their number


def _default(stages: int):
    """Launch parameters where no table has any; fp32 products run without the matrix units, in small tiles."""

    def default(K: int, dtype: str, **_) -> tuning.Config:
        if dtype == "float32":
            return {"width": 32, "chunk": 32, "num_warps": 4, "num_stages": 1}
        return {"width": 64 if K == 128 else K, "chunk": 64, "num_warps": 4, "num_stages": stages}

    return default


def _default_kv(K: int, dtype: str, **_) -> tuning.Config:
    wide = {"chunk": 32 if dtype == "float32" else 64, "num_warps": 8 if K == 128 else 4}
    return {**wide, "num_stages": 1 if dtype == "float32" else 2}


def _candidates(*wide):
    """To try at head dim 128: (width, chunk, num_warps, num_stages)."""

    def candidates(K: int, dtype: str, **_) -> list[tuning.Config]:
        if dtype == "float32":
            return []
        narrow = [(K, 64, warps, stages) for warps in (2, 4) for stages in (1, 2, 3)] + [(K, 32, 2, 2), (K, 32, 2, 3)]
        tried = wide if K == 128 else narrow
        return [dict(zip(("width", "chunk", "num_warps", "num_stages"), values, strict=True)) for values in tried]

    return candidates


def _candidates_kv(K: int, dtype: str, **_) -> list[tuning.Config]:
    if dtype == "float32":
        return []
    tried = [(64, 8, 1), (64, 8, 2), (32, 8, 1), (32, 8, 2), (32, 8, 3), (32, 4, 1)]
    if K != 128:
        tried = [(64, warps, stages) for warps in (2, 4) for stages in (1, 2, 3)] + [(32, 2, 2), (32, 2, 3)]
    return [{"chunk": chunk, "num_warps": warps, "num_stages": stages} for chunk, warps, stages in tried]


def _declare(op: str, stages: int, *wide):
    tuning.declare(f"lightning_{op}", default=_default(stages), exact=("K",), candidates=_candidates(*wide))


_declare("added", 4, (64, 64, 4, 2), (64, 64, 4, 3), (128, 64, 8, 2), (128, 64, 8, 3))
_declare("forward", 3, (64, 64, 4, 1), (64, 64, 4, 2), (128, 64, 8, 2), (128, 64, 8, 3))
_declare("backward_q", 2, (64, 64, 4, 1), (64, 64, 4, 3), (128, 64, 8, 1), (128, 64, 8, 2))
tuning.declare("lightning_backward_kv", default=_default_kv, exact=("K",), candidates=_candidates_kv)
tuning.declare(
    "lightning_segments",
    default=lambda K, **_: {"programs": 128 // K, "least": 256},
    exact=("K",),
    candidates=[{"programs": programs, "least": least} for programs in (1, 2, 4, 8) for least in (128, 256)],
)
# lightning_hopper_triton.py instead of the plain kernels, for sequences of at least `shortest` tokens on average;
# `halves` of a segment of a head fill a multiprocessor.
SPECIALIZED = {
    "use": 1, "width": 64, "stages": 4, "registers": 128, "halves": 1, "least": 512, "shortest": 384,
}  # fmt: skip
tuning.declare(
    "lightning_specialized",
    default=SPECIALIZED,
    exact=("K",),
    candidates=lambda K, dtype, **_: (
        [{**SPECIALIZED, "use": 0}, {**SPECIALIZED, "stages": 3}, {**SPECIALIZED, "halves": 2}]
        if K == 128 and dtype == "bfloat16"
        else []
    ),
)


def choose_cut(T: int, S: int, H: int, K: int, longest: int, dtype: str, device: torch.device):
    """Tokens of a segment, and whether lightning_hopper_triton.py runs: bf16 on a GPU with warpgroup products."""
    if K == 128 and T and dtype == "bfloat16" and device.type == "cuda" and capability(device)[0] == 9:
        chosen = tuning.config("lightning_specialized", K=K, H=H, T=T, dtype=dtype)
        if chosen["use"] and T >= chosen["shortest"] * S:
            programs = chosen["halves"] * chosen["width"] / K
            return _even_segments(T * H, longest, programs, chosen["least"], device), True
    return segment_tokens(T, H, K, longest, device), False


# What torch.compiler.assume_constant_result would set; that imports torch._dynamo, and with it triton.
choose_cut._dynamo_marked_constant = True


def segment_tokens(T: int, H: int, K: int, longest: int, device: torch.device) -> int:
    """How long a segment may be: so that programs fill the device, and no split where it would win little."""
    config = tuning.config("lightning_segments", T=T, H=H, K=K)
    return _even_segments(T * H, longest, config["programs"], config["least"], device)


def _even_segments(rows: int, longest: int, programs: float, least: int, device: torch.device) -> int:
    even = rows / (programs * multiprocessors(device))
    count = max(round(longest / max(even, least)), -(-longest // LONGEST))
    return longest if count < 2 else -(-longest // (count * SEGMENT_MULTIPLE)) * SEGMENT_MULTIPLE
