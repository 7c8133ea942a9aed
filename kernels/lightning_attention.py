"""Lightning attention on packed tokens: linear attention whose state decays by one scalar a head.

For every sequence and head, with slope s:
    state_t = exp(-s) * state_{t-1} + k_t v_t^T          o_t = q_t^T state_t
No 1/sqrt(K) factor; the token's own key counts with weight 1. State and arithmetic are fp32 whatever the inputs are (a
16-bit state never decays when s < 2^-9), fp64 for fp64 inputs. Source of the formula: MiniMax-01 (arXiv 2501.08313),
section 2.2, and Lightning Attention-2 (arXiv 2401.04658), algorithm 1.

How: every sequence is cut into blocks, the first one filled up at its front with empty rows so that all blocks end
full. All blocks of all sequences are computed at once: products inside a block, the state that each block adds, the
states between blocks (a triangular matrix of decays times those), and their part of the output. Decays are always exp
of a negative distance, never a ratio of two exps, so that no slope can overflow.

Legend: T tokens, S sequences, N blocks, B rows a block, H heads, K/V head dims of keys and values, C = 2K + V.
"""

from dataclasses import dataclass

import torch

MAX_BLOCK = 64
MIN_BLOCK = 16
MAX_SEGMENT = 1024  # blocks whose states are found by one product with an N x N matrix of decays


@dataclass(frozen=True)
class Segment:
    """A run of blocks; exponents are numbers of tokens, negative, -inf where nothing flows."""

    begin: int
    end: int
    exponents_NN: torch.Tensor  # [n, m]: from the end of block m to the start of block n
    carried_N: torch.Tensor | None  # [n]: from the start of the segment to the start of block n; None: nothing comes in


@dataclass(frozen=True)
class BlockPlan:
    """Where each token lies once every sequence is cut into blocks; made once per batch by `plan_blocks`."""

    lengths: tuple[int, ...]
    block: int
    num_blocks: int
    longest: int  # blocks of the longest sequence
    rows_T: torch.Tensor | None  # row of each token among N * B; None if nothing is filled up
    exponents: torch.Tensor  # (B * B + 2B,): within a block, then from its start (for q), then to its end (for k)
    segments: tuple[Segment, ...]
    sequence_N: torch.Tensor  # sequence of each block
    before_N: torch.Tensor  # exponent from the start of the sequence to the start of the block
    from_start_NB: torch.Tensor  # exponent from there, or from the block's start, to each row: decay of a given state
    last_S: torch.Tensor  # last block of each sequence
    last_tokens_S: torch.Tensor  # tokens in it

    @property
    def one_token(self) -> bool:
        return max(self.lengths) == 1


