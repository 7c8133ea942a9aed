"""The decoder for a few tokens on a CPU, compiled by Numba: all layers in one call.

Starting the hundreds of torch's operations of a small model's decode step takes longer than their work. A call here
runs on the thread that makes it, and reads every weight once for a few tokens.
What is computed is defined in lightning_decode.py, softmax_attention.py, rope.py, experts.py and norm.py; in fp32, but
that weights may be whole numbers of 8 bits times a scale a row, which `pack` lays out for vector units.

Importing this file compiles it: some seconds once for a processor, then Numba finds it in its cache on the disk, as
long as this file is the same: so all that `step` calls stands here, for a change elsewhere would not be seen.

T tokens (of several sequences, one after the other), D model width, H query heads, G key/value heads, K head dim,
C = H K, L = G K, X = 3 C, E experts, I expert width, M rows of the key pools, P pages, R half of the rotated dims;
W weight rows of N entries, B blocks of them.
"""

import numpy as np
from llvmlite import ir
from numba import boolean, carray, float32, from_dtype, int64, njit, types, void
from numba.core import cgutils
from numba.core.codegen import get_host_cpu_features
from numba.extending import intrinsic

from mmvl.kernels.decode_layout import BLOCK, LAYER, MODEL, WEIGHT

LANES = 16  # fp32 numbers of a vector, which LLVM splits where vectors are shorter
HEADS = 4  # query heads at once that share keys and values
# tokens and vectors of rows at once, as many as there are registers for sums
TOKENS, VECTORS = (4, 4) if "+avx512f" in get_host_cpu_features() else (3, 2)

# sums may be reordered, which vector units need; NaN and infinity stay what they are
_FAST = {"contract", "reassoc", "arcp", "nsz"}
_matrix, _cube = float32[:, ::1], float32[:, :, ::1]
_inner = njit(fastmath=_FAST, nogil=True)


def _compiled(*of):
    return njit(void(*of), fastmath=_FAST, nogil=True, cache=True)


@intrinsic
def _numbers(_, address):
    """The fp32 numbers at an address."""

    def build(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], ir.FloatType().as_pointer())

    return types.CPointer(float32)(address), build


_VECTOR, _INT = ir.VectorType(ir.FloatType(), LANES), ir.IntType(64)
_FLAGS = tuple(_FAST)


def _load(builder, address, dtype):
    at = builder.inttoptr(address, ir.VectorType(dtype, LANES).as_pointer())
    return builder.load(at, align=1)


def _plus(builder, address, index, size):
    return builder.add(address, builder.mul(index, _INT(size)))


@intrinsic(prefer_literal=True)
def _by_columns(_, tokens, vectors, size, x, x_stride, w, w_stride, scale, count, y, y_stride):
    """y[t, r] = scale[r] sum over i of x[t, i] w[i, r], for so many tokens t and vectors of r: a vector unit's way.

    The first three are literals; size: bytes of an entry of w, fp32 or int8. fp32 has no scale, and is added to what y
    was. Addresses, and strides in entries.
    """
    T, V, one = (literal.literal_value for literal in (tokens, vectors, size))
    dtype = ir.FloatType() if one == 4 else ir.IntType(8)

    def build(context, builder, signature, arguments):
        x, x_stride, w, w_stride, scale, count, y, y_stride = arguments[3:]
        places = [
            [_plus(builder, _plus(builder, y, y_stride, 4 * t), _INT(v), 4 * LANES) for v in range(V)] for t in range(T)
        ]
        before = [[_VECTOR(None) if one == 1 else _load(builder, at, ir.FloatType()) for at in row] for row in places]
        sums = [[cgutils.alloca_once_value(builder, value) for value in row] for row in before]
        first = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
        with cgutils.for_range(builder, count) as loop:
            row = _plus(builder, w, builder.mul(loop.index, w_stride), one)
            weights = [_load(builder, _plus(builder, row, _INT(v), one * LANES), dtype) for v in range(V)]
            if one == 1:
                weights = [builder.sitofp(weight, _VECTOR) for weight in weights]
            for t in range(T):
                at = _plus(builder, _plus(builder, x, x_stride, 4 * t), loop.index, 4)
                number = builder.load(builder.inttoptr(at, ir.FloatType().as_pointer()))
                alone = builder.insert_element(_VECTOR(ir.Undefined), number, ir.IntType(32)(0))
                number = builder.shuffle_vector(alone, _VECTOR(ir.Undefined), first)
                for total, weight in zip(sums[t], weights, strict=True):
                    product = builder.fmul(number, weight, flags=_FLAGS)
                    builder.store(builder.fadd(builder.load(total), product, flags=_FLAGS), total)
        for v in range(V):
            factor = _load(builder, _plus(builder, scale, _INT(v), 4 * LANES), ir.FloatType()) if one == 1 else None
            for t in range(T):
                total = builder.load(sums[t][v])
                total = total if factor is None else builder.fmul(total, factor)
                builder.store(total, builder.inttoptr(places[t][v], _VECTOR.as_pointer()), align=4)
        return context.get_dummy_value()

    return void(tokens, vectors, size, *[int64] * 8), build


