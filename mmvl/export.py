"""From a training checkpoint to a model directory in the released layout, one tensor in memory at a time."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from mmvl.checkpoint import dtype_name, load_config, write_weights
from mmvl.config import VLConfig
from mmvl.json_files import read_json, write_json
from mmvl.model import VLModel
from mmvl.text_backbone.config import TextConfig
from mmvl.text_backbone.decoder import Decoder
from mmvl.training.checkpoints import MANIFEST, MODEL, Checkpoint, complete
from mmvl.training.fragments import Box
from mmvl.weight_names import Place, places_of

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def find_checkpoint(path: Path) -> Path:
    """The checkpoint that `path` means: itself, or the newest of a stage's `checkpoints/` or of its `out`.

    Raises:
        FileNotFoundError: there is no whole one.
    """
    if (path / MANIFEST).is_file():
        return path
    for root in (path, path / "checkpoints"):
        if whole := complete(root):
            return whole[-1]
    raise FileNotFoundError(f"no whole checkpoint at {path} (give a stage's `out`, its checkpoints/, or one step-...)")


def places(config: VLConfig | TextConfig) -> dict[str, Place]:
    """Where a released tensor lies in a whole model: name -> our parameter, first of its flat values, shape."""
    with torch.device("meta"):
        state = (VLModel(config) if isinstance(config, VLConfig) else Decoder(config)).state_dict()
    return places_of({name: tuple(t.shape) for name, t in state.items()}, config)


def export(
    checkpoint: Path,
    directory: Path,
    *,
    dtype: str | None = None,
    max_shard_bytes: int = 5 * 10**9,
    rank: int = 0,
    world: int = 1,
    wait: Callable[[], None] = lambda: None,
) -> None:
    """Write a checkpoint's weights, config and processor files as a model directory.

    Args:
        dtype: float32, bfloat16 or float16; None: the one that the stage computed in.
        rank, world, wait: of processes that export together; each writes its share of the files.

    Raises:
        FileNotFoundError, ValueError: not a whole checkpoint, or a damaged one; one line that says what is wrong.
        OSError: the disk is full; weights that were there before are then still there.
    """
    with Checkpoint(checkpoint) as source:
        config = load_config(checkpoint / MODEL)
        dtype = dtype or source.state["dtype"]
        if dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, not {dtype}")
        where = places(config)

        def tensor(name: str) -> Tensor:
            ours, start, shape = where[name]
            values = torch.empty(prod(shape), dtype=torch.float32)
            source.read(ours, "weight", Box.whole(source.shapes.get(ours, shape)), start, values)
            return values.to(DTYPES[dtype]).view(shape)

        layout = {name: (DTYPES[dtype], shape) for name, (_, _, shape) in where.items()}
        write_weights(directory, layout, tensor, max_shard_bytes=max_shard_bytes, rank=rank, world=world, wait=wait)
    if rank == 0:
        for file in (checkpoint / MODEL).iterdir():
            shutil.copyfile(file, directory / file.name)
        settings = read_json(checkpoint / MODEL / "config.json")
        write_json(directory / "config.json", settings | {"torch_dtype": dtype_name(DTYPES[dtype])})