def plan_blocks(lengths, device, block: int | None = None) -> BlockPlan:
    """Cut sequences of `lengths` tokens (host integers >= 1) into blocks.

    `block` (tokens) defaults to 64, or less if every sequence is shorter. Raises ValueError on an empty sequence.
    """
    lengths = tuple(int(n) for n in lengths)
    if not lengths or min(lengths) < 1:
        raise ValueError(f"lightning attention needs sequences of at least 1 token, got lengths {lengths}")
    if block is None:
        block = min(MAX_BLOCK, max(MIN_BLOCK, 1 << (max(lengths) - 1).bit_length()))
    blocks = [-(-n // block) for n in lengths]
    N, T = sum(blocks), sum(lengths)
    length_S, blocks_S = torch.tensor(lengths), torch.tensor(blocks)
    empty_S = blocks_S * block - length_S  # rows in front of the first token
    last_S = blocks_S.cumsum(0) - 1
    sequence_N = torch.arange(len(lengths)).repeat_interleave(blocks_S, output_size=N)
    ordinal_N = torch.arange(N) - (last_S - blocks_S + 1)[sequence_N]
    rows_T = None
    if N * block != T:
        rows_T = torch.arange(T) + empty_S.cumsum(0).repeat_interleave(length_S, output_size=T)
        rows_T = rows_T.to(device)
    at_B = torch.arange(block)
    distance_BB = at_B[:, None] - at_B
    within_BB = torch.where(distance_BB >= 0, -distance_BB.float(), -torch.inf)
    empty_N = torch.where(ordinal_N == 0, empty_S[sequence_N], 0)
    return BlockPlan(
        lengths=lengths,
        block=block,
        num_blocks=N,
        longest=max(blocks),
        rows_T=rows_T,
        exponents=torch.cat((within_BB.flatten(), -(at_B + 1.0), at_B + 1.0 - block)).to(device),
        segments=tuple(_segment(ordinal_N.to(device), begin, block) for begin in range(0, N, MAX_SEGMENT)),
        sequence_N=sequence_N.to(device),
        before_N=(empty_S[sequence_N] - ordinal_N * block).clamp(max=0).float().to(device),
        from_start_NB=(empty_N[:, None] - at_B - 1).clamp(max=0).float().to(device),
        last_S=last_S.to(device),
        last_tokens_S=torch.where(blocks_S == 1, length_S, block).float().to(device),
    )


def _segment(ordinal_N, begin, block):
    end = min(begin + MAX_SEGMENT, len(ordinal_N))
    ordinal_N = ordinal_N[begin:end]
    at_N = torch.arange(end - begin, device=ordinal_N.device)
    between_NN = at_N[:, None] - 1 - at_N  # whole blocks between m and n
    flows_NN = (between_NN >= 0) & (between_NN < ordinal_N[:, None])
    exponents_NN = torch.where(flows_NN, -block * between_NN.float(), -torch.inf)
    carried_N = torch.where(ordinal_N > at_N, -block * at_N.float(), -torch.inf) if begin else None
    return Segment(begin, end, exponents_NN, carried_N)


def lightning_attention(
    q_THK: torch.Tensor,
    k_THK: torch.Tensor,
    v_THV: torch.Tensor,
    slopes_H: torch.Tensor,
    cu_seqlens_S1: torch.Tensor | None = None,
    initial_state_SHKV: torch.Tensor | None = None,
    *,
    lengths: tuple[int, ...] | None = None,
    block: int | None = None,
    plan: BlockPlan | None = None,
    want_state: bool = True,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Outputs (T, H, V) in the inputs' dtype and the states after the last tokens (S, H, K, V) in fp32 (fp64 for fp64).

    `initial_state_SHKV` is the state before the first tokens (None: zero). `slopes_H` > 0 carry no gradient. The
    sequences are given by `plan`, or `lengths` (host integers), or `cu_seqlens_S1` (which costs a device-to-host copy).
    With `want_state=False`, as in training, no states are returned (None). Only q, k, v and the initial state are kept
    for the backward pass, which recomputes the rest.
    """
    if plan is None:
        if lengths is None:
            if cu_seqlens_S1 is None:
                raise ValueError("lightning_attention needs one of plan, lengths, cu_seqlens_S1")
            lengths = cu_seqlens_S1.diff().tolist()
        plan = plan_blocks(lengths, q_THK.device, block)
    if sum(plan.lengths) != q_THK.shape[0]:
        raise ValueError(f"the sequences hold {sum(plan.lengths)} tokens, q holds {q_THK.shape[0]}")
    dtype = torch.float64 if q_THK.dtype == torch.float64 else torch.float32
    slopes_H = slopes_H.to(device=q_THK.device, dtype=dtype)
    return _LightningAttention.apply(q_THK, k_THK, v_THV, initial_state_SHKV, slopes_H, plan, want_state)


class _LightningAttention(torch.autograd.Function):
    """Keeps only the inputs; the backward pass runs the forward pass again and differentiates it."""

    @staticmethod
    def forward(ctx, q, k, v, initial, slopes, plan, want_state):
        ctx.save_for_backward(q, k, v, initial, slopes)
        ctx.plan, ctx.want_state = plan, want_state
        compute = _one_token if plan.one_token else _in_blocks
        o, state = compute(_cut((q, k, v), plan, slopes.dtype), q.shape[-1], initial, slopes, plan, want_state)
        return _join(o, plan, q.dtype), state

    @staticmethod
    def backward(ctx, grad_o, grad_state):
        q, k, v, initial, slopes = ctx.saved_tensors
        plan, K = ctx.plan, q.shape[-1]
        compute = _one_token if plan.one_token else _in_blocks
        inputs = [_cut((q, k, v), plan, slopes.dtype)]
        if initial is not None:
            inputs.append(initial.to(slopes.dtype, copy=True))
        with torch.enable_grad():
            inputs = [x.detach().requires_grad_() for x in inputs]
            o, state = compute(inputs[0], K, inputs[1] if len(inputs) > 1 else None, slopes, plan, ctx.want_state)
        outputs, grads = [o], [_cut((grad_o,), plan, slopes.dtype)]
        if ctx.want_state:
            outputs, grads = [o, state], [*grads, grad_state]
        grad_x, *grad_initial = torch.autograd.grad(outputs, inputs, grads)
        grad_qkv = _join(grad_x, plan, q.dtype).split((K, K, v.shape[-1]), dim=-1)
        grad_initial = grad_initial[0].to(initial.dtype) if grad_initial else None
        return *grad_qkv, grad_initial, None, None, None


def _cut(parts, plan, dtype):
    """Tensors (T, H, *) -> side by side as (H, N, B, C), zero in the empty rows; (S, H, C) for single tokens."""
    x_THC = torch.cat(parts, dim=-1) if len(parts) > 1 else parts[0]
    if plan.one_token:
        return x_THC.to(dtype)
    _, H, C = x_THC.shape
    if plan.rows_T is not None:
        x_THC = x_THC.new_zeros(plan.num_blocks * plan.block, H, C).index_copy_(0, plan.rows_T, x_THC)
    x_HNBC = torch.empty(H, plan.num_blocks, plan.block, C, dtype=dtype, device=x_THC.device)
    x_HNBC.view(H, -1, C).copy_(x_THC.transpose(0, 1))
    return x_HNBC


def _join(x_HNBC, plan, dtype):
    """The way back: (H, N, B, C) -> (T, H, C)."""
    if plan.one_token:
        return x_HNBC.to(dtype)
    x_HTC = x_HNBC.flatten(1, 2)
    if plan.rows_T is not None:
        x_HTC = x_HTC.index_select(1, plan.rows_T)
    H, T, C = x_HTC.shape
    return torch.empty(T, H, C, dtype=dtype, device=x_HTC.device).copy_(x_HTC.transpose(0, 1))


def _one_token(x_SHC, K, initial_SHKV, slopes_H, plan, want_state):
    """Decoding: every sequence has one token, so the recurrence itself is the shortest way."""
    q_SHK, k_SHK, v_SHV = x_SHC.split((K, K, x_SHC.shape[-1] - 2 * K), dim=-1)
    state_SHKV = k_SHK[..., :, None] * v_SHV[..., None, :]
    if initial_SHKV is not None:
        state_SHKV = state_SHKV + torch.exp(-slopes_H)[:, None, None] * initial_SHKV.to(slopes_H.dtype)
    o_SHV = torch.matmul(q_SHK[..., None, :], state_SHKV).squeeze(-2)
    return o_SHV, state_SHKV if want_state else None


def _in_blocks(x_HNBC, K, initial_SHKV, slopes_H, plan, want_state):
    H, N, B, C = x_HNBC.shape
    x_nBC = x_HNBC.view(H * N, B, C)  # n = (H, N): batched products take one batch dim
    q_nBK, k_nBK, v_nBV = x_nBC.split((K, K, C - 2 * K), dim=-1)
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
    for segment in plan.segments:
        added_HnKV = added_HNKV[:, segment.begin : segment.end]
        decay_HNN = torch.exp(slopes_H[:, None, None] * segment.exponents_NN)
        start_HnKV = torch.bmm(decay_HNN, added_HnKV.flatten(2)).view_as(added_HnKV)
        if segment.carried_N is not None:
            across_H = torch.exp(-slopes_H * plan.block)[:, None, None]
            carry_HKV = across_H * parts[-1][:, -1] + added_HNKV[:, segment.begin - 1]
            carried_HN = torch.exp(slopes_H[:, None] * segment.carried_N)
            start_HnKV = start_HnKV + carried_HN[..., None, None] * carry_HKV[:, None]
        parts.append(start_HnKV)
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
