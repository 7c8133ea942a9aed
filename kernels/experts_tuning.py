"""Launch parameters of the expert kernels: defaults by shape, and what tuning tries beside them.

Keys of a shape: P token-expert pairs, E experts, I expert width, D model width, dtype. Parameters: BM rows, BN columns,
BK depth of a tile; GROUP row tiles done together; SPLIT parts of the inner dim; tma 1: weights read by tensor maps;
persistent: programs a multiprocessor, 0: one a tile.
"""

import functools

from . import tuning

EXACT = ("E", "I", "D", "bits")


def _rows(P, E):
    """Rows of a tile: enough for what an expert gets on average, so that its weights are read once."""
    return 64 if P <= 64 * E else 128


def _training(P, E, I, D, dtype):
    """Whether torch's grouped products train faster: 60 ms against 77 at I = 9216 and P = 32,768 on an H200."""
    return {"grouped_mm": int(min(I, D) >= 512 and dtype == "bfloat16")}


def _up(P, E, I, D, dtype):
    if dtype == "float32":
        return {"BM": 64, "BN": 32, "BK": 32, "GROUP": 8, "num_warps": 4, "num_stages": 2}
    if I < 512:
        return {"BM": _rows(P, E), "BN": 32, "BK": 64, "GROUP": 8, "num_warps": 4, "num_stages": 2}
    return {"BM": _rows(P, E), "BN": 64, "BK": 64, "GROUP": 8, "num_warps": 4, "num_stages": 4}


def _down(P, E, I, D, dtype):
    if dtype == "float32":
        return {"BM": 64, "BN": 64, "BK": 32, "GROUP": 8, "num_warps": 4, "num_stages": 2}
    if I < 512:
        return {"BM": _rows(P, E), "BN": 128, "BK": 32, "GROUP": 8, "num_warps": 4, "num_stages": 4}
    return {"BM": _rows(P, E), "BN": 128, "BK": 64, "GROUP": 8, "num_warps": 4, "num_stages": 4}


def _down_backward(P, E, I, D, dtype):
    if dtype == "float32":
        return {"BM": 64, "BN": 32, "BK": 32, "GROUP": 8, "num_warps": 4, "num_stages": 2}
    if I < 512:
        return {"BM": 64, "BN": 32, "BK": 64, "GROUP": 8, "num_warps": 4, "num_stages": 3}
    return {"BM": 128, "BN": 128, "BK": 64, "GROUP": 8, "num_warps": 8, "num_stages": 3}


def _up_backward(P, E, I, D, dtype):
    if dtype == "float32":
        return {"BM": 64, "BN": 64, "BK": 32, "GROUP": 8, "num_warps": 4, "num_stages": 2}
    if I < 512:
        return {"BM": 128, "BN": 128, "BK": 32, "GROUP": 8, "num_warps": 4, "num_stages": 3}
    return {"BM": 128, "BN": 256, "BK": 32, "GROUP": 8, "num_warps": 8, "num_stages": 3}


def _weights(P, E, I, D, dtype):
    if dtype == "float32":
        return {"BI": 32, "BD": 64, "BR": 32, "SPLIT": _split(P, E, I, D, 32, 64), "num_warps": 4, "num_stages": 2}
    if I < 512:
        return {"BI": 64, "BD": 128, "BR": 64, "SPLIT": _split(P, E, I, D, 64, 128), "num_warps": 4, "num_stages": 3}
    return {"BI": 128, "BD": 256, "BR": 64, "SPLIT": 1, "num_warps": 8, "num_stages": 3}