@intrinsic(prefer_literal=True)
def _by_rows(_, tokens, x, x_stride, w, w_stride, rows, vectors, y, y_stride):
    """y[t, r] = sum over i of x[t, i] w[r, i], for so many tokens t (a literal), rows r and vectors of i; all fp32."""
    T = tokens.literal_value

    def build(context, builder, signature, arguments):
        x, x_stride, w, w_stride, rows, vectors, y, y_stride = arguments[1:]
        single = ir.FloatType()
        adder = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(single, [single, _VECTOR]), f"llvm.vector.reduce.fadd.v{LANES}f32"
        )
        sums = [cgutils.alloca_once(builder, _VECTOR) for _ in range(T)]
        with cgutils.for_range(builder, rows) as of_rows:
            for total in sums:
                builder.store(_VECTOR(None), total)
            row = _plus(builder, w, builder.mul(of_rows.index, w_stride), 4)
            with cgutils.for_range(builder, vectors) as loop:
                weight = _load(builder, _plus(builder, row, loop.index, 4 * LANES), single)
                for t, total in enumerate(sums):
                    at = _plus(builder, _plus(builder, x, x_stride, 4 * t), loop.index, 4 * LANES)
                    product = builder.fmul(_load(builder, at, single), weight, flags=_FLAGS)
                    builder.store(builder.fadd(builder.load(total), product, flags=_FLAGS), total)
            for t, total in enumerate(sums):
                at = _plus(builder, _plus(builder, y, y_stride, 4 * t), of_rows.index, 4)
                number = builder.call(adder, [single(-0.0), builder.load(total)], fastmath=_FLAGS)
                builder.store(number, builder.inttoptr(at, single.as_pointer()))
        return context.get_dummy_value()

    return void(tokens, *[int64] * 8), build


@_inner
def _block(T, x, N, w, scale, y, y_stride):
    """Up to TOKENS tokens times a block of packed weights."""
    for r in range(0, BLOCK, LANES * VECTORS):
        if T == 1:
            _by_columns(1, VECTORS, 1, x, N, w + r, BLOCK, scale + 4 * r, N, y + 4 * r, y_stride)
        elif T == 2:
            _by_columns(2, VECTORS, 1, x, N, w + r, BLOCK, scale + 4 * r, N, y + 4 * r, y_stride)
        elif T == 3:
            _by_columns(3, VECTORS, 1, x, N, w + r, BLOCK, scale + 4 * r, N, y + 4 * r, y_stride)
        else:
            _by_columns(TOKENS, VECTORS, 1, x, N, w + r, BLOCK, scale + 4 * r, N, y + 4 * r, y_stride)


@_inner
def _dot(a, b):
    total = np.float32(0)
    for i in range(a.shape[0]):
        total += a[i] * b[i]
    return total


@_inner
def _two_dots(a, b, c):
    first = second = np.float32(0)
    for i in range(a.shape[0]):
        first += a[i] * b[i]
        second += a[i] * c[i]
    return first, second


@_inner
def _project(x_TN, w_at, scales_at, W, y_TW):
    """y = x w^T; weights stay in the first cache for all tokens. y_TW may have more rows than x, which stay.

    Of fp32 weights, for one token row after row, which memory likes best; for several two rows at once, which reads
    the token once.
    """
    T, N = x_TN.shape
    if scales_at == 0:
        w_WN = carray(_numbers(w_at), (W, N))
        paired = W - W % 2 if T > 1 else 0
        for r in range(0, paired, 2):
            for t in range(T):
                y_TW[t, r], y_TW[t, r + 1] = _two_dots(x_TN[t], w_WN[r], w_WN[r + 1])
        for r in range(paired, W):
            for t in range(T):
                y_TW[t, r] = _dot(x_TN[t], w_WN[r])
        return
    rest_TR = np.empty((TOKENS, BLOCK), np.float32)
    for begin in range(0, W, BLOCK):
        w, scales = w_at + begin * N, scales_at + 4 * begin
        for t in range(0, T, TOKENS):
            few, x = min(TOKENS, T - t), x_TN[t:].ctypes.data
            if begin + BLOCK <= W:
                _block(few, x, N, w, scales, y_TW[t, begin:].ctypes.data, y_TW.shape[1])
            else:
                _block(few, x, N, w, scales, rest_TR.ctypes.data, BLOCK)
                y_TW[t : t + few, begin:W] = rest_TR[:few, : W - begin]


