"""Decode steps on a CPU by kernels of whole layers, for small models (kernels/decode_numba.py).

The results are those of `Decoder.forward` up to rounding. It is to the CPU what graphs.py is to a GPU, and has the same
surface. Until the kernels are compiled, which takes some seconds once for a processor, nothing `fits`, and the decoder
itself decodes.

S sequences, T tokens, D model width, V vocabulary, H heads, K head dim, E experts, R rows of a weight, N their length.
"""

import functools
import importlib
import logging
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from mmvl.kernels.rope import rope_tables
from mmvl.text_backbone.cache import HybridCache
from mmvl.text_backbone.decoder import Decoder
from mmvl.text_backbone.lightning import OUTPUT_NORM_EPS
from mmvl.text_backbone.moe import Experts
from mmvl.text_backbone.packed import Packed

LARGEST = 512 << 20  # bytes of a decoder's weights: those of a larger one are worth more than one thread
FEW = 32  # tokens at once: as many as an engine on a CPU decodes for, and scratch memory that stays small

_log = logging.getLogger(__name__)


@functools.cache
def kernels() -> Future[ModuleType]:
    """The compiled kernels: a thread imports them, which compiles what the disk does not have yet."""
    future: Future[ModuleType] = Future()

    def load():
        try:
            future.set_result(importlib.import_module("mmvl.kernels.decode_numba"))
        except Exception as error:  # whatever a compiler may meet on someone's machine
            _log.warning("decoding goes on without Numba's kernels, slower: %s: %s", type(error).__name__, error)
            future.set_exception(error)

    threading.Thread(target=load, name="mmvl-compile").start()  # no daemon: what it compiles is to reach the disk
    return future


