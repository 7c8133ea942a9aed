"""How large the pools are: from what a token, a state and an image take, and from the memory that is there.

On a GPU the pools get what the model leaves, but for a reserve that activations need. On a CPU they stay small: the
machine has other things to do, and torch does not say beforehand what a step will take.
"""

import contextlib
from dataclasses import dataclass

import torch

from mmvl.engine.sampler import sampling_bytes
from mmvl.host_memory import ram_bytes
from mmvl.kernels.experts_quantized import WORKSPACE
from mmvl.model import TILES_AT_ONCE
from mmvl.text_backbone.config import TextConfig
from mmvl.text_backbone.key_store import bytes_of_token

PAGE_SIZE = 64
MOST_SEQUENCES = {"cuda": 256, "cpu": 32}
MOST_CPU_TOKENS = 65_536  # unless one context alone is longer
LONGEST_CPU_CONTEXT = 262_144
STEPS = (32_768, 16_384, 8_192, 4_096, 2_048, 1_024)  # tokens; longer ones would gain nothing
UNPACKED = ("int8", "int4")  # kinds of experts that are unpacked for many tokens
SHARE = 0.92  # of the free memory; the rest is for what torch and the drivers take beside it
GIB = 1 << 30


@dataclass(frozen=True)
class Sizes:
    """What the engine allocates: places for sequences, pages of `PAGE_SIZE` tokens, places for checkpoints; bytes of
    image features that are kept, and of host memory for sequences that have to wait."""

    max_sequences: int
    num_pages: int
    max_checkpoints: int
    feature_bytes: int
    swap_bytes: int


def bytes_of_state(config: TextConfig) -> int:
    """The fp32 states of one sequence in all lightning layers."""
    return 4 * len(config.lightning_layers) * config.num_attention_heads * config.head_dim**2


def bytes_of_expert(decoder) -> int:
    """One expert of a layer as it is stored, its scales included."""
    experts = decoder.model.layers[0].block_sparse_moe.experts
    return sum(t.nbytes for t in experts.state_dict().values()) // experts.w1.shape[0]


