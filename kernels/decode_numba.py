"""The layers of the decoder for a few tokens on a CPU, compiled by Numba: one call for a half of a layer.

Starting the hundreds of torch's operations of a small model's decode step takes longer than their work. A call here is
all of an attention or all of the experts, on one thread, and reads every weight once, where it lies in memory.
What they compute is defined in lightning_decode.py, softmax_attention.py, rope.py, experts.py and norm.py; in fp32, but
that the weights of experts may be whole numbers of 8 bits times a scale a row.

Importing this file compiles it: some seconds once for a processor, then Numba finds it in its cache on the disk.

T tokens (of several sequences, one after the other), D model width, H query heads, G key/value heads, K head dim,
C = H K, L = G K, X = 3 C, E experts, I expert width, N state slots, M rows of the key pools, P pages, R half of the
rotated dims.
"""

import numpy as np
from numba import boolean, float32, int8, int64, njit, void

# sums may be reordered, which vector units need; NaN and infinity stay what they are
_FAST = {"contract", "reassoc", "arcp", "nsz"}
_vector, _matrix, _cube, _four = float32[::1], float32[:, ::1], float32[:, :, ::1], float32[:, :, :, ::1]
_inner = njit(fastmath=_FAST, nogil=True)


def _compiled(*types):
    return njit(void(*types), fastmath=_FAST, nogil=True, cache=True)


@_inner
def _dot(a, b):
    """a in fp32, b in fp32 or whole numbers of 8 bits."""
    total = np.float32(0)
    for i in range(a.shape[0]):
        total += a[i] * np.float32(b[i])
    return total


@_inner
def _two_dots(a, b, c):
    first = second = np.float32(0)
    for i in range(a.shape[0]):
        first += a[i] * b[i]
        second += a[i] * c[i]
    return first, second


@_inner
def _project(x_TD, w_CD, y_TC):
    """y = x w^T; rows of the weights stay in the first cache for all tokens.

    For one token row after row, which memory likes best; for several two rows at once, which reads the token once.
    """
    (T, _), C = x_TD.shape, w_CD.shape[0]
    paired = C - C % 2 if T > 1 else 0
    for c in range(0, paired, 2):
        for t in range(T):
            y_TC[t, c], y_TC[t, c + 1] = _two_dots(x_TD[t], w_CD[c], w_CD[c + 1])
    for c in range(paired, C):
        for t in range(T):
            y_TC[t, c] = _dot(x_TD[t], w_CD[c])


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
def _normed(x_TD, weight_D, eps):
    h_TD = np.empty_like(x_TD)
    for t in range(x_TD.shape[0]):
        _norm(x_TD[t], weight_D, eps, h_TD[t])
    return h_TD


@_inner
def _add(x_TD, h_TD, y_TD, alpha, beta, postnorm):
    """The residual, plain or normed, and what was computed from it."""
    for t in range(x_TD.shape[0]):
        for i in range(x_TD.shape[1]):
            x_TD[t, i] = alpha * (h_TD[t, i] if postnorm else x_TD[t, i]) + beta * y_TD[t, i]


_stream = (_matrix, _vector, float32, float32, float32, boolean)  # x, norm, eps, alpha, beta, postnorm


@_compiled(*_stream, _matrix, _matrix, _vector, float32, _matrix, _vector, _four, int64[::1], boolean, _matrix)
def lightning(x_TD, norm_D, eps, alpha, beta, postnorm, qkv_XD, gate_CD, out_norm_C, out_eps, out_DC, decay_H,
              states_NHKK, slots_T, draft, qkv_TX):  # fmt: skip
    """A lightning layer's attention, on the residual stream x in place; unless `draft`, the states go on too.

    qkv_TX: receives the projection, which `HybridCache.keep_draft` wants.
    """
    T, (H, K) = x_TD.shape[0], states_NHKK.shape[1:3]
    h_TD = _normed(x_TD, norm_D, eps)
    _project(h_TD, qkv_XD, qkv_TX)
    x_X, y_TD = np.empty(qkv_TX.shape[1], np.float32), np.empty_like(x_TD)
    gate_TC, o_TC = np.empty((T, H * K), np.float32), np.zeros((T, H * K), np.float32)
    _project(h_TD, gate_CD, gate_TC)
    drafted_HKK = np.empty(states_NHKK.shape[1:], np.float32)
    for t in range(T):
        state_HKK = states_NHKK[slots_T[t]]
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
                    row_K[j] = decay_H[h] * row_K[j] + k_K[i] * v_K[j]
                    o_K[j] += q_K[i] * row_K[j]
        _norm(o_C, out_norm_C, out_eps, o_C)
        for i in range(H * K):
            o_C[i] *= _sigmoid(gate_TC[t, i])
    _project(o_TC, out_DC, y_TD)
    _add(x_TD, h_TD, y_TD, alpha, beta, postnorm)


@_inner
def _rotate(x_K, cos_R, sin_R):
    R = cos_R.shape[0]
    for i in range(R):
        a, b = x_K[i], x_K[R + i]
        x_K[i], x_K[R + i] = a * cos_R[i] - b * sin_R[i], b * cos_R[i] + a * sin_R[i]


@_compiled(*_stream, _matrix, _matrix, _matrix, _matrix, _cube, _cube, int64, int64[:, ::1], int64[::1], _matrix,
           _matrix)  # fmt: skip
