"""The decoder on packed tokens: embedding, layers, final norm, head. One code path trains and generates.

Every layer, with (alpha, beta) from the config and r the normed input (post-norm) or the plain input:
    h = norm(x);  x = r * alpha + attention(h) * beta;  m = norm(x);  x = r * alpha + experts(m) * beta
Legend: T tokens, D model width, V vocabulary, L layers, E experts.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from mmvl.kernels.norm import add_rms_norm
from mmvl.kernels.rope import Rotary

from .cache import HybridCache
from .config import LIGHTNING, TextConfig
from .expert_parallel import ExpertLayout, global_balance, place_experts
from .init import init_decoder
from .lightning import LightningLayer
from .moe import QuantizedStack, SharedMlp, SparseMoe, mix_shared
from .packed import Packed
from .softmax import SoftmaxLayer
from .tensor_parallel import FEW, Shard, TokenShares


@dataclass(frozen=True)
class DecoderOutput:
    hidden_TD: torch.Tensor  # after the final norm
    balance_loss: torch.Tensor  # fp32 scalar, mean over layers; top_k when perfectly balanced
    expert_counts_LE: torch.Tensor  # int64: token-expert pairs of each expert, over all ranks if several train


class Stream(NamedTuple):
    """What flows from block to block: residual * alpha + output * beta, added up by the norm that reads it."""

    residual_TD: torch.Tensor | None  # None: the output alone
    output_TD: torch.Tensor
    alpha: float = 1.0
    beta: float = 1.0

    def norm(self, norm: nn.RMSNorm, postnorm: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """The block's residual (the normed sum if `postnorm`, else the sum) and the normed sum; write to neither."""
        return add_rms_norm(*self, norm.weight, norm.eps, postnorm=postnorm)


class DecoderLayer(nn.Module):
    """One layer: stream of (T, D) -> stream of (T, D), balance loss, expert counts (E,)."""

    def __init__(self, config: TextConfig, layer: int, shard: Shard | None = None):
        super().__init__()
        self.shard = shard
        local = config if shard is None else shard.local
        self.is_lightning = config.attn_type_list[layer] == LIGHTNING
        whole = shard is not None and shard.by_sequence and self.is_lightning
        self.postnorm = config.postnorm
        self.attention_alpha, self.attention_beta = config.attention_factors(layer)
        self.mlp_alpha, self.mlp_beta = config.layernorm_mlp_alpha, config.layernorm_mlp_beta
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        attention = LightningLayer if self.is_lightning else SoftmaxLayer
        self.self_attn = attention(config if whole else local, layer, shard)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.block_sparse_moe = SparseMoe(config, shard)
        self.has_shared = config.shared_intermediate_size > 0
        if self.has_shared:
            self.shared_mlp = SharedMlp(local)
            self.coefficient = nn.Linear(config.hidden_size, 1, bias=False)

    def forward(self, stream: Stream, packed: Packed, rotary: Rotary, cache=None, shares: TokenShares | None = None):
        """With `shares`, of many tokens over several ranks, the stream is this rank's share."""
        residual_TD, h_TD = stream.norm(self.input_layernorm, self.postnorm)
        if shares is not None and not (self.is_lightning and shares.parts is not None):
            h_TD = shares.gather(h_TD)
        if self.is_lightning:
            attended_TD = self.self_attn(h_TD, packed, cache, shares)
        else:
            attended_TD = self.self_attn(h_TD, packed, rotary, cache, shares)
        stream = Stream(residual_TD, attended_TD, self.attention_alpha, self.attention_beta)

        residual_TD, m_TD = stream.norm(self.post_attention_layernorm, self.postnorm)
        if self.shard is None:
            y_TD, balance, counts_E = self._feed_forward(m_TD)
        else:  # no balance loss at inference
            few = shares is None
            y_TD = self.shard.sum(self._feed_forward(m_TD)[0]) if few else self.block_sparse_moe.dispatch(m_TD)
            balance, counts_E = m_TD.new_zeros(()), m_TD.new_zeros((0,), dtype=torch.int64)
        return Stream(residual_TD, y_TD, self.mlp_alpha, self.mlp_beta), balance, counts_E

    def _feed_forward(self, m_TD):
        y_TD, balance, counts_E = self.block_sparse_moe(m_TD)
        if self.has_shared:
            y_TD = mix_shared(y_TD, self.shared_mlp(m_TD), m_TD, self.coefficient)
        return y_TD, balance, counts_E


class DecoderBody(nn.Module):
    """What lies under `model.` in the released names: embedding, layers, final norm."""

    def __init__(self, config: TextConfig, shard: Shard | None = None):
        super().__init__()
        if shard is None or shard.rank == 0:
            self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, layer, shard) for layer in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)


