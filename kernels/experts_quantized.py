"""Experts with quantised weights: int8 with a scale for each output channel, int4 in groups of 128 inputs, or fp8.

The weights are quantised once, at load, into the order the kernels read them in; the products of int8 and int4 are
those of 16 bits: unpacked in registers for few tokens, ahead of the product for many. In fp8 x and silu(gate) * up are
quantised too, row by row, and the products are in fp8: for many tokens on Hopper, where they take half the time.
    int8    w = scale[e, n] * q[e, n, k], q in -127..127
    int4    w = scale[e, g, n] * (q - 8), q in 0..15; byte b of group g holds inputs 128 g + b (low) and 128 g + 64 + b
    fp8     w = scale[e, n] * q[e, n, k], q in e4m3, largest 448
Symmetric, rounded to nearest, by the largest of each row or group (absmax, as in LLM.int8, arXiv 2208.07339; e4m3 of
arXiv 2209.05433). For int4, inputs that are no multiple of 128 are filled up with zeros.

Legend: T tokens, k choices, P = T * k pairs, E experts, I expert width, D model width, N outputs, K inputs, G groups.
"""

from typing import NamedTuple

import torch

from . import tuning
from .backend import TRITON, capability, choose
from .experts import experts, only_these_experts, pairs_of_a_rank, sort_pairs

GROUP = 128
KINDS = ("int8", "int4", "fp8")
WORKSPACE = 3 << 30  # bytes that int8 and int4 weights may take while they are unpacked, for many tokens


