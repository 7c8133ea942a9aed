"""Model directories: config.json, safetensors with an index, the released tensor names; loading and saving.

Loading streams: a tensor is read, converted or quantised, and put in its place before the next one is read; of several
ranks that share a model each reads only its heads and experts.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mmvl.config import VLConfig
from mmvl.json_files import read_json, write_json
from mmvl.kernels.experts_quantized import KINDS
from mmvl.model import VLModel
from mmvl.safetensors_stream import write_safetensors
from mmvl.text_backbone import names as text_names
from mmvl.text_backbone.config import TextConfig
from mmvl.text_backbone.decoder import Decoder
from mmvl.text_backbone.moe import QuantizedStack
from mmvl.text_backbone.tensor_parallel import Shard
from mmvl.weight_files import INDEX, WEIGHTS, StoredTensors, WeightFiles, check_shapes, weight_files
from mmvl.weight_names import (
    SCALE,
    TEXT_PREFIX,
    from_native,
    from_released,
    names_digest,
    places_of,
    released_names,
    to_released,
)  # fmt: skip

__all__ = [
    "check_tensors", "dtype_name", "from_native", "from_released", "kind_of_experts", "load_config", "load_model",
    "names_digest", "read_tensors", "released_names", "save_model", "to_released", "weight_files", "write_weights",
]  # fmt: skip

NOT_QUANTIZED = "none"
_EXPERTS = re.compile(r"(.*\.block_sparse_moe\.experts)\.(w[123])")


def read_tensors(directory: Path, device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """All tensors of a model directory, as they are stored and under the names that they have there.

    Raises:
        FileNotFoundError, ValueError: a file is missing, corrupt, or cut short.
    """
    with StoredTensors(Path(directory)) as stored:
        return {name: stored[name][:].view(stored[name].dims).to(device) for name in stored}


def check_tensors(tensors: Mapping[str, Tensor], config: VLConfig | TextConfig, where: str) -> None:
    """Refuse missing, surplus and misshapen tensors, all listed in one message.

    Raises:
        ValueError
    """
    check_shapes({name: tuple(t.shape) for name, t in tensors.items()}, released_names(config), where)


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


def load_model(
    directory: str | Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    *,
    quantize: str | None = None,
    rank: int = 0,
    ranks: int = 1,
    group: dist.ProcessGroup | None = None,
    sequence_parallel: bool = False,
) -> VLModel | Decoder:
    """Load a model directory: a `VLModel`, or a `Decoder` where there is no vision half.

    Args:
        dtype: None keeps the dtype of the files.
        quantize: int8, int4 or fp8: the experts are quantised as they are read. "none": what is stored quantised is
            dequantised. None: it stays so on a GPU, and is dequantised elsewhere, where that is faster.
        rank, ranks, group: of processes that share the model. Those after the first get a `Decoder`, their part of it.
        sequence_parallel: lightning layers whole on each of them (text_backbone/sequence_prefill.py).

    Raises:
        FileNotFoundError, ValueError: one line that says what is wrong and where.
    """
    directory, device = Path(directory), torch.device(device)
    config = load_config(directory)
    vision = isinstance(config, VLConfig)
    text = config.text if vision else config
    by_sequence = sequence_parallel and _can_be_parted(text, ranks, say=rank == 0)
    shard = None if ranks == 1 else Shard(text, rank, ranks, group, by_sequence=by_sequence)
    with WeightFiles(directory, config) as files:
        kind = _kind(files, quantize, device, directory)
        with torch.device("meta"):
            whole = VLModel(config) if vision else Decoder(config)
            of_whole = {name: tuple(t.shape) for name, t in whole.state_dict().items()}
            model: nn.Module = whole
            if shard is not None:
                model = VLModel(config, shard) if vision and rank == 0 else Decoder(text, shard)
            decoder = model.language_model if isinstance(model, VLModel) else model
            for layer in decoder.model.layers if kind is not None else ():
                layer.block_sparse_moe.experts = QuantizedStack(text, kind, layer.block_sparse_moe.here)
        _fill(model, of_whole, files, shard, kind, device, dtype)
    left = [n for n, t in (*model.named_parameters(), *model.named_buffers()) if t.is_meta]
    assert not left, f"never loaded: {left}"
    return model.to(device).requires_grad_(False).eval()


def kind_of_experts(directory: str | Path, quantize: str | None, device: torch.device) -> str | None:
    """What `load_model` keeps the experts in: int8, int4, fp8, or None as they are. Raises what it raises."""
    directory = Path(directory)
    with WeightFiles(directory, load_config(directory)) as files:
        return _kind(files, quantize, device, directory)


def _can_be_parted(config: TextConfig, ranks: int, say: bool) -> bool:
    """Whether prompts can be computed by parts on several ranks; if not, why is a warning."""
    if ranks > 1 and not config.shared_intermediate_size:
        return True
    if say:
        why = "all ranks have all tokens beside a shared expert" if ranks > 1 else "there is one rank (torchrun)"
        warnings.warn(f"sequence_parallel changes nothing for this model: {why}", stacklevel=3)
    return False


def _kind(files: WeightFiles, quantize: str | None, device: torch.device, directory: Path) -> str | None:
    """How the experts will be quantised in memory."""
    if quantize not in (None, NOT_QUANTIZED, *KINDS):
        raise ValueError(f"experts can be quantised to {', '.join(KINDS)}, or {NOT_QUANTIZED}; not {quantize!r}")
    stored = next((files.kind(name) for name in files.names if name.endswith("experts.0.w1.weight")), None)
    if quantize is None:
        return stored if device.type == "cuda" else None
    if quantize != NOT_QUANTIZED and stored not in (None, quantize):
        raise ValueError(f"the experts in {directory} are {stored} already and cannot be quantised to {quantize}")
    return None if quantize == NOT_QUANTIZED else quantize


def _fill(model, of_whole, files, shard, kind, device, dtype) -> None:
    """Give every parameter of `model` its values, tensor by tensor."""
    stacks = {name: m.to_empty(device=device) for name, m in model.named_modules() if isinstance(m, QuantizedStack)}
    shapes = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    state = {f"{name}.{n}": t for name, stack in stacks.items() for n, t in stack.state_dict().items()}
    plain_dtype = dtype or next(files.dtype(name) for name in files.names if name.endswith("model.norm.weight"))
    for name, (ours, start, shape) in places_of(of_whole, files.config).items():
        # of several ranks, those after the first hold the decoder alone, under its own names
        in_text = isinstance(files.config, TextConfig) or ours.startswith(TEXT_PREFIX)
        mine = ours if isinstance(model, VLModel) else ours.removeprefix(TEXT_PREFIX)
        box = shard.box(ours.removeprefix(TEXT_PREFIX), of_whole[ours]) if shard is not None and in_text else None
        if mine not in shapes:
            continue
        expert = _EXPERTS.fullmatch(mine)
        if expert is not None:
            e = start // prod(shape)
            if box is not None:
                if not box[0].start <= e < box[0].stop:
                    continue
                e -= box[0].start
            if expert[1] in stacks:
                _put(stacks[expert[1]], expert[2], e, files, name, kind, device)
                continue
        if mine not in state:
            stored = plain_dtype if files.kind(name) else dtype or files.dtype(name)
            state[mine] = torch.empty(shapes[mine], dtype=stored, device=device)
        if expert is not None:
            state[mine][e].copy_(files.plain(name))
        elif box is None:
            state[mine].view(-1)[start : start + prod(shape)].copy_(files.plain(name).view(-1))
        else:
            state[mine].copy_(files.plain(name, box))
    model.load_state_dict(state, assign=True)


def _put(stack, which, expert, files, name, kind, device) -> None:
    if files.kind(name) == kind:
        getattr(stack, which)[expert].copy_(files.stored(name))
        getattr(stack, f"scale{which[1:]}")[expert].copy_(files.stored(name + SCALE))
    else:
        stack.put(which, expert, files.plain(name).to(device))


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
        ValueError: `native` for a model that transformers' class cannot compute (it rotates whole heads), or a model
            that is quantised in memory, or only a rank's part of one.
    """
    directory = Path(directory)
    if any(isinstance(m, QuantizedStack) for m in model.modules()):
        raise ValueError("a model that was quantised while it was loaded cannot be saved; use `mmvl quantize`")
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
        except BaseException:  # a full disk, a damaged source, Ctrl-C
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