class CpuDecode:
    """Runs one token of each of some sequences through a decoder on its cache, or drafts of a few tokens."""

    @classmethod
    def of(cls, decoder, cache: HybridCache) -> "CpuDecode | None":
        """For a small plain decoder in fp32 on the CPU, its keys too; None for any other."""
        if not isinstance(decoder, Decoder) or decoder.shard is not None or decoder.config.shared_intermediate_size:
            return None
        plain = cache.kv_dtype == torch.float32
        plain &= all(isinstance(layer.block_sparse_moe.experts, Experts) for layer in decoder.model.layers)
        weights = list(decoder.parameters())
        small = sum(w.nbytes for w in weights) <= LARGEST
        if not plain or not small or any(w.device.type != "cpu" or w.dtype != torch.float32 for w in weights):
            return None
        return cls(decoder, cache)

    def __init__(self, decoder: Decoder, cache: HybridCache):
        self._decoder, self._cache, self._kernels = decoder, cache, kernels()
        self._layers = [_Layer(layer, decoder.config, cache) for layer in decoder.model.layers]
        self._norm_D = _numpy(decoder.model.norm.weight)
        head = decoder.model.embed_tokens if decoder.config.tie_word_embeddings else decoder.lm_head
        self._head_VD = _numpy(head.weight)

    def fits(self, slots: Sequence[int]) -> bool:
        """Whether it can take so many tokens. One slot a token."""
        return len(slots) <= FEW and self._kernels.done() and self._kernels.exception() is None

    def run(self, slots: Sequence[int], x_SD: Tensor) -> Tensor:
        """One token of each sequence, whose pages must be there: embeddings (S, D) -> hidden states (S, D)."""
        hidden_SD = self._through(x_SD, slots, [self._cache.length(slot) for slot in slots], draft=False)
        self._cache.advance_by(slots, (1,) * len(slots))
        return hidden_SD

    def verify(self, packed: Packed, x_TD: Tensor) -> Tensor:
        """A draft that `HybridCache.pack` packed: embeddings (T, D) -> hidden states (T, D); `accept` follows."""
        slots, at = [], []
        for slot, start, count in zip(packed.slots, packed.starts, packed.lengths, strict=True):
            slots += [slot] * count
            at += range(start, start + count)
        return self._through(x_TD, slots, at, draft=True)

    def logits(self, hidden_SD: Tensor) -> Tensor:
        """Hidden states (S, D) -> logits (S, V): `Decoder.logits` of a few rows."""
        logits_SV = np.empty((len(hidden_SD), len(self._head_VD)), dtype=np.float32)
        self._kernels.result().project(hidden_SD.numpy(), self._head_VD, logits_SV)
        return torch.from_numpy(logits_SV)

    def _through(self, x_TD: Tensor, slots: Sequence[int], at: Sequence[int], draft: bool) -> Tensor:
        config, cache, ready = self._decoder.config, self._cache, self._kernels.result()
        positions_T = torch.tensor(at)
        cos_TR, sin_TR = (t.numpy()[:, 0] for t in rope_tables(positions_T, config.rotary_dim, config.rope_theta))
        pages_TP = np.zeros((len(at), max(at) // cache.page_size + 1), dtype=np.int64)
        for row_P, slot, position in zip(pages_TP, slots, at, strict=True):
            count = position // cache.page_size + 1
            row_P[:count] = cache.pages_of(slot)[:count]
        where = (pages_TP, positions_T.numpy(), cos_TR, sin_TR)
        x_TD, slots_T = x_TD.numpy().copy(), np.array(slots)
        for layer in self._layers:
            if layer.is_lightning:
                qkv_TX = np.empty((len(at), layer.qkv_width), dtype=np.float32)
                ready.lightning(x_TD, *layer.attention, slots_T, draft, qkv_TX)
                if draft:
                    cache.keep_draft(layer.index, torch.from_numpy(qkv_TX), layer.slopes_H)
            else:
                ready.softmax(x_TD, *layer.attention, *where)
            ready.experts(x_TD, *layer.experts)
        hidden_TD = np.empty_like(x_TD)
        ready.norm(x_TD, self._norm_D, config.rms_norm_eps, hidden_TD)
        return torch.from_numpy(hidden_TD)


class _Layer:
    """One layer's weights, where they are, in the order in which the kernels take them."""

    def __init__(self, layer, config, cache: HybridCache):
        self.is_lightning, self.index, eps = layer.is_lightning, layer.self_attn.pool_index, config.rms_norm_eps
        attention, moe = layer.self_attn, layer.block_sparse_moe
        factors = (layer.attention_alpha, layer.attention_beta, layer.postnorm)
        self.attention = (_numpy(layer.input_layernorm.weight), eps, *factors)
        if self.is_lightning:
            self.slopes_H = attention.slopes_H(torch.device("cpu"))
            self.qkv_width = attention.qkv_proj.weight.shape[0]
            weights = (attention.qkv_proj.weight, attention.output_gate.weight, attention.norm.weight)
            self.attention += (*map(_numpy, weights), OUTPUT_NORM_EPS, _numpy(attention.out_proj.weight))
            self.attention += (_numpy(torch.exp(-self.slopes_H).float()), _numpy(cache.states(self.index)))
        else:
            projections = (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)
            self.attention += tuple(_numpy(p.weight) for p in projections)
            self.attention += (*map(_numpy, cache.key_pools(self.index)), cache.page_size)
        self.experts = (_numpy(layer.post_attention_layernorm.weight), eps)
        self.experts += (layer.mlp_alpha, layer.mlp_beta, layer.postnorm)
        weights = [w.detach() for w in (moe.experts.w1, moe.experts.w3, moe.experts.w2)]
        packed = [in_8_bits(w) for w in weights]
        if None in packed:
            packed = [(w, torch.ones(w.shape[:2])) for w in weights]
        weights, scales = zip(*packed, strict=True)
        self.experts += (_numpy(moe.gate.weight), *map(_numpy, weights), *map(_numpy, scales), moe.top_k)


def in_8_bits(w_ERN: Tensor) -> tuple[Tensor, Tensor] | None:
    """Whole numbers of 8 bits (E, R, N) and a scale a row (E, R) whose products are these weights, nearly to the bit;
    None if there are none: so are weights that were shipped as int8, which here are read as such again."""
    whole_ERN, scale_ER = torch.empty_like(w_ERN, dtype=torch.int8), torch.empty(w_ERN.shape[:2])
    for w_RN, whole_RN, scale_R in zip(w_ERN, whole_ERN, scale_ER, strict=True):
        torch.linalg.vector_norm(w_RN, float("inf"), dim=-1, out=scale_R).div_(127)
        scale_R1 = scale_R[:, None]
        rounded_RN = (w_RN / scale_R1.clamp_min(torch.finfo(torch.float32).tiny)).round_()
        whole_RN.copy_(rounded_RN)
        if not (rounded_RN.mul_(scale_R1).sub_(w_RN).abs_() <= 1e-4 * scale_R1).all():
            return None
    return whole_ERN, scale_ER


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.detach().numpy()
