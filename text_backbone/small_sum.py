"""Sums of a few kilobytes over the GPUs of one machine: every GPU reads the others' parts itself, in one kernel.

NCCL needs some 20 microseconds for what is a matter of two over NVLink, and a decode step has two sums a layer. torch's
symmetric memory maps each GPU's buffer into the others; multicast is not used. All GPUs add up in the same order.
"""

from __future__ import annotations

import os
import warnings

import torch
import torch.distributed as dist

LARGEST = 2 << 20  # bytes; NCCL is as fast from about there on


class SmallSum:
    """`sum_(x)` for the ranks of `group`, all of them GPUs of one machine. Raises RuntimeError where it cannot work."""

    def __init__(self, group: dist.ProcessGroup, device: torch.device):
        os.environ.setdefault("TORCH_SYMM_MEM_DISABLE_MULTICAST", "1")
        import torch.distributed._symmetric_memory as symmetric

        self.name = group.group_name
        self.buffer = symmetric.empty(LARGEST, dtype=torch.uint8, device=device)
        symmetric.rendezvous(self.buffer, self.name)

    @staticmethod
    def takes(x: torch.Tensor) -> bool:
        return x.dtype in (torch.bfloat16, torch.float32) and x.nbytes <= LARGEST and x.nbytes % 16 == 0

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """The sum over the ranks, a new tensor."""
        there = self.buffer[: x.nbytes].view(x.dtype).view(x.shape)
        return torch.ops.symm_mem.one_shot_all_reduce_copy(there, x.contiguous(), "sum", self.name)


_made: dict[tuple[str, torch.device], SmallSum | None] = {}


def small_sum(group: dist.ProcessGroup | None, device: torch.device) -> SmallSum | None:
    """The one of this group and device, made by the first call, which all ranks must come to; None: use NCCL.

    MMVL_SMALL_SUM=nccl in the environment turns it off.
    """
    group = group or dist.group.WORLD
    key = group.group_name, device
    if key not in _made:
        _made[key] = None
        one_machine = os.environ.get("LOCAL_WORLD_SIZE") == str(dist.get_world_size())
        if one_machine and os.environ.get("MMVL_SMALL_SUM") != "nccl":
            try:
                _made[key] = SmallSum(group, device)
            except (RuntimeError, ImportError, AttributeError) as e:
                first_line = (str(e).splitlines() or [""])[0]
                warnings.warn(f"small sums go through NCCL, symmetric memory failed: {first_line}", stacklevel=2)
    return _made[key]
