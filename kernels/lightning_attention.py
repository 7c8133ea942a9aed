"""Lightning attention on packed tokens: linear attention whose state decays by one scalar a head.

For every sequence and head, with slope s:
    state_t = exp(-s) * state_{t-1} + k_t v_t^T          o_t = q_t^T state_t
q, k and v are SiLU of what the projection gave, in its layout, per head [q | k | v]. No 1/sqrt(K) factor; the token's
own key counts with weight 1. State and arithmetic are fp32 whatever the inputs are (a 16-bit state never decays when
s < 2^-9), fp64 for fp64 inputs. Source of the formula: MiniMax-01 (arXiv 2501.08313), section 2.2, and Lightning
Attention-2 (arXiv 2401.04658), algorithm 1.

How, on a GPU: see lightning_triton.py. The reference: every sequence is cut into blocks, the first one filled up at its
front with empty rows so that all blocks end full. All blocks of all sequences are computed at once: products inside a
block, the state that each block adds, the states between blocks (a triangular matrix of decays times those), and their
part of the output. Decays are always exp of a negative distance, never a ratio of two exps, so that no slope can
overflow.

Legend: T tokens, S sequences, N blocks or segments, B rows a block, H heads, K head dim, C = 3K.
"""

import functools
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from . import tuning
from .backend import TRITON, capability, choose
from .custom_op import multiprocessors

