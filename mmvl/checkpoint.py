"""Checkpoints in the released layout: config.json, safetensors with an index, the released tensor names.

Two dialects of names are read: the released one (`language_model.model.layers.0.block_sparse_moe.experts.3.w1.weight`)
and the one of transformers (stacked experts, `model.language_model....`). The released one is written.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from math import prod
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from mmvl.config import VLConfig
from mmvl.json_files import read_json, write_json
from mmvl.model import VLModel
from mmvl.safetensors_stream import write_safetensors
from mmvl.text_backbone import names as text_names
from mmvl.text_backbone.config import TextConfig
from mmvl.text_backbone.decoder import Decoder
from mmvl.vision import names as vision_names

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
TEXT_PREFIX = "language_model."


def released_names(config: VLConfig | TextConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor that a released checkpoint of this config holds: name -> shape."""
    if isinstance(config, TextConfig):
        return text_names.released_names(config)
    text = {TEXT_PREFIX + name: shape for name, shape in text_names.released_names(config.text).items()}
    return text | vision_names.released_names(config.vision, config.text.hidden_size)


def names_digest(names: Iterable[str]) -> str:
    """SHA-256 over the sorted names, one a line: a fingerprint of a checkpoint's layout."""
    return hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()


def to_released(state: Mapping[str, Tensor], config: VLConfig | TextConfig) -> dict[str, Tensor]:
    """A module's state dict -> tensors under their released names."""
    if isinstance(config, TextConfig):
        return text_names.to_released(dict(state))
    text, rest = _halves(state)
    return {TEXT_PREFIX + k: v for k, v in text_names.to_released(text).items()} | vision_names.to_released(rest)


def from_released(tensors: Mapping[str, Tensor], config: VLConfig | TextConfig) -> dict[str, Tensor]:
    """The inverse of `to_released`."""
    if isinstance(config, TextConfig):
        return text_names.from_released(dict(tensors))
    text, rest = _halves(tensors)
    return {TEXT_PREFIX + k: v for k, v in text_names.from_released(text).items()} | vision_names.from_released(rest)