def workspace_bytes(model, wanted: int | None = None) -> int:
    """For experts in int8 or int4, which are unpacked for many tokens: of a GPU's free memory an eighth, at most
    `kernels.experts_quantized.WORKSPACE`, at least one expert, at most all of a layer; `wanted` instead of the eighth.
    0 without such experts.

    A smaller one costs launches, as fewer experts are unpacked and multiplied at a time.

    Raises ValueError as `check_workspace` does.
    """
    stacks = [layer.block_sparse_moe.experts for layer in model.language_model.model.layers
              if getattr(layer.block_sparse_moe.experts, "kind", None) in UNPACKED]  # fmt: skip
    check_workspace(wanted, stacks[0].kind if stacks else None, model.config.text, model.dtype)
    if not stacks:
        return 0
    one = bytes_of_unpacked(model.config.text, model.dtype)
    if wanted is None:
        wanted = WORKSPACE
        if model.device.type == "cuda":
            wanted = min(wanted, torch.cuda.mem_get_info(model.device)[0] // 8)
    return min(max(wanted, one), max(len(stack.w1) for stack in stacks) * one)


def bytes_of_unpacked(config: TextConfig, dtype: torch.dtype) -> int:
    """One expert of a layer in `dtype`."""
    return 3 * config.intermediate_size * config.hidden_size * dtype.itemsize


def check_workspace(wanted: int | None, kind: str | None, config: TextConfig, dtype: torch.dtype) -> None:
    """Raises ValueError where `wanted` bytes are less than one expert, or the experts, kept as `kind`, need none."""
    if wanted is None:
        return
    if kind not in UNPACKED:
        raise ValueError("expert_workspace is for experts in int8 or int4, and this model has none as it is loaded")
    if wanted < (one := bytes_of_unpacked(config, dtype)):
        raise ValueError(f"expert_workspace is {wanted / GIB:.2f} GiB; one unpacked expert takes {one / GIB:.2f}")


def activation_bytes(model, tokens: int, workspace: int = 0, *, sampled: int = 0, in_graphs: int = 0) -> int:
    """About what a step of so many tokens, and a full batch of tiles in the vision half, take at most; and `workspace`.

    Per token either an attention layer's projections or, of each expert chosen, its input, hidden layer and output,
    beside the stream; half as much again for what the allocator cannot use. Or, if that is more, what the logits of
    `sampled` tokens and sampling take, for which the layers have left theirs. Graphs keep what their largest step, of
    `in_graphs` tokens, takes to themselves.
    """
    text, size = model.config.text, model.dtype.itemsize
    attention = 3 * text.hidden_size + 6 * text.num_attention_heads * text.head_dim
    experts = text.num_experts_per_tok * (2 * text.hidden_size + text.intermediate_size)
    of_token = size * max(attention, 4 * text.hidden_size + experts) * 3 // 2
    step = tokens * of_token + workspace
    vision = getattr(model.config, "vision", None)
    if vision is not None:
        patches = (vision.image_size // vision.patch_size) ** 2 + 1
        of_patch = 4 * vision.hidden_size + vision.intermediate_size + text.hidden_size
        step += size * TILES_AT_ONCE * patches * of_patch
    return max(step, sampling_bytes(sampled, text.vocab_size)) + in_graphs * of_token


def largest_step(model) -> int:
    """Tokens of a step of prompts alone: on a GPU what an eighth of the free memory takes; 2,048 on a CPU."""
    if model.device.type == "cpu":
        return 2048
    free, _ = torch.cuda.mem_get_info(model.device)
    return next((n for n in STEPS if activation_bytes(model, n) - activation_bytes(model, 0) <= free // 8), STEPS[-1])


def checkpoint_spacing(config: TextConfig, dtype: torch.dtype) -> tuple[int, int]:
    """(least, most) tokens between checkpoints: most is where a state weighs as much as the keys and values between
    two, at least 1,024; least a sixteenth of that, from 16 to 512."""
    weighs = bytes_of_state(config) // max(bytes_of_token(config, dtype), 1)
    most = max(1024, min(weighs, 8192))
    return max(16, min(weighs // 16, 512)), most


def choose_sizes(
    config: TextConfig,
    device: torch.device,
    dtype: torch.dtype,
    *,
    max_sequences: int | None = None,
    max_cached_tokens: int | None = None,
    prefix_cache: str = "exact",
    activations: int = 0,
) -> Sizes:
    """Pools for this model on this device; what is given is taken as it is.

    dtype: of keys and values. prefix_cache: "exact", "int8" or "off". activations: bytes that the largest step takes.

    Raises ValueError where the memory left is too small for one sequence.
    """
    gpu = device.type == "cuda"
    state, token = bytes_of_state(config), bytes_of_token(config, dtype)
    kept_state = state // 4 if prefix_cache == "int8" else state
    if not gpu:
        return _on_cpu(config, max_sequences, max_cached_tokens, prefix_cache, kept_state)
    free, total = torch.cuda.mem_get_info(device)
    room = int(SHARE * free) - activations
    features = min(2 * GIB, room // 20)
    room -= features
    if max_sequences is None:
        max_sequences = max(1, min(MOST_SEQUENCES["cuda"], room // 4 // max(state, 1)))
    room -= max_sequences * state
    checkpoints = 0 if prefix_cache == "off" else max(0, min(4096, room // 3 // max(kept_state, 1)))
    if max_cached_tokens is None:
        left = max(room - checkpoints * kept_state, 0)
        # no more than all places with whole contexts, and as much again of cached prefixes, can ever hold
        most = 2 * max_sequences * config.max_position_embeddings
        max_cached_tokens = min(left // max(token, 1), most)
    room -= checkpoints * kept_state + max_cached_tokens * token
    if room < 0 or max_cached_tokens < PAGE_SIZE:
        raise ValueError(
            f"the model leaves {free / GIB:.1f} GiB of {total / GIB:.1f} on {torch.cuda.get_device_name(device)}, "
            f"too little for {max_sequences} sequences ({state / GIB:.2f} GiB of state each) with keys and values; "
            "take fewer sequences, fewer cached tokens, quantised weights or more GPUs"
        )
    swap = min(16 * GIB, available_bytes() // 4)
    return Sizes(max_sequences, _pages(max_cached_tokens), checkpoints, features, swap)


def _on_cpu(config, max_sequences, max_cached_tokens, prefix_cache, kept_state) -> Sizes:
    max_sequences = max_sequences or MOST_SEQUENCES["cpu"]
    context = config.max_position_embeddings
    if max_cached_tokens is None:
        most = max(MOST_CPU_TOKENS, min(context, LONGEST_CPU_CONTEXT))
        max_cached_tokens = min(max_sequences * context, most)
    spare = available_bytes() // 16
    checkpoints = 0 if prefix_cache == "off" else max(0, min(256, spare // max(kept_state, 1)))
    # in the same memory swapping wins nothing
    return Sizes(max_sequences, _pages(max_cached_tokens), checkpoints, min(spare, GIB // 4), 0)


def _pages(tokens: int) -> int:
    """One more than the tokens need: to continue a checkpoint its last page is copied."""
    return -(-tokens // PAGE_SIZE) + 1


def available_bytes() -> int:
    """Host memory that can be had; 4 GiB where the system does not tell."""
    _, available = ram_bytes() or (0, 4 * GIB)
    return available


@contextlib.contextmanager
def suppress_out_of_memory():
    """Around what can be done without: it is left where memory runs out."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise


@contextlib.contextmanager
def room_for(sizes: Sizes):
    """Around the making of the pools. Raises ValueError where memory runs out."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise ValueError(
            f"there is no memory for the pools of {sizes.max_sequences:,} sequences and "
            f"{sizes.num_pages * PAGE_SIZE:,} cached tokens; take fewer by max_sequences and max_cached_tokens"
        ) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch or Python ran out of memory; on a CPU torch, and on a GPU Triton and cuBLAS, say so in words."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    words = ("can't allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)
