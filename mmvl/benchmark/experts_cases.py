"""The mixture of experts beside torch's grouped matrix products.

The work is from the tokens to the weighted sum: route, sort, three products, combine. The peers are handed the router's
logits in fp32 at no cost. In training the routing is given to all.
Legend: T tokens, k experts a token, P = T * k pairs, E experts, I expert width, D model width.
"""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import torch
import torch.nn.functional as F

from mmvl.benchmark.case import TOLERANCE, Case, Contestant
from mmvl.kernels.experts import experts, router
from mmvl.kernels.experts_quantized import experts_quantized, quantize_experts

FP8 = {torch.bfloat16: 7e-2, torch.float32: 1e-5}  # x and the hidden values are rounded to 3 bits behind the first
GRADIENTS = {torch.bfloat16: 1e-2, torch.float32: 1e-5}
ROWS = 64  # tokens whose output is compared with the reference
_weights: dict[tuple, tuple] = {}  # what `_make_weights` made last


def experts_cases() -> list[Case]:
    wide = {"E": 32, "k": 2, "I": 9216, "D": 6144}
    narrow = {"E": 8, "k": 2, "I": 160, "D": 256}
    tiny = [{"T": 7, "E": 4, "k": 2, "I": 24, "D": 16}]
    # the hidden values, the products and the weighted sum are each rounded to 16 bits
    grouped = Contestant("torch grouped_mm", _grouped, gpu=True, slack=2)
    common = dict(axis="T", inputs=_inputs, flops=_flops, tiny=tiny, release=_weights.clear)
    forward = dict(
        **common,
        reference=_reference,
        part=lambda outputs, i: tuple(o[i.rows] for o in outputs),
        bytes=_bytes,
        contestants=[
            Contestant("mmvl", _ours, ours=True),
            grouped,
            Contestant("loop over experts", _looped, note="asks the device for counts"),
        ],
    )
    return _unquantized(forward, common, grouped, wide, narrow) + [
        Case(
            op=f"experts {kind}",
            about=about,
            full=[{"T": T, **wide} for T in lengths],
            quick=[{"T": lengths[1], **wide}],
            matrix="fp8" if kind == "fp8" else "bf16",
            tolerance=FP8 if kind == "fp8" else TOLERANCE,
            **{
                **forward,
                "inputs": partial(_inputs, kind=kind),
                "contestants": [
                    Contestant("mmvl", _our_quantized, ours=True),
                    replace(grouped, note="bf16 weights of the same values"),
                ],
            },
        )
        for kind, about, lengths in (
            ("int8", "8-bit weights; the peer has their values in bf16", (1, 8, 64, 4096)),
            ("int4", "4-bit weights; the peer has their values in bf16", (1, 8, 64, 4096)),
            ("fp8", "weights and activations in e4m3; the peer is in bf16", (4096, 16384, 65536)),
        )
    ]


def _unquantized(forward, common, grouped, wide, narrow) -> list[Case]:
    return [
        Case(
            op="experts decode",
            about="few tokens: each expert that is hit is read once",
            full=[{"T": T, **wide} for T in (1, 8, 64)],
            quick=[{"T": T, **wide} for T in (1, 8)],
            goals={1: 0.20, 8: 1.05, 64: 2.9},
            **forward,
        ),
        Case(
            op="experts forward",
            about="many tokens",
            full=[{"T": T, **wide} for T in (4096, 16384, 65536)],
            quick=[{"T": 4096, **wide}],
            goals={4096: 5.2, 16384: 18.5, 65536: 70.0},
            **forward,
        ),
        Case(
            op="experts training",
            about="forward and backward: gradients of tokens and weights",
            full=[{"T": 65536, **narrow}, {"T": 16384, **wide}],
            quick=[{"T": 65536, **narrow}],
            **{**common, "flops": lambda i: 3 * _flops(i)},  # two products of gradients for one of the forward pass
            reference=_training_reference,
            tolerance=GRADIENTS,
            part=lambda outputs, i: (outputs[0][i.rows], outputs[1][i.rows], *(w[i.expert] for w in outputs[2:])),
            bytes=lambda i: 3 * _bytes(i),
            contestants=[
                Contestant("mmvl", _training(_our_experts), ours=True),
                replace(grouped, prepare=_training(_grouped)),
            ],
        ),
    ]