class Decoder(nn.Module):
    """The text model. Its weights are uninitialised until `init_weights` or a checkpoint fills them.

    With a `shard` it is one rank's part, for inference: all ranks call it together with the same embeddings, and get
    the same hidden states (their counts and balance loss mean nothing). Embedding and head are on rank 0 alone.
    """

    def __init__(self, config: TextConfig, shard: Shard | None = None):
        super().__init__()
        self.config, self.shard = config, shard
        self.layout: ExpertLayout | None = None
        self.recomputed: frozenset[int] = frozenset()  # layers that keep only their input for the backward pass
        self.model = DecoderBody(config, shard)
        if not config.tie_word_embeddings and (shard is None or shard.rank == 0):
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def init_weights(self, seed: int = 0) -> None:
        """Fill all weights, reproducibly from `seed`: Xavier with DeepNorm gains (see init.py)."""
        init_decoder(self, seed)

    def spread(self, layout: ExpertLayout) -> None:
        """Train over several ranks: keep this rank's part of the experts, and balance over all ranks' tokens.

        Before the weights are given to an optimizer. Raises ValueError if the experts do not divide by the ranks.
        """
        self.layout = layout
        for layer in self.model.layers:
            layer.block_sparse_moe.layout = layout
            if layout.size > 1:
                place_experts(layer.block_sparse_moe.experts, layout)

    @property
    def cache_config(self) -> TextConfig:
        """The config with the heads that are here, which a cache keeps keys, values and states of."""
        return self.config if self.shard is None else self.shard.local

    @property
    def ranks(self) -> int:
        """Over how many ranks it is spread at inference."""
        return 1 if self.shard is None else self.shard.size

    def limit_workspace(self, num_bytes: int) -> None:
        """How much memory a layer may use to unpack quantised experts; see `kernels.experts_quantized`."""
        for layer in self.model.layers:
            if isinstance(layer.block_sparse_moe.experts, QuantizedStack):
                layer.block_sparse_moe.experts.workspace = num_bytes

    def new_cache(self, **settings) -> HybridCache:
        """A cache for this decoder's heads; `settings` are those of `HybridCache`."""
        return HybridCache(self.cache_config, **settings)

    def embed(self, ids_T: torch.Tensor) -> torch.Tensor:
        """Token ids (T,) -> embeddings (T, D)."""
        return self.model.embed_tokens(ids_T)

    def forward(self, x_TD: torch.Tensor, packed: Packed, cache=None) -> DecoderOutput:
        """Run all layers over the packed embeddings.

        With `cache` (a HybridCache whose `pack` made `packed`) the sequences continue where they stopped, and the
        cache is advanced by the new tokens; do that under torch.no_grad.
        """
        if x_TD.shape[0] != packed.num_tokens:
            raise ValueError(f"{x_TD.shape[0]} embeddings for a packed batch of {packed.num_tokens} tokens")
        if cache is not None:
            cache.check(packed)
        rotary = Rotary.of(packed.positions_T, self.config.rotary_dim, self.config.rope_theta)
        shares = None
        if self.shard is not None and x_TD.shape[0] > FEW and not self.config.shared_intermediate_size:
            shares = TokenShares(self.shard, packed)
            x_TD = shares.mine(x_TD)
        stream, balances, counts = Stream(None, x_TD), [], []
        for number, layer in enumerate(self.model.layers):
            if number in self.recomputed and cache is None and torch.is_grad_enabled():
                # nothing is random, so there is no generator to wind back
                stream, balance, counts_E = checkpoint(
                    layer, stream, packed, rotary, use_reentrant=False, preserve_rng_state=False
                )
            else:
                stream, balance, counts_E = layer(stream, packed, rotary, cache, shares)
            balances.append(balance)
            counts.append(counts_E)
        if cache is not None:
            cache.advance(packed)
        _, hidden_TD = stream.norm(self.model.norm, postnorm=True)
        if shares is not None:
            hidden_TD = shares.gather(hidden_TD)
        if self.layout is not None:
            balance, counts_LE = global_balance(
                torch.stack(balances), torch.stack(counts), packed.num_tokens, self.layout
            )
            return DecoderOutput(hidden_TD, balance, counts_LE)
        return DecoderOutput(hidden_TD, torch.stack(balances).mean(), torch.stack(counts))

    def logits(self, hidden_TD: torch.Tensor) -> torch.Tensor:
        """(T, D) -> fp32 logits (T, V), the product in fp32: rounded to 16 bits, near ties would be broken at random.

        Pass only the positions that are needed.
        """
        weight = self.model.embed_tokens.weight if self.config.tie_word_embeddings else self.lm_head.weight
        sixteen_bits = hidden_TD.dtype == weight.dtype in (torch.bfloat16, torch.float16)
        if hidden_TD.is_cuda and sixteen_bits and not torch.is_grad_enabled():
            # products of 16-bit numbers are exact in fp32, so nothing needs copying (it has no gradient in torch)
            return torch.mm(hidden_TD, weight.t(), out_dtype=torch.float32)
        dtype = torch.promote_types(hidden_TD.dtype, torch.float32)
        return F.linear(hidden_TD.to(dtype), weight.to(dtype))
