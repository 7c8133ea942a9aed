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

from mmvl.kernels.decode_layout import LAYER, MODEL, WEIGHT, pack
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
        self._config, self._cache, self._kernels = decoder.config, cache, kernels()
        self._weights = _Weights(decoder, cache)
        self._rotary = (np.empty((0, 0), np.float32),) * 2

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
        logits_SV = np.empty((len(hidden_SD), self._config.vocab_size), dtype=np.float32)
        self._kernels.result().project(hidden_SD.numpy(), self._weights.head, logits_SV)
        return torch.from_numpy(logits_SV)

    def _through(self, x_TD: Tensor, slots: Sequence[int], at: Sequence[int], draft: bool) -> Tensor:
        cache, weights = self._cache, self._weights
        most = max(at)
        pages_TP = np.zeros((len(at), most // cache.page_size + 1), dtype=np.int64)
        for row_P, slot, position in zip(pages_TP, slots, at, strict=True):
            count = position // cache.page_size + 1
            row_P[:count] = cache.pages_of(slot)[:count]
        x_TD, slots_T, positions_T = x_TD.numpy().copy(), np.array(slots), np.array(at)
        cos_PR, sin_PR = self._rotary_to(most)
        hidden_TD = np.empty_like(x_TD)
        qkv_ZTX = np.empty((len(weights.slopes) if draft else 1, len(at), weights.qkv_width), np.float32)
        self._kernels.result().step(
            x_TD, weights.layers, weights.model, weights.rows, slots_T, pages_TP, positions_T, cos_PR, sin_PR, draft,
            qkv_ZTX, hidden_TD,
        )  # fmt: skip
        if draft:
            for qkv_TX, (index, slopes_H) in zip(qkv_ZTX, weights.slopes, strict=True):
                cache.keep_draft(index, torch.from_numpy(qkv_TX), slopes_H)
        return torch.from_numpy(hidden_TD)

    def _rotary_to(self, position: int) -> tuple[np.ndarray, np.ndarray]:
        """cos and sin of all positions up to there, at least."""
        if position >= len(self._rotary[0]):
            positions_P = torch.arange(2 * position + 256)
            tables = rope_tables(positions_P, self._config.rotary_dim, self._config.rope_theta)
            self._rotary = tuple(np.ascontiguousarray(t.numpy()[:, 0]) for t in tables)
        return self._rotary


class _Weights:
    """A decoder's weights as the kernels take them: where they are, and what was made of them."""

    def __init__(self, decoder: Decoder, cache: HybridCache):
        self._kept: list[Tensor | np.ndarray] = []  # whose memory the addresses name
        config, body = decoder.config, decoder.model
        self.rows = len(cache.key_pools(0)[0]) if config.softmax_layers else 0
        self.qkv_width = 3 * config.num_attention_heads * config.head_dim
        self.slopes = [
            (layer.self_attn.pool_index, layer.self_attn.slopes_H(torch.device("cpu")))
            for layer in body.layers if layer.is_lightning
        ]  # fmt: skip
        self.model = np.zeros(1, MODEL)
        self.model[0] = (
            config.num_attention_heads, config.num_key_value_heads, config.head_dim, config.num_local_experts,
            config.num_experts_per_tok, cache.page_size, config.postnorm, self._at(body.norm.weight),
            config.rms_norm_eps, OUTPUT_NORM_EPS,
        )  # fmt: skip
        head = body.embed_tokens if config.tie_word_embeddings else decoder.lm_head
        self.head = np.array([self._weight(head.weight)], WEIGHT)
        self.layers = np.zeros(len(body.layers), LAYER)
        for row, layer in zip(self.layers, body.layers, strict=True):
            self._fill(row, layer, cache)

    def _fill(self, row: np.void, layer, cache: HybridCache) -> None:
        attention, moe = layer.self_attn, layer.block_sparse_moe
        found = {"is_lightning": layer.is_lightning, "number": attention.pool_index}
        found |= {"norm": self._at(layer.input_layernorm.weight)}
        found |= {"alpha": layer.attention_alpha, "beta": layer.attention_beta}
        found |= {"moe_norm": self._at(layer.post_attention_layernorm.weight)}
        found |= {"moe_alpha": layer.mlp_alpha, "moe_beta": layer.mlp_beta}
        weights = {"router": moe.gate.weight, "w1": moe.experts.w1, "w3": moe.experts.w3, "w2": moe.experts.w2}
        if layer.is_lightning:
            lost_H = torch.expm1(-attention.slopes_H(torch.device("cpu"))).float()
            found |= {"out_norm": self._at(attention.norm.weight), "lost": self._at(lost_H)}
            found |= {"states": self._at(cache.states(attention.pool_index))}
            weights |= {"qkv": attention.qkv_proj.weight, "gate": attention.output_gate.weight}
            weights |= {"out": attention.out_proj.weight}
        else:
            keys, values = cache.key_pools(attention.pool_index)
            found |= {"keys": self._at(keys), "values": self._at(values)}
            weights |= {"q": attention.q_proj.weight, "k": attention.k_proj.weight, "v": attention.v_proj.weight}
            weights |= {"out": attention.o_proj.weight}
        for name, value in (found | {name: self._weight(w) for name, w in weights.items()}).items():
            row[name] = value

    def _weight(self, w: Tensor) -> tuple[int, int, int]:
        """(R, N), or of all experts (E, R, N) -> a `WEIGHT`."""
        R, N = w.shape[-2:]
        found = []
        for w_RN in w.detach().view(-1, R, N):  # an expert at a time, as each leaves memory behind
            whole = in_8_bits(w_RN)
            if whole is None:
                return self._at(w), 0, R
            found.append(pack(*whole))
        packed, scales = zip(*found, strict=True)
        return self._at(np.stack(packed)), self._at(np.stack(scales)), R

    def _at(self, array: Tensor | np.ndarray) -> int:
        array = array.detach().numpy() if isinstance(array, Tensor) else array
        assert array.flags.c_contiguous
        self._kept.append(array)
        return array.ctypes.data


def in_8_bits(w_RN: Tensor) -> tuple[np.ndarray, np.ndarray] | None:
    """Whole numbers of 8 bits (R, N) and a scale a row (R,) whose products are these weights, nearly to the bit; None
    if there are none: so are weights that were shipped as int8, which here are read as such again.

    In NumPy, which does it on this thread: others of torch's would be waited for on a machine with other work.
    """
    w_RN = w_RN.detach().numpy()
    scale_R = np.maximum(w_RN.max(-1), -w_RN.min(-1)) / np.float32(127)
    scale_R1 = scale_R[:, None]
    with np.errstate(invalid="ignore"):  # what is not finite is no whole number
        rounded_RN = w_RN / np.maximum(scale_R1, np.finfo(np.float32).tiny)
        np.rint(rounded_RN, out=rounded_RN)
        if not (abs(rounded_RN * scale_R1 - w_RN) <= 1e-4 * scale_R1).all():
            return None
    return rounded_RN.astype(np.int8), scale_R
