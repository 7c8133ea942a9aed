"""Mixture of experts: choosing experts for each token, and running the chosen ones (dropless SwiGLU).

    y_t = sum over the chosen e of weight_te * w2_e (silu(w1_e x_t) * w3_e x_t)
Token-expert pairs are sorted by expert, and grouped matrix products do all experts without asking the device how many
tokens each got. On CUDA that is done by Triton kernels, which apply SwiGLU and the routing weights as they go, and
gather too, but for many tokens and wide experts, where tokens are copied into order first:
experts_routing_triton.py routes and sorts, experts_few_triton.py reads each expert once for few tokens,
experts_large_triton.py is for many tokens and wide experts, experts_triton.py for narrow ones, and
experts_backward_triton.py for the way back.
The reference uses torch's grouped product in bf16 on CUDA, and a loop over the experts that were hit elsewhere.
Source of the formulas: MiniMax-01 (arXiv 2501.08313), whose experts are Mixtral's (arXiv 2401.04088).

Legend: T tokens, k experts a token, P = T * k token-expert pairs, E experts, I expert width, D model width.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from . import experts_tuning, tuning  # noqa: F401  (the first declares the launch parameters)
from .backend import TRITON, choose

FEW = 64  # tokens at which reading the weights still takes all the time
WIDE = 512  # D and I from which tensor maps and persistent programs pay
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Routing(NamedTuple):
    """What the router decided. The last two are there where Triton sorted the pairs, and save `experts` that work."""

    weights_Tk: torch.Tensor  # fp32 at least, each row sums to 1
    indices_Tk: torch.Tensor  # int64
    counts_E: torch.Tensor  # int64, pairs of each expert
    balance: torch.Tensor  # the balance loss, a scalar of the weights' dtype
    order_P: torch.Tensor | None = None  # int32, pairs (t * k + j) by expert, in their order within one
    offsets_E1: torch.Tensor | None = None  # int32, where each expert's pairs begin; the last is P


def router(x_TD: torch.Tensor, gate_ED: torch.Tensor, top_k: int, *, backend: str | None = None) -> Routing:
    """Logits x gate^T in fp32 at least, softmax, the `top_k` best experts with weights that sum to 1, balance loss.

    Gradients flow from the weights and from the balance loss to `x_TD` and `gate_ED`. Of equal logits the kernels take
    the lower index; torch does not say which it takes. Raises ValueError for a `top_k` that the experts do not have.
    """
    if not 0 < top_k <= gate_ED.shape[0]:
        raise ValueError(f"a router over {gate_ED.shape[0]} experts cannot choose {top_k} of them for a token")
    supported = x_TD.dtype in _DTYPES and gate_ED.dtype in _DTYPES and gate_ED.shape[0] <= 1024
    if x_TD.shape[0] and choose(backend, x_TD, gate_ED, supported=supported) == TRITON:
        x_TD, gate_ED = x_TD.contiguous(), gate_ED.contiguous()
        if _traced(x_TD):
            outputs = torch.ops.mmvl.router(x_TD, gate_ED, top_k)
        elif torch.is_grad_enabled() and (x_TD.requires_grad or gate_ED.requires_grad):
            outputs = _Router.apply(x_TD, gate_ED, top_k)
        else:
            outputs = _routing_kernels().route(x_TD, gate_ED, None, top_k)
        return Routing(*outputs[:6])
    dtype = torch.promote_types(x_TD.dtype, torch.float32)
    weights_Tk, indices_Tk, probs_TE = route(F.linear(x_TD.to(dtype), gate_ED.to(dtype)), top_k)
    counts_E = expert_counts(indices_Tk, gate_ED.shape[0])
    return Routing(weights_Tk, indices_Tk, counts_E, balance_loss(probs_TE, counts_E))


def route(logits_TE: torch.Tensor, top_k: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Weights (T, k) that sum to 1, expert indices (T, k) int64, and probabilities (T, E): softmax, top k, renormalise.

    Computed in fp32 at least; the logits should come from an fp32 product already.
    """
    probs_TE = torch.softmax(logits_TE, dim=-1, dtype=torch.promote_types(logits_TE.dtype, torch.float32))
    weights_Tk, indices_Tk = torch.topk(probs_TE, top_k, dim=-1)
    return weights_Tk / weights_Tk.sum(-1, keepdim=True), indices_Tk, probs_TE


