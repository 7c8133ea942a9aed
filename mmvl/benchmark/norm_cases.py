"""Norms beside torch's own, and the whole lightning layer beside transformers'.

Legend: T tokens, D model width, C channels of all heads, H heads, K head dim.
"""

from types import SimpleNamespace

import torch
import torch.nn.functional as F

from mmvl.benchmark.case import Case, Contestant
from mmvl.kernels.norm import add_rms_norm, gated_rms_norm, rms_norm
from mmvl.text_backbone.config import TextConfig
from mmvl.text_backbone.lightning import OUTPUT_NORM_EPS, LightningLayer
from mmvl.text_backbone.packed import Packed

EPS = 1e-6
ALPHA = 3.5


def norm_cases() -> list[Case]:
    return [
        Case(
            op="norm",
            about="RMSNorm over the model width",
            axis="T",
            full=[{"T": T, "D": 6144} for T in (64, 4096, 65536)],
            quick=[{"T": 65536, "D": 6144}],
            tiny=[{"T": 5, "D": 32}],
            inputs=_rows,
            reference=lambda i: (_norm(i.x.double(), i.weight.double()),),
            contestants=[
                Contestant("mmvl", lambda i: lambda: rms_norm(i.x, i.weight, EPS), ours=True),
                Contestant("torch rms_norm", lambda i: lambda: _torch_norm(i.x, i.weight)),
            ],
            bytes=lambda i: 2 * i.x.nbytes + i.weight.nbytes,
            flops=lambda i: 4 * i.x.numel(),
        ),
        Case(
            op="norm and residual",
            about="the block's sum, residual * alpha + output, and its RMSNorm",
            axis="T",
            full=[{"T": T, "D": 6144} for T in (64, 4096, 65536)],
            quick=[{"T": 65536, "D": 6144}],
            tiny=[{"T": 5, "D": 32}],
            inputs=_rows,
            reference=lambda i: _add_norm(*(x.double() for x in (i.gate, i.x, i.weight)), _norm),
            contestants=[
                Contestant(
                    "mmvl",
                    lambda i: lambda: add_rms_norm(i.gate, i.x, ALPHA, 1.0, i.weight, EPS, postnorm=False),
                    ours=True,
                ),
                Contestant("torch", lambda i: lambda: _add_norm(i.gate, i.x, i.weight, _torch_norm)),
            ],
            bytes=lambda i: 4 * i.x.nbytes + i.weight.nbytes,
            flops=lambda i: 6 * i.x.numel(),
        ),
        Case(
            op="norm and gate",
            about="RMSNorm over all heads' channels, times sigmoid(gate)",
            axis="T",
            full=[{"T": T, "D": 8192} for T in (64, 4096, 65536)],
            quick=[{"T": 65536, "D": 8192}],
            tiny=[{"T": 5, "D": 32}],
            inputs=_rows,
            reference=lambda i: (_norm(i.x.double(), i.weight.double()) * torch.sigmoid(i.gate.double()),),
            contestants=[
                Contestant("mmvl", lambda i: lambda: gated_rms_norm(i.x, i.gate, i.weight, EPS), ours=True),
                Contestant("torch", lambda i: lambda: torch.sigmoid(i.gate) * _torch_norm(i.x, i.weight)),
            ],
            bytes=lambda i: 3 * i.x.nbytes + i.weight.nbytes,
            flops=lambda i: 8 * i.x.numel(),
        ),
        Case(
            op="lightning layer",
            about="the whole layer: projections, attention, norm, gate",
            axis="T",
            full=[{"T": T, "D": 6144, "H": 64, "K": 128} for T in (4096, 32768)],
            quick=[{"T": 4096, "D": 6144, "H": 64, "K": 128}],
            tiny=[{"T": 20, "D": 32, "H": 4, "K": 8}],
            inputs=_layer,
            reference=_layer_reference,
            tolerance={torch.bfloat16: 1e-2, torch.float32: 1e-5},  # four roundings in a row
            part=lambda outputs, i: tuple(o[i.rows] for o in outputs),
            contestants=[
                Contestant("mmvl", _our_layer, ours=True),
                Contestant("transformers", _transformers_layer, lambda out, i: (out[0][0],), "transformers"),
            ],
            bytes=lambda i: 2 * i.x.nbytes + sum(p.nbytes for p in i.layer.parameters()),
            flops=_layer_flops,
        ),
    ]


