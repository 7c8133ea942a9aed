"""The decode step of lightning attention, in place on state slots chosen by index.

For each token of a sequence, with the head's slope s, on the state of the sequence's slot:
    state = exp(-s) * state + k v^T          o = q^T state
q, k and v are SiLU of what the projection gave, in its layout, per head [q | k | v]. The formula is that of
lightning_attention.py, whose definition of the state this continues.

Legend: T tokens, S sequences, N state slots, H heads, K head dim, C = 3K.
"""

import torch
import torch.nn.functional as F

from . import tuning
from .backend import TRITON, choose
from .lightning_attention import HEAD_DIMS


def _default(S: int, H: int, **_) -> tuning.Config:
    """Narrow parts of a state while there are few, so that all multiprocessors read; wide ones keep memory busier.

    `streamed`: the caches are told that a state is read once and written once. On an H200 that helps 64 and 512 states,
    and costs 8% of the time of 4,096 (parts of 32 columns).
    """
    width = 16 if S * H <= 256 else 32 if S * H <= 1024 else 64
    return {"width": width, "num_warps": 4, "streamed": int(width < 64)}


tuning.declare(
    "lightning_decode",
    default=_default,
    exact=("K",),
    candidates=[
        {"width": width, "num_warps": warps, "streamed": streamed}
        for width in (16, 32, 64, 128)
        for warps in (2, 4, 8)
        for streamed in (0, 1)
    ],
)


