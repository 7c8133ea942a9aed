"""What a checkpoint keeps of DeepSpeed's engine (ZeRO 1 or 2), taken out of it and put back.

ZeRO flattens the parameters of a group and gives each rank a range of that, in fp32; `_hp_mapping` of a parameter says
which range of it this rank keeps, and where in the rank's flat master weights that lies (DeepSpeed 0.19.8, pinned).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from mmvl.training.checkpoints import Checkpoint, Piece
from mmvl.training.fragments import Box

MOMENTS = ("exp_avg", "exp_avg_sq")


def parameters(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """An objective's parameters; those of its `model` under the model's own names."""
    for name, p in module.named_parameters():
        yield name.removeprefix("model."), p


def placed(p: nn.Parameter) -> tuple[tuple[int, ...], Box]:
    """The shape of the whole parameter and this rank's box of it; experts that are split carry a `placement`."""
    if (placement := getattr(p, "placement", None)) is None:
        return tuple(p.shape), Box.whole(p.shape)
    return tuple(placement.shape), Box(tuple(placement.offset), tuple(p.shape))


def _host(t: Tensor) -> Tensor:
    return t.detach().to("cpu", copy=True)


def take(engine, rank: int, world: int) -> list[Piece]:
    """This rank's share of all parameters and moments, copied to the host.

    A trained parameter's range is the one that ZeRO gave this rank; of frozen ones the ranks that hold the same values
    take a range each.
    """
    zero, pieces = engine.optimizer, []
    for name, p in parameters(engine.module):
        whole, box = placed(p)
        if not p.requires_grad:
            placement = getattr(p, "placement", None)
            replica, replicas = (rank, world) if placement is None else (placement.replica, placement.replicas)
            first, last = (p.numel() * r // replicas for r in (replica, replica + 1))
            if last > first:
                values = _host(p.detach().reshape(-1)[first:last])
                pieces.append(Piece(name, "weight", whole, box, first, values, None))
        elif (fragment := p._hp_mapping) is not None:
            start, at = fragment.lp_fragment_address.start, fragment.hp_fragment_address
            flat = zero.single_partition_of_fp32_groups[fragment.param_group_index]
            pieces.append(Piece(name, "weight", whole, box, start, _host(flat.narrow(0, at.start, at.numel)), None))
            if state := zero.optimizer.state.get(flat):
                for what in MOMENTS:
                    values = _host(state[what].narrow(0, at.start, at.numel))
                    pieces.append(Piece(name, what, whole, box, start, values, float(state["step"])))
    return pieces


@torch.no_grad()
def put(engine, checkpoint: Checkpoint) -> None:
    """Fill weights, master weights and moments from a checkpoint that any number of ranks wrote.

    Raises:
        ValueError: the checkpoint is of another model, or other parts were trained.
    """
    zero = engine.optimizer
    steps: dict[int, float] = {}
    for name, p in parameters(engine.module):
        whole, box = placed(p)
        if checkpoint.shapes.get(name, whole) != whole:
            raise ValueError(
                f"{name} is {list(checkpoint.shapes[name])} in {checkpoint.directory} and {list(whole)} by the recipe"
            )
        values = torch.empty(p.numel(), dtype=torch.float32 if p.requires_grad else p.dtype)
        checkpoint.read(name, "weight", box, 0, values)
        p.data.copy_(values.view(p.shape))  # p lies in ZeRO's flat buffer
        if not p.requires_grad or p._hp_mapping is None:
            continue
        start, at = p._hp_mapping.lp_fragment_address.start, p._hp_mapping.hp_fragment_address
        group = p._hp_mapping.param_group_index
        flat = zero.single_partition_of_fp32_groups[group]
        flat.narrow(0, at.start, at.numel).copy_(values[start : start + at.numel])
        state = zero.optimizer.state[flat]
        for what in MOMENTS:
            if what not in state:
                state[what] = torch.zeros_like(flat)
            moment = torch.empty(at.numel, dtype=torch.float32)
            step = checkpoint.read(name, what, box, start, moment)
            state[what].narrow(0, at.start, at.numel).copy_(moment)
            steps[group] = max(steps.get(group, 0.0), step)
    for group, step in steps.items():
        flat = zero.single_partition_of_fp32_groups[group]
        zero.optimizer.state[flat]["step"] = torch.tensor(step, dtype=torch.float32, device=flat.device)


def random_states(device: torch.device) -> dict[str, Tensor]:
    """The states of torch's generators of this process, uint8."""
    states = {"cpu_rng": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda_rng"] = torch.cuda.get_rng_state(device)
    return states


def set_random_states(states: Mapping[str, Tensor], device: torch.device) -> None:
    """The inverse of `random_states`; what was saved on another kind of device is left out."""
    if "cpu_rng" in states:
        torch.set_rng_state(states["cpu_rng"])
    if "cuda_rng" in states and device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda_rng"], device)