def softmax(x_TD, norm_D, eps, alpha, beta, postnorm, q_CD, k_LD, v_LD, out_DC, keys_MGK, values_MGK, page_size,
            pages_TP, positions_T, cos_TR, sin_TR):  # fmt: skip
    """A softmax layer's attention, on the residual stream x in place; keys and values go to the pools first.

    Token t is at positions_T[t] of a sequence whose tokens lie in the pages pages_TP[t], in order.
    """
    T, (G, K) = x_TD.shape[0], keys_MGK.shape[1:]
    H = q_CD.shape[0] // K
    h_TD = _normed(x_TD, norm_D, eps)
    q_TC, o_TC, y_TD = np.empty((T, H * K), np.float32), np.zeros((T, H * K), np.float32), np.empty_like(x_TD)
    k_TL, v_TL = np.empty((T, G * K), np.float32), np.empty((T, G * K), np.float32)
    _project(h_TD, q_CD, q_TC)
    _project(h_TD, k_LD, k_TL)
    _project(h_TD, v_LD, v_TL)
    for t in range(T):
        row = pages_TP[t, positions_T[t] // page_size] * page_size + positions_T[t] % page_size
        for g in range(G):
            _rotate(k_TL[t, g * K : (g + 1) * K], cos_TR[t], sin_TR[t])
            keys_MGK[row, g], values_MGK[row, g] = k_TL[t, g * K : (g + 1) * K], v_TL[t, g * K : (g + 1) * K]
        for h in range(H):
            _rotate(q_TC[t, h * K : (h + 1) * K], cos_TR[t], sin_TR[t])
    scores_U = np.empty(positions_T.max() + 1, np.float32)
    scale = np.float32(1 / np.sqrt(K))
    for t in range(T):
        U = positions_T[t] + 1
        for h in range(H):
            g, q_K, o_K = h * G // H, q_TC[t, h * K : (h + 1) * K], o_TC[t, h * K : (h + 1) * K]
            for begin in range(0, U, page_size):
                first = pages_TP[t, begin // page_size] * page_size
                for u in range(min(page_size, U - begin)):
                    scores_U[begin + u] = scale * _dot(q_K, keys_MGK[first + u, g])
            most, total = scores_U[:U].max(), np.float32(0)
            for u in range(U):
                scores_U[u] = _exp(scores_U[u] - most)
                total += scores_U[u]
            for begin in range(0, U, page_size):
                first = pages_TP[t, begin // page_size] * page_size
                for u in range(min(page_size, U - begin)):
                    weight = scores_U[begin + u] / total
                    for i in range(K):
                        o_K[i] += weight * values_MGK[first + u, g, i]
    _project(o_TC, out_DC, y_TD)
    _add(x_TD, h_TD, y_TD, alpha, beta, postnorm)


def _experts_type(cube):
    return void(*_stream, _matrix, cube, cube, cube, _matrix, _matrix, _matrix, int64)


@njit([_experts_type(_cube), _experts_type(int8[:, :, ::1])], fastmath=_FAST, nogil=True, cache=True)
def experts(x_TD, norm_D, eps, alpha, beta, postnorm, gate_ED, w1_EID, w3_EID, w2_EDI, scale1_EI, scale3_EI,
            scale2_ED, top_k):  # fmt: skip
    """A layer's router and experts, on the residual stream x in place. Of equal logits the first expert is taken.

    A row of the weights is times its scale: whole numbers of 8 bits are a quarter of what has to be read.
    """
    T, (E, I, D) = x_TD.shape[0], w1_EID.shape
    h_TD = _normed(x_TD, norm_D, eps)
    logits_TE, share_TE = np.empty((T, E), np.float32), np.zeros((T, E), np.float32)
    _project(h_TD, gate_ED, logits_TE)
    for t in range(T):
        most, total = logits_TE[t].max(), np.float32(0)
        for _ in range(top_k):
            best = logits_TE[t].argmax()
            share_TE[t, best] = _exp(logits_TE[t, best] - most)
            total += share_TE[t, best]
            logits_TE[t, best] = -np.inf
        share_TE[t] /= total
    y_TD, hidden_TI, mine_T = np.zeros_like(x_TD), np.empty((T, I), np.float32), np.empty(T, np.int64)
    for e in range(E):
        count = 0
        for t in range(T):
            if share_TE[t, e] != 0:
                mine_T[count] = t
                count += 1
        if count == 0:
            continue
        for i in range(I):
            for n in range(count):
                t = mine_T[n]
                gate = scale1_EI[e, i] * _dot(h_TD[t], w1_EID[e, i])
                up = scale3_EI[e, i] * _dot(h_TD[t], w3_EID[e, i])
                hidden_TI[n, i] = share_TE[t, e] * gate * _sigmoid(gate) * up
        for d in range(D):
            for n in range(count):
                y_TD[mine_T[n], d] += scale2_ED[e, d] * _dot(hidden_TI[n], w2_EDI[e, d])
    _add(x_TD, h_TD, y_TD, alpha, beta, postnorm)


@_compiled(_matrix, _vector, float32, _matrix)
def norm(x_TD, weight_D, eps, y_TD):
    """RMS norm."""
    for t in range(x_TD.shape[0]):
        _norm(x_TD[t], weight_D, eps, y_TD[t])


@_compiled(_matrix, _matrix, _matrix)
def project(x_TD, w_CD, y_TC):
    """y = x w^T, for a few tokens."""
    _project(x_TD, w_CD, y_TC)
