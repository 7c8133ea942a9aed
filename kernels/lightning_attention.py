"""Lightning attention on packed tokens: linear attention whose state decays by one scalar a head.

For every sequence and head, with slope s:
    state_t = exp(-s) * state_{t-1} + k_t v_t^T          o_t = q_t^T state_t
q, k and v are SiLU of what the projection gave, in its layout, per head [q | k | v]. No 1/sqrt(K) factor; the token's
own key counts with weight 1. State and arithmetic are fp32 whatever the inputs are (a 16-bit state never decays when
s < 2^-9), fp64 for fp64 inputs. Source of the formula: MiniMax-01 (arXiv 2501.08313), section 2.2, and Lightning
Attention-2 (arXiv 2401.04658), algorithm 1.

How, on a GPU: see lightning_triton.py; how sequences are cut: lightning_plan.py. The reference: every sequence is cut
into blocks, the first one filled up at its front with empty rows so that all blocks end full. All blocks of all
sequences are computed at once: products inside a block, the state that each block adds, the states between blocks (a
triangular matrix of decays times those), and their part of the output. Decays are always exp of a negative distance,
never a ratio of two exps, so that no slope can overflow.

Legend: T tokens, S sequences, N blocks or segments, B rows a block, H heads, K head dim, C = 3K.
"""

import torch
import torch.nn.functional as F

from .backend import TRITON, choose
from .lightning_plan import BlockPlan, plan_blocks
from .lightning_tuning import choose_cut

