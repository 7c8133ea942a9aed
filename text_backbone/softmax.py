"""The softmax attention layer: grouped key/value heads, rotary positions on part of each head.

Legend: T tokens, D model width, H query heads, G key/value heads, K head dim, X = H + G.
"""

import torch
from torch import nn

from mmvl.kernels.rope import apply_rope
from mmvl.kernels.softmax_attention import softmax_attention

from .config import TextConfig
from .packed import Packed


class SoftmaxLayer(nn.Module):
    """Attention over packed tokens (T, D) -> (T, D); parameter names are the released ones."""

    def __init__(self, config: TextConfig, layer: int):
        super().__init__()
        self.num_heads, self.head_dim = config.num_attention_heads, config.head_dim
        self.pool_index = config.softmax_layers.index(layer)
        query, key = config.num_attention_heads * self.head_dim, config.num_key_value_heads * self.head_dim
        self.q_proj = nn.Linear(config.hidden_size, query, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, key, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, key, bias=False)
        self.o_proj = nn.Linear(query, config.hidden_size, bias=False)

    def forward(self, x_TD: torch.Tensor, packed: Packed, rope, cache=None) -> torch.Tensor:
        """`rope` is what `rope_tables` gave for the batch's positions."""
        qk_TXK = torch.cat((self.q_proj(x_TD), self.k_proj(x_TD)), dim=-1).unflatten(-1, (-1, self.head_dim))
        q_THK, k_TGK = apply_rope(qk_TXK, *rope).split((self.num_heads, qk_TXK.shape[1] - self.num_heads), dim=1)
        v_TGK = self.v_proj(x_TD).unflatten(-1, (-1, self.head_dim))
        cu_q = cu_k = packed.cu_seqlens_S1
        lengths_k = packed.lengths
        if cache is not None:
            k_TGK, v_TGK = cache.extend_keys(self.pool_index, packed, k_TGK, v_TGK)
            if packed.keys.read_U is not None:
                cu_k, lengths_k = packed.keys.cu_seqlens_S1, packed.keys.lengths
        o_THK = softmax_attention(q_THK, k_TGK, v_TGK, cu_q, cu_k, packed.lengths, lengths_k, scale=self.head_dim**-0.5)
        return self.o_proj(o_THK.flatten(1))
