"""`mmvl grow`: a trained model -> a larger one that starts by computing the same, for the next stages to fill.

Decoder layers and ViT blocks are added as identities (what they would add to the residual is zero; Net2Net, Chen et
al., arXiv 1511.05641, and block expansion, Wu et al., arXiv 2401.02415), experts are widened by channels whose way out
is zero, and canvases for larger images may join. All other settings stay.

Not quite the same is the decay of the lightning layers: by the model's definition it falls linearly over the depth, so
a layer that comes to lie elsewhere, or in a deeper model, forgets faster or slower. `grow` returns by how much.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from mmvl.checkpoint import load_model, save_model
from mmvl.config import VLConfig
from mmvl.json_files import read_json
from mmvl.model import VLModel
from mmvl.processor import Processor

TEXT_GROWS = {"num_hidden_layers", "attn_type_list", "intermediate_size", "max_position_embeddings"}
VISION_GROWS = {"num_hidden_layers"}
_LAYERS, _BLOCKS = "language_model.model.layers.", "vision_tower.vit.blocks."
_WAYS_OUT = {
    "self_attn.out_proj.weight", "self_attn.o_proj.weight", "block_sparse_moe.experts.w2",
    "shared_mlp.down_proj.weight",
    "attn.proj.weight", "attn.proj.bias", "mlp.fc2.weight", "mlp.fc2.bias",
}  # fmt: skip


def grow(
    source: str | Path,
    config_file: str | Path,
    out: str | Path,
    layers: Sequence[int] | None = None,
    vision_layers: Sequence[int] | None = None,
    seed: int = 0,
) -> float:
    """Write the model directory `out`: `source`'s weights in the shape of the config.json `config_file`.

    layers: the place in the new decoder of each of the old one's layers, rising, counted from 0 (None: the first
    places); vision_layers: likewise of the ViT's blocks. seed: of the random weights behind the zeros. Returns the
    largest relative change of a lightning layer's decay rate, 0.0 if none lies elsewhere in depth.

    Raises:
        FileNotFoundError, ValueError: no such model or config, places that do not fit, another change than growth.
    """
    small = load_model(source, dtype=None)
    if not isinstance(small, VLModel):
        raise ValueError(f"{source} is a text-only model; only whole models grow")
    if not Path(config_file).is_file():
        raise FileNotFoundError(f"no config at {config_file}")
    config = VLConfig.from_dict(read_json(Path(config_file)))
    big = grown(small, config, layers, vision_layers, seed)
    processor = Processor.from_pretrained(source)
    processor.tiling = big.tiling
    save_model(big, out)
    processor.save(out)
    return decay_change(small, big, _places(layers, small.config.text.num_hidden_layers))


def grown(
    small: VLModel,
    config: VLConfig,
    layers: Sequence[int] | None = None,
    vision_layers: Sequence[int] | None = None,
    seed: int = 0,
) -> VLModel:
    """`small`'s weights in a model of `config`, in `small`'s dtype; arguments and errors as for `grow`."""
    old = small.config
    _check(asdict(old.text), asdict(config.text), TEXT_GROWS, "text_config")
    _check(asdict(old.vision), asdict(config.vision), VISION_GROWS, "vision_config")
    if config.image_token_index != old.image_token_index:
        raise ValueError(f"image_token_index is {config.image_token_index}, the model's is {old.image_token_index}")
    if gone := set(old.image_grid_pinpoints) - set(config.image_grid_pinpoints):
        raise ValueError(f"image_grid_pinpoints no longer hold {sorted(gone)[0]}: canvases may only join")
    places = _fitting(layers, old.text.num_hidden_layers, config.text.num_hidden_layers, "decoder")
    vision_places = _fitting(vision_layers, old.vision.num_hidden_layers, config.vision.num_hidden_layers, "ViT")
    for number, place in enumerate(places):
        if old.text.attn_type_list[number] != config.text.attn_type_list[place]:
            raise ValueError(
                f"layer {number} would come to place {place}, which attn_type_list gives another attention; say where "
                "the old layers go"
            )
    big = VLModel(config)
    big.init_weights(seed)
    state = big.state_dict()
    _silence(state, _LAYERS, set(range(config.text.num_hidden_layers)) - set(places))
    _silence(state, _BLOCKS, set(range(config.vision.num_hidden_layers)) - set(vision_places))
    for name, tensor in small.state_dict().items():
        into = state[_moved(_moved(name, _LAYERS, places), _BLOCKS, vision_places)]
        if name.endswith(("experts.w1", "experts.w3")):  # (E, I, D): more channels in
            into[:, : tensor.shape[1]] = tensor
        elif name.endswith("experts.w2"):  # (E, D, I): nothing comes out of the new ones
            into.zero_()
            into[..., : tensor.shape[2]] = tensor
        else:
            into.copy_(tensor)
    return big.to(small.dtype)


def decay_change(small: VLModel, big: VLModel, places: Sequence[int]) -> float:
    """The largest relative change of a decay rate among the layers that `grown` took over."""
    changes = [0.0]
    for number in small.config.text.lightning_layers:
        before = small.language_model.model.layers[number].self_attn.slopes
        after = big.language_model.model.layers[places[number]].self_attn.slopes
        changes += [abs(a / b - 1) for a, b in zip(after, before, strict=True)]
    return max(changes)


def _check(old: dict, new: dict, may_grow: set[str], where: str) -> None:
    for name, before in old.items():
        after = new[name]
        if name not in may_grow and before != after:
            raise ValueError(f"{where}: {name} is {after}, the model's is {before}; only {_names(may_grow)} may grow")
        if name in may_grow and not isinstance(before, tuple) and after < before:
            raise ValueError(f"{where}: {name} shrinks from {before} to {after}")


def _names(names: set[str]) -> str:
    return ", ".join(sorted(names))


def _places(places: Sequence[int] | None, count: int) -> list[int]:
    return list(range(count)) if places is None else list(places)


def _fitting(places: Sequence[int] | None, old: int, new: int, what: str) -> list[int]:
    places = _places(places, old)
    if len(places) != old or places != sorted(set(places)) or places[0] < 0 or places[-1] >= new:
        raise ValueError(
            f"the {what} has {old} layers and comes to have {new}: give {old} rising places from 0 to {new - 1}, "
            f"not {','.join(map(str, places))}"
        )
    return places


def _moved(name: str, prefix: str, places: Sequence[int]) -> str:
    if not name.startswith(prefix):
        return name
    number, _, rest = name.removeprefix(prefix).partition(".")
    return f"{prefix}{places[int(number)]}.{rest}"


def _silence(state: dict[str, torch.Tensor], prefix: str, numbers: set[int]) -> None:
    """Zero what the layers of these numbers add to the residual."""
    for name, tensor in state.items():
        if name.startswith(prefix):
            number, _, rest = name.removeprefix(prefix).partition(".")
            if int(number) in numbers and rest in _WAYS_OUT:
                tensor.zero_()
