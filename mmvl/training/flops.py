"""Floating-point operations of the model, counted from its config: what utilisation is measured against.

A multiplication and an addition count as two. Counted are the products with weights and the two of attention; norms,
activations and what is recomputed in backward are not, as is the custom (PaLM, arXiv 2204.02311, appendix B). Lightning
attention counts as its recurrence (state update and read), softmax attention as the causal half of its scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mmvl.config import VLConfig
from mmvl.text_backbone.config import TextConfig
from mmvl.vision.config import VisionConfig

# Dense bf16 TFLOP/s by the makers' data sheets, by a part of the name that torch gives the device.
PEAK_TFLOPS = {"H200": 989, "H100 PCIe": 756, "H100": 989, "H800": 989, "H20": 148, "A100": 312, "B200": 2250}


def peak_tflops(device_name: str) -> float | None:
    """Dense bf16 peak of a GPU by its name; None if it is not known."""
    return next((peak for name, peak in PEAK_TFLOPS.items() if name in device_name), None)


def layer_weights(config: TextConfig, layer: int) -> int:
    """Weights of a decoder layer that one token is multiplied with."""
    D, heads = config.hidden_size, config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    attention = 5 * heads * D if layer in config.lightning_layers else 2 * (heads + keys) * D
    experts = config.num_experts_per_tok * 3 * D * config.intermediate_size + D * config.num_local_experts
    shared = 3 * D * config.shared_intermediate_size + (D if config.shared_intermediate_size else 0)
    return attention + experts + shared


def decoder_flops(config: TextConfig, lengths: Sequence[int]) -> float:
    """Forward pass over documents of `lengths` tokens, without the head."""
    tokens, heads = sum(lengths), config.num_attention_heads * config.head_dim
    weights = sum(layer_weights(config, layer) for layer in range(config.num_hidden_layers))
    states = len(config.lightning_layers) * 4 * heads * config.head_dim
    pairs = sum(n * (n + 1) // 2 for n in lengths)  # of a query and a key that it sees
    return tokens * (2.0 * weights + states) + len(config.softmax_layers) * 4.0 * heads * pairs


def head_flops(config: TextConfig, targets: int) -> float:
    """Forward pass of the head for so many predicted tokens."""
    return 2.0 * config.hidden_size * config.vocab_size * targets


def vision_flops(config: VisionConfig, tiles: int) -> float:
    """Forward pass of the ViT over `tiles` tiles."""
    C, tokens = config.hidden_size, config.patches + 1
    block = 4 * C * C + 2 * C * config.intermediate_size
    patches = 2 * config.patches * 3 * config.patch_size**2 * C
    return float(tiles) * (patches + config.num_hidden_layers * (2 * tokens * block + 4 * C * tokens**2))


def adapter_flops(config: VLConfig, tiles: int) -> float:
    """Forward pass of the adapter over the patches of `tiles` tiles."""
    D = config.text.hidden_size
    return 2.0 * tiles * config.vision.patches * (config.vision.hidden_size * D + D * D)


@dataclass(frozen=True)
class StepFlops:
    """Operations of training steps: forward once, backward by what learns.

    A module that learns costs its forward twice more (gradients of inputs and of weights); one that is frozen costs it
    once more if something in front of it learns, and nothing otherwise.
    """

    config: VLConfig
    trainable: frozenset[str]

    @classmethod
    def of(cls, config: VLConfig, trainable: Sequence[str]) -> StepFlops:
        return cls(config, frozenset(trainable))

    def __call__(self, lengths: Sequence[int], targets: int, tiles: int) -> float:
        """One batch: documents of `lengths` tokens, predicted tokens, tiles."""
        vision, adapter, decoder = (
            part in self.trainable for part in ("vision_tower", "multi_modal_projector", "language_model")
        )
        images = tiles > 0
        text = decoder_flops(self.config.text, lengths) + head_flops(self.config.text, targets)
        total = text * (1 + decoder + (decoder or images and (vision or adapter)))
        if images:
            total += vision_flops(self.config.vision, tiles) * (1 + 2 * vision)
            total += adapter_flops(self.config, tiles) * (1 + adapter + vision)
        return total
