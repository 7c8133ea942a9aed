"""Decode steps on a CPU with as few operations as can be: for small models, whose layers are quick to compute.

One token of a small model is a few million multiplications, and hundreds of calls into torch take longer than these.
Here the weights that read the same input lie together as one matrix, what is needed of a step is prepared once for all
layers, and norms, rotations and routing are written out. The results are those of `Decoder.forward` up to rounding. It
is to the CPU what graphs.py is to a GPU, and has the same surface.

S sequences, D model width, H query heads, G key/value heads, K head dim, C = 3K, E experts, I expert width, N cache
slots, U keys of the longest sequence, R half of the rotated dims; T tokens of a draft, L of one sequence in it.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mmvl.kernels.rope import rope_tables
from mmvl.text_backbone.cache import HybridCache
from mmvl.text_backbone.decoder import Decoder
from mmvl.text_backbone.lightning import OUTPUT_NORM_EPS
from mmvl.text_backbone.moe import Experts
from mmvl.text_backbone.packed import Packed

LARGEST = 512 << 20  # bytes of a decoder's weights: a larger one has enough to compute
MOST_KEYS = 32_768  # tokens whose keys may be gathered, those that only fill up included
ALL_EXPERTS = 2  # with so many token-expert pairs an expert, all are computed for all tokens at once: two products


class CpuDecode:
    """Runs one token of each of some sequences through a decoder on its cache, or drafts of a few tokens.

    Copies of the joined weights are made at the start.
    """

    @classmethod
    def of(cls, decoder, cache: HybridCache) -> "CpuDecode | None":
        """For a small plain decoder in fp32 or fp64 on the CPU; None for any other."""
        if not isinstance(decoder, Decoder) or decoder.shard is not None or decoder.config.shared_intermediate_size:
            return None
        layers = decoder.model.layers
        plain = all(isinstance(layer.block_sparse_moe.experts, Experts) for layer in layers)
        weights = list(decoder.parameters())
        small = sum(w.nbytes for w in weights) <= LARGEST
        dtypes, devices = {w.dtype for w in weights}, {w.device.type for w in weights}
        if not (plain and small and devices == {"cpu"} and dtypes in ({torch.float32}, {torch.float64})):
            return None
        return cls(decoder, cache)

    @torch.no_grad()
    def __init__(self, decoder: Decoder, cache: HybridCache):
        self._cache, self._config = cache, decoder.config
        self._layers = [_Layer(layer, decoder.config) for layer in decoder.model.layers]
        self._final = _Norm(decoder.model.norm.weight, decoder.config.rms_norm_eps)

    def fits(self, slots: Sequence[int]) -> bool:
        """Whether the sequences are short, or alike: keys are gathered up to the longest one. One slot a token."""
        lengths = [self._cache.length(slot) for slot in slots]
        return len(slots) * max(lengths) <= max(MOST_KEYS, 2 * sum(lengths))

    def run(self, slots: Sequence[int], x_SD: Tensor) -> Tensor:
        """One token of each sequence, whose pages must be there: embeddings (S, D) -> hidden states (S, D)."""
        batch = _Batch(self._cache, self._config, slots, [self._cache.length(slot) for slot in slots])
        hidden_SD = self._through(batch, x_SD)
        self._cache.advance_by(slots, (1,) * len(slots))
        return hidden_SD

    def verify(self, packed: Packed, x_TD: Tensor) -> Tensor:
        """A draft that `HybridCache.pack` packed: embeddings (T, D) -> hidden states (T, D); `accept` follows."""
        slots, at = [], []
        for slot, start, count in zip(packed.slots, packed.starts, packed.lengths, strict=True):
            slots += [slot] * count
            at += range(start, start + count)
        return self._through(_Batch(self._cache, self._config, slots, at, packed), x_TD)

    def _through(self, batch: "_Batch", x_SD: Tensor) -> Tensor:
        alpha, beta, residual_SD, y_SD = 1.0, 1.0, None, x_SD
        for layer in self._layers:
            total_SD = _add(residual_SD, y_SD, alpha, beta)
            h_SD = layer.input_norm(total_SD)
            y_SD = layer.attend(h_SD, batch, self._cache)
            total_SD = _add(h_SD if layer.postnorm else total_SD, y_SD, layer.attention_alpha, layer.attention_beta)
            h_SD = layer.expert_norm(total_SD)
            y_SD = layer.experts(h_SD)
            residual_SD = h_SD if layer.postnorm else total_SD
            alpha, beta = layer.mlp_alpha, layer.mlp_beta
        return self._final(_add(residual_SD, y_SD, alpha, beta))


def _add(residual_SD: Tensor | None, y_SD: Tensor, alpha: float, beta: float) -> Tensor:
    if residual_SD is None:
        return y_SD
    return torch.add(y_SD if beta == 1 else y_SD * beta, residual_SD, alpha=alpha)


class _Norm:
    """RMS norm in five operations: torch's own takes more than twice as long for a few rows."""

    def __init__(self, weight_D: Tensor, eps: float):
        size = weight_D.shape[0]
        self._weight_D = weight_D.detach() * size**0.5
        self._eps = torch.tensor(size * eps, dtype=weight_D.dtype)

    def __call__(self, x_SD: Tensor) -> Tensor:
        length_S1 = torch.linalg.vector_norm(x_SD, dim=-1, keepdim=True)
        return x_SD.mul(torch.addcmul(self._eps, length_S1, length_S1).rsqrt_()).mul_(self._weight_D)


