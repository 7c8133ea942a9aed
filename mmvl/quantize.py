"""Write a model with quantised weights, one tensor in memory at a time.

The experts, which are 95% of the full model's weights, become int8, int4 or fp8 (kernels/experts_quantized.py says how
each is laid out) and stay so in a GPU's memory. What else is quantised is int8 with a scale a row, for size on disk
alone: it is dequantised as it is loaded. As in the released int8 recipe (optimum-quanto, in MiniMax-01's `inference/`)
head, embedding, routers, the shared expert's coefficient and the vision half are left alone, unless all is asked for.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from mmvl.checkpoint import load_config, write_weights
from mmvl.json_files import read_json, write_json
from mmvl.kernels.experts_quantized import GROUP, KINDS, quantize_weight
from mmvl.text_backbone.decoder import Decoder
from mmvl.text_backbone.moe import QuantizedStack
from mmvl.weight_files import WeightFiles
from mmvl.weight_names import SCALE

REST = ("keep", "attention", "all")
SMALLEST = 64  # rows and columns from which a matrix is worth quantising
_EXPERT = re.compile(r".*\.block_sparse_moe\.experts\.\d+\.w[123]\.weight")
_ATTENTION = re.compile(r".*\.layers\.\d+\.(self_attn\.\w+_proj|self_attn\.output_gate|shared_mlp\.\w+_proj)\.weight")
_NEVER = re.compile(r".*(\.block_sparse_moe\.gate|\.coefficient|position_embedding)\.weight")
_BESIDE = {".json", ".jinja", ".txt", ".model"}  # and LICENSE, NOTICE: files that go along


def chosen(name: str, shape: tuple[int, ...], experts: str | None, rest: str) -> str | None:
    """To what a released tensor is quantised: int8, int4, fp8, or None."""
    if _EXPERT.fullmatch(name):
        return experts
    if rest == "keep" or len(shape) != 2 or min(shape) < SMALLEST or _NEVER.fullmatch(name):
        return None
    in_text = "vision_tower" not in name
    return "int8" if rest == "all" or (in_text and _ATTENTION.fullmatch(name)) else None


def quantize_model(
    source: Path,
    directory: Path,
    *,
    experts: str | None = "int8",
    rest: str = "keep",
    device: torch.device | str = "cpu",
    max_shard_bytes: int = 2 * 10**9,
) -> None:
    """Read the model in `source`, write it quantised to `directory`, with its tokenizer and processor files.

    Memory: one shard of what is written, and a tensor.

    Args:
        experts: one of `KINDS`, or None. rest: "keep"; "attention": int8 for the decoder's projections, as released;
            "all": int8 for every matrix but routers and position embeddings. device: that computes.

    Raises:
        FileNotFoundError, ValueError, OSError: one line that says what is wrong.
    """
    if experts not in (None, *KINDS):
        raise ValueError(f"experts can be quantised to {', '.join(KINDS)}, not {experts!r}")
    if experts is None and rest == "keep":
        raise ValueError("neither the experts nor the rest is to be quantised: there is nothing to do")
    if rest not in REST:
        raise ValueError(f"the rest can be {', '.join(REST)}, not {rest!r}")
    if directory.resolve() == source.resolve():
        raise ValueError(f"{directory} is the model itself; give another directory")
    config = load_config(source)
    with WeightFiles(source, config) as files:
        before = sorted({kind for name in files.names if (kind := files.kind(name))})
        if before:
            raise ValueError(f"the model in {source} is quantised already ({', '.join(before)})")
        kinds = {name: chosen(name, shape, experts, rest) for name, shape in files.names.items()}
        layout: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
        for name, shape in files.names.items():
            layout[name] = files.dtype(name), shape
            if kinds[name] is not None:
                like = quantize_weight(torch.empty(1, *shape, device="meta"), kinds[name])
                layout |= {n: (t.dtype, tuple(t.shape[1:])) for n, t in zip((name, name + SCALE), like, strict=True)}
        waiting: dict[str, Tensor] = {}  # of a shard, whose scales are written first

        def tensor(name: str) -> Tensor:
            if name in waiting:
                return waiting.pop(name)
            base = name.removesuffix(SCALE)
            kind = kinds.get(name) or kinds.get(base)
            if kind is None:
                return files.stored(name)
            quantized, scale = (t[0].cpu() for t in quantize_weight(files.stored(base).to(device)[None], kind))
            if not scale.isfinite().all():
                raise ValueError(f"{base} in {source} has values that are not finite; it cannot be quantised")
            waiting[base if name != base else base + SCALE] = quantized if name != base else scale
            return scale if name != base else quantized

        write_weights(directory, layout, tensor, max_shard_bytes=max_shard_bytes)
    copy_beside(source, directory)
    about = {"quant_method": "mmvl", "experts": experts, "rest": rest}
    if experts == "int4":
        about["group_size"] = GROUP
    write_json(directory / "config.json", read_json(source / "config.json") | {"quantization_config": about})


def copy_beside(source: Path, directory: Path) -> None:
    """Copy what lies beside a model's weights and its config.json: tokenizer, processor, licence."""
    for file in source.iterdir():
        beside = file.suffix in _BESIDE or file.stem in ("LICENSE", "NOTICE")
        if file.is_file() and beside and file.name not in ("config.json", "model.safetensors.index.json"):
            shutil.copyfile(file, directory / file.name)


@contextmanager
def quantize_decoder(decoder: Decoder, kind: str) -> Iterator[None]:
    """Inside, the experts of a decoder in memory are quantised to `kind`; afterwards it has its own again."""
    layers, own = decoder.model.layers, [layer.block_sparse_moe.experts for layer in decoder.model.layers]
    try:
        for layer, experts in zip(layers, own, strict=True):
            stack = QuantizedStack(decoder.config, kind, layer.block_sparse_moe.here).to(experts.w1.device)
            for which in ("w1", "w3", "w2"):
                for e, w_NK in enumerate(getattr(experts, which)):
                    stack.put(which, e, w_NK)
            layer.block_sparse_moe.experts = stack
        yield
    finally:
        for layer, experts in zip(layers, own, strict=True):
            layer.block_sparse_moe.experts = experts
