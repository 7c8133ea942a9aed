"""The released tensor names of the vision half, both ways: CLIP's names on disk, timm's in memory.

In memory the names are those of a model with `vision_tower` (VisionTower), `multi_modal_projector` (Adapter) and
`image_newline`. timm keeps q, k and v of a block in one tensor; CLIP keeps three.
"""

import re

import torch

from mmvl.vision.config import VisionConfig

_CLIP = "vision_tower.vision_model."
_TIMM = "vision_tower.vit."
_CLIP_LAYER = re.compile(r"vision_tower\.vision_model\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")
_TIMM_BLOCK = re.compile(r"vision_tower\.vit\.blocks\.(\d+)\.(.+)\.(weight|bias)")

_OUTSIDE_BLOCKS = {  # CLIP -> timm ("pre_layrnorm" is spelled so in every CLIP checkpoint)
    _CLIP + "embeddings.class_embedding": _TIMM + "cls_token",
    _CLIP + "embeddings.patch_embedding.weight": _TIMM + "patch_embed.proj.weight",
    _CLIP + "embeddings.position_embedding.weight": _TIMM + "pos_embed",
    _CLIP + "pre_layrnorm.weight": _TIMM + "norm_pre.weight",
    _CLIP + "pre_layrnorm.bias": _TIMM + "norm_pre.bias",
}
_IN_BLOCK = {
    "layer_norm1": "norm1",
    "layer_norm2": "norm2",
    "self_attn.out_proj": "attn.proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_SAME = tuple(f"multi_modal_projector.linear_{i}.{kind}" for i in (1, 2) for kind in ("weight", "bias")) + (
    "image_newline",
)
_QKV = ("q", "k", "v")


def released_names(config: VisionConfig, text_hidden: int) -> dict[str, tuple[int, ...]]:
    """Every released tensor of ViT, adapter and newline -> its shape; 394 of them for MiniMax-VL-01."""
    C, I, edge, D = config.hidden_size, config.intermediate_size, config.patch_size, text_hidden
    shapes = {
        _CLIP + "embeddings.class_embedding": (C,),
        _CLIP + "embeddings.patch_embedding.weight": (C, 3, edge, edge),
        _CLIP + "embeddings.position_embedding.weight": (config.patches + 1, C),
        _CLIP + "pre_layrnorm.weight": (C,),
        _CLIP + "pre_layrnorm.bias": (C,),
        "multi_modal_projector.linear_1.weight": (D, C),
        "multi_modal_projector.linear_1.bias": (D,),
        "multi_modal_projector.linear_2.weight": (D, D),
        "multi_modal_projector.linear_2.bias": (D,),
        "image_newline": (D,),
    }
    for layer in range(config.num_hidden_layers):
        prefix = f"{_CLIP}encoder.layers.{layer}."
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes[f"{prefix}self_attn.{name}.weight"] = (C, C)
            shapes[f"{prefix}self_attn.{name}.bias"] = (C,)
        for name in ("layer_norm1", "layer_norm2"):
            shapes[f"{prefix}{name}.weight"] = (C,)
            shapes[f"{prefix}{name}.bias"] = (C,)
        for name, outer, inner in (("mlp.fc1", I, C), ("mlp.fc2", C, I)):
            shapes[f"{prefix}{name}.weight"] = (outer, inner)
            shapes[f"{prefix}{name}.bias"] = (outer,)
    return shapes


def to_released(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """In-memory names -> released names (views, no copies). Raises ValueError on a name of neither kind."""
    outside = {timm: clip for clip, timm in _OUTSIDE_BLOCKS.items()}
    in_block = {timm: clip for clip, timm in _IN_BLOCK.items()}
    released = {}
    for name, tensor in state.items():
        if name in _SAME:
            released[name] = tensor
        elif name in outside:
            clip = outside[name]
            # timm keeps a leading axis of 1 (class token: two) that CLIP does not
            released[clip] = tensor if clip.endswith("patch_embedding.weight") else tensor.reshape(_clip_shape(tensor))
        elif (match := _TIMM_BLOCK.fullmatch(name)) and match[2] == "attn.qkv":
            for letter, part in zip(_QKV, tensor.chunk(3), strict=True):
                released[f"{_CLIP}encoder.layers.{match[1]}.self_attn.{letter}_proj.{match[3]}"] = part
        elif match and match[2] in in_block:
            released[f"{_CLIP}encoder.layers.{match[1]}.{in_block[match[2]]}.{match[3]}"] = tensor
        else:
            raise ValueError(f"no released name for the vision tensor {name!r}")
    return released


def _clip_shape(tensor: torch.Tensor) -> tuple[int, ...]:
    if tensor.dim() == 3 and tensor.shape[:2] == (1, 1):
        return tensor.shape[2:]
    return tensor.shape[1:] if tensor.dim() == 3 else tensor.shape


def from_released(released: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Released names -> in-memory names. Raises ValueError on an unknown name, or q, k, v that are not all there."""
    state, qkv = {}, {}
    for name, tensor in released.items():
        if name in _SAME:
            state[name] = tensor
        elif name == _CLIP + "embeddings.class_embedding":
            state[_OUTSIDE_BLOCKS[name]] = tensor.reshape(1, 1, -1)
        elif name == _CLIP + "embeddings.position_embedding.weight":
            state[_OUTSIDE_BLOCKS[name]] = tensor[None]
        elif name in _OUTSIDE_BLOCKS:
            state[_OUTSIDE_BLOCKS[name]] = tensor
        elif (match := _CLIP_LAYER.fullmatch(name)) and match[2] in _IN_BLOCK:
            state[f"{_TIMM}blocks.{match[1]}.{_IN_BLOCK[match[2]]}.{match[3]}"] = tensor
        elif match and match[2] in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"):
            qkv.setdefault((match[1], match[3]), {})[match[2][len("self_attn.")]] = tensor
        else:
            raise ValueError(f"{name!r} is no vision tensor of the released layout")
    for (layer, kind), parts in qkv.items():
        missing = [letter for letter in _QKV if letter not in parts]
        if missing:
            raise ValueError(f"vision layer {layer} lacks the {kind} of {', '.join(f'{m}_proj' for m in missing)}")
        state[f"{_TIMM}blocks.{layer}.attn.qkv.{kind}"] = torch.cat([parts[letter] for letter in _QKV])
    return state
