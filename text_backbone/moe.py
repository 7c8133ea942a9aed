"""The mixture-of-experts block: fp32 router, dropless experts, and the optional shared expert.

Legend: T tokens, D model width, E experts, I expert width.
"""

import torch
import torch.nn.functional as F
from torch import nn

from mmvl.kernels.experts import experts, router

from .config import TextConfig
from .expert_parallel import ExpertLayout, spread_experts, summed_probabilities


class Experts(nn.Module):
    """The stacked weights of all experts: w1 gate and w3 up (E, I, D), w2 down (E, D, I); or a rank's part of them."""

    def __init__(self, config: TextConfig):
        super().__init__()
        E, I, D = config.num_local_experts, config.intermediate_size, config.hidden_size
        self.w1 = nn.Parameter(torch.empty(E, I, D))
        self.w3 = nn.Parameter(torch.empty(E, I, D))
        self.w2 = nn.Parameter(torch.empty(E, D, I))


class SparseMoe(nn.Module):
    """Router and experts: (T, D) -> (T, D), this layer's balance loss (fp32 scalar), pairs each expert got (E,).

    With a `layout`, in training over several ranks, the second is instead the router's probabilities summed over the
    rank's tokens (E,), from which the decoder makes the balance loss of all ranks' tokens.
    """

    def __init__(self, config: TextConfig):
        super().__init__()
        self.top_k = config.num_experts_per_tok
        self.gate = nn.Linear(config.hidden_size, config.num_local_experts, bias=False)
        self.experts = Experts(config)
        self.layout: ExpertLayout | None = None

    def forward(self, x_TD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        # fp32 logits: in 16 bits close experts would tie or swap, so that a token's expert would depend on its batch
        routing = router(x_TD, self.gate.weight, self.top_k)
        e = self.experts
        if self.layout is not None:
            y_TD = spread_experts(x_TD, routing, e, self.layout)
            return y_TD, summed_probabilities(x_TD, self.gate.weight), routing.counts_E
        y_TD = experts(
            x_TD, e.w1, e.w3, e.w2, routing.weights_Tk, routing.indices_Tk, routing.counts_E,
            order_P=routing.order_P, offsets_E1=routing.offsets_E1,
        )  # fmt: skip
        return y_TD, routing.balance, routing.counts_E


class SharedMlp(nn.Module):
    """A SwiGLU block that every token passes."""

    def __init__(self, config: TextConfig):
        super().__init__()
        D, I = config.hidden_size, config.shared_intermediate_size
        self.gate_proj = nn.Linear(D, I, bias=False)
        self.up_proj = nn.Linear(D, I, bias=False)
        self.down_proj = nn.Linear(I, D, bias=False)

    def forward(self, x_TD: torch.Tensor) -> torch.Tensor:
        return self.down_proj(F.silu(self.gate_proj(x_TD)) * self.up_proj(x_TD))


def mix_shared(y_TD, shared_TD, x_TD, coefficient: nn.Linear) -> torch.Tensor:
    """moe * (1 - sigmoid(c)) + shared * sigmoid(c), with c = coefficient(x) in fp32 at least."""
    dtype = torch.promote_types(x_TD.dtype, torch.float32)
    share_T1 = torch.sigmoid(F.linear(x_TD.to(dtype), coefficient.weight.to(dtype))).to(x_TD.dtype)
    return y_TD * (1 - share_T1) + shared_TD * share_T1