HEAD_DIMS = (32, 64, 128)  # with Triton kernels
_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def lightning_attention(
    qkv_THC: torch.Tensor,
    slopes_H: torch.Tensor,
    cu_seqlens_S1: torch.Tensor | None = None,
    initial_state_SHKK: torch.Tensor | None = None,
    *,
    lengths: tuple[int, ...] | None = None,
    block: int | None = None,
    plan: BlockPlan | None = None,
    silu: bool = True,
    want_state: bool = True,
    backend: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Outputs (T, H, K) in the dtype of `qkv_THC` and the states after the last tokens (S, H, K, K) in fp32 (or fp64).

    `qkv_THC` is (T, H, 3K) or (T, H * 3K), per head [q | k | v], to which SiLU is applied unless `silu=False`.
    `slopes_H` > 0, of any float dtype, carry no gradient. `initial_state_SHKK` is the state before the first tokens,
    [key, value channel] (None: zero). The sequences are given by `plan`, or `lengths` (host integers, 0 for an
    empty sequence), or `cu_seqlens_S1` (which costs a device-to-host copy). With `want_state=False`, as in training, no
    states are returned (None). Only the inputs are kept for the backward pass, and on a GPU the few states between
    segments. Triton kernels serve head dims 32, 64 and 128 in bf16, fp16 (products in bf16) and fp32.

    Raises ValueError if the sequences do not hold T tokens.
    """
    if plan is None:
        if lengths is None:
            if cu_seqlens_S1 is None:
                raise ValueError("lightning_attention needs one of plan, lengths, cu_seqlens_S1")
            lengths = cu_seqlens_S1.diff().tolist()
        plan = plan_blocks(lengths, qkv_THC.device, block)
    T, H = qkv_THC.shape[0], slopes_H.shape[0]
    if plan.num_tokens != T:
        raise ValueError(f"the sequences hold {plan.num_tokens} tokens, qkv holds {T}")
    qkv_THC = qkv_THC.view(T, H, qkv_THC.shape[-1] if qkv_THC.ndim == 3 else qkv_THC.shape[-1] // H)
    if slopes_H.device != qkv_THC.device:
        slopes_H = slopes_H.to(qkv_THC.device)
    head_dim = qkv_THC.shape[2] // 3
    supported = head_dim in HEAD_DIMS and qkv_THC.dtype in _DTYPES
    if choose(backend, qkv_THC, supported=supported) == TRITON:
        return _by_kernels(qkv_THC, slopes_H, initial_state_SHKK, plan, silu, want_state)
    dtype = torch.float64 if qkv_THC.dtype == torch.float64 else torch.float32
    slopes_H = slopes_H.to(dtype)
    if plan.not_empty is None:
        return _Reference.apply(qkv_THC, initial_state_SHKK, slopes_H, plan, silu, want_state)
    return _without_empty(qkv_THC, initial_state_SHKK, slopes_H, plan, silu, want_state)


def _by_kernels(qkv_THC, slopes_H, initial_SHKK, plan, silu, want_state):
    from . import lightning_triton

    qkv_THC = qkv_THC.contiguous()
    H, K, dtype = qkv_THC.shape[1], qkv_THC.shape[2] // 3, str(qkv_THC.dtype)[6:]
    S, longest = len(plan.lengths), max(plan.lengths)
    tokens, special = choose_cut(plan.num_tokens, S, H, K, longest, dtype, plan.device)
    segments = plan.segments(tokens)
    if initial_SHKK is not None:
        initial_SHKK = initial_SHKK.contiguous()
    o_THK, state_SHKK, _ = lightning_triton.op(
        qkv_THC, slopes_H, initial_SHKK, segments.table_N8, segments.tokens, segments.split_rows,
        segments.num_added, len(plan.lengths), silu, want_state, special,
    )  # fmt: skip
    return o_THK, state_SHKK if want_state else None


def _without_empty(qkv_THC, initial_SHKK, slopes_H, plan, silu, want_state):
    """The reference's blocks hold tokens: empty sequences keep the state that they were given."""
    S, (plan, kept_R) = len(plan.lengths), plan.not_empty
    H, K = qkv_THC.shape[1], qkv_THC.shape[2] // 3
    if initial_SHKK is None:
        state_SHKK = slopes_H.new_zeros((S, H, K, K)) if want_state else None
    else:
        state_SHKK = initial_SHKK.to(slopes_H.dtype)
        initial_SHKK = initial_SHKK.index_select(0, kept_R)
    if not plan.lengths:
        return qkv_THC[..., :K], state_SHKK if want_state else None
    o_THK, state_RHKK = _Reference.apply(qkv_THC, initial_SHKK, slopes_H, plan, silu, want_state)
    return o_THK, state_SHKK.index_copy(0, kept_R, state_RHKK) if want_state else None


class _Reference(torch.autograd.Function):
    """Keeps only the inputs; the backward pass runs the forward pass again and differentiates it."""

    @staticmethod
    def forward(ctx, qkv, initial, slopes, plan, silu, want_state):
        ctx.save_for_backward(qkv, initial, slopes)
        ctx.plan, ctx.silu, ctx.want_state = plan, silu, want_state
        compute = _one_token if plan.one_token else _in_blocks
        x = _activate(qkv, silu, slopes.dtype)
        o, state = compute(_cut(x, plan, slopes.dtype), initial, slopes, plan, want_state)
        return _join(o, plan, qkv.dtype), state

    @staticmethod
    def backward(ctx, grad_o, grad_state):
        qkv, initial, slopes = ctx.saved_tensors
        plan, dtype = ctx.plan, slopes.dtype
        compute = _one_token if plan.one_token else _in_blocks
        inputs = [_cut(_activate(qkv, ctx.silu, dtype), plan, dtype)]
        if initial is not None:
            inputs.append(initial.to(dtype, copy=True))
        with torch.enable_grad():
            inputs = [x.detach().requires_grad_() for x in inputs]
            o, state = compute(inputs[0], inputs[1] if len(inputs) > 1 else None, slopes, plan, ctx.want_state)
        outputs, grads = [o], [_cut(grad_o, plan, dtype)]
        if ctx.want_state:
            outputs, grads = [o, state], [*grads, grad_state]
        grad_x, *grad_initial = torch.autograd.grad(outputs, inputs, grads)
        grad_qkv = _join(grad_x, plan, dtype)
        if ctx.silu:
            grad_qkv = torch.ops.aten.silu_backward(grad_qkv, qkv.to(dtype))
        grad_initial = grad_initial[0].to(initial.dtype) if grad_initial else None
        return grad_qkv.to(qkv.dtype), grad_initial, None, None, None, None


def _activate(qkv_THC, silu, dtype):
    return F.silu(qkv_THC.to(dtype)) if silu else qkv_THC


def _cut(x_THC, plan, dtype):
    """(T, H, C) -> (H, N, B, C), zero in the empty rows; (S, H, C) for single tokens."""
    if plan.one_token:
        return x_THC.to(dtype)
    _, H, C = x_THC.shape
    blocks = plan.blocks
    if blocks.rows_T is not None:
        x_THC = x_THC.new_zeros(blocks.num_blocks * blocks.block, H, C).index_copy_(0, blocks.rows_T, x_THC)
    x_HNBC = torch.empty(H, blocks.num_blocks, blocks.block, C, dtype=dtype, device=x_THC.device)
    x_HNBC.view(H, -1, C).copy_(x_THC.transpose(0, 1))
    return x_HNBC


def _join(x_HNBC, plan, dtype):
    """The way back: (H, N, B, C) -> (T, H, C)."""
    if plan.one_token:
        return x_HNBC.to(dtype)
    x_HTC, rows_T = x_HNBC.flatten(1, 2), plan.blocks.rows_T
    if rows_T is not None:
        x_HTC = x_HTC.index_select(1, rows_T)
    H, T, C = x_HTC.shape
    return torch.empty(T, H, C, dtype=dtype, device=x_HTC.device).copy_(x_HTC.transpose(0, 1))


def _one_token(x_SHC, initial_SHKV, slopes_H, plan, want_state):
    """Decoding: every sequence has one token, so the recurrence itself is the shortest way."""
    q_SHK, k_SHK, v_SHV = x_SHC.split(x_SHC.shape[-1] // 3, dim=-1)
    state_SHKV = k_SHK[..., :, None] * v_SHV[..., None, :]
    if initial_SHKV is not None:
        before_SHKV = initial_SHKV.to(slopes_H.dtype)
        state_SHKV = before_SHKV + (state_SHKV + torch.expm1(-slopes_H)[:, None, None] * before_SHKV)
    o_SHV = torch.matmul(q_SHK[..., None, :], state_SHKV).squeeze(-2)
    return o_SHV, state_SHKV if want_state else None


def _in_blocks(x_HNBC, initial_SHKV, slopes_H, plan, want_state):
    H, N, B, C = x_HNBC.shape
    K, plan = C // 3, plan.blocks
    x_nBC = x_HNBC.view(H * N, B, C)  # n = (H, N): batched products take one batch dim
    q_nBK, k_nBK, v_nBV = x_nBC.split(K, dim=-1)
    decays = torch.exp(slopes_H[:, None] * plan.exponents)
    within_HBB = decays[:, : B * B].view(H, 1, B, B)
    scores_HNBB = torch.bmm(q_nBK, k_nBK.transpose(1, 2)).view(H, N, B, B) * within_HBB
    scores_nBB = scores_HNBB.view(H * N, B, B)
    if plan.longest == 1 and initial_SHKV is None and not want_state:
        return torch.bmm(scores_nBB, v_nBV).view(H, N, B, -1), None

    # q decayed from the block's start and k to its end, in one product
    qk_decay_HB2 = decays[:, B * B :].view(H, 2, B).transpose(1, 2)
    qk_HNB2K = x_HNBC[..., : 2 * K].unflatten(-1, (2, K)) * qk_decay_HB2[:, None, :, :, None]
    q_HNBK, k_HNBK = qk_HNB2K.unbind(3)
    added_HNKV = torch.bmm(k_HNBK.reshape(H * N, B, K).transpose(1, 2), v_nBV).view(H, N, K, -1)
    start_HNKV = _starts(added_HNKV, slopes_H, plan)
    if initial_SHKV is not None:
        initial_HSKV = initial_SHKV.to(slopes_H.dtype).transpose(0, 1)
        reaches_HN = torch.exp(slopes_H[:, None] * plan.before_N)
        start_HNKV = start_HNKV + reaches_HN[..., None, None] * initial_HSKV[:, plan.sequence_N]
        # a given state does not decay over the empty rows in front of the first token
        q_decay_HNB = torch.exp(slopes_H[:, None, None] * plan.from_start_NB)
        q_HNBK = x_HNBC[..., :K] * q_decay_HNB[..., None]
    inter_nBV = torch.bmm(q_HNBK.reshape(H * N, B, K), start_HNKV.reshape(H * N, K, -1))
    o_HNBV = torch.baddbmm(inter_nBV, scores_nBB, v_nBV).view(H, N, B, -1)
    if not want_state:
        return o_HNBV, None
    across_HS = torch.exp(-slopes_H[:, None] * plan.last_tokens_S)[..., None, None]
    state_HSKV = across_HS * start_HNKV[:, plan.last_S] + added_HNKV[:, plan.last_S]
    return o_HNBV, state_HSKV.transpose(0, 1).contiguous()


def _starts(added_HNKV, slopes_H, plan):
    """State at the start of every block, from what the blocks before it in its sequence added at their ends."""
    parts = []
    for run in plan.runs:
        added_HnKV = added_HNKV[:, run.begin : run.end]
        decay_HNN = torch.exp(slopes_H[:, None, None] * run.exponents_NN)
        start_HnKV = torch.bmm(decay_HNN, added_HnKV.flatten(2)).view_as(added_HnKV)
        if run.carried_N is not None:
            across_H = torch.exp(-slopes_H * plan.block)[:, None, None]
            carry_HKV = across_H * parts[-1][:, -1] + added_HNKV[:, run.begin - 1]
            carried_HN = torch.exp(slopes_H[:, None] * run.carried_N)
            start_HnKV = start_HnKV + carried_HN[..., None, None] * carry_HKV[:, None]
        parts.append(start_HnKV)
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
