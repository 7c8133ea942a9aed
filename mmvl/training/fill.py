"""The weights that a stage starts from, for a process that holds part of them: no more than its part is made or read.

A model is first built without storage (torch's meta device) and cut (`Parallel.shard`); then its parameters get
storage, and each is filled from the ranges of the safetensors files in which its part lies.
"""

from __future__ import annotations

from math import prod
from pathlib import Path

import torch
from torch import Tensor, nn

from mmvl.export import places
from mmvl.model import VLModel
from mmvl.text_backbone.expert_parallel import Placement
from mmvl.training.checkpoints import Checkpoint
from mmvl.training.engine_state import placed
from mmvl.weight_files import Box, WeightFiles


def materialize(module: nn.Module, device: torch.device | str, dtype: torch.dtype) -> None:
    """Give the parameters that lie on the meta device storage, uninitialised, and keep what is marked on them.

    `nn.Module.to_empty` would lose an expert's placement and DeepSpeed's marks.
    """
    for part in module.modules():
        for name, p in list(part.named_parameters(recurse=False)):
            if p.is_meta:
                new = nn.Parameter(torch.empty(p.shape, device=device, dtype=dtype), requires_grad=p.requires_grad)
                new.__dict__.update(p.__dict__)
                setattr(part, name, new)


@torch.no_grad()
def fill(model: VLModel, directory: Path) -> None:
    """Fill the parameters of `model`, or the parts that it holds, from a model directory, in their dtype and device.

    Weights in int8 and fp8 become what they stand for.

    Raises:
        FileNotFoundError, ValueError: as `load_model`; weights in int4, which are too coarse to go on from.
    """
    parameters = dict(model.named_parameters())
    with WeightFiles(directory, model.config) as files:
        if any(files.kind(name) == "int4" for name in files.names):
            raise ValueError(f"{directory} holds weights in int4; training starts from those that they were made of")
        for name, (ours, start, shape) in places(model.config).items():
            if (held := _held(parameters[ours], start, shape)) is not None:
                part, box = held
                part.copy_(files.plain(name, box).view(part.shape))


@torch.no_grad()
def fill_from_checkpoint(model: VLModel, source: Checkpoint) -> None:
    """As `fill`, from the master weights of a training checkpoint, one parameter at a time.

    Raises:
        ValueError: the checkpoint is damaged, or of another model.
    """
    for name, p in model.named_parameters():
        _, box = placed(p)
        values = torch.empty(p.numel(), dtype=torch.float32)
        source.read(name, "weight", box, 0, values)
        p.copy_(values.view(p.shape))


def _held(p: nn.Parameter, start: int, shape: tuple[int, ...]) -> tuple[Tensor, Box | None] | None:
    """What `p` holds of the released tensor that lies in the whole parameter from `start` on: where, and which part."""
    placement: Placement | None = getattr(p, "placement", None)
    if placement is None:
        return p.view(-1)[start : start + prod(shape)], None
    expert, corner = start // prod(shape) - placement.offset[0], placement.offset[1:]  # the tensor is one expert
    if not 0 <= expert < len(p):
        return None
    return p[expert], tuple(slice(o, o + n) for o, n in zip(corner, p.shape[1:], strict=True))
