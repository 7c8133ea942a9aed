"""Which prompts' steps go by CUDA graphs: those that the host takes longer to launch than the device to compute.

A step without a graph costs the host about as much whatever its size; what it costs the device grows. A graph is filled
up to a power of two, so it pays up to the largest one that the device computes while the host would still launch. The
rule needs the model's shape and these four numbers alone; `mmvl bench graphs` measures what it decides.
"""

import torch

from mmvl.engine.memory import bytes_of_expert
from mmvl.text_backbone.config import TextConfig
from mmvl.text_backbone.moe import QuantizedStack
from mmvl.text_backbone.tensor_parallel import FEW

# Of an H200 and its host, measured (docs/log.md): 5.4 ms for mmvl-tiny's 9 layers, 80 ms for 80 layers over two ranks.
HOST_SECONDS = 0.6e-3  # to launch a layer
HOST_SECONDS_RANKS = 1.0e-3  # the same over several ranks
BYTES = 4.2e12  # read in a second
PRODUCTS = {2: 200e12, 4: 20e12}  # operations in a second, by bytes of a number; not the peak, as rows are few
LARGEST, SMALLEST = 2048, 16


def chunk_tokens(config: TextConfig, dtype: torch.dtype, *, expert_bytes: int | None = None, ranks: int = 1) -> int:
    """Most tokens of a step with chunks of prompts that is to be a graph; 0: none.

    expert_bytes: of one expert of a layer, if it is quantised. Not more than `FEW` over several ranks, which exchange
    more by the size of each rank's part; nor with quantised experts, which for many tokens are unpacked into a
    workspace that a graph would keep.
    """
    host = config.num_hidden_layers * (HOST_SECONDS if ranks == 1 else HOST_SECONDS_RANKS)
    most = LARGEST if ranks == 1 and expert_bytes is None else FEW
    best, tokens = 0, SMALLEST
    while tokens <= most and device_seconds(config, dtype, tokens, expert_bytes=expert_bytes, ranks=ranks) <= host:
        best, tokens = tokens, 2 * tokens
    return best


def chunk_tokens_of(decoder, dtype: torch.dtype) -> int:
    """`chunk_tokens` for a decoder, or for a rank's part of one."""
    quantized = isinstance(decoder.model.layers[0].block_sparse_moe.experts, QuantizedStack)
    expert_bytes = bytes_of_expert(decoder) if quantized else None
    return chunk_tokens(decoder.config, dtype, expert_bytes=expert_bytes, ranks=decoder.ranks)


def device_seconds(
    config: TextConfig, dtype: torch.dtype, tokens: int, *, expert_bytes: int | None = None, ranks: int = 1
) -> float:
    """What a step of so many tokens takes at least: its weights read, of the experts those that independent choices
    hit on average, or its products made."""
    c, size = config, dtype.itemsize
    attention, expert = weights(c)
    hit = c.num_local_experts * (1 - (1 - c.num_experts_per_tok / c.num_local_experts) ** tokens)
    read = size * attention + c.num_hidden_layers * hit * (expert_bytes or size * expert)
    products = 2 * tokens * (attention + c.num_hidden_layers * c.num_experts_per_tok * expert)
    return max(read / BYTES, products / PRODUCTS[min(size, 4)]) / ranks


def weights(config: TextConfig) -> tuple[int, int]:
    """Numbers that every token is multiplied with in all layers but for experts; and those of one expert of a layer."""
    c = config
    channels, keys = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    lightning, softmax = len(c.lightning_layers), len(c.softmax_layers)
    every = lightning * 5 * channels * c.hidden_size + softmax * (2 * channels + 2 * keys) * c.hidden_size
    every += c.num_hidden_layers * 3 * c.hidden_size * c.shared_intermediate_size
    return every, 3 * c.hidden_size * c.intermediate_size