def _inputs(shape, device, dtype, seed, kind=None):
    T, E, k, D = (shape[name] for name in ("T", "E", "k", "D"))
    generator = torch.Generator(device).manual_seed(seed)
    x = torch.randn(T, D, generator=generator, device=device, dtype=dtype)
    gate = torch.empty(E, D, device=device, dtype=dtype).normal_(0, D**-0.5, generator=generator)
    logits = F.linear(x.float(), gate.float())
    w1, w3, w2, quantized = _make_weights(shape, device, dtype, kind)
    indices = logits.topk(k).indices
    rows = torch.linspace(0, T - 1, min(T, ROWS), device=device).long()
    grad = torch.randn(T, D, generator=generator, device=device, dtype=dtype)
    return SimpleNamespace(
        x=x,
        gate=gate,
        logits=logits,
        k=k,
        w1=w1,
        w3=w3,
        w2=w2,
        quantized=quantized,
        indices=indices,
        rows=rows,
        expert=E // 2,
        grad=grad,
    )


def _make_weights(shape, device, dtype, kind):
    """w1, w3, w2, and what they are the values of if quantised. Only the last ones are kept: a layer takes 11 GB."""
    key = (*(shape[name] for name in ("E", "I", "D")), device, dtype, kind)
    if key not in _weights:
        _weights.clear()
        E, I, D = key[:3]
        generator = torch.Generator(device).manual_seed(1)
        weights = [
            torch.empty(size, device=device, dtype=dtype).normal_(0, size[-1] ** -0.5, generator=generator)
            for size in ((E, I, D), (E, I, D), (E, D, I))
        ]
        quantized = None
        if kind is not None:
            quantized = quantize_experts(*weights, kind)
            weights = quantized.dequantize(dtype)
        _weights[key] = *weights, quantized
    return _weights[key]


def _bytes(i) -> float:
    hit = i.indices.unique().numel()
    stored = (i.w1, i.w3, i.w2)
    if i.quantized is not None:
        q = i.quantized
        stored = (q.w1, q.w3, q.w2, q.scale1, q.scale3, q.scale2)
    return hit * sum(w[0].nbytes for w in stored) + 2 * i.x.nbytes + i.gate.nbytes


def _flops(i) -> float:
    return 2.0 * i.indices.numel() * 3 * i.w1[0].numel()


def _reference(i):
    """fp64, of some tokens: expert by expert, so that only one is held in fp64."""
    x = i.x[i.rows].double()
    return (_by_expert(x, x @ i.gate.double().t(), i.k, partial(_expert, i)),)


def _expert(i, e):
    """The weights of one expert in fp64."""
    if i.quantized is None:
        return tuple(w[e].double() for w in (i.w1, i.w3, i.w2))
    own = {name: getattr(i.quantized, name)[e : e + 1] for name in ("w1", "w3", "w2", "scale1", "scale3", "scale2")}
    return tuple(w[0] for w in i.quantized._replace(**own).dequantize(torch.float64))


def _by_expert(x, logits, k, weights_of):
    probs, indices = logits.softmax(-1).topk(k)
    probs = probs / probs.sum(-1, keepdim=True)
    out = torch.zeros_like(x)
    for e in indices.unique().tolist():
        w1, w3, w2 = weights_of(e)
        tokens, choice = (indices == e).nonzero(as_tuple=True)
        h = F.silu(x[tokens] @ w1.t()) * (x[tokens] @ w3.t())
        out = out.index_add(0, tokens, probs[tokens, choice, None] * (h @ w2.t()))
    return out


