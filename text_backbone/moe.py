"""The mixture-of-experts block: fp32 router, dropless experts, and the optional shared expert.

Legend: T tokens, D model width, E experts, I expert width.
"""

import torch
import torch.nn.functional as F
from torch import nn

from mmvl.kernels.experts import experts, router
from mmvl.kernels.experts_quantized import WORKSPACE, QuantizedExperts, experts_quantized, quantize_weight

from .config import TextConfig
from .expert_parallel import ExpertLayout, spread_experts, summed_probabilities
from .tensor_parallel import Shard


class Experts(nn.Module):
    """The stacked weights of all experts: w1 gate and w3 up (E, I, D), w2 down (E, D, I); or a rank's part of them."""

    def __init__(self, config: TextConfig, here: range | None = None):
        super().__init__()
        E = config.num_local_experts if here is None else len(here)
        I, D = config.intermediate_size, config.hidden_size
        self.w1 = nn.Parameter(torch.empty(E, I, D))
        self.w3 = nn.Parameter(torch.empty(E, I, D))
        self.w2 = nn.Parameter(torch.empty(E, D, I))

    def run(self, x_TD, weights_Tk, indices_Tk, counts_E=None, **sort) -> torch.Tensor:
        """`kernels.experts.experts` with these weights."""
        return experts(x_TD, self.w1, self.w3, self.w2, weights_Tk, indices_Tk, counts_E, **sort)


class QuantizedStack(nn.Module):
    """The same, quantised to `kind` (see kernels/experts_quantized.py), in the place of `Experts`; for inference.

    Buffers w1, w3, w2 and their fp32 scales scale1, scale3, scale2, uninitialised. They move to devices with the model
    but keep their dtypes when it is cast. workspace: bytes that may be used to unpack them.
    """

    def __init__(self, config: TextConfig, kind: str, here: range | None = None):
        super().__init__()
        self.kind, self.width, self.expert_width = kind, config.hidden_size, config.intermediate_size
        self.workspace = WORKSPACE
        E = config.num_local_experts if here is None else len(here)
        I, D = self.expert_width, self.width
        for which, shape in ((1, (I, D)), (3, (I, D)), (2, (D, I))):
            one, scale = quantize_weight(torch.empty(1, *shape, device="meta"), kind)
            for name, t in ((f"w{which}", one), (f"scale{which}", scale)):
                self.register_buffer(name, torch.empty(E, *t.shape[1:], dtype=t.dtype))

    def put(self, which: str, expert: int, w_NK: torch.Tensor) -> None:
        """Quantise one expert's `which` of w1, w3, w2 into its place."""
        quantized, scale = quantize_weight(w_NK[None], self.kind)
        getattr(self, which)[expert].copy_(quantized[0])
        getattr(self, f"scale{which[1:]}")[expert].copy_(scale[0])

    def run(self, x_TD, weights_Tk, indices_Tk, counts_E=None, **sort) -> torch.Tensor:
        """`kernels.experts_quantized.experts_quantized` with these weights."""
        quantized = QuantizedExperts(
            self.kind, self.w1, self.w3, self.w2, self.scale1, self.scale3, self.scale2, self.width, self.expert_width
        )
        return experts_quantized(x_TD, quantized, weights_Tk, indices_Tk, workspace=self.workspace, **sort)

    def _apply(self, fn, recurse=True):
        # as bytes, which no cast touches
        return super()._apply(lambda t: fn(t.view(torch.uint8)).view(t.dtype), recurse)


class SparseMoe(nn.Module):
    """Router and experts: (T, D) -> (T, D), this layer's balance loss (fp32 scalar), pairs each expert got (E,).

    With a `layout`, in training over several ranks, the second is instead the router's probabilities summed over the
    rank's tokens (E,), from which the decoder makes the balance loss of all ranks' tokens. With a `shard`, at inference
    over several ranks, the first is what the experts of this rank add to the sum.
    """

    def __init__(self, config: TextConfig, shard: Shard | None = None):
        super().__init__()
        self.top_k = config.num_experts_per_tok
        self.shard, self.here = shard, None if shard is None else shard.experts
        self.gate = nn.Linear(config.hidden_size, config.num_local_experts, bias=False)
        self.experts: Experts | QuantizedStack = Experts(config, self.here)
        self.layout: ExpertLayout | None = None

    def forward(self, x_TD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        # fp32 logits: in 16 bits close experts would tie or swap, so that a token's expert would depend on its batch
        routing = router(x_TD, self.gate.weight, self.top_k)
        if self.layout is not None:
            y_TD = spread_experts(x_TD, routing, self.experts, self.layout)
            return y_TD, summed_probabilities(x_TD, self.gate.weight), routing.counts_E
        y_TD = self.experts.run(
            x_TD, routing.weights_Tk, routing.indices_Tk, routing.counts_E, order_P=routing.order_P,
            offsets_E1=routing.offsets_E1, first_expert=None if self.here is None else self.here.start,
        )  # fmt: skip
        return y_TD, routing.balance, routing.counts_E

    def dispatch(self, x_LD: torch.Tensor) -> torch.Tensor:
        """The whole output (L, D) for a rank's share of the tokens, by all-to-all. All ranks call it together."""
        return spread_experts(x_LD, router(x_LD, self.gate.weight, self.top_k), self.experts, self.shard.layout)


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
