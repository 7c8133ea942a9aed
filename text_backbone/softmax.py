"""The softmax attention layer: grouped key/value heads, rotary positions on part of each head.

Legend: T tokens, D model width, H query heads, G key/value heads, K head dim.
"""

from torch import nn

from mmvl.kernels.paged_attention import paged_attention
from mmvl.kernels.rope import Rotary, rope, rope_into_pages
from mmvl.kernels.softmax_attention import LONG_SEQUENCE, softmax_attention

from .config import TextConfig
from .packed import Packed
from .sequence_parallel import keys_over_ranks
from .tensor_parallel import Shard, TokenShares

WIDE_HEAD = 64  # from here on the paged kernel is faster than torch's flash attention on keys that lie together too


class SoftmaxLayer(nn.Module):
    """Attention over packed tokens (T, D) -> (T, D); parameter names are the released ones.

    With a `shard` it has that rank's heads (`config` is then `shard.local`), and all ranks call it together.
    """

    def __init__(self, config: TextConfig, layer: int, shard: Shard | None = None):
        super().__init__()
        self.shard = shard
        self.num_heads, self.head_dim = config.num_attention_heads, config.head_dim
        self.pool_index = config.softmax_layers.index(layer)
        query, key = config.num_attention_heads * self.head_dim, config.num_key_value_heads * self.head_dim
        self.q_proj = nn.Linear(config.hidden_size, query, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, key, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, key, bias=False)
        self.o_proj = nn.Linear(query, config.hidden_size, bias=False)

    def forward(self, x_TD, packed: Packed, rotary: Rotary, cache=None, shares: TokenShares | None = None):
        """(T, D); with `shares`, of many tokens over several ranks, this rank's share of it.

        `rotary` holds the batch's positions.
        """
        q_THK, k_TGK, v_TGK = (
            project(x_TD).unflatten(-1, (-1, self.head_dim)) for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        attend = self._attend if cache is None or not cache.has_kernels(q_THK) else self._attend_in_pages
        o_TC = attend(q_THK, k_TGK, v_TGK, packed, rotary, cache).flatten(1)
        return self.o_proj(o_TC) if self.shard is None else (shares or self.shard).sum_of(self.o_proj, o_TC)

    def _attend(self, q_THK, k_TGK, v_TGK, packed, rotary, cache):
        q_THK, k_TGK = rope(q_THK, k_TGK, rotary)
        cu_q = cu_k = packed.cu_seqlens_S1
        lengths_k = packed.lengths
        if packed.part is not None:
            k_TGK, v_TGK = keys_over_ranks(k_TGK, v_TGK, packed.part)
            cu_k, lengths_k = packed.part.cu_keys_S1, packed.part.lengths_k
        if cache is not None:
            k_TGK, v_TGK = cache.extend_keys(self.pool_index, packed, k_TGK, v_TGK)
            if packed.keys.read_U is not None:
                cu_k, lengths_k = packed.keys.cu_seqlens_S1, packed.keys.lengths
        return softmax_attention(q_THK, k_TGK, v_TGK, cu_q, cu_k, packed.lengths, lengths_k, scale=self.head_dim**-0.5)

    def _attend_in_pages(self, q_THK, k_TGK, v_TGK, packed, rotary, cache):
        k_pool_NGK, v_pool_NGK = cache.key_pools(self.pool_index)
        scales_NG2, write_T = cache.key_scales(self.pool_index), packed.keys.pages.write_T
        rope_into_pages(q_THK, k_TGK, v_TGK, rotary, k_pool_NGK, v_pool_NGK, write_T, scales_NG2=scales_NG2)
        long_alone = len(packed.lengths) == 1 and packed.lengths[0] >= LONG_SEQUENCE
        if any(packed.starts) or (self.head_dim >= WIDE_HEAD and not long_alone):
            plan, scale = packed.keys.pages, self.head_dim**-0.5
            return paged_attention(q_THK, k_pool_NGK, v_pool_NGK, plan, scale, scales_NG2=scales_NG2)
        # the new keys are all there are, lie together, and are what their pages hold
        cu, lengths = packed.cu_seqlens_S1, packed.lengths
        return softmax_attention(q_THK, k_TGK, v_TGK, cu, cu, lengths, lengths, scale=self.head_dim**-0.5)