class _Batch:
    """What all layers need to know of a step: tokens at the positions `at` of the sequences in `slots`.

    In a draft (`packed`) a sequence has several tokens, and each sees those before it.
    """

    def __init__(self, cache: HybridCache, config, slots: Sequence[int], at: Sequence[int], packed=None):
        size, count = cache.page_size, len(slots)
        self.packed = packed
        most = max(at) + 1
        rows_SU = np.zeros((count, most), dtype=np.int64)
        within = np.arange(size)
        for row, (slot, position) in enumerate(zip(slots, at, strict=True)):
            pages = np.asarray(cache.pages_of(slot)[: position // size + 1], dtype=np.int64)
            rows_SU[row, : position + 1] = (pages[:, None] * size + within).reshape(-1)[: position + 1]
            rows_SU[row, position + 1 :] = rows_SU[row, 0]  # masked, but 0 * NaN is NaN: nobody's keys but its own
        self.one_slot = slots[0] if count == 1 else None
        self.slots_S = torch.tensor(slots)
        self.write_S = torch.from_numpy(rows_SU[np.arange(count), at])
        self.rows_X, self.longest = torch.from_numpy(rows_SU.reshape(-1)), most
        self.mask_S11U = None
        positions_S = torch.tensor(at)
        if min(at) + 1 < most:
            hidden_SU = torch.arange(most) > positions_S[:, None]
            zeros_SU = torch.zeros(count, most, dtype=cache.dtype)
            self.mask_S11U = zeros_SU.masked_fill_(hidden_SU, float("-inf"))[:, None, None]
        self.cos_S1R, self.sin_S1R = rope_tables(positions_S, config.rotary_dim, config.rope_theta)


class _Layer:
    """One layer's weights, joined, and its two halves."""

    def __init__(self, layer, config):
        self.postnorm, self.eps = layer.postnorm, config.rms_norm_eps
        self.attention_alpha, self.attention_beta = layer.attention_alpha, layer.attention_beta
        self.mlp_alpha, self.mlp_beta = layer.mlp_alpha, layer.mlp_beta
        self.input_norm = _Norm(layer.input_layernorm.weight, config.rms_norm_eps)
        self.expert_norm = _Norm(layer.post_attention_layernorm.weight, config.rms_norm_eps)
        self.heads, self.head_dim, self.groups = config.num_attention_heads, config.head_dim, config.num_key_value_heads
        self.index, attention = layer.self_attn.pool_index, layer.self_attn
        if layer.is_lightning:
            self.attend = self._lightning
            joined = torch.cat((attention.qkv_proj.weight, attention.output_gate.weight))
            self._out_CD = attention.out_proj.weight.detach().t().contiguous()
            self._output_norm = _Norm(attention.norm.weight, OUTPUT_NORM_EPS)
            self._slopes_H = attention.slopes_H(torch.device("cpu"))
            self._decay_H11 = torch.exp(-self._slopes_H.to(joined.dtype))[:, None, None]
            self._decays_of: dict[int, tuple[Tensor, Tensor]] = {}
        else:
            self.attend = self._softmax
            joined = torch.cat((attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight))
            self._out_CD = attention.o_proj.weight.detach().t().contiguous()
        self._in_DC = joined.detach().t().contiguous()
        moe = layer.block_sparse_moe
        self._top_k = moe.top_k
        self._gate_DE = moe.gate.weight.detach().t().contiguous()
        w1_EID, w3_EID, w2_EDI = (w.detach() for w in (moe.experts.w1, moe.experts.w3, moe.experts.w2))
        self._num_experts, self._width = w1_EID.shape[:2]
        # expert after expert: gate and up of one lie together, and so do those of all
        self._up_DX = torch.cat((w1_EID, w3_EID), dim=1).flatten(0, 1).t().contiguous()
        self._down_XD = w2_EDI.transpose(1, 2).flatten(0, 1).contiguous()
        self._up_of = [w_DI.contiguous() for w_DI in self._up_DX.chunk(self._num_experts, dim=1)]
        self._down_of = self._down_XD.chunk(self._num_experts)

    def _lightning(self, h_SD: Tensor, batch: _Batch, cache: HybridCache) -> Tensor:
        H, K = self.heads, self.head_dim
        joined_SC = torch.mm(h_SD, self._in_DC)
        if batch.packed is not None:
            o_SC = self._lightning_draft(joined_SC[:, : 3 * H * K].contiguous(), batch.packed, cache)
        else:
            o_SC = self._lightning_step(joined_SC[:, : 3 * H * K], batch, cache)
        return torch.mm(self._output_norm(o_SC).mul_(joined_SC[:, 3 * H * K :].sigmoid()), self._out_CD)

    def _lightning_draft(self, qkv_TC: Tensor, packed: Packed, cache: HybridCache) -> Tensor:
        """A draft's tokens see those before them and the state before all, which stays as it is until `accept`."""
        cache.keep_draft(self.index, qkv_TC, self._slopes_H)
        states_NHKK, K = cache.states(self.index), self.head_dim
        parts = []
        x_THC = F.silu(qkv_TC).view(-1, self.heads, 3 * K)
        for x_LHC, slot in zip(x_THC.split(packed.lengths), packed.slots, strict=True):
            q_HLK, k_HLK, v_HLK = x_LHC.transpose(0, 1).split(K, dim=2)
            within_HLL, before_HL1 = self._decays(x_LHC.shape[0])
            scores_HLL = torch.bmm(q_HLK, k_HLK.transpose(1, 2)).mul_(within_HLL)
            from_state_HLK = torch.bmm(q_HLK * before_HL1, states_NHKK[slot])
            parts.append(torch.baddbmm(from_state_HLK, scores_HLL, v_HLK).transpose(0, 1))
        return torch.cat(parts).flatten(1)

    def _decays(self, length: int) -> tuple[Tensor, Tensor]:
        """Between the tokens of a draft (H, L, L), and from the state before it to each (H, L, 1)."""
        if length not in self._decays_of:
            at_L = torch.arange(length)
            distance_LL = at_L[:, None] - at_L
            within_HLL = torch.exp(-self._slopes_H[:, None, None] * distance_LL).masked_fill_(distance_LL < 0, 0.0)
            before_HL1 = torch.exp(-self._slopes_H[:, None, None] * (at_L[:, None] + 1))
            dtype = self._decay_H11.dtype
            self._decays_of[length] = within_HLL.to(dtype), before_HL1.to(dtype)
        return self._decays_of[length]

    def _lightning_step(self, qkv_SC: Tensor, batch: _Batch, cache: HybridCache) -> Tensor:
        S, H, K = qkv_SC.shape[0], self.heads, self.head_dim
        q_SHK, k_SHK, v_SHK = F.silu(qkv_SC).view(S, H, 3 * K).split(K, dim=2)
        states_NHKK = cache.states(self.index)
        if batch.one_slot is not None:
            state_SHKK = states_NHKK[batch.one_slot : batch.one_slot + 1]
        else:
            state_SHKK = states_NHKK.index_select(0, batch.slots_S)
        state_SHKK.mul_(self._decay_H11).addcmul_(k_SHK[..., None], v_SHK[:, :, None])
        if batch.one_slot is None:
            states_NHKK.index_copy_(0, batch.slots_S, state_SHKK)
        return torch.matmul(q_SHK[:, :, None], state_SHKK).view(S, H * K)

    def _softmax(self, h_SD: Tensor, batch: _Batch, cache: HybridCache) -> Tensor:
        S, H, G, K = h_SD.shape[0], self.heads, self.groups, self.head_dim
        joined_SXK = torch.mm(h_SD, self._in_DC).view(S, H + 2 * G, K)
        half = batch.cos_S1R.shape[-1]
        a_SXR, b_SXR = joined_SXK[:, : H + G, :half], joined_SXK[:, : H + G, half : 2 * half]
        turned_SXR = (a_SXR * batch.cos_S1R).addcmul_(b_SXR, batch.sin_S1R, value=-1)
        b_SXR.mul_(batch.cos_S1R).addcmul_(a_SXR, batch.sin_S1R)
        a_SXR.copy_(turned_SXR)
        keys_and_values = []
        for pool_NGK, new_SGK in zip(cache.key_pools(self.index), joined_SXK[:, H:].split(G, dim=1), strict=True):
            pool_NGK.index_copy_(0, batch.write_S, new_SGK)
            all_SUGK = pool_NGK.index_select(0, batch.rows_X).view(S, batch.longest, G, K)
            keys_and_values.append(all_SUGK.transpose(1, 2))
        o_SGHK = F.scaled_dot_product_attention(
            joined_SXK[:, :H].reshape(S, G, H // G, K), *keys_and_values, attn_mask=batch.mask_S11U, scale=K**-0.5
        )
        return torch.mm(o_SGHK.reshape(S, H * K), self._out_CD)

    def experts(self, h_SD: Tensor) -> Tensor:
        S, E, I = h_SD.shape[0], self._num_experts, self._width
        best_Sk, chosen_Sk = torch.mm(h_SD, self._gate_DE).topk(self._top_k, dim=-1)
        weights_Sk = best_Sk.softmax(-1)  # softmax over all and renormalising gives the same
        if S * self._top_k >= ALL_EXPERTS * E:
            weights_SE = weights_Sk.new_zeros(S, E).scatter_(1, chosen_Sk, weights_Sk)
            gate_SEI, up_SEI = torch.mm(h_SD, self._up_DX).view(S, E, 2 * I).split(I, dim=2)
            return torch.mm(F.silu(gate_SEI).mul_(up_SEI).mul_(weights_SE[..., None]).view(S, E * I), self._down_XD)
        if S == 1:
            pairs = zip(chosen_Sk[0].tolist(), weights_Sk[0].tolist(), strict=True)
            return sum(self._expert(h_SD, expert).mul_(weight) for expert, weight in pairs)
        y_SD = torch.zeros_like(h_SD)
        chosen = chosen_Sk.tolist()
        for expert in {expert for row in chosen for expert in row}:
            places = [(s, row.index(expert)) for s, row in enumerate(chosen) if expert in row]
            rows_R, ranks_R = torch.tensor(places).unbind(1)
            out_RD = self._expert(h_SD.index_select(0, rows_R), expert).mul_(weights_Sk[rows_R, ranks_R, None])
            y_SD.index_add_(0, rows_R, out_RD)
        return y_SD

    def _expert(self, x_RD: Tensor, expert: int) -> Tensor:
        gate_RI, up_RI = torch.mm(x_RD, self._up_of[expert]).split(self._width, dim=1)
        return torch.mm(F.silu(gate_RI).mul_(up_RI), self._down_of[expert])