MAX_BLOCK = 64
MIN_BLOCK = 16
MAX_SEGMENT = 1024  # blocks whose states are found by one product with an N x N matrix of decays
HEAD_DIMS = (32, 64, 128)  # with Triton kernels
_DTYPES = (torch.bfloat16, torch.float16, torch.float32)

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
# A device's multiprocessor gets about `programs` segments of a head, none much shorter than `least` tokens.
tuning.declare(
    "lightning_segments",
    default=lambda K, **_: {"programs": 128 // K, "least": 256},
    exact=("K",),
    candidates=[{"programs": programs, "least": least} for programs in (1, 2, 4, 8) for least in (128, 256)],
)
# lightning_hopper_triton.py instead of the plain kernels, for sequences of at least `shortest` tokens on average;
# `halves` of a segment of a head fill a multiprocessor.
_SPECIALIZED = {
    "use": 1, "width": 64, "stages": 4, "registers": 128, "halves": 1, "least": 512, "shortest": 384,
}  # fmt: skip
tuning.declare(
    "lightning_specialized",
    default=_SPECIALIZED,
    exact=("K",),
    candidates=lambda K, dtype, **_: (
        [{**_SPECIALIZED, "use": 0}, {**_SPECIALIZED, "stages": 3}, {**_SPECIALIZED, "halves": 2}]
        if K == 128 and dtype == "bfloat16"
        else []
    ),
)


@dataclass(frozen=True)
class Run:
    """A run of blocks; exponents are numbers of tokens, negative, -inf where nothing flows."""

    begin: int
    end: int
    exponents_NN: torch.Tensor  # [n, m]: from the end of block m to the start of block n
    carried_N: torch.Tensor | None  # [n]: from the start of the run to the start of block n; None: nothing comes in


@dataclass(frozen=True)
class Blocks:
    """The reference's tables: where each token lies once every sequence is cut into blocks."""

    block: int
    num_blocks: int
    longest: int  # blocks of the longest sequence
    rows_T: torch.Tensor | None  # row of each token among N * B; None if nothing is filled up
    exponents: torch.Tensor  # (B * B + 2B,): within a block, then from its start (for q), then to its end (for k)
    runs: tuple[Run, ...]
    sequence_N: torch.Tensor  # sequence of each block
    before_N: torch.Tensor  # exponent from the start of the sequence to the start of the block
    from_start_NB: torch.Tensor  # exponent from there, or from the block's start, to each row: decay of a given state
    last_S: torch.Tensor  # last block of each sequence
    last_tokens_S: torch.Tensor  # tokens in it


@dataclass(frozen=True)
class Segments:
    """The kernels' table: sequences cut every `tokens` tokens, those of split sequences first, the longest first."""

    table_N8: torch.Tensor  # int32, columns of `cut_segments`
    tokens: int
    split_rows: int  # segments of sequences that have more than one
    num_added: int  # states between segments


@dataclass(frozen=True)
class BlockPlan:
    """How a packed batch's sequences are cut; made once per batch by `plan_blocks`, tables when first needed."""

    lengths: tuple[int, ...]
    device: torch.device
    block: int | None = None
    _segments: dict[int, Segments] = field(default_factory=dict, repr=False, compare=False)

    @functools.cached_property
    def one_token(self) -> bool:
        """Whether every sequence has exactly one."""
        return max(self.lengths) == 1 and min(self.lengths) == 1

    @functools.cached_property
    def num_tokens(self) -> int:
        return sum(self.lengths)

    @functools.cached_property
    def blocks(self) -> Blocks:
        """For the reference."""
        return _cut_blocks(self.lengths, self.device, self.block)

    @functools.cached_property
    def not_empty(self) -> tuple["BlockPlan", torch.Tensor] | None:
        """The plan without its empty sequences, and the indices (int64) of the others; None if none is empty."""
        if min(self.lengths) > 0:
            return None
        kept = [s for s, n in enumerate(self.lengths) if n]
        plan = BlockPlan(tuple(self.lengths[s] for s in kept), self.device, self.block)
        return plan, torch.tensor(kept, dtype=torch.int64).to(self.device)

    def segments(self, tokens: int) -> Segments:
        """For the kernels; `tokens` is the longest that a segment may be. One copy to the device at the first call."""
        tokens = min(tokens, max(self.lengths)) or 1
        found = self._segments.get(tokens)
        if found is None:
            found = self._segments[tokens] = cut_segments(self.lengths, tokens, self.device)
        return found


def plan_blocks(lengths, device, block: int | None = None) -> BlockPlan:
    """A plan for sequences of `lengths` tokens (host integers >= 0), one after the other.

    `block` (tokens) is the reference's; it defaults to 64, or less if every sequence is shorter. Raises ValueError
    without any sequence or for a negative length.
    """
    lengths = tuple(int(n) for n in lengths)
    if not lengths or min(lengths) < 0:
        raise ValueError(f"lightning attention needs sequences of at least 0 tokens, got lengths {lengths}")
    return BlockPlan(lengths, torch.device(device), block)


def cut_segments(lengths, tokens: int, device) -> Segments:
    """Cut every sequence after each `tokens` tokens; an empty sequence has one empty segment.

    Columns: sequence, first token, length, segments of its sequence before it and after it, its sequence's first state
    among those between segments, tokens of its sequence after it, unused.
    """
    length_S = torch.tensor(lengths)
    count_S = ((length_S + (tokens - 1)) // tokens).clamp_(min=1)
    between_S = count_S - 1
    N = int(count_S.sum())
    sequence_N = torch.arange(len(lengths)).repeat_interleave(count_S, output_size=N)
    before_N = torch.arange(N) - (count_S.cumsum(0) - count_S)[sequence_N]
    left_N = length_S[sequence_N] - before_N * tokens
    first_N = (length_S.cumsum(0) - length_S)[sequence_N] + before_N * tokens
    here_N = left_N.clamp(max=tokens)
    after_N = between_S[sequence_N] - before_N
    slot_N = (between_S.cumsum(0) - between_S)[sequence_N]
    rows = (sequence_N, first_N, here_N, before_N, after_N, slot_N, left_N - here_N, torch.zeros_like(first_N))
    split_N = before_N + after_N > 0
    order_N = (split_N * (1 << 40) + here_N).argsort(descending=True, stable=True)
    table_N8 = torch.stack(rows, dim=1)[order_N].int()
    split_rows, num_added = int(split_N.sum()), int(between_S.sum())
    return Segments(table_N8.to(device, non_blocking=True), tokens, split_rows, num_added)


def _cut_blocks(lengths, device, block) -> Blocks:
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
    return Blocks(
        block=block,
        num_blocks=N,
        longest=max(blocks),
        rows_T=rows_T,
        exponents=torch.cat((within_BB.flatten(), -(at_B + 1.0), at_B + 1.0 - block)).to(device),
        runs=tuple(_cut_run(ordinal_N.to(device), begin, block) for begin in range(0, N, MAX_SEGMENT)),
        sequence_N=sequence_N.to(device),
        before_N=(empty_S[sequence_N] - ordinal_N * block).clamp(max=0).float().to(device),
        from_start_NB=(empty_N[:, None] - at_B - 1).clamp(max=0).float().to(device),
        last_S=last_S.to(device),
        last_tokens_S=torch.where(blocks_S == 1, length_S, block).float().to(device),
    )


def _cut_run(ordinal_N, begin, block):
    end = min(begin + MAX_SEGMENT, len(ordinal_N))
    ordinal_N = ordinal_N[begin:end]
    at_N = torch.arange(end - begin, device=ordinal_N.device)
    between_NN = at_N[:, None] - 1 - at_N  # whole blocks between m and n
    flows_NN = (between_NN >= 0) & (between_NN < ordinal_N[:, None])
    exponents_NN = torch.where(flows_NN, -block * between_NN.float(), -torch.inf)
    carried_N = torch.where(ordinal_N > at_N, -block * at_N.float(), -torch.inf) if begin else None
    return Run(begin, end, exponents_NN, carried_N)


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
    tokens, special = _choose_cut(plan.num_tokens, S, H, K, longest, dtype, plan.device)
    segments = plan.segments(tokens)
    if initial_SHKK is not None:
        initial_SHKK = initial_SHKK.contiguous()
    o_THK, state_SHKK, _ = lightning_triton.op(
        qkv_THC, slopes_H, initial_SHKK, segments.table_N8, segments.tokens, segments.split_rows,
        segments.num_added, len(plan.lengths), silu, want_state, special,
    )  # fmt: skip
    return o_THK, state_SHKK if want_state else None


def _choose_cut(T: int, S: int, H: int, K: int, longest: int, dtype: str, device: torch.device):
    """Tokens of a segment, and whether lightning_hopper_triton.py runs: bf16 on a GPU with warpgroup products."""
    if K == 128 and T and dtype == "bfloat16" and device.type == "cuda" and capability(device)[0] == 9:
        chosen = tuning.config("lightning_specialized", K=K, H=H, T=T, dtype=dtype)
        if chosen["use"] and T >= chosen["shortest"] * S:
            programs = chosen["halves"] * chosen["width"] / K
            return _even_segments(T * H, longest, programs, chosen["least"], device), True
    return segment_tokens(T, H, K, longest, device), False


# What torch.compiler.assume_constant_result would set; that imports torch._dynamo, and with it triton.
_choose_cut._dynamo_marked_constant = True


def segment_tokens(T: int, H: int, K: int, longest: int, device: torch.device) -> int:
    """How long a segment may be: so that programs fill the device, and no split where it would win little."""
    config = tuning.config("lightning_segments", T=T, H=H, K=K)
    return _even_segments(T * H, longest, config["programs"], config["least"], device)


def _even_segments(rows: int, longest: int, programs: float, least: int, device: torch.device) -> int:
    even = rows / (programs * multiprocessors(device))
    count = max(round(longest / max(even, least)), -(-longest // LONGEST))
    return longest if count < 2 else -(-longest // (count * SEGMENT_MULTIPLE)) * SEGMENT_MULTIPLE


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
        state_SHKV = state_SHKV + torch.exp(-slopes_H)[:, None, None] * initial_SHKV.to(slopes_H.dtype)
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
