"""Experts with weight-only quantisation: int8 with a scale for each output channel, int4 in groups of 128 inputs.

The weights are quantised once, at load, into the order the kernels read them in; they are unpacked in registers.
    int8    w = scale[e, n] * q[e, n, k], q in -127..127
    int4    w = scale[e, g, n] * (q - 8), q in 0..15; byte b of group g holds inputs 128 g + b (low) and 128 g + 64 + b
Symmetric, rounded to nearest. Inputs that are no multiple of 128 are filled up with zeros.

Legend: T tokens, k choices, P = T * k pairs, E experts, I expert width, D model width, N outputs, K inputs, G groups.
"""

from typing import NamedTuple

import torch

from .backend import TRITON, choose
from .experts import _routing_kernels, experts

GROUP = 128


class QuantizedExperts(NamedTuple):
    """All experts' weights of a layer. `w*` are int8 (E, N, K), or uint8 (E, N, K / 2 filled up) for int4."""

    bits: int
    w1: torch.Tensor
    w3: torch.Tensor
    w2: torch.Tensor
    scale1: torch.Tensor  # fp32: (E, N) for int8, (E, G, N) for int4
    scale3: torch.Tensor
    scale2: torch.Tensor
    width: int  # D
    expert_width: int  # I

    def dequantize(self, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """w1, w3 (E, I, D) and w2 (E, D, I) as the kernels see them."""
        pairs = ((self.w1, self.scale1, self.width), (self.w3, self.scale3, self.width),
                 (self.w2, self.scale2, self.expert_width))  # fmt: skip
        return tuple(_dequantize(w, scale, K, self.bits).to(dtype) for w, scale, K in pairs)


def quantize_experts(w1_EID: torch.Tensor, w3_EID: torch.Tensor, w2_EDI: torch.Tensor, bits: int) -> QuantizedExperts:
    """Quantise a layer's experts to 8 or 4 bits, expert by expert: little memory is needed beside the result."""
    if bits not in (4, 8):
        raise ValueError(f"experts can be quantised to 8 or 4 bits, not {bits}")
    quantized = [quantize_weight(w, bits) for w in (w1_EID, w3_EID, w2_EDI)]
    (w1, s1), (w3, s3), (w2, s2) = quantized
    return QuantizedExperts(bits, w1, w3, w2, s1, s3, s2, w1_EID.shape[2], w1_EID.shape[1])


def quantize_weight(w_ENK: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The stored form of one stack of weights and its scales."""
    parts = [(_quantize_int8 if bits == 8 else _quantize_int4)(w_NK.float()) for w_NK in w_ENK]
    return torch.stack([q for q, _ in parts]), torch.stack([s for _, s in parts])


def _quantize_int8(w_NK):
    scale_N = (w_NK.abs().amax(1) / 127).clamp(min=1e-20)
    return (w_NK / scale_N[:, None]).round().to(torch.int8), scale_N


def _quantize_int4(w_NK):
    N, K = w_NK.shape
    w_NGk = torch.nn.functional.pad(w_NK, (0, -K % GROUP)).view(N, -1, GROUP)
    scale_NG = (w_NGk.abs().amax(2) / 7).clamp(min=1e-20)
    q = (w_NGk / scale_NG[..., None]).round().add(8).to(torch.uint8)
    packed = q[..., : GROUP // 2] | (q[..., GROUP // 2 :] << 4)
    return packed.view(N, -1), scale_NG.T.contiguous()


def _dequantize(w, scale, K, bits):
    if bits == 8:
        return w.float() * scale[..., None]
    E, N, _ = w.shape
    packed = w.view(E, N, -1, GROUP // 2)
    q = torch.cat((packed & 15, packed >> 4), dim=-1).float() - 8
    return (q * scale.transpose(1, 2)[..., None]).view(E, N, -1)[..., :K]


def experts_quantized(
    x_TD: torch.Tensor,
    quantized: QuantizedExperts,
    weights_Tk: torch.Tensor,
    indices_Tk: torch.Tensor,
    *,
    order_P: torch.Tensor | None = None,
    offsets_E1: torch.Tensor | None = None,
    backend: str | None = None,
) -> torch.Tensor:
    """What `experts` gives with the dequantised weights, (T, D) in the dtype of `x_TD`; for inference only.

    `order_P` and `offsets_E1` are the router's (see `Routing`), computed here if not given. The reference dequantises
    all experts in the dtype of `x_TD`.
    """
    if torch.is_grad_enabled() and x_TD.requires_grad:
        raise ValueError("quantised experts have no gradient; run them under torch.no_grad()")
    supported = x_TD.dtype in (torch.float32, torch.bfloat16, torch.float16)
    if x_TD.shape[0] == 0 or choose(backend, x_TD, quantized.w1, supported=supported) != TRITON:
        return experts(x_TD, *quantized.dequantize(x_TD.dtype), weights_Tk, indices_Tk, backend="reference")
    if order_P is None:
        order_P, offsets_E1 = _routing_kernels().sort(indices_Tk.contiguous(), quantized.w1.shape[0])
    q = quantized
    return torch.ops.mmvl.experts_quantized(
        x_TD.contiguous(), q.w1, q.w3, q.w2, q.scale1, q.scale3, q.scale2, q.bits, weights_Tk.contiguous(),
        order_P, offsets_E1,
    )  # fmt: skip


@torch.library.custom_op("mmvl::experts_quantized", mutates_args=())
def _quantized_op(
    x: torch.Tensor, w1: torch.Tensor, w3: torch.Tensor, w2: torch.Tensor,
    scale1: torch.Tensor, scale3: torch.Tensor, scale2: torch.Tensor, bits: int,
    weights: torch.Tensor, order: torch.Tensor, offsets: torch.Tensor,
) -> torch.Tensor:  # fmt: skip
    from .experts_few_triton import forward  # triton is imported where a kernel runs, not before

    return forward(x, w1, w3, w2, (scale1, scale3, scale2), bits, weights, order, offsets)


@_quantized_op.register_fake
def _(x, w1, w3, w2, scale1, scale3, scale2, bits, weights, order, offsets):
    return torch.empty_like(x)
