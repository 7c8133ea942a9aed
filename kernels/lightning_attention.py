"""Lightning attention on packed tokens: linear attention whose state decays by one scalar a head.

For every sequence and head, with slope s:
    state_t = exp(-s) * state_{t-1} + k_t v_t^T          o_t = q_t^T state_t
No 1/sqrt(K) factor; the token's own key counts with weight 1. State and arithmetic are fp32 whatever the inputs are (a
16-bit state never decays when s < 2^-9), fp64 for fp64 inputs. Source of the formula: MiniMax-01 (arXiv 2501.08313),
section 2.2, and Lightning Attention-2 (arXiv 2401.04658), algorithm 1.

How: every sequence is cut into blocks; all blocks of all sequences are computed at once (matrix products inside a
block), and the states between blocks come from a scan of log2(blocks of the longest sequence) passes. Decays are always
exp of a negative distance, never a ratio of two exps, so that no slope can overflow.

Legend: T tokens, S sequences, N blocks, B tokens a block, H heads, K/V head dims of keys and values.
"""

from dataclasses import dataclass

import torch

from .rows import gather_rows, scatter_rows

MAX_BLOCK = 64
MIN_BLOCK = 16


@dataclass(frozen=True)
class BlockPlan:
    """Where each token lies once every sequence is cut into blocks; made once per batch by `plan_blocks`."""

    lengths: tuple[int, ...]
    block: int
    num_blocks: int
    longest: int  # blocks of the longest sequence
    rows_T: torch.Tensor | None  # row of each token among N * B padded rows; None if nothing is padded
    tokens_N: torch.Tensor  # tokens in each block
    end_N: torch.Tensor  # tokens of the sequence up to the end of each block
    ordinal_N: torch.Tensor  # 0 for the first block of a sequence, 1 for the second, ...
    first_S: torch.Tensor  # first block of each sequence
    last_S: torch.Tensor  # last block of each sequence


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
    num_blocks, num_tokens = sum(blocks), sum(lengths)
    length_S, blocks_S = torch.tensor(lengths), torch.tensor(blocks)
    last_S = blocks_S.cumsum(0) - 1
    first_S = last_S - blocks_S + 1
    ordinal_N = torch.arange(num_blocks) - first_S.repeat_interleave(blocks_S, output_size=num_blocks)
    left_N = length_S.repeat_interleave(blocks_S, output_size=num_blocks) - ordinal_N * block
    tokens_N = left_N.clamp(max=block)
    rows_T = None
    if num_blocks * block != num_tokens:
        shift_S = first_S * block - (length_S.cumsum(0) - length_S)
        rows_T = torch.arange(num_tokens) + shift_S.repeat_interleave(length_S, output_size=num_tokens)
        rows_T = rows_T.to(device)
    return BlockPlan(
        lengths=lengths,
        block=block,
        num_blocks=num_blocks,
        longest=max(blocks),
        rows_T=rows_T,
        tokens_N=tokens_N.to(device),
        end_N=(ordinal_N * block + tokens_N).to(device),
        ordinal_N=ordinal_N.to(device),
        first_S=first_S.to(device),
        last_S=last_S.to(device),
    )


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
) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs (T, H, V) in the inputs' dtype and the states after the last tokens (S, H, K, V) in fp32 (fp64 for fp64).

    `initial_state_SHKV` is the state before the first tokens (None: zero). `slopes_H` > 0 carry no gradient. The
    sequences are given by `plan`, or `lengths` (host integers), or `cu_seqlens_S1` (which costs a device-to-host copy).
    Only q, k, v and the initial state are kept for the backward pass, which recomputes the rest.
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
    compute = _one_token if plan.longest == 1 and max(plan.lengths) == 1 else _in_blocks
    return _LightningAttention.apply(q_THK, k_THK, v_THV, initial_state_SHKV, slopes_H, plan, compute)


class _LightningAttention(torch.autograd.Function):
    """Keeps only the inputs; the backward pass runs the forward pass again and differentiates it."""

    @staticmethod
    def forward(ctx, q, k, v, state, slopes, plan, compute):
        ctx.save_for_backward(q, k, v, state, slopes)
        ctx.plan, ctx.compute = plan, compute
        return compute(q, k, v, state, slopes, plan)

    @staticmethod
    def backward(ctx, grad_o, grad_state):
        *inputs, slopes = ctx.saved_tensors
        with torch.enable_grad():
            inputs = [None if x is None else x.detach().requires_grad_() for x in inputs]
            outputs = ctx.compute(*inputs, slopes, ctx.plan)
        wanted = [x for x in inputs if x is not None]
        grads = torch.autograd.grad(outputs, wanted, (grad_o, grad_state))
        return *grads, *([None] * (7 - len(grads)))


