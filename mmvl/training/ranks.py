"""The processes that train together: who this one is, and small sums over all of them on the host."""

from __future__ import annotations

import atexit
import os
from typing import Any

import torch
import torch.distributed as dist


class Ranks:
    """This process among those that torchrun started; alone without torchrun.

    What is exchanged here is a few numbers a step, through gloo: a GPU collective would make the host wait for the
    device every step.

    Attributes: rank, world, device (this process's own), first (is it rank 0).
    """

    def __init__(self):
        self.world = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0"))
        cuda = torch.cuda.is_available()
        local = int(os.environ.setdefault("LOCAL_RANK", "0"))  # DeepSpeed insists on it
        self.device = torch.device("cuda", local) if cuda else torch.device("cpu")
        if cuda:
            torch.cuda.set_device(self.device)
        else:
            os.environ["DS_ACCELERATOR"] = "cpu"  # read when deepspeed is imported
        if not dist.is_initialized():
            backend = "nccl" if cuda else "gloo"
            if self.world > 1:
                dist.init_process_group(backend)
            else:  # a group of one, without a port
                dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
            atexit.register(lambda: dist.is_initialized() and dist.destroy_process_group())
        self._host = dist.new_group(backend="gloo") if self.world > 1 else None

    @property
    def first(self) -> bool:
        return self.rank == 0

    def sum(self, values: list[float]) -> list[float]:
        """Element by element over all processes; exact for integers below 2^53."""
        if self._host is None:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total, group=self._host)
        return total.tolist()

    def gather(self, value: Any) -> list[Any]:
        """The value of every process, by rank."""
        if self._host is None:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value, group=self._host)
        return values

    def wait(self) -> None:
        """Return when all processes have come here."""
        if self._host is not None:
            dist.barrier(group=self._host)