def _training_reference(i):
    """Gradients of x at some rows, of one expert's weights over all its tokens."""
    x, logits = i.x[i.rows].double().requires_grad_(), i.logits[i.rows].double()
    weights = {e: tuple(w[e].double() for w in (i.w1, i.w3, i.w2)) for e in i.indices[i.rows].unique().tolist()}
    out = _by_expert(x, logits, i.k, weights.__getitem__)
    (grad_x,) = torch.autograd.grad(out, x, i.grad[i.rows].double())
    del weights
    tokens = (i.indices == i.expert).any(-1).nonzero()[:, 0]
    own = [w[i.expert].double().requires_grad_() for w in (i.w1, i.w3, i.w2)]
    probs, indices = i.logits[tokens].double().softmax(-1).topk(i.k)
    share = ((indices == i.expert) * probs / probs.sum(-1, keepdim=True)).sum(-1, keepdim=True)
    h = F.silu(i.x[tokens].double() @ own[0].t()) * (i.x[tokens].double() @ own[1].t())
    grads = torch.autograd.grad(share * (h @ own[2].t()), own, i.grad[tokens].double())
    return out.detach(), grad_x, *grads


def _ours(i):
    def run():
        with torch.no_grad():
            r = router(i.x, i.gate, i.k)
            return experts(
                i.x, i.w1, i.w3, i.w2, r.weights_Tk, r.indices_Tk, r.counts_E, order_P=r.order_P,
                offsets_E1=r.offsets_E1,
            )  # fmt: skip

    return run


def _our_quantized(i):
    def run():
        with torch.no_grad():
            r = router(i.x, i.gate, i.k)
            return experts_quantized(
                i.x, i.quantized, r.weights_Tk, r.indices_Tk, order_P=r.order_P, offsets_E1=r.offsets_E1
            )

    return run


def _our_experts(i):
    probs, indices = i.logits.softmax(-1).topk(i.k)
    weights = probs / probs.sum(-1, keepdim=True)
    return lambda: experts(i.x, i.w1, i.w3, i.w2, weights, indices)


def _training(prepare):
    """The forward of `prepare` with gradients of x and the three weights."""

    def prepare_training(i):
        leaves = [x.detach().requires_grad_() for x in (i.x, i.w1, i.w3, i.w2)]
        forward = prepare(SimpleNamespace(**{**vars(i), **dict(zip(("x", "w1", "w3", "w2"), leaves, strict=True))}))

        def run():
            out = forward()
            return out.detach(), *torch.autograd.grad(out, leaves, i.grad)

        return run

    return prepare_training


def _grouped(i):
    """torch's grouped products, and around them the fewest operations of torch."""
    T, E = i.x.shape[0], i.w1.shape[0]
    ids = torch.arange(E, device=i.x.device)
    w1, w3, w2 = (w.transpose(-2, -1) for w in (i.w1, i.w3, i.w2))

    def run():
        weights, indices = i.logits.softmax(-1).topk(i.k)
        weights = weights / weights.sum(-1, keepdim=True)
        sorted_P, order_P = indices.flatten().sort(stable=True)
        ends = torch.searchsorted(sorted_P, ids, right=True).to(torch.int32)
        token_P = order_P // i.k
        x_PD = i.x[token_P]
        h_PI = F.silu(F.grouped_mm(x_PD, w1, offs=ends)) * F.grouped_mm(x_PD, w3, offs=ends)
        y_PD = F.grouped_mm(h_PI, w2, offs=ends)
        inverse_P = torch.empty_like(order_P).scatter_(0, order_P, torch.arange(T * i.k, device=i.x.device))
        return torch.linalg.vecdot(y_PD[inverse_P].view(T, i.k, -1), weights[..., None].to(y_PD.dtype), dim=1)

    return run


def _looped(i):
    def run():
        with torch.no_grad():
            weights, indices = i.logits.softmax(-1).topk(i.k)
            weights = weights / weights.sum(-1, keepdim=True)
            out = torch.zeros(i.x.shape, device=i.x.device, dtype=torch.float32)
            for e in indices.unique().tolist():
                tokens, choice = (indices == e).nonzero(as_tuple=True)
                x = i.x[tokens]
                y = F.linear(F.silu(F.linear(x, i.w1[e])) * F.linear(x, i.w3[e]), i.w2[e])
                out.index_add_(0, tokens, y * weights[tokens, choice, None])
            return out.to(i.x.dtype)

    return run
