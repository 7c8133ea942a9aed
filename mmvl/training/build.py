"""From a recipe to the model that its stage trains: random weights or those of another stage, changed as it says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor

from mmvl.checkpoint import load_config, read_json
from mmvl.config import VLConfig
from mmvl.model import VLModel
from mmvl.processor import Processor
from mmvl.training.fill import fill, materialize
from mmvl.training.parallel import Parallel
from mmvl.training.recipe import TrainRecipe
from mmvl.vision import names as vision_names
from mmvl.vision.config import VisionConfig
from mmvl.weight_files import StoredTensors
from mmvl.weight_names import SCALE

VISION = "vision_tower."


def load_tokenizer(directory: Path):
    """The `tokenizer.json` of a tokenizer stage.

    Raises:
        FileNotFoundError
    """
    from tokenizers import Tokenizer

    path = directory / "tokenizer.json"
    if not path.is_file():
        raise FileNotFoundError(f"no tokenizer.json in {directory}; run the tokenizer recipe first")
    return Tokenizer.from_file(str(path))


def read_model_config(path: Path) -> dict:
    """A config.json that a recipe names.

    Raises:
        FileNotFoundError
    """
    if not path.is_file():
        raise FileNotFoundError(f"no {path}; the paths in a recipe count from the directory that you are in")
    return read_json(path)


def stage_config(recipe: TrainRecipe) -> VLConfig:
    """The config of the model that the stage trains, RoPE base and longest sequence as the recipe says.

    Raises:
        FileNotFoundError, ValueError: no such config, a text-only model, samples longer than its positions.
    """
    if recipe.init_from is not None:
        config = load_config(recipe.init_from)
        if not isinstance(config, VLConfig):
            raise ValueError(f"{recipe.init_from} is a text-only model; training needs the vision half as well")
    else:
        config = VLConfig.from_dict(read_model_config(recipe.model_config_file))
    return extended(config, recipe)


def extended(config: VLConfig, recipe: TrainRecipe) -> VLConfig:
    """`config` with the recipe's RoPE base and longest sequence.

    Raises:
        ValueError: a RoPE base below the model's, or samples longer than its positions.
    """
    text = config.text
    if recipe.rope_theta is not None and recipe.rope_theta < text.rope_theta:
        raise ValueError(f"rope_theta {recipe.rope_theta:g} is below the model's {text.rope_theta:g}; raise it")
    text = replace(
        text,
        rope_theta=recipe.rope_theta or text.rope_theta,
        max_position_embeddings=recipe.max_positions or text.max_position_embeddings,
    )
    if recipe.data.max_sample_tokens > text.max_position_embeddings:
        raise ValueError(
            f"data.max_sample_tokens is {recipe.data.max_sample_tokens}, the model has "
            f"{text.max_position_embeddings} positions; raise max_positions or lower it"
        )
    return replace(config, text=text)


def build_model(
    recipe: TrainRecipe,
    parallel: Parallel | None = None,
    device: torch.device | str = "cpu",
    *,
    filled: bool = True,
) -> tuple[VLModel, Processor]:
    """The model and its processor: random weights from a config, or those of another stage.

    Weights are in the recipe's precision, as the engine holds them. With `parallel`, of the experts only what this
    process keeps is ever made or read; not `filled`, nothing is: a checkpoint will fill it. The parameters of modules
    that the recipe does not name in `trainable` have `requires_grad` off.

    Raises:
        FileNotFoundError, ValueError: what the recipe starts from is missing or does not fit; one line that says why.
    """
    config = stage_config(recipe)
    with torch.device("meta"):
        model = VLModel(config)
    if recipe.init_from is not None:
        processor = Processor.from_pretrained(recipe.init_from)
    else:
        processor = Processor(load_tokenizer(recipe.tokenizer), model.tiling)
    if processor.valid_vocab_size > config.text.vocab_size:
        raise ValueError(
            f"the tokenizer has {processor.valid_vocab_size} tokens, the model only {config.text.vocab_size}"
        )
    if processor.image_id != config.image_token_index:
        raise ValueError(
            f"the tokenizer's <image> is {processor.image_id}, config.json says {config.image_token_index}"
        )
    if parallel is not None:
        parallel.shard(model)
    dtype = torch.bfloat16 if recipe.precision == "bf16" else torch.float32
    materialize(model.language_model, device, dtype)
    materialize(model, "cpu", torch.float32)  # the vision half is small; so its random weights are the same everywhere
    if filled and recipe.init_from is not None:
        fill(model, recipe.init_from)
    elif filled:
        model.init_weights(recipe.seed)
    if filled and recipe.vision_from is not None:
        load_vision(model, recipe.vision_from)
    freeze(model, recipe.trainable)
    return model.to(device, dtype).train(), processor


def freeze(model: VLModel, trainable: list[str]) -> None:
    """Let only the named modules learn; `image_newline` goes with `multi_modal_projector`."""
    for name, p in model.named_parameters():
        part = name.split(".")[0]
        p.requires_grad_(("multi_modal_projector" if part == "image_newline" else part) in trainable)


def load_vision(model: VLModel, directory: Path) -> None:
    """Give the model the vision tower of a contrastive stage (released tensor names); other tile sizes are resampled.

    Raises:
        FileNotFoundError, ValueError: no weights there, or a ViT of another shape.
    """
    model.vision_tower.load_state_dict(vision_state(directory, model.config.vision))


def vision_state(directory: Path, config: VisionConfig) -> dict[str, Tensor]:
    """The state dict (fp32) for a `VisionTower` of `config` from a directory with released vision tensors.

    Quantised matrices become what they stand for. Position embeddings of another tile size are resampled (bicubic,
    antialiased, as timm does it).

    Raises:
        FileNotFoundError, ValueError
    """
    with StoredTensors(directory) as stored:
        released = {n: stored.plain(n) for n in stored if n.startswith(VISION) and not n.endswith(SCALE)}
    state = {n.removeprefix(VISION): t.float() for n, t in vision_names.from_released(released).items()}
    wanted = {
        n.removeprefix(VISION): tuple(t.shape)
        for n, t in vision_names.from_released(
            {
                n: torch.empty(shape, device="meta")
                for n, shape in vision_names.released_names(config, 1).items()
                if n.startswith(VISION)
            }
        ).items()
    }
    positions = state.get("vit.pos_embed")
    edge = config.image_size // config.patch_size
    if positions is not None and positions.shape[1] != edge**2 + 1:
        state["vit.pos_embed"] = resample_abs_pos_embed(positions, new_size=[edge, edge], num_prefix_tokens=1)
    wrong = sorted(n for n in wanted.keys() | state.keys() if n not in state or wanted.get(n) != tuple(state[n].shape))
    if wrong:
        raise ValueError(
            f"the vision tower in {directory} is another than the model's: {len(wrong)} tensors differ, "
            f"the first is {wrong[0]}"
        )
    return state
