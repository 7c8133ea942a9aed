"""What a checkpoint keeps of a module that every rank holds whole, with a plain optimizer: taken out and put back."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmvl.training.checkpoints import Checkpoint, Piece
from mmvl.training.engine_state import MOMENTS
from mmvl.training.fragments import Box


def take(module: nn.Module, optimizer: torch.optim.AdamW, rank: int, world: int) -> list[Piece]:
    """This rank's share, copied to the host: of every parameter and its moments the ranks keep a range each."""
    pieces = []
    for name, p in module.named_parameters():
        first, last = (p.numel() * r // world for r in (rank, rank + 1))
        if first == last:
            continue
        state = optimizer.state.get(p, {})
        for what, values in ({"weight": p.detach()} | {w: state[w] for w in MOMENTS if w in state}).items():
            kept = values.reshape(-1)[first:last].to("cpu", torch.float32, copy=True)
            step = None if what == "weight" else float(state["step"])
            pieces.append(Piece(name, what, tuple(p.shape), Box.whole(p.shape), first, kept, step))
    return pieces


@torch.no_grad()
def put(module: nn.Module, optimizer: torch.optim.AdamW | None, checkpoint: Checkpoint) -> None:
    """Fill the parameters, and the moments of `optimizer`, from a checkpoint that any number of ranks wrote.

    Raises:
        ValueError: the checkpoint is of another model.
    """
    for name, p in module.named_parameters():
        if (shape := checkpoint.shapes.get(name)) != tuple(p.shape):
            raise ValueError(
                f"{name} is {shape and list(shape)} in {checkpoint.directory} and {list(p.shape)} by the recipe"
            )
        _read(checkpoint, name, "weight", p)
        if optimizer is None:
            continue
        state = optimizer.state[p]
        for what in MOMENTS:
            state[what] = torch.empty_like(p)
            step = _read(checkpoint, name, what, state[what])
        state["step"] = torch.tensor(step, dtype=torch.float32, device=p.device)


def _read(checkpoint: Checkpoint, name: str, what: str, out: Tensor) -> float:
    values = torch.empty(out.numel(), dtype=torch.float32)
    step = checkpoint.read(name, what, Box.whole(out.shape), 0, values)
    out.copy_(values.view(out.shape))
    return step