def lightning_decode(
    qkv_THC: torch.Tensor,
    states_NHKK: torch.Tensor,
    slots_S: torch.Tensor,
    slopes_H: torch.Tensor,
    *,
    cu_seqlens_S1: torch.Tensor | None = None,
    counts_S: torch.Tensor | None = None,
    states_after_THKK: torch.Tensor | None = None,
    silu: bool = True,
    update: bool = True,
    backend: str | None = None,
) -> torch.Tensor:
    """Outputs (T, H, K) in the dtype of `qkv_THC`; the states of the slots are updated in place. No gradients.

    `qkv_THC` is (T, H, 3K) or (T, H * 3K), per head [q | k | v], to which SiLU is applied unless `silu=False`.
    `states_NHKK` is the pool, contiguous, fp32 (fp64 for fp64 inputs), [key channel, value channel]. `slots_S` (int64
    or int32) names each sequence's slot, -1 for padding: its outputs are zero and no state is touched. No slot may
    come twice.

    Every sequence has one token, unless `cu_seqlens_S1` (integers) gives offsets of several: a draft to verify. Then
    `update=False` leaves the pool as it was, and `states_after_THKK` (fp32, to be written) receives the state after
    each token. To keep the accepted tokens of a draft, either copy the state after the last of them into the slot, or,
    cheaper in memory, call again with `counts_S` (integers, on the device): how many tokens of each sequence count.
    Outputs beyond the count are zero.

    Raises ValueError if the shapes do not fit. Source of the formula: Lightning Attention-2 (arXiv 2401.04658).
    """
    T, H = qkv_THC.shape[0], slopes_H.shape[0]
    qkv_THC = qkv_THC.view(T, H, qkv_THC.shape[-1] if qkv_THC.ndim == 3 else qkv_THC.shape[-1] // H)
    K = qkv_THC.shape[2] // 3
    if states_NHKK.shape[1:] != (H, K, K):
        raise ValueError(f"the states are {tuple(states_NHKK.shape)}, qkv of {H} heads of {K} needs (N, {H}, {K}, {K})")
    S = slots_S.shape[0]
    if cu_seqlens_S1 is None and S != T:
        raise ValueError(f"{S} sequences of one token each, but {T} tokens: give cu_seqlens_S1")
    if states_after_THKK is not None and states_after_THKK.shape != (T, H, K, K):
        raise ValueError(f"states_after_THKK is {tuple(states_after_THKK.shape)}, it has to be {(T, H, K, K)}")
    if slopes_H.device != qkv_THC.device:
        slopes_H = slopes_H.to(qkv_THC.device)
    supported = K in HEAD_DIMS and states_NHKK.dtype == torch.float32 and states_NHKK.is_contiguous()
    supported = supported and qkv_THC.dtype in (torch.bfloat16, torch.float16, torch.float32)
    if choose(backend, qkv_THC, states_NHKK, supported=supported) == TRITON:
        from . import lightning_decode_triton

        return lightning_decode_triton.op(
            qkv_THC.contiguous(), states_NHKK, slots_S, slopes_H, cu_seqlens_S1, counts_S, states_after_THKK, silu,
            update,
        )  # fmt: skip
    with torch.no_grad():
        return _reference(
            qkv_THC, states_NHKK, slots_S, slopes_H, cu_seqlens_S1, counts_S, states_after_THKK, silu, update
        )


def _reference(qkv_THC, states, slots_S, slopes_H, cu_seqlens_S1, counts_S, after, silu, update):
    if not len(slots_S):
        return torch.zeros_like(qkv_THC[..., : qkv_THC.shape[2] // 3])
    x_THC = qkv_THC.to(states.dtype)
    x_THC = F.silu(x_THC) if silu else x_THC
    q_THK, k_THK, v_THK = x_THC.split(x_THC.shape[2] // 3, dim=2)
    lost_H11 = torch.expm1(-slopes_H.to(states.dtype))[:, None, None]  # 1 + lost would be rounded for slopes of 1e-7
    if cu_seqlens_S1 is None and counts_S is None and after is None and update and int(slots_S.min()) >= 0:
        return _one_each(q_THK, k_THK, v_THK, states, slots_S, lost_H11).to(qkv_THC.dtype)
    o_THK = torch.zeros_like(qkv_THC[..., : q_THK.shape[2]])
    S = len(slots_S)
    begin_S = torch.arange(S, device=slots_S.device) if cu_seqlens_S1 is None else cu_seqlens_S1[:-1].long()
    count_S = torch.ones_like(begin_S) if cu_seqlens_S1 is None else cu_seqlens_S1.diff().long()
    if counts_S is not None:
        count_S = torch.minimum(count_S, counts_S.to(count_S))
    count_S = torch.where(slots_S < 0, 0, count_S)
    held_SHKK = states.index_select(0, slots_S.clamp(min=0))
    for step in range(int(count_S.max())):  # the step-th token of every sequence that has one
        now_R = (count_S > step).nonzero().squeeze(1)
        everyone = len(now_R) == S
        token_R = begin_S[now_R] + step
        state_RHKK = held_SHKK if everyone else held_SHKK[now_R]
        state_RHKK += (state_RHKK * lost_H11).addcmul_(k_THK[token_R][..., :, None], v_THK[token_R][..., None, :])
        o_THK[token_R] = torch.matmul(q_THK[token_R][..., None, :], state_RHKK).squeeze(-2).to(o_THK.dtype)
        if after is not None:
            after[token_R] = state_RHKK.to(after.dtype)
        if not everyone:
            held_SHKK[now_R] = state_RHKK
    if update:
        real_R = (slots_S >= 0).nonzero().squeeze(1)
        states.index_copy_(0, slots_S[real_R], held_SHKK if len(real_R) == S else held_SHKK[real_R])
    return o_THK


def _one_each(q_SHK, k_SHK, v_SHK, states, slots_S, lost_H11):
    """One token a sequence, no padding; a single state is updated where it lies."""
    if len(slots_S) == 1:
        state_SHKK = states[int(slots_S)][None]
    else:
        state_SHKK = states.index_select(0, slots_S)
    state_SHKK += (state_SHKK * lost_H11).addcmul_(k_SHK[..., :, None], v_SHK[..., None, :])
    if len(slots_S) > 1:
        states.index_copy_(0, slots_S, state_SHKK)
    return torch.matmul(q_SHK[..., None, :], state_SHKK).squeeze(-2)