def _one_token(q_SHK, k_SHK, v_SHV, state_SHKV, slopes_H, plan):
    """Decoding: every sequence has one token, so the recurrence itself is the shortest way."""
    q, k, v = (x.to(slopes_H.dtype) for x in (q_SHK, k_SHK, v_SHV))
    new_SHKV = k[..., :, None] * v[..., None, :]
    if state_SHKV is not None:
        new_SHKV = new_SHKV + torch.exp(-slopes_H)[:, None, None] * state_SHKV.to(slopes_H.dtype)
    o_SHV = torch.matmul(q[..., None, :], new_SHKV).squeeze(-2)
    return o_SHV.to(q_SHK.dtype), new_SHKV


def _in_blocks(q_THK, k_THK, v_THV, initial_SHKV, slopes_H, plan):
    dtype, device = slopes_H.dtype, q_THK.device
    N, B = plan.num_blocks, plan.block
    q_NHBK, k_NHBK, v_NHBV = (_cut(x, plan).to(dtype) for x in (q_THK, k_THK, v_THV))

    at_B = torch.arange(B, device=device)
    distance_BB = at_B[:, None] - at_B[None, :]
    decay_HBB = torch.exp(-slopes_H[:, None, None] * distance_BB.clamp(min=0)) * (distance_BB >= 0)
    o_NHBV = (q_NHBK @ k_NHBK.transpose(-1, -2) * decay_HBB) @ v_NHBV

    # what each block adds to the state at its own end; padded keys are zero, their distances are clamped
    to_end_NB = (plan.tokens_N[:, None] - 1 - at_B).clamp(min=0)
    k_decay_NHB1 = torch.exp(-slopes_H[:, None] * to_end_NB[:, None, :]).unsqueeze(-1)
    end_NHKV = (k_NHBK * k_decay_NHB1).transpose(-1, -2) @ v_NHBV

    if initial_SHKV is not None:
        initial_SHKV = initial_SHKV.to(dtype)
        across_SH = torch.exp(-slopes_H * plan.tokens_N[plan.first_S, None])
        end_NHKV = end_NHKV.index_add(0, plan.first_S, across_SH[..., None, None] * initial_SHKV)
    end_NHKV = _scan(end_NHKV, slopes_H, plan)

    if plan.longest > 1 or initial_SHKV is not None:
        # the state at a block's start is the one at the end of the block before it in the same sequence
        follows_N = (plan.ordinal_N > 0).to(dtype)
        start_NHKV = end_NHKV.roll(1, 0) * follows_N[:, None, None, None]
        if initial_SHKV is not None:
            start_NHKV = start_NHKV.index_copy(0, plan.first_S, initial_SHKV)
        q_decay_HB1 = torch.exp(-slopes_H[:, None] * (at_B + 1)).unsqueeze(-1)
        o_NHBV = o_NHBV + (q_NHBK * q_decay_HB1) @ start_NHKV

    o_rows = o_NHBV.to(q_THK.dtype).transpose(1, 2).reshape(N * B, *v_THV.shape[1:])
    o_THV = o_rows if plan.rows_T is None else gather_rows(o_rows, plan.rows_T)
    return o_THV, end_NHKV.index_select(0, plan.last_S)


def _cut(x_THK, plan):
    """(T, H, K) -> (N, H, B, K), zero where a block is longer than what is left of its sequence."""
    rows = x_THK
    if plan.rows_T is not None:
        rows = scatter_rows(x_THK, plan.rows_T, plan.num_blocks * plan.block)
    return rows.reshape(plan.num_blocks, plan.block, *x_THK.shape[1:]).transpose(1, 2)


def _scan(end_NHKV, slopes_H, plan):
    """Add to each block the decayed contributions of all blocks before it in its sequence, by doubling."""
    step = 1
    while step < plan.longest:
        passed_N = plan.end_N[step:] - plan.end_N[:-step]
        same_N = plan.ordinal_N[step:] >= step  # clamped: a negative distance of two sequences must not overflow
        weight_NH = torch.exp(-slopes_H * passed_N.clamp(min=0)[:, None]) * same_N[:, None]
        added = weight_NH[..., None, None] * end_NHKV[:-step]
        end_NHKV = torch.cat((end_NHKV[:step], end_NHKV[step:] + added))
        step *= 2
    return end_NHKV