@_inner
def _project_by(x_TN, weight, y_TW):
    _project(x_TN, weight.at, weight.scales, weight.rows, y_TW)


@_inner
def _project_by_one(x_TN, weight, e, y_TW):
    """By the weights of the expert e."""
    W, N, scales = weight.rows, x_TN.shape[1], weight.scales
    size = 4 * W * N
    if scales != 0:
        padded = -(-W // BLOCK) * BLOCK
        size, scales = padded * N, scales + 4 * e * padded
    _project(x_TN, weight.at + e * size, scales, W, y_TW)


@_inner
def _norm(x_D, weight_D, eps, y_D):
    scale = np.float32(1) / np.sqrt(_dot(x_D, x_D) / np.float32(x_D.shape[0]) + eps)
    for i in range(x_D.shape[0]):
        y_D[i] = x_D[i] * scale * weight_D[i]


@_inner
def _exp(x):
    """e^x up to 88, off by 2e-7 of it, in operations that vector units have (Cephes' expf); 0 from -88 down."""
    x = min(x, np.float32(88))
    n = np.floor(x * np.float32(1.44269504) + np.float32(0.5))
    r = x - n * np.float32(0.693359375) + n * np.float32(2.12194440e-4)
    p = np.float32(1.9875691500e-4) * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    p = p * r * r + r + np.float32(1)
    exponent = (np.int32(max(n, np.float32(-127))) + np.int32(127)) << np.int32(23)
    return p * np.int32(exponent).view(np.float32)


@_inner
def _sigmoid(x):
    return np.float32(1) / (np.float32(1) + _exp(-x))


@_inner
def _norms(x_TD, weight_at, eps, h_TD):
    weight_D = carray(_numbers(weight_at), (x_TD.shape[1],))
    for t in range(x_TD.shape[0]):
        _norm(x_TD[t], weight_D, eps, h_TD[t])


@_inner
def _add(x_TD, h_TD, y_TD, alpha, beta, postnorm):
    """The residual, plain or normed, and what was computed from it."""
    for t in range(x_TD.shape[0]):
        for i in range(x_TD.shape[1]):
            x_TD[t, i] = alpha * (h_TD[t, i] if postnorm else x_TD[t, i]) + beta * y_TD[t, i]


@_inner
def _lightning(h_TD, layer, model, slots_T, draft, qkv_TX, y_TD):
    """A lightning layer's attention of the normed h; unless `draft`, the states go on too.

    qkv_TX: receives the projection, which `HybridCache.keep_draft` wants.
    """
    T, H, K = h_TD.shape[0], model.heads, model.head_dim
    _project_by(h_TD, layer.qkv, qkv_TX)
    x_X, drafted_HKK = np.empty(3 * H * K, np.float32), np.empty((H, K, K), np.float32)
    gate_TC, o_TC = np.empty((T, H * K), np.float32), np.zeros((T, H * K), np.float32)
    _project_by(h_TD, layer.gate, gate_TC)
    lost_H, out_norm_C = carray(_numbers(layer.lost), (H,)), carray(_numbers(layer.out_norm), (H * K,))
    for t in range(T):
        state_HKK = carray(_numbers(layer.states + 4 * slots_T[t] * H * K * K), (H, K, K))
        if draft:
            if t == 0 or slots_T[t] != slots_T[t - 1]:
                drafted_HKK[:] = state_HKK
            state_HKK = drafted_HKK
        for i in range(x_X.shape[0]):
            x_X[i] = qkv_TX[t, i] * _sigmoid(qkv_TX[t, i])
        o_C = o_TC[t]
        for h in range(H):
            begin = 3 * h * K
            q_K, k_K, v_K = x_X[begin : begin + K], x_X[begin + K : begin + 2 * K], x_X[begin + 2 * K : begin + 3 * K]
            o_K = o_C[h * K : (h + 1) * K]
            for i in range(K):
                row_K = state_HKK[h, i]
                for j in range(K):
                    row_K[j] += lost_H[h] * row_K[j] + k_K[i] * v_K[j]
                    o_K[j] += q_K[i] * row_K[j]
        _norm(o_C, out_norm_C, model.out_eps, o_C)
        for i in range(H * K):
            o_C[i] *= _sigmoid(gate_TC[t, i])
    _project_by(o_TC, layer.out, y_TD)


@_inner
def _rotate(x_K, cos_R, sin_R):
    R = cos_R.shape[0]
    for i in range(R):
        a, b = x_K[i], x_K[R + i]
        x_K[i], x_K[R + i] = a * cos_R[i] - b * sin_R[i], b * cos_R[i] + a * sin_R[i]


@_inner
def _scores(N, q, K, keys, stride, rows, scores, U):
    if N == 1:
        _by_rows(1, q, K, keys, stride, rows, K // LANES, scores, U)
    elif N == 2:
        _by_rows(2, q, K, keys, stride, rows, K // LANES, scores, U)
    elif N == 3:
        _by_rows(3, q, K, keys, stride, rows, K // LANES, scores, U)
    else:
        _by_rows(HEADS, q, K, keys, stride, rows, K // LANES, scores, U)


@_inner
def _mixed(N, scores, U, values, stride, rows, o, K):
    if N == 1:
        _by_columns(1, 1, 4, scores, U, values, stride, 0, rows, o, K)
    elif N == 2:
        _by_columns(2, 1, 4, scores, U, values, stride, 0, rows, o, K)
    elif N == 3:
        _by_columns(3, 1, 4, scores, U, values, stride, 0, rows, o, K)
    else:
        _by_columns(HEADS, 1, 4, scores, U, values, stride, 0, rows, o, K)


@_inner
def _attend(q_NK, keys_MGK, values_MGK, g, pages_P, page_size, U, scale, scores_NU, o_NK):
    """Up to HEADS heads of a token over U keys of the head g; added to o_NK."""
    (N, K), G, most = q_NK.shape, keys_MGK.shape[1], scores_NU.shape[1]
    in_vectors = K // LANES * LANES
    for begin in range(0, U, page_size):
        first, rows = pages_P[begin // page_size] * page_size, min(page_size, U - begin)
        keys, scores = keys_MGK[first, g:].ctypes.data, scores_NU[0, begin:].ctypes.data
        _scores(N, q_NK.ctypes.data, K, keys, G * K, rows, scores, most)
        for n in range(N):
            for u in range(rows):
                for i in range(in_vectors, K):
                    scores_NU[n, begin + u] += q_NK[n, i] * keys_MGK[first + u, g, i]
    for n in range(N):
        scores_U = scores_NU[n, :U]
        largest, total = scores_U.max(), np.float32(0)
        for u in range(U):
            scores_U[u] = _exp(scale * (scores_U[u] - largest))
            total += scores_U[u]
        scores_U /= total
    for begin in range(0, U, page_size):
        first, rows = pages_P[begin // page_size] * page_size, min(page_size, U - begin)
        for i in range(0, in_vectors, LANES):
            values, scores = values_MGK[first, g, i:].ctypes.data, scores_NU[0, begin:].ctypes.data
            _mixed(N, scores, most, values, G * K, rows, o_NK[0, i:].ctypes.data, K)
        for n in range(N):
            for u in range(rows):
                for i in range(in_vectors, K):
                    o_NK[n, i] += scores_NU[n, begin + u] * values_MGK[first + u, g, i]


@_inner
def _softmax(h_TD, layer, model, M, pages_TP, positions_T, cos_PR, sin_PR, y_TD):
    """A softmax layer's attention of the normed h; keys and values go to the pools first."""
    T, H, G, K, page_size = h_TD.shape[0], model.heads, model.key_heads, model.head_dim, model.page_size
    keys_MGK, values_MGK = carray(_numbers(layer.keys), (M, G, K)), carray(_numbers(layer.values), (M, G, K))
    q_TC, o_TC = np.empty((T, H * K), np.float32), np.zeros((T, H * K), np.float32)
    k_TL, v_TL = np.empty((T, G * K), np.float32), np.empty((T, G * K), np.float32)
    _project_by(h_TD, layer.q, q_TC)
    _project_by(h_TD, layer.k, k_TL)
    _project_by(h_TD, layer.v, v_TL)
    for t in range(T):
        at = positions_T[t]
        row = pages_TP[t, at // page_size] * page_size + at % page_size
        for g in range(G):
            _rotate(k_TL[t, g * K : (g + 1) * K], cos_PR[at], sin_PR[at])
            keys_MGK[row, g], values_MGK[row, g] = k_TL[t, g * K : (g + 1) * K], v_TL[t, g * K : (g + 1) * K]
        for h in range(H):
            _rotate(q_TC[t, h * K : (h + 1) * K], cos_PR[at], sin_PR[at])
    scores_NU, scale = np.empty((HEADS, positions_T.max() + 1), np.float32), np.float32(1 / np.sqrt(K))
    for t in range(T):
        for g in range(G):
            for h in range(g * H // G, (g + 1) * H // G, HEADS):
                end = min(h + HEADS, (g + 1) * H // G)
                q_NK, o_NK = q_TC[t, h * K : end * K].reshape(-1, K), o_TC[t, h * K : end * K].reshape(-1, K)
                _attend(
                    q_NK, keys_MGK, values_MGK, g, pages_TP[t], page_size, positions_T[t] + 1, scale, scores_NU, o_NK
                )
    _project_by(o_TC, layer.out, y_TD)


@_inner
def _experts(h_TD, layer, model, y_TD):
    """A layer's router and experts, of the normed h. Of equal logits the first expert is taken."""
    (T, D), E, I = h_TD.shape, model.experts, layer.w1.rows
    logits_TE, share_TE = np.empty((T, E), np.float32), np.zeros((T, E), np.float32)
    _project_by(h_TD, layer.router, logits_TE)
    for t in range(T):
        most, total = logits_TE[t].max(), np.float32(0)
        for _ in range(model.top_k):
            best = logits_TE[t].argmax()
            share_TE[t, best] = _exp(logits_TE[t, best] - most)
            total += share_TE[t, best]
            logits_TE[t, best] = -np.inf
        share_TE[t] /= total
    y_TD[:] = 0
    mine_T, h_ND, y_ND = np.empty(T, np.int64), np.empty_like(h_TD), np.empty_like(h_TD)
    gate_NI, up_NI = np.empty((T, I), np.float32), np.empty((T, I), np.float32)
    for e in range(E):
        N = 0
        for t in range(T):
            if share_TE[t, e] != 0:
                mine_T[N] = t
                h_ND[N] = h_TD[t]
                N += 1
        if N == 0:
            continue
        _project_by_one(h_ND[:N], layer.w1, e, gate_NI)
        _project_by_one(h_ND[:N], layer.w3, e, up_NI)
        for n in range(N):
            for i in range(I):
                gate_NI[n, i] *= _sigmoid(gate_NI[n, i]) * up_NI[n, i]
        _project_by_one(gate_NI[:N], layer.w2, e, y_ND)
        for n in range(N):
            share = share_TE[mine_T[n], e]
            for i in range(D):
                y_TD[mine_T[n], i] += share * y_ND[n, i]


@_compiled(
    _matrix, from_dtype(LAYER)[::1], from_dtype(MODEL)[::1], int64, int64[::1], int64[:, ::1], int64[::1], _matrix,
    _matrix, boolean, _cube, _matrix,
)  # fmt: skip
def step(x_TD, layers, models, M, slots_T, pages_TP, positions_T, cos_PR, sin_PR, draft, qkv_ZTX, hidden_TD):
    """Embeddings (overwritten) -> hidden states after the last norm. States, unless `draft`, and the pools go on.

    Token t is at positions_T[t] of the sequence in the slot slots_T[t], whose tokens lie in the pages pages_TP[t], in
    order. cos, sin: of all positions up to there. qkv_ZTX: receives the projections of all lightning layers Z of a
    draft, else one place is enough.
    """
    model, h_TD, y_TD = models[0], np.empty_like(x_TD), np.empty_like(x_TD)
    postnorm = model.postnorm != 0
    for n in range(len(layers)):
        layer = layers[n]
        _norms(x_TD, layer.norm, model.eps, h_TD)
        if layer.is_lightning:
            _lightning(h_TD, layer, model, slots_T, draft, qkv_ZTX[layer.number if draft else 0], y_TD)
        else:
            _softmax(h_TD, layer, model, M, pages_TP, positions_T, cos_PR, sin_PR, y_TD)
        _add(x_TD, h_TD, y_TD, layer.alpha, layer.beta, postnorm)
        _norms(x_TD, layer.moe_norm, model.eps, h_TD)
        _experts(h_TD, layer, model, y_TD)
        _add(x_TD, h_TD, y_TD, layer.moe_alpha, layer.moe_beta, postnorm)
    _norms(x_TD, model.norm, model.eps, hidden_TD)


@_compiled(_matrix, from_dtype(WEIGHT)[::1], _matrix)
def project(x_TN, weights, y_TW):
    """y = x w^T, for a few tokens."""
    _project_by(x_TN, weights[0], y_TW)