def _rows(shape, device, dtype, seed):
    generator = torch.Generator(device).manual_seed(seed)
    x, gate = (torch.randn(shape["T"], shape["D"], generator=generator, device=device, dtype=dtype) for _ in range(2))
    return SimpleNamespace(
        x=x, gate=gate, weight=1 + 0.1 * torch.randn(shape["D"], generator=generator, device=device).to(dtype)
    )


def _norm(x, weight):
    return x * (x.square().mean(-1, keepdim=True) + EPS).rsqrt() * weight


def _torch_norm(x, weight):
    return F.rms_norm(x, weight.shape, weight, EPS)


def _add_norm(residual, x, weight, norm):
    total = torch.add(x, residual, alpha=ALPHA)
    return total, norm(total, weight)


def _config(D, H, K) -> TextConfig:
    """As much of the model as one of its 80 layers needs to know; the softmax layer is there to be none of ours."""
    return TextConfig(
        hidden_size=D, num_hidden_layers=2, num_attention_heads=H, num_key_value_heads=H, head_dim=K, rotary_dim=K,
        vocab_size=8, intermediate_size=8, num_local_experts=1, num_experts_per_tok=1, attn_type_list=(0, 1),
        postnorm=True,
    )  # fmt: skip


def _layer(shape, device, dtype, seed):
    T, D, H, K = (shape[name] for name in ("T", "D", "H", "K"))
    generator = torch.Generator(device).manual_seed(seed)
    with torch.device(device):
        layer = LightningLayer(_config(D, H, K), 0).to(dtype).requires_grad_(False)
    for weight in (layer.qkv_proj.weight, layer.output_gate.weight, layer.out_proj.weight):
        weight.normal_(0, weight.shape[1] ** -0.5, generator=generator)
    x = torch.randn(T, D, generator=generator, device=device, dtype=dtype)
    rows = torch.linspace(0, T - 1, min(T, 64), device=device).long()
    return SimpleNamespace(x=x, layer=layer, packed=Packed.from_lengths([T], device), H=H, K=K, rows=rows)


def _layer_reference(i):
    """fp64 at some rows; in fp64 q of those rows meets every k and v before it, a few heads at a time."""
    qkv_weight = i.layer.qkv_proj.weight.view(i.H, 3, i.K, -1)
    slopes, T = i.layer.slopes_H(i.x.device), i.x.shape[0]
    x = i.x.double()
    distance = i.rows[:, None] - torch.arange(T, device=i.x.device)
    out = []
    for h in range(i.H):
        q, k, v = (F.silu(x @ w.double().t()) for w in qkv_weight[h])
        decay = torch.where(distance >= 0, torch.exp(-slopes[h] * distance.clamp(min=0)), 0.0)
        out.append(((q[i.rows] @ k.t()) * decay) @ v)
    o = torch.cat(out, dim=-1)
    o = o * (o.square().mean(-1, keepdim=True) + OUTPUT_NORM_EPS).rsqrt() * i.layer.norm.weight.double()
    gate = torch.sigmoid(x[i.rows] @ i.layer.output_gate.weight.double().t())
    return ((gate * o) @ i.layer.out_proj.weight.double().t(),)


def _layer_flops(i) -> float:
    T, D = i.x.shape
    return 2.0 * T * D * 5 * i.H * i.K + T * i.H * (2 * 64 * i.K + 4 * i.K**2)


def _our_layer(i):
    def run():
        with torch.no_grad():
            return i.layer(i.x, i.packed)

    return run


def _transformers_layer(i):
    from transformers import MiniMaxConfig
    from transformers.models.minimax.modeling_minimax import MiniMaxLightningAttention

    T, D = i.x.shape
    config = MiniMaxConfig(**_config(D, i.H, i.K).to_native_dict())
    with torch.device(i.x.device):
        layer = MiniMaxLightningAttention(config, 0)
    layer.to(i.x.dtype).requires_grad_(False)  # its tables of decays too: it multiplies them with the inputs
    layer.load_state_dict(i.layer.state_dict(), strict=False)
    x = i.x[None]

    def run():
        with torch.no_grad():
            return layer(x, None, None)

    return run