def expert_counts(indices_Tk: torch.Tensor, num_experts: int) -> torch.Tensor:
    """How many token-expert pairs each expert got, (E,) int64, without a device-to-host copy."""
    ids_E = torch.arange(num_experts, device=indices_Tk.device)
    return (indices_Tk.reshape(-1, 1) == ids_E).sum(0)


def balance_loss(probs_TE: torch.Tensor, counts_E: torch.Tensor) -> torch.Tensor:
    """E * sum over e of (pairs of e / T) * (mean probability of e): `top_k` when balanced, more when not.

    Without a token it is 0.
    Source of the formula: Switch Transformers (arXiv 2101.03961), equations 4-6, summed over the k choices.
    """
    T, E = probs_TE.shape
    if not T:
        return probs_TE.sum()  # of nothing, and connected to it
    return E * torch.dot(counts_E.to(probs_TE.dtype) / T, probs_TE.mean(0))


def experts(
    x_TD: torch.Tensor,
    w1_EID: torch.Tensor,
    w3_EID: torch.Tensor,
    w2_EDI: torch.Tensor,
    weights_Tk: torch.Tensor,
    indices_Tk: torch.Tensor,
    counts_E: torch.Tensor | None = None,
    *,
    order_P: torch.Tensor | None = None,
    offsets_E1: torch.Tensor | None = None,
    first_expert: int | None = None,
    backend: str | None = None,
) -> torch.Tensor:
    """The weighted sum of the chosen experts' outputs, (T, D) in the dtype of `x_TD`; the sum itself is fp32 at least.

    `counts_E` is `expert_counts(indices_Tk, E)`; `order_P` and `offsets_E1` are the router's (see `Routing`). What is
    not given is computed. Experts without a token get a zero gradient, not none, so that every rank reduces the same
    tensors. The kernels read the weights where they lie: w1 and w3 (E, I, D), w2 (E, D, I), contiguous.

    With `first_expert` the weights are those of the experts from there on alone, as a rank of several has them; what
    comes of others is left out of the sum. Everything else stays about all experts. For inference only: raises
    ValueError for an x that wants a gradient.
    """
    if first_expert is not None:
        if torch.is_grad_enabled() and x_TD.requires_grad:
            raise ValueError("a part of the experts has no gradient; run it under torch.no_grad()")
        return _experts_of_a_rank(
            x_TD, (w1_EID, w3_EID, w2_EDI), weights_Tk, indices_Tk, order_P, offsets_E1, first_expert, backend
        )
    if x_TD.shape[0] == 0:  # connected to everything, so that all gradients are zeros
        return x_TD + sum(w[:0].sum() for w in (w1_EID, w3_EID, w2_EDI, weights_Tk)).to(x_TD.dtype)
    weights = (w1_EID, w3_EID, w2_EDI)
    supported = x_TD.dtype in _DTYPES and all(w.dtype == x_TD.dtype and w.is_contiguous() for w in weights)
    if choose(backend, x_TD, *weights, supported=supported) == TRITON:
        x_TD, weights_Tk = x_TD.contiguous(), weights_Tk.contiguous()
        inputs = (x_TD, *weights, weights_Tk)
        needs_grad = torch.is_grad_enabled() and any(a.requires_grad for a in inputs)
        if needs_grad and backend is None and _trains_by_torch(x_TD, w1_EID, weights_Tk):
            return _experts_reference(x_TD, *weights, weights_Tk, indices_Tk, counts_E)
        if order_P is None:
            order_P, offsets_E1 = sort_pairs(indices_Tk, w1_EID.shape[0])
        if _traced(x_TD):
            return torch.ops.mmvl.experts(*inputs, order_P, offsets_E1, needs_grad)[0]
        if needs_grad:
            return _Experts.apply(*inputs, order_P, offsets_E1)
        return _forward(*inputs, order_P, offsets_E1, False)[0]
    return _experts_reference(x_TD, *weights, weights_Tk, indices_Tk, counts_E)


