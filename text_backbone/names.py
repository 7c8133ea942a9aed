"""Tensor names: ours <-> released (MiniMax-Text-01) <-> native (transformers' `minimax`).

Ours are the released names, except that the experts of a layer are stacked:
    ours      ...block_sparse_moe.experts.w1                      (E, I, D)
    released  ...block_sparse_moe.experts.{e}.w1.weight           (I, D) each
    native    ...mlp.experts.gate_up_proj (E, 2I, D) = [w1; w3],  ...mlp.experts.down_proj (E, D, I) = w2
"""

import re

import torch

from .config import LIGHTNING, TextConfig

_STACKED = re.compile(r"(.*\.block_sparse_moe\.experts)\.(w[123])")
_RELEASED = re.compile(r"(.*\.block_sparse_moe\.experts)\.(\d+)\.(w[123])\.weight")
_NATIVE = re.compile(r"(.*)\.mlp\.experts\.(gate_up_proj|down_proj)")


def released_names(config: TextConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of a released text checkpoint with its shape, in the order of the layers."""
    D, I, V = config.hidden_size, config.intermediate_size, config.vocab_size
    query, key = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    shared = config.shared_intermediate_size
    names = {"model.embed_tokens.weight": (V, D)}
    for layer, kind in enumerate(config.attn_type_list):
        if kind == LIGHTNING:
            attention = {"qkv_proj": (3 * query, D), "output_gate": (query, D)}
            attention |= {"norm": (query,), "out_proj": (D, query)}
        else:
            attention = {"q_proj": (query, D), "k_proj": (key, D), "v_proj": (key, D), "o_proj": (D, query)}
        parts = {f"self_attn.{name}": shape for name, shape in attention.items()}
        parts |= {"input_layernorm": (D,), "post_attention_layernorm": (D,)}
        parts["block_sparse_moe.gate"] = (config.num_local_experts, D)
        for e in range(config.num_local_experts):
            for name, shape in (("w1", (I, D)), ("w2", (D, I)), ("w3", (I, D))):
                parts[f"block_sparse_moe.experts.{e}.{name}"] = shape
        if shared:
            parts |= {"shared_mlp.gate_proj": (shared, D), "shared_mlp.up_proj": (shared, D)}
            parts |= {"shared_mlp.down_proj": (D, shared), "coefficient": (1, D)}
        names |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in parts.items()}
    names["model.norm.weight"] = (D,)
    if not config.tie_word_embeddings:
        names["lm_head.weight"] = (V, D)
    return names


def to_released(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Our state dict -> released names; the experts become views into the stacked tensors."""
    released = {}
    for name, tensor in state_dict.items():
        if match := _STACKED.fullmatch(name):
            prefix, which = match.groups()
            released |= {f"{prefix}.{e}.{which}.weight": expert for e, expert in enumerate(tensor.unbind(0))}
        else:
            released[name] = tensor
    return released


def from_released(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Released names -> our state dict, stacking experts.

    Raises ValueError if a layer's experts are not numbered 0, 1, 2, ... without a gap.
    """
    state_dict, stacks = {}, {}
    for name, tensor in tensors.items():
        if match := _RELEASED.fullmatch(name):
            prefix, e, which = match.groups()
            stacks.setdefault(f"{prefix}.{which}", {})[int(e)] = tensor
        else:
            state_dict[name] = tensor
    for name, numbered in stacks.items():
        missing = sorted(set(range(max(numbered) + 1)) - set(numbered))
        if missing:
            raise ValueError(f"{name}: no tensor for experts {missing}")
        state_dict[name] = torch.stack([numbered[e] for e in range(len(numbered))])
    return state_dict


def to_native(state_dict: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Our state dict -> the names of transformers' MiniMaxForCausalLM."""
    native = {}
    for name, tensor in state_dict.items():
        if match := _STACKED.fullmatch(name):
            prefix, which = match.groups()
            prefix = prefix.replace(".block_sparse_moe.", ".mlp.")
            if which == "w1":
                native[f"{prefix}.gate_up_proj"] = torch.cat((tensor, state_dict[f"{match[1]}.w3"]), dim=1)
            elif which == "w2":
                native[f"{prefix}.down_proj"] = tensor
        else:
            native[name.replace(".block_sparse_moe.", ".mlp.")] = tensor
    return native


def from_native(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Names of transformers' MiniMaxForCausalLM -> our state dict, without its decay tables (derived).

    Experts that are not stacked as there keep their names, so that who checks the names finds them.
    """
    state_dict = {}
    for name, tensor in tensors.items():
        if name.endswith((".slope_rate", ".query_decay", ".key_decay", ".diagonal_decay")):
            continue
        if (match := _NATIVE.fullmatch(name)) and tensor.ndim == 3 and tensor.shape[1] > 1:
            prefix = f"{match[1]}.block_sparse_moe.experts"
            if match[2] == "gate_up_proj":
                state_dict[f"{prefix}.w1"], state_dict[f"{prefix}.w3"] = tensor.chunk(2, dim=1)
            else:
                state_dict[f"{prefix}.w2"] = tensor
        else:
            state_dict[name.replace(".mlp.gate.", ".block_sparse_moe.gate.")] = tensor
    return state_dict