def _split(P, E, I, D, BI, BD):
    """Parts of each expert's rows: a few programs for each of the chip's processors, at least 256 rows in each."""
    programs = 3 * E * -(-I // BI) * -(-D // BD)
    split = 1
    while split < 16 and 2 * split * programs <= 1200 and P >= 512 * split * E:
        split *= 2
    return split


def _few(P, E, I, D, dtype, bits):
    """For few tokens or quantised weights: BT tokens, BN weight rows, BK deep (int4 always 128)."""
    if dtype == "float32":
        return {"BT": 16, "BN": 32, "BK": 32, "GROUP": 8, "tma": 0, "num_warps": 4, "num_stages": 2}
    if P > 64 * E:
        return {"BT": 128, "BN": 64, "BK": 64, "GROUP": 8, "tma": 0, "num_warps": 4, "num_stages": 3}
    # 16 columns are not wasted on experts with few tokens; a second tile of one expert finds its weights in L2
    config = {"BT": 16, "BN": 64, "BK": 128, "GROUP": 8, "tma": int(I >= 512), "num_warps": 4, "num_stages": 4}
    return config | {16: {}, 8: {"BK": 256, "num_stages": 3}, 4: {"num_stages": 6}}[bits]


def _down_few(P, E, I, D, dtype, bits):
    config = {**_few(P, E, I, D, dtype, bits), "SPLIT": 1}
    if dtype == "float32" or P > 64 * E or I < 2048:
        return config
    if bits == 16:
        return config | {"num_stages": 3, "SPLIT": 2 if P <= 8 else 1}
    if bits == 8:
        return config | {"BK": 128, "num_stages": 4, "SPLIT": 4 if P <= 32 else 2}
    return config | ({"BN": 128, "num_stages": 4, "SPLIT": 4} if P <= 32 else {"tma": 0, "num_stages": 4})


def _up_large(P, E, I, D, dtype):
    """For many tokens: tiles of BM rows by BN columns of both w1 and w3."""
    BM = _rows(P, E)
    BK = 128 if dtype.startswith("float8") else 64
    return {"BM": BM, "BN": 128, "BK": BK, "GROUP": 8, "persistent": 1,
            "num_warps": 8 if BM == 128 else 4, "num_stages": 4 if BK == 64 else 3}  # fmt: skip


def _down_large(P, E, I, D, dtype):
    if _rows(P, E) == 64:
        return _up_large(P, E, I, D, dtype)
    return {**_up_large(P, E, I, D, dtype), "BN": 256, "num_stages": 4 if dtype.startswith("float8") else 3}


def _unpack(P, E, I, D, dtype, bits):
    """Whether weights are unpacked ahead of the product: from so many pairs an expert.

    Unpacking ahead costs its bytes, 3 E I D (2 + bits / 8), at the bandwidth. Unpacking in registers makes products
    slower, which grows with P I D. So P / E alone decides. On an H200 with E = 32, I = 9216, D = 6144, ahead costs 4.0
    ms (int8) and 3.5 (int4) whatever P is; in registers, at 256 pairs an expert, 3.1 and 5.8 more than plain weights.
    """
    return {"use": int(dtype != "float32" and I >= 512 and P >= (144 if bits == 4 else 320) * E)}


_PLAIN = [{"BM": 64}, {"BM": 64, "BN": 64}, {"BN": 64}, {"BN": 256, "num_warps": 8}, {"num_warps": 8},
          {"num_stages": 2}, {"num_stages": 4}, {"BK": 128, "num_stages": 2}, {"GROUP": 1}]  # fmt: skip
_FEW = [{"tma": 0}, {"tma": 1}, {"num_stages": 3}, {"BK": 64, "num_stages": 6}, {"BK": 256, "num_stages": 3},
        {"BN": 128}, {"BT": 64}, {"BN": 128, "num_warps": 8}]  # fmt: skip
_LARGE = [{"num_stages": 3}, {"num_stages": 4}, {"persistent": 0, "num_stages": 3}, {"GROUP": 4}, {"GROUP": 16},
          {"BM": 64, "num_warps": 4}, {"BM": 64, "BN": 64, "num_warps": 4},
          {"BM": 64, "BN": 128, "num_warps": 4, "num_stages": 2, "persistent": 2},
          {"BM": 64, "BN": 128, "num_warps": 4, "num_stages": 3, "persistent": 2}]  # fmt: skip
_WEIGHTS = [{"BI": 32}, {"BD": 256, "num_warps": 8}, {"SPLIT": 2}, {"SPLIT": 4}, {"SPLIT": 16}, {"BR": 32}, {"BR": 128},
            {"num_stages": 2}, {"num_stages": 4}]  # fmt: skip


def _beside(default, changes, **shape):
    return [{**default(**shape), **change} for change in changes]


for _op, _default, _changes in (
    ("experts_training", _training, [{"grouped_mm": 0}, {"grouped_mm": 1}]),
    ("experts_up", _up, _PLAIN),
    ("experts_down", _down, _PLAIN),
    ("experts_down_backward", _down_backward, _PLAIN),
    ("experts_up_backward", _up_backward, _PLAIN),
    ("experts_weights", _weights, _WEIGHTS),
    ("experts_up_few", _few, _FEW),
    ("experts_down_few", _down_few, [*_FEW, {"SPLIT": 1}, {"SPLIT": 2}, {"SPLIT": 4}]),
    ("experts_up_large", _up_large, _LARGE),
    ("experts_down_large", _down_large, _LARGE),
    ("experts_unpack", _unpack, [{"use": 0}, {"use": 1}]),
):
    candidates = functools.partial(_beside, _default, _changes)
    tuning.declare(_op, default=_default, exact=EXACT, candidates=candidates)