def _halves(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The decoder's tensors under the names that it gives them, and all others."""
    text = {k.removeprefix(TEXT_PREFIX): v for k, v in tensors.items() if k.startswith(TEXT_PREFIX)}
    return text, {k: v for k, v in tensors.items() if not k.startswith(TEXT_PREFIX)}


_NATIVE_PREFIXES = (
    (re.compile(r"^lm_head\."), "language_model.lm_head."),
    (re.compile(r"^model\.language_model\."), "language_model.model."),
    (re.compile(r"^model\.vision_tower\.(?!vision_model\.)"), "vision_tower.vision_model."),
    (re.compile(r"^model\.(vision_tower\.|multi_modal_projector\.|image_newline$)"), r"\1"),
)


def from_native(tensors: Mapping[str, Tensor], config: VLConfig | TextConfig) -> dict[str, Tensor]:
    """Names of transformers' MiniMax and MiniMax-VL-01 classes -> released names; released names pass through."""
    if isinstance(config, TextConfig):
        return text_names.to_released(text_names.from_native(dict(tensors)))
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        for pattern, new in _NATIVE_PREFIXES:
            name = pattern.sub(new, name)
        renamed[name] = tensor
    text, rest = _halves(renamed)
    return {TEXT_PREFIX + k: v for k, v in from_native(text, config.text).items()} | rest


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a model directory, by its index if it has one.

    Raises:
        FileNotFoundError: no weights, or a file that the index names is missing.
    """
    if (directory / INDEX).is_file():
        weight_map = read_json(directory / INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ValueError(f"{directory / INDEX} has no weight_map; fetch or save the model again")
        files = [directory / name for name in sorted(set(weight_map.values()))]
        if any(f.parent != directory for f in files):
            raise ValueError(f"{directory / INDEX} names files outside of {directory}; refused")
    else:
        files = [directory / WEIGHTS]
    missing = [f.name for f in files if not f.is_file()]
    if missing:
        raise FileNotFoundError(f"no weights in {directory}: {_some(missing)} missing; fetch or save the model again")
    return files


def read_tensors(directory: Path, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """All tensors of a model directory.

    Raises:
        FileNotFoundError, ValueError: a file is missing, corrupt, or cut short.
    """
    tensors: dict[str, Tensor] = {}
    for path in weight_files(directory):
        try:
            with safe_open(path, framework="pt", device=str(device)) as f:
                tensors |= {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118
        except SafetensorError as e:
            raise ValueError(f"{path} is not a readable safetensors file ({e}); fetch or save the model again") from e
    return tensors


def check_tensors(tensors: Mapping[str, Tensor], config: VLConfig | TextConfig, where: str) -> None:
    """Refuse missing, surplus and misshapen tensors, all listed in one message.

    Raises:
        ValueError
    """
    want = released_names(config)
    problems = []
    if missing := sorted(want.keys() - tensors.keys()):
        problems.append(f"{len(missing)} missing: {_some(missing)}")
    if surplus := sorted(tensors.keys() - want.keys()):
        problems.append(f"{len(surplus)} surplus: {_some(surplus)}")
    wrong = [
        f"{name} is {list(tensors[name].shape)}, config.json says {list(shape)}"
        for name, shape in sorted(want.items())
        if name in tensors and tuple(tensors[name].shape) != tuple(shape)
    ]
    if wrong:
        problems.append(f"{len(wrong)} misshapen: {_some(wrong)}")
    if problems:
        raise ValueError(f"the tensors in {where} do not fit its config.json: " + "; ".join(problems))


def _some(items: list[str], most: int = 6) -> str:
    return ", ".join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")


def load_config(directory: str | Path) -> VLConfig | TextConfig:
    """The config of a model directory: a `VLConfig`, or a `TextConfig` for a text-only one."""
    directory = Path(directory)
    if not directory.is_dir():
        raise FileNotFoundError(f"no model directory at {directory}")
    d = read_json(directory / "config.json")
    if "vision_config" not in d:
        return TextConfig.from_dict(d)
    preprocessor = directory / "preprocessor_config.json"
    return VLConfig.from_dict(d, read_json(preprocessor) if preprocessor.is_file() else None)


def load_model(directory: str | Path, device="cpu", dtype: torch.dtype | None = None) -> VLModel | Decoder:
    """Load a model directory: a `VLModel`, or a `Decoder` where there is no vision half.

    `dtype` None keeps the dtype of the files.

    Raises:
        FileNotFoundError, ValueError: one line that says what is wrong and where.
    """
    directory = Path(directory)
    config = load_config(directory)
    vision = isinstance(config, VLConfig)
    tensors = from_native(read_tensors(directory, device), config)
    if (config.text if vision else config).tie_word_embeddings:
        # some tools write a tied head out as well; one that differs stays, and is refused as surplus
        prefix = TEXT_PREFIX if vision else ""
        head, embedding = tensors.get(f"{prefix}lm_head.weight"), tensors.get(f"{prefix}model.embed_tokens.weight")
        if head is not None and embedding is not None and torch.equal(head, embedding):
            del tensors[f"{prefix}lm_head.weight"]
    check_tensors(tensors, config, str(directory))
    if dtype is not None:
        tensors = {name: t.to(dtype) for name, t in tensors.items()}
    with torch.device("meta"):
        model: nn.Module = VLModel(config) if vision else Decoder(config)
    model.load_state_dict(from_released(tensors, config), assign=True)
    left = [n for n, t in (*model.named_parameters(), *model.named_buffers()) if t.is_meta]
    assert not left, f"never loaded: {left}"
    return model.to(device).requires_grad_(False).eval()


def save_model(
    model: VLModel | Decoder,
    directory: str | Path,
    *,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = 5 * 10**9,
    native: bool = False,
) -> None:
    """Write config.json and safetensors under the released names; the same weights give the same bytes.

    `dtype` None keeps the model's dtype. Tokenizer and processor files are the processor's to save. `native` writes a
    text-only model in the dialect of transformers' MiniMaxForCausalLM instead.

    Raises:
        ValueError: `native` for a model that transformers' class cannot compute (it rotates whole heads).
    """
    directory = Path(directory)
    if native:
        if not isinstance(model, Decoder):
            raise ValueError("only the text half can be saved for transformers' MiniMaxForCausalLM")
        config, tensors = model.config.to_native_dict(), text_names.to_native(model.state_dict())
    else:
        config, tensors = model.config.to_dict(), to_released(model.state_dict(), model.config)
        check_tensors(tensors, model.config, "the model in memory")
    layout = {name: (dtype or t.dtype, tuple(t.shape)) for name, t in tensors.items()}
    write_weights(directory, layout, lambda name: tensors[name].to(layout[name][0]), max_shard_bytes=max_shard_bytes)
    write_json(directory / "config.json", config | {"torch_dtype": dtype_name(next(iter(layout.values()))[0])})


def write_weights(
    directory: Path,
    layout: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
    tensor: Callable[[str], Tensor],
    *,
    max_shard_bytes: int = 5 * 10**9,
    rank: int = 0,
    world: int = 1,
    wait: Callable[[], None] = lambda: None,
) -> None:
    """Write safetensors files with their index, tensor by tensor; the same tensors give the same bytes.

    Of `world` processes that call this together each writes its share of the files; `wait` returns when all are there.

    Args:
        layout: dtype and shape of every tensor. tensor: gives one by name when its turn has come.

    Raises:
        OSError: the disk is full, or cannot be written; weights that were there before are then still there.
    """
    shards: list[list[str]] = [[]]
    size = total = 0
    for name, (dtype, shape) in sorted(layout.items()):
        nbytes = prod(shape) * dtype.itemsize
        if shards[-1] and size + nbytes > max_shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size, total = size + nbytes, total + nbytes
    count = len(shards)
    files = [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)] if count > 1 else [WEIGHTS]
    # All is written beside what is there before anything of it goes: a crash on the way loses no weights.
    directory.mkdir(parents=True, exist_ok=True)
    for file, names in list(zip(files, shards, strict=True))[rank::world]:
        part = directory / f"{file}.part"
        try:
            write_safetensors(part, {name: layout[name] for name in names}, tensor, {"format": "pt"})
        except OSError:
            part.unlink(missing_ok=True)
            raise
    wait()
    if rank:
        return
    for old in {*directory.glob("model-*-of-*.safetensors"), directory / INDEX, directory / WEIGHTS}:
        old.unlink(missing_ok=True)
    for file in files:
        (directory / f"{file}.part").replace(directory / file)
    if count > 1:
        weight_map = {name: file for file, names in zip(files, shards, strict=True) for name in names}
        write_json(directory / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def dtype_name(dtype: torch.dtype) -> str:
    """As config.json spells it: float32, bfloat16."""
    return str(dtype).removeprefix("torch.")