class QuantizedExperts(NamedTuple):
    """All experts' weights of a layer. `w*` are int8 or e4m3 (E, N, K), or uint8 (E, N, K / 2 filled up) for int4."""

    kind: str  # one of KINDS
    w1: torch.Tensor
    w3: torch.Tensor
    w2: torch.Tensor
    scale1: torch.Tensor  # fp32: (E, N), or (E, G, N) for int4
    scale3: torch.Tensor
    scale2: torch.Tensor
    width: int  # D
    expert_width: int  # I

    def dequantize(self, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """w1, w3 (E, I, D) and w2 (E, D, I) as the kernels see them."""
        pairs = ((self.w1, self.scale1, self.width), (self.w3, self.scale3, self.width),
                 (self.w2, self.scale2, self.expert_width))  # fmt: skip
        return tuple(dequantize_weight(w, scale, K, self.kind).to(dtype) for w, scale, K in pairs)


def quantize_experts(w1_EID: torch.Tensor, w3_EID: torch.Tensor, w2_EDI: torch.Tensor, kind: str) -> QuantizedExperts:
    """Quantise a layer's experts to `kind`, expert by expert: little memory is needed beside the result."""
    quantized = [quantize_weight(w, kind) for w in (w1_EID, w3_EID, w2_EDI)]
    (w1, s1), (w3, s3), (w2, s2) = quantized
    return QuantizedExperts(kind, w1, w3, w2, s1, s3, s2, w1_EID.shape[2], w1_EID.shape[1])


def quantize_weight(w_ENK: torch.Tensor, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The stored form of one stack of weights and its scales. Raises ValueError for an unknown kind."""
    if kind not in KINDS:
        raise ValueError(f"experts can be quantised to {', '.join(KINDS)}, not {kind!r}")
    quantize = {"int8": _quantize_int8, "int4": _quantize_int4, "fp8": _quantize_fp8}[kind]
    parts = [quantize(w_NK.float()) for w_NK in w_ENK]
    return torch.stack([q for q, _ in parts]), torch.stack([s for _, s in parts])


def _quantize_fp8(w_NK):
    scale_N = (w_NK.abs().amax(1) / 448).clamp(min=1e-20)
    return (w_NK / scale_N[:, None]).to(torch.float8_e4m3fn), scale_N


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


def dequantize_weight(w: torch.Tensor, scale: torch.Tensor, K: int, kind: str) -> torch.Tensor:
    """The inverse of `quantize_weight`, (E, N, K) in fp32; `K` because int4 is filled up."""
    if kind != "int4":
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
    first_expert: int | None = None,
    workspace: int = WORKSPACE,
    backend: str | None = None,
) -> torch.Tensor:
    """What `experts` gives with the dequantised weights, (T, D) in the dtype of `x_TD`; for inference only.

    `order_P` and `offsets_E1` are the router's (see `Routing`), computed here if not given. With `first_expert` only
    the experts from there on are here, as in `experts`. The reference dequantises the experts that are hit in the dtype
    of `x_TD`, on CUDA all of them, and does not quantise x. For many tokens the kernels unpack as many experts at once
    as `workspace` bytes hold, at least one. Raises ValueError for an x that wants a gradient.
    """
    if torch.is_grad_enabled() and x_TD.requires_grad:
        raise ValueError("quantised experts have no gradient; run them under torch.no_grad()")
    supported = x_TD.dtype in (torch.float32, torch.bfloat16, torch.float16)
    if quantized.kind == "fp8":
        supported = _has_fp8(x_TD, quantized)
    q, E = quantized, quantized.w1.shape[0]
    if x_TD.shape[0] == 0 or choose(backend, x_TD, q.w1, supported=supported) != TRITON:
        if first_expert is None:
            return _reference(q, x_TD, weights_Tk, indices_Tk)
        return only_these_experts(lambda *pairs: _reference(q, *pairs), x_TD, weights_Tk, indices_Tk, first_expert, E)
    if first_expert is not None:
        order_P, offsets_E1 = pairs_of_a_rank(indices_Tk, order_P, offsets_E1, first_expert, E)
    elif order_P is None:
        order_P, offsets_E1 = sort_pairs(indices_Tk, E)
    return torch.ops.mmvl.experts_quantized(
        x_TD.contiguous(), q.w1, q.w3, q.w2, q.scale1, q.scale3, q.scale2, q.kind, weights_Tk.contiguous(),
        order_P, offsets_E1, first_expert is not None, workspace,
    )  # fmt: skip


def _reference(q, x_TD, weights_Tk, indices_Tk):
    if x_TD.shape[0] == 0:
        return torch.empty_like(x_TD)
    if not x_TD.is_cuda:  # where asking which experts were hit costs nothing
        hit, indices_Tk = indices_Tk.unique(return_inverse=True)
        tensors = (q.w1, q.w3, q.w2, q.scale1, q.scale3, q.scale2)
        picked = [t.view(torch.uint8)[hit].view(t.dtype) for t in tensors]  # fp8 cannot be indexed everywhere
        q = QuantizedExperts(q.kind, *picked, q.width, q.expert_width)
    return experts(x_TD, *q.dequantize(x_TD.dtype), weights_Tk, indices_Tk, backend="reference")


def _has_fp8(x, quantized):
    """fp8 products need Hopper (the interpreter has them too), and rows of multiples of 16 bytes for tensor maps."""
    even = quantized.width % 16 == 0 and quantized.expert_width % 16 == 0
    return (
        even
        and x.dtype in (torch.bfloat16, torch.float16)
        and not (x.is_cuda and torch.cuda.get_device_capability(x.device) < (9, 0))
    )


@torch.library.custom_op("mmvl::experts_quantized", mutates_args=())
def _quantized_op(
    x: torch.Tensor, w1: torch.Tensor, w3: torch.Tensor, w2: torch.Tensor,
    scale1: torch.Tensor, scale3: torch.Tensor, scale2: torch.Tensor, kind: str,
    weights: torch.Tensor, order: torch.Tensor, offsets: torch.Tensor, partial: bool, workspace: int,
) -> torch.Tensor:  # fmt: skip
    scales = (scale1, scale3, scale2)  # triton is imported where a kernel runs, not before
    if kind == "fp8":
        from .experts_large_triton import forward

        return forward(x, w1, w3, w2, scales, weights, order, offsets, False, partial)[0]
    bits, (T, D), (E, I, _) = int(kind[3:]), x.shape, w1.shape
    shape = {"P": T * weights.shape[1], "E": E, "I": I, "D": D, "dtype": str(x.dtype)[6:], "bits": bits}
    if tuning.config("experts_unpack", **shape)["use"] and _maps_fit_16_bits(x, I):
        from .experts_unpacked_triton import forward

        return forward(x, w1, w3, w2, scales, bits, weights, order, offsets, partial, workspace)
    from .experts_few_triton import forward

    return forward(x, w1, w3, w2, scales, bits, weights, order, offsets, partial)


def _maps_fit_16_bits(x, I) -> bool:
    """Whether the kernels of many tokens take weights of the kind of `x`: Hopper, rows of multiples of 16 bytes."""
    hopper = not x.is_cuda or capability(x.device) >= (9, 0)
    return hopper and x.element_size() == 2 and x.shape[1] % 8 == 0 and I % 8 == 0


@_quantized_op.register_fake
def _(x, w1, w3, w2, scale1, scale3, scale2, kind, weights, order, offsets, partial, workspace):
    return torch.empty_like(x)
