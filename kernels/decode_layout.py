"""What the kernels of decode_numba.py are told of a decoder: where its weights are, how those of 8 bits are laid out.

D model width, W weight rows of N entries, B blocks of them.
"""

import numpy as np

BLOCK = 64  # rows of a block

# what layers and the model are, for `step`; "i8" that are no counts are addresses of fp32 numbers
WEIGHT = np.dtype([("at", "i8"), ("scales", "i8"), ("rows", "i8")])  # scales 0: fp32 as it is; else `pack`ed
LAYER = np.dtype(
    [("is_lightning", "i8"), ("number", "i8")]  # number: among its kind
    + [("norm", "i8"), ("alpha", "f4"), ("beta", "f4")]
    + [("qkv", WEIGHT), ("gate", WEIGHT), ("out_norm", "i8"), ("lost", "i8"), ("states", "i8")]
    + [("q", WEIGHT), ("k", WEIGHT), ("v", WEIGHT), ("keys", "i8"), ("values", "i8"), ("out", WEIGHT)]
    + [("moe_norm", "i8"), ("moe_alpha", "f4"), ("moe_beta", "f4"), ("router", WEIGHT)]
    + [("w1", WEIGHT), ("w3", WEIGHT), ("w2", WEIGHT)],  # of all experts, one after the other; rows of one
    align=True,
)
MODEL = np.dtype(
    [(name, "i8") for name in ("heads", "key_heads", "head_dim", "experts", "top_k", "page_size", "postnorm", "norm")]
    + [("eps", "f4"), ("out_eps", "f4")],
    align=True,
)


def pack(whole_WN: np.ndarray, scale_W: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of int8 and their scales -> blocks of 64 rows, entry by entry (B, N, 64), and their scales (B, 64).

    The last block is filled up with zeros.
    """
    W, N = whole_WN.shape
    B = -(-W // BLOCK)
    rows, scales = np.zeros((B * BLOCK, N), np.int8), np.zeros(B * BLOCK, np.float32)
    rows[:W], scales[:W] = whole_WN, scale_W
    return np.ascontiguousarray(rows.reshape(B, BLOCK, N).swapaxes(1, 2)), scales.reshape(B, BLOCK)
