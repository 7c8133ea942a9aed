"""How a decoder's weights start: Xavier, with DeepNorm's gain on what feeds the residual.

Source: MiniMax-01 (arXiv 2501.08313) section 4.2, and DeepNet (arXiv 2203.00555): beta = (8N)^(-1/4) for values,
output projections and experts, 1 for queries and keys. The gain goes with layernorm_*_alpha = (2N)^(1/4).
"""

import torch
from torch import nn


@torch.no_grad()
def init_decoder(decoder: nn.Module, seed: int) -> None:
    """Fill every parameter, drawing on the CPU in fp32 so that device and dtype do not change the numbers."""
    config = decoder.config
    generator = torch.Generator().manual_seed(seed)
    gain = (8 * config.num_hidden_layers) ** -0.25

    def draw(parameter, std):
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)

    def xavier(parameter, gain=1.0):  # over the last two dims: rows out, columns in
        draw(parameter, gain * (2.0 / (parameter.shape[-1] + parameter.shape[-2])) ** 0.5)

    for module in decoder.modules():
        if isinstance(module, nn.RMSNorm):
            module.weight.fill_(1.0)
    draw(decoder.model.embed_tokens.weight, config.initializer_range)
    if not config.tie_word_embeddings:
        xavier(decoder.lm_head.weight)
    for layer in decoder.model.layers:
        attention = layer.self_attn
        if layer.is_lightning:
            per_head = attention.qkv_proj.weight.view(config.num_attention_heads, 3, config.head_dim, -1)
            fan = config.num_attention_heads * config.head_dim + config.hidden_size
            for part, part_gain in enumerate((1.0, 1.0, gain)):
                draw(per_head[:, part], part_gain * (2.0 / fan) ** 0.5)
            xavier(attention.output_gate.weight)
            xavier(attention.out_proj.weight, gain)
        else:
            xavier(attention.q_proj.weight)
            xavier(attention.k_proj.weight)
            xavier(attention.v_proj.weight, gain)
            xavier(attention.o_proj.weight, gain)
        draw(layer.block_sparse_moe.gate.weight, config.initializer_range)
        for name in ("w1", "w3", "w2"):
            xavier(getattr(layer.block_sparse_moe.experts, name), gain)
        if layer.has_shared:
            for projection in (layer.shared_mlp.gate_proj, layer.shared_mlp.up_proj, layer.shared_mlp.down_proj):
                xavier(projection.weight, gain)
            draw(layer.coefficient.weight, config.initializer_range)
