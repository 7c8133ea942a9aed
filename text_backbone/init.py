"""How a decoder's weights start: Xavier, with DeepNorm's gain on what feeds the residual.

Source: MiniMax-01 (arXiv 2501.08313) section 4.2, and DeepNet (arXiv 2203.00555): beta = (8N)^(-1/4) for values,
output projections and experts, 1 for queries and keys. The gain goes with layernorm_*_alpha = (2N)^(1/4).
"""

import hashlib

import torch
from torch import nn

from .expert_parallel import Placement

_AT_ONCE = 1 << 24  # numbers that are drawn at a time


@torch.no_grad()
def init_decoder(decoder: nn.Module, seed: int) -> None:
    """Fill every parameter, drawing on the CPU in fp32 so that device and dtype do not change the numbers.

    Every tensor, and every expert, has a generator of its own: a process that holds some of the experts, or a slice of
    each, draws only those, and gets what a process with all of them has there.
    """
    config = decoder.config
    gain = (8 * config.num_hidden_layers) ** -0.25

    def draw(parameter, std, name):
        generator = torch.Generator().manual_seed(_seed(seed, name))
        flat = parameter if parameter.is_contiguous() else torch.empty(parameter.shape)
        for part in flat.view(-1).split(_AT_ONCE):
            part.copy_(torch.randn(len(part), generator=generator) * std)
        if flat is not parameter:
            parameter.copy_(flat)

    def xavier(parameter, name, gain=1.0):  # over the last two dims: rows out, columns in
        draw(parameter, gain * (2.0 / (parameter.shape[-1] + parameter.shape[-2])) ** 0.5, name)

    def xavier_experts(parameter, name):
        whole = Placement(tuple(parameter.shape), (0, 0, 0))
        placement = getattr(parameter, "placement", whole)
        shape, (first, *corner) = placement.shape[1:], placement.offset
        for e, held in enumerate(parameter.unbind(0), first):
            if held.shape == shape:
                xavier(held, f"{name}.{e}", gain)
                continue
            expert = torch.empty(shape)
            xavier(expert, f"{name}.{e}", gain)
            held.copy_(expert[tuple(slice(c, c + n) for c, n in zip(corner, held.shape, strict=True))])

    for module in decoder.modules():
        if isinstance(module, nn.RMSNorm):
            module.weight.fill_(1.0)
    draw(decoder.model.embed_tokens.weight, config.initializer_range, "embed_tokens")
    if not config.tie_word_embeddings:
        xavier(decoder.lm_head.weight, "lm_head")
    for number, layer in enumerate(decoder.model.layers):
        attention = layer.self_attn
        if layer.is_lightning:
            per_head = attention.qkv_proj.weight.view(config.num_attention_heads, 3, config.head_dim, -1)
            fan = config.num_attention_heads * config.head_dim + config.hidden_size
            for part, (name, part_gain) in enumerate((("q", 1.0), ("k", 1.0), ("v", gain))):
                draw(per_head[:, part], part_gain * (2.0 / fan) ** 0.5, f"{number}.{name}")
            xavier(attention.output_gate.weight, f"{number}.output_gate")
            xavier(attention.out_proj.weight, f"{number}.out", gain)
        else:
            xavier(attention.q_proj.weight, f"{number}.q")
            xavier(attention.k_proj.weight, f"{number}.k")
            xavier(attention.v_proj.weight, f"{number}.v", gain)
            xavier(attention.o_proj.weight, f"{number}.out", gain)
        draw(layer.block_sparse_moe.gate.weight, config.initializer_range, f"{number}.gate")
        for name in ("w1", "w3", "w2"):
            xavier_experts(getattr(layer.block_sparse_moe.experts, name), f"{number}.{name}")
        if layer.has_shared:
            for name in ("gate_proj", "up_proj", "down_proj"):
                xavier(getattr(layer.shared_mlp, name).weight, f"{number}.shared.{name}", gain)
            draw(layer.coefficient.weight, config.initializer_range, f"{number}.coefficient")


def _seed(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:8], "little") >> 1
