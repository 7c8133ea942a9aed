"""Mixture of experts: choosing experts for each token, and running the chosen ones (dropless SwiGLU).

    y_t = sum over the chosen e of weight_te * w2_e (silu(w1_e x_t) * w3_e x_t)
Token-expert pairs are sorted by expert; on CUDA in bf16 three grouped matrix products do all experts without asking the
device how many tokens each got, elsewhere a loop over the experts that were hit does.

Legend: T tokens, k experts a token, P = T * k token-expert pairs, E experts, I expert width, D model width.
"""

import torch
import torch.nn.functional as F


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

    Source of the formula: Switch Transformers (arXiv 2101.03961), equations 4-6, summed over the k choices.
    """
    T, E = probs_TE.shape
    return E * torch.dot(counts_E.to(probs_TE.dtype) / T, probs_TE.mean(0))


def experts(
    x_TD: torch.Tensor,
    w1_EID: torch.Tensor,
    w3_EID: torch.Tensor,
    w2_EDI: torch.Tensor,
    weights_Tk: torch.Tensor,
    indices_Tk: torch.Tensor,
    counts_E: torch.Tensor | None = None,
) -> torch.Tensor:
    """The weighted sum of the chosen experts' outputs, (T, D) in the dtype of `x_TD`; the sum itself is fp32 at least.

    `counts_E` is `expert_counts(indices_Tk, E)`, computed here if not given. Experts without a token get a zero
    gradient, not none, so that every rank reduces the same tensors.
    """
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
