"""The lightning attention layer: linear attention with decay, output norm and output gate.

Legend: T tokens, S sequences, D model width, H heads, K head dim, C = H * K.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from mmvl.kernels.lightning_attention import lightning_attention
from mmvl.kernels.lightning_decode import lightning_decode
from mmvl.kernels.norm import gated_rms_norm, sum_of_squares

from .config import TextConfig
from .packed import Packed
from .sequence_parallel import lightning_over_ranks
from .sequence_prefill import SequenceParts
from .tensor_parallel import Shard, TokenShares

OUTPUT_NORM_EPS = 1e-6  # the released layer does not pass rms_norm_eps to its output norm


def alibi_slopes(num_heads: int) -> list[float]:
    """The slopes of ALiBi (arXiv 2108.12409): 2^(-8 (h + 1) / H); other counts interleave those of 2H."""
    power = 2 ** math.floor(math.log2(num_heads))
    slopes = [2.0 ** (-8.0 * (h + 1) / power) for h in range(power)]
    if power < num_heads:
        slopes += alibi_slopes(2 * power)[0::2][: num_heads - power]
    return slopes


def layer_slopes(num_heads: int, layer: int, num_layers: int) -> list[float]:
    """Decay rates of one layer, one a head: ALiBi slopes, falling linearly to nearly zero over the depth."""
    factor = 1 - layer / max(num_layers - 1, 1) + 1e-5
    return [slope * factor for slope in alibi_slopes(num_heads)]


class LightningLayer(nn.Module):
    """Attention over packed tokens (T, D) -> (T, D); parameter names are the released ones.

    With a `shard` it has that rank's heads (`config` is then `shard.local`), and all ranks call it together. If the
    shard is `by_sequence` it has all heads, and computes with that rank's, or with all where `shares` has parts.
    """

    def __init__(self, config: TextConfig, layer: int, shard: Shard | None = None):
        super().__init__()
        self.shard = shard
        self.num_heads, self.head_dim = config.num_attention_heads, config.head_dim
        self.pool_index = config.lightning_layers.index(layer)
        channels = self.num_heads * self.head_dim
        self.qkv_proj = nn.Linear(config.hidden_size, 3 * channels, bias=False)
        self.output_gate = nn.Linear(config.hidden_size, channels, bias=False)
        self.norm = nn.RMSNorm(channels, eps=OUTPUT_NORM_EPS)
        self.out_proj = nn.Linear(channels, config.hidden_size, bias=False)
        # no buffer: casting the module to 16 bits must not touch the decays
        if shard is None:
            self.slopes = layer_slopes(self.num_heads, layer, config.num_hidden_layers)
        else:
            self.all_slopes = layer_slopes(shard.config.num_attention_heads, layer, config.num_hidden_layers)
            self.slopes = shard.heads(self.all_slopes)
        self._slopes_on_device: dict[tuple[torch.device, bool], torch.Tensor] = {}

    def slopes_H(self, device: torch.device, of_all_ranks: bool = False) -> torch.Tensor:
        """The layer's decay rates (H,), fp64 on `device`, copied there once; the kernel rounds them as it computes."""
        key = device, of_all_ranks
        if key not in self._slopes_on_device:
            slopes = self.all_slopes if of_all_ranks else self.slopes
            self._slopes_on_device[key] = torch.tensor(slopes, dtype=torch.float64, device=device)
        return self._slopes_on_device[key]

    def forward(self, x_TD: torch.Tensor, packed: Packed, cache=None, shares: TokenShares | None = None):
        """(T, D); with `shares`, of many tokens over several ranks, this rank's share of it."""
        if shares is not None and shares.parts is not None:
            return self._by_sequence(x_TD, packed, cache, shares.parts)
        # per head the rows are [q | k | v], and SiLU is on all three
        o_TC = self._attend(self._heads_of(self.qkv_proj)(x_TD), packed, cache).flatten(1)
        gate_TC = self._heads_of(self.output_gate)(x_TD)
        if self.shard is not None:
            return self._project_over_ranks(o_TC, gate_TC, shares)
        return self.out_proj(gated_rms_norm(o_TC, gate_TC, self.norm.weight, OUTPUT_NORM_EPS))

    def _project_over_ranks(self, o_TC, gate_TC, shares):
        """The norm is over the channels of all ranks, and scales a token by one number.

        For few tokens that number is applied to the sum of the projections, so that one all-reduce does for both; in
        fp16, where a plain sum may overflow, and for many tokens the squares go first.
        """
        squares_T = sum_of_squares(o_TC)
        channels = o_TC.shape[1] * self.shard.size
        norm, eps, out_proj = self._mine(self.norm.weight), OUTPUT_NORM_EPS, self._heads_of(self.out_proj, dim=1)
        if shares is not None or o_TC.dtype == torch.float16:
            squares_T = self.shard.sum(squares_T)
            gated_TC = gated_rms_norm(o_TC, gate_TC, norm, eps, squares_T=squares_T, channels=channels)
            return (shares or self.shard).sum_of(out_proj, gated_TC)
        unit_T = torch.full_like(squares_T, channels * (1 - eps))  # with these squares the norm divides by 1
        part_TD = out_proj(gated_rms_norm(o_TC, gate_TC, norm, eps, squares_T=unit_T, channels=channels))
        # four columns of squares, so that rows stay multiples of 16 bytes
        both = self.shard.sum(torch.cat((part_TD.to(squares_T.dtype), squares_T[:, None].expand(-1, 4)), 1))
        return (both[:, :-4] * torch.rsqrt(both[:, -1:] / channels + eps)).to(o_TC.dtype)

    def _heads_of(self, linear: nn.Linear, dim: int = 0) -> Callable[[torch.Tensor], torch.Tensor]:
        """The projection, or of one that is whole on every rank the part of this rank's heads."""
        if self.shard is None or not self.shard.by_sequence:
            return linear
        return lambda x: F.linear(x, self._mine(linear.weight, dim))

    def _mine(self, weight: torch.Tensor, dim: int = 0) -> torch.Tensor:
        if not self.shard.by_sequence:
            return weight
        share = weight.shape[dim] // self.shard.size
        return weight.narrow(dim, self.shard.rank * share, share)

    def _by_sequence(self, x_LD, packed, cache, parts: SequenceParts) -> torch.Tensor:
        """(L, D), whole, of this rank's part of the tokens."""
        slopes_H = self.slopes_H(x_LD.device, of_all_ranks=True)
        states_SGKK = cache.read_states(self.pool_index, packed)
        o_LHK, states_SGKK = parts.attend(self.qkv_proj(x_LD), slopes_H, states_SGKK)
        cache.write_states(self.pool_index, packed, states_SGKK)
        gate_LC = self.output_gate(x_LD)
        return self.out_proj(gated_rms_norm(o_LHK.flatten(1), gate_LC, self.norm.weight, OUTPUT_NORM_EPS))

    def _attend(self, qkv_TC, packed, cache):
        slopes_H = self.slopes_H(qkv_TC.device)
        if packed.part is not None:
            return lightning_over_ranks(qkv_TC, slopes_H, packed.part)
        if cache is None:
            return lightning_attention(qkv_TC, slopes_H, plan=packed.plan, want_state=False)[0]
        if packed.draft:  # the states wait until it is known how much of the draft counts
            cache.keep_draft(self.pool_index, qkv_TC, slopes_H)
            states_NHKK = cache.states(self.pool_index)
            return lightning_decode(
                qkv_TC, states_NHKK, packed.slots_S, slopes_H, cu_seqlens_S1=packed.cu_seqlens_S1, update=False
            )
        if packed.plan.one_token and not (torch.is_grad_enabled() and qkv_TC.requires_grad):
            return lightning_decode(qkv_TC, cache.states(self.pool_index), packed.slots_S, slopes_H)
        state_SHKK = cache.read_states(self.pool_index, packed)
        o_THK, state_SHKK = lightning_attention(qkv_TC, slopes_H, None, state_SHKK, plan=packed.plan)
        cache.write_states(self.pool_index, packed, state_SHKK)
        return o_THK