def _experts_of_a_rank(x_TD, weights, weights_Tk, indices_Tk, order_P, offsets_E1, first, backend):
    E = weights[0].shape[0]
    supported = x_TD.dtype in _DTYPES and all(w.dtype == x_TD.dtype and w.is_contiguous() for w in weights)
    if x_TD.shape[0] and choose(backend, x_TD, *weights, supported=supported) == TRITON:
        order_P, offsets_E1 = pairs_of_a_rank(indices_Tk, order_P, offsets_E1, first, E)
        inputs = (x_TD.contiguous(), *weights, weights_Tk.contiguous(), order_P, offsets_E1, False, True)
        return (torch.ops.mmvl.experts if _traced(x_TD) else _forward)(*inputs)[0]
    return only_these_experts(
        lambda x, w, indices: experts(x, *weights, w, indices, backend=backend), x_TD, weights_Tk, indices_Tk, first, E
    )


def pairs_of_a_rank(indices_Tk, order_P, offsets_E1, first: int, E: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The sorted pairs, and where those of the experts first .. first + E - 1 begin; the last is where they end."""
    if order_P is not None:
        return order_P, offsets_E1[first : first + E + 1]
    local_Tk = indices_Tk - first
    local_Tk = torch.where((local_Tk >= 0) & (local_Tk < E), local_Tk, E)  # one more, for all others
    order_P, offsets = sort_pairs(local_Tk, E + 1)
    return order_P, offsets[: E + 1]


def sort_pairs(indices_Tk: torch.Tensor, num_experts: int) -> tuple[torch.Tensor, torch.Tensor]:
    """By the kernels: the pairs' numbers in the stable order of their experts, and where each one's begin (int32)."""
    sort = torch.ops.mmvl.sort_pairs if _traced(indices_Tk) else _routing_kernels().sort
    return sort(indices_Tk.contiguous(), num_experts)


def only_these_experts(run, x_TD, weights_Tk, indices_Tk, first: int, E: int) -> torch.Tensor:
    """What the experts first .. first + E - 1 add to the sum; `run(x, weights, indices)` does it for their pairs."""
    expert_Tk = indices_Tk - first
    token_R, choice_R = ((expert_Tk >= 0) & (expert_Tk < E)).nonzero(as_tuple=True)
    y_RD = run(x_TD[token_R], weights_Tk[token_R, choice_R, None], expert_Tk[token_R, choice_R, None])
    return torch.zeros_like(x_TD).index_add_(0, token_R, y_RD)


def _trains_by_torch(x, w1, weights) -> bool:
    (E, I, D), dtype = w1.shape, str(x.dtype)[6:]
    chosen = tuning.config("experts_training", P=weights.numel(), E=E, I=I, D=D, dtype=dtype)["grouped_mm"]
    return bool(chosen) and _has_grouped_mm(x, w1)


def _traced(x: torch.Tensor) -> bool:
    """Under torch.compile or with fake tensors the operators are called; else the kernels, which costs less time."""
    return torch.compiler.is_compiling() or type(x) not in (torch.Tensor, torch.nn.Parameter)


def _routing_kernels():
    from . import experts_routing_triton  # triton is imported where a kernel runs, not before

    return experts_routing_triton


def _backward_kernels():
    from . import experts_backward_triton

    return experts_backward_triton


def _forward(x, w1, w3, w2, weights, order, offsets, save, partial=False):
    """-> y, gate, up; the last two, (P, I), are for the backward pass, None without `save`.

    partial: the offsets leave pairs out, which add nothing.
    Few tokens: the time is that of reading the weights. Many tokens and wide experts: that of the products.
    """
    if x.shape[0] <= FEW and not save:
        from .experts_few_triton import forward

        return forward(x, w1, w3, w2, None, 16, weights, order, offsets, partial), None, None
    if min(w1.shape[1:]) >= WIDE and x.dtype != torch.float32:
        from .experts_large_triton import fits, forward

        if fits(x, w1, w3, w2):
            return forward(x, w1, w3, w2, None, weights, order, offsets, save, partial)
    from .experts_triton import forward

    return forward(x, w1, w3, w2, weights, order, offsets, save, partial)


class _Router(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, gate, top_k):
        *outputs, logits = _routing_kernels().route(x, gate, None, top_k)
        _, indices, counts, _, order, offsets = outputs
        ctx.save_for_backward(x, gate, logits, indices, counts)
        ctx.mark_non_differentiable(indices, counts, order, offsets)
        ctx.set_materialize_grads(False)
        return tuple(outputs)

    @staticmethod
    def backward(ctx, dweights, _indices, _counts, dbalance, _order, _offsets):
        if dweights is None and dbalance is None:
            return None, None, None
        dweights = None if dweights is None else dweights.contiguous()
        return *_routing_kernels().route_backward(*ctx.saved_tensors, dweights, dbalance), None


class _Experts(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w1, w3, w2, weights, order, offsets):
        y, gate, up = _forward(x, w1, w3, w2, weights, order, offsets, True)
        ctx.save_for_backward(x, w1, w3, w2, weights, order, offsets, gate, up)
        return y

    @staticmethod
    def backward(ctx, dy):
        return *_backward_kernels().backward(dy.contiguous(), *ctx.saved_tensors), None, None


# The same as operators, for torch.compile.


@torch.library.custom_op("mmvl::router", mutates_args=())
def _router_op(
    x: torch.Tensor, gate: torch.Tensor, top_k: int
) -> tuple[
    torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor
]:  # fmt: skip
    return _routing_kernels().route(x, gate, None, top_k)


@_router_op.register_fake
def _(x, gate, top_k):
    T, E = x.shape[0], gate.shape[0]
    return (
        x.new_empty(T, top_k, dtype=torch.float32),
        x.new_empty(T, top_k, dtype=torch.int64),
        x.new_empty(E, dtype=torch.int64),
        x.new_empty((), dtype=torch.float32),
        x.new_empty(T * top_k, dtype=torch.int32),
        x.new_empty(E + 1, dtype=torch.int32),
        x.new_empty(T, E, dtype=torch.float32),
    )


@torch.library.custom_op("mmvl::router_backward", mutates_args=())
def _router_backward_op(
    x: torch.Tensor, gate: torch.Tensor, logits: torch.Tensor, indices: torch.Tensor, counts: torch.Tensor,
    dweights: torch.Tensor, dbalance: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    return _routing_kernels().route_backward(x, gate, logits, indices, counts, dweights.contiguous(), dbalance)


@_router_backward_op.register_fake
def _(x, gate, logits, indices, counts, dweights, dbalance):
    return torch.empty_like(x), torch.empty_like(gate)


def _router_setup(ctx, inputs, output):
    x, gate, _ = inputs
    _, indices, counts, _, order, offsets, logits = output
    ctx.save_for_backward(x, gate, logits, indices, counts)
    ctx.mark_non_differentiable(indices, counts, order, offsets, logits)


def _router_grad(ctx, dweights, _indices, _counts, dbalance, _order, _offsets, _logits):
    return *torch.ops.mmvl.router_backward(*ctx.saved_tensors, dweights, dbalance), None


_router_op.register_autograd(_router_grad, setup_context=_router_setup)


@torch.library.custom_op("mmvl::sort_pairs", mutates_args=())
def _sort_op(indices: torch.Tensor, num_experts: int) -> tuple[torch.Tensor, torch.Tensor]:
    return _routing_kernels().sort(indices.contiguous(), num_experts)


@_sort_op.register_fake
def _(indices, num_experts):
    order = indices.new_empty(indices.shape[0] * indices.shape[1], dtype=torch.int32)
    return order, indices.new_empty(num_experts + 1, dtype=torch.int32)


@torch.library.custom_op("mmvl::experts", mutates_args=())
def _experts_op(
    x: torch.Tensor, w1: torch.Tensor, w3: torch.Tensor, w2: torch.Tensor, weights: torch.Tensor,
    order: torch.Tensor, offsets: torch.Tensor, save: bool, partial: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    y, gate, up = _forward(x, w1, w3, w2, weights, order, offsets, save, partial)
    return (y, gate, up) if save else (y, x.new_empty(0), x.new_empty(0))


@_experts_op.register_fake
def _(x, w1, w3, w2, weights, order, offsets, save, partial=False):
    kept = (order.shape[0], w1.shape[1]) if save else (0,)
    return torch.empty_like(x), x.new_empty(kept), x.new_empty(kept)


@torch.library.custom_op("mmvl::experts_backward", mutates_args=())
def _experts_backward_op(
    dy: torch.Tensor, x: torch.Tensor, w1: torch.Tensor, w3: torch.Tensor, w2: torch.Tensor, weights: torch.Tensor,
    order: torch.Tensor, offsets: torch.Tensor, gate: torch.Tensor, up: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    return _backward_kernels().backward(dy.contiguous(), x, w1, w3, w2, weights, order, offsets, gate, up)


@_experts_backward_op.register_fake
def _(dy, x, w1, w3, w2, weights, order, offsets, gate, up):
    return tuple(torch.empty_like(a) for a in (x, w1, w3, w2, weights))


def _experts_setup(ctx, inputs, output):
    *saved, _, _ = inputs
    _, gate, up = output
    ctx.save_for_backward(*saved, gate, up)
    ctx.mark_non_differentiable(gate, up)


def _experts_grad(ctx, dy, _gate, _up):
    return *torch.ops.mmvl.experts_backward(dy, *ctx.saved_tensors), None, None, None, None


_experts_op.register_autograd(_experts_grad, setup_context=_experts_setup)


# The reference.


def _experts_reference(x_TD, w1_EID, w3_EID, w2_EDI, weights_Tk, indices_Tk, counts_E):
    T, k = indices_Tk.shape
    if counts_E is None:
        counts_E = expert_counts(indices_Tk, w1_EID.shape[0])
    order_P = indices_Tk.reshape(-1).argsort(stable=True)
    inverse_P = torch.empty_like(order_P).index_copy_(0, order_P, torch.arange(T * k, device=x_TD.device))
    x_PD = _Permute.apply(x_TD[:, None].expand(T, k, -1).reshape(T * k, -1), order_P, inverse_P)
    run = _grouped if _has_grouped_mm(x_TD, w1_EID) else _looped
    y_TkD = _Permute.apply(run(x_PD, w1_EID, w3_EID, w2_EDI, counts_E), inverse_P, order_P).view(T, k, -1)
    return (y_TkD * weights_Tk[..., None]).sum(1).to(x_TD.dtype)


class _Permute(torch.autograd.Function):
    """x[order]; its gradient is a gather by the inverse, where index_select's is an unordered index_add."""

    @staticmethod
    def forward(ctx, x, order_P, inverse_P):
        ctx.save_for_backward(inverse_P)
        return x.index_select(0, order_P)

    @staticmethod
    def backward(ctx, grad):
        (inverse_P,) = ctx.saved_tensors
        return grad.index_select(0, inverse_P), None, None


def _has_grouped_mm(x_TD, w1_EID) -> bool:
    return (
        x_TD.is_cuda
        and x_TD.dtype == w1_EID.dtype == torch.bfloat16
        and w1_EID.shape[1] % 8 == 0  # rows must start at multiples of 16 bytes
        and w1_EID.shape[2] % 8 == 0
        and torch.cuda.get_device_capability(x_TD.device) >= (8, 0)
    )


def _grouped(x_PD, w1_EID, w3_EID, w2_EDI, counts_E):
    ends_E = counts_E.cumsum(0).to(torch.int32)
    up_PI = F.grouped_mm(x_PD, w3_EID.transpose(-2, -1), offs=ends_E)
    gate_PI = F.grouped_mm(x_PD, w1_EID.transpose(-2, -1), offs=ends_E)
    return F.grouped_mm(F.silu(gate_PI) * up_PI, w2_EDI.transpose(-2, -1), offs=ends_E)


def _looped(x_PD, w1_EID, w3_EID, w2_EDI, counts_E):
    # unbind once: indexing w1_EID[e] in the loop would build a full-size gradient for every expert
    weights = zip(w1_EID.unbind(0), w3_EID.unbind(0), w2_EDI.unbind(0), strict=True)
    outputs = [
        F.linear(F.silu(F.linear(x, w1)) * F.linear(x, w3), w2)
        for x, (w1, w3, w2) in zip(x_PD.split(counts_E.tolist()), weights, strict=True)
        if x.shape[0]
    ]
    return torch.cat(outputs)
