"""Causal softmax attention on packed tokens, with grouped key/value heads (GQA) and keys that may reach further back.

Each sequence has Lq new tokens (it may be none) and Lk >= Lq keys; the queries are its last Lq positions (mask aligned
bottom right). On CUDA in 16 bits one variable-length flash call serves all sequences, and torch's SDPA long ones of
equal length; elsewhere a loop over sequences. Source of the formula: Attention Is All You Need (arXiv 1706.03762).

Legend: T query tokens, U key tokens, S sequences, H query heads, G key/value heads, K head dim.
"""

import torch
import torch.nn.functional as F

# From here on sequences of one length go to cuDNN, by torch's own choice: 600 TFLOP/s on an H200 where flash has 350.
# cuDNN plans anew for every length, which shorter ones would not make up for, but round lengths come again.
LONG_SEQUENCE = 16_384
_ROUND_LENGTH = 1_024


def softmax_attention(
    q_THK: torch.Tensor,
    k_UGK: torch.Tensor,
    v_UGK: torch.Tensor,
    cu_q_S1: torch.Tensor,
    cu_k_S1: torch.Tensor,
    lengths_q: tuple[int, ...],
    lengths_k: tuple[int, ...],
    scale: float,
) -> torch.Tensor:
    """softmax(scale * q k^T) v, causal, within each sequence; (T, H, K) in the dtype of `q_THK`.

    H must be a multiple of G: query head h reads key head h // (H / G). `cu_*` are int32 on the device (read by the
    flash kernel), `lengths_*` the same numbers on the host. In self-attention without a past pass the same
    `cu_q_S1` object twice. Raises ValueError if H is not a multiple of G.
    """
    H, G = q_THK.shape[1], k_UGK.shape[1]
    if H % G:
        raise ValueError(f"{H} query heads are not a multiple of {G} key/value heads")
    if _has_flash(q_THK):
        if lengths_q == lengths_k and _for_cudnn(lengths_q):
            shape = len(lengths_q), lengths_q[0], -1, q_THK.shape[2]
            q_SHLK, k_SGLK, v_SGLK = (x.reshape(shape).transpose(1, 2) for x in (q_THK, k_UGK, v_UGK))
            o_SHLK = F.scaled_dot_product_attention(
                q_SHLK, k_SGLK, v_SGLK, is_causal=True, scale=scale, enable_gqa=H != G
            )
            return o_SHLK.transpose(1, 2).reshape(q_THK.shape)
        # not by torch.nn.attention.varlen: in torch 2.11 it takes no grouped heads, though the kernel itself does
        return torch.ops.aten._flash_attention_forward(
            q_THK, k_UGK, v_UGK, cu_q_S1, cu_k_S1, max(lengths_q), max(lengths_k), 0.0, True, False, scale=scale
        )[0]
    outputs = [
        _one_sequence(q, k, v, scale)
        for q, k, v in zip(q_THK.split(lengths_q), k_UGK.split(lengths_k), v_UGK.split(lengths_k), strict=True)
    ]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _for_cudnn(lengths: tuple[int, ...]) -> bool:
    length = lengths[0]
    if length < LONG_SEQUENCE and (length < 2 * _ROUND_LENGTH or length % _ROUND_LENGTH):
        return False
    return lengths.count(length) == len(lengths)


def _has_flash(q: torch.Tensor) -> bool:
    return (
        q.is_cuda
        and q.dtype in (torch.bfloat16, torch.float16)
        and q.shape[-1] % 8 == 0
        and q.shape[-1] <= 256
        and torch.cuda.get_device_capability(q.device) >= (8, 0)
    )


def _one_sequence(q_LHK, k_MGK, v_MGK, scale):
    L, H, K = q_LHK.shape
    M, G = k_MGK.shape[:2]
    if not L:  # by which torch's kernel for a CPU would divide, which ends the process
        return q_LHK
    q_HLK, k_GMK, v_GMK = (x.transpose(0, 1) for x in (q_LHK, k_MGK, v_MGK))
    if L == 1:
        # one query sees every key: the query heads of a group become its queries, so nothing is repeated
        o = F.scaled_dot_product_attention(q_HLK.reshape(1, G, H // G, K), k_GMK[None], v_GMK[None], scale=scale)
        return o.reshape(1, H, K)
    trained = torch.is_grad_enabled() and any(x.requires_grad for x in (q_LHK, k_MGK, v_MGK))
    if L != M and not q_LHK.is_cuda and not trained:
        return _behind_a_past(q_HLK, k_GMK, v_GMK, scale)
    k_HMK, v_HMK = (x[:, None].expand(G, H // G, M, K).reshape(H, M, K) for x in (k_GMK, v_GMK))
    mask = None
    if L != M:
        mask = torch.ones(L, M, dtype=torch.bool, device=q_LHK.device).tril(M - L)
    o = F.scaled_dot_product_attention(
        q_HLK[None], k_HMK[None], v_HMK[None], attn_mask=mask, is_causal=mask is None, scale=scale
    )
    return o[0].transpose(0, 1)


def _behind_a_past(q_HLK, k_GMK, v_GMK, scale):
    """A chunk of a long sequence on a CPU, in memory that does not grow with L * M, nor with the heads of a group.

    All see the past whole, and themselves causally; two calls without a mask, joined by their log-sum-exps (as in
    Flash-Decoding; Dao et al., 2023).
    """
    H, L, K = q_HLK.shape
    G, M, _ = k_GMK.shape
    attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    past = [x[None, :, : M - L] for x in (k_GMK, v_GMK)]
    o, lse = attend(q_HLK.reshape(1, G, H // G * L, K), *past, scale=scale)
    new = [x[:, None, M - L :].expand(G, H // G, L, K).reshape(1, H, L, K) for x in (k_GMK, v_GMK)]
    own_o, own_lse = attend(q_HLK[None], *new, is_causal=True, scale=scale)
    share_HL1 = torch.sigmoid(lse.reshape(H, L) - own_lse[0])[..., None].to(o.dtype)
    return torch.lerp(own_o[0], o.reshape(H, L, K), share_HL1).transpose(0, 1)
