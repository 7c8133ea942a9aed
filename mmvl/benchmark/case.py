"""What a benchmark of one operation declares: its shapes, inputs, contestants, reference, costs and goals."""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

Shape = Mapping[str, int]
Inputs = Any  # what `Case.inputs` makes; only the case's own functions look into it
TOLERANCE = {torch.bfloat16: 5e-3, torch.float32: 1e-5}


def as_tuple(output: Any) -> tuple[torch.Tensor, ...]:
    return tuple(output) if isinstance(output, tuple | list) else (output,)


@dataclass(frozen=True)
class Contestant:
    """One implementation. `prepare(inputs)` lays them out as it wants them and is not timed; what it returns is.

    view: its output as the reference gives it. package: what must be installed. note: where its work differs.
    slack: its error may be so many times the case's tolerance, for a peer that is right and rounds more often.
    """

    name: str
    prepare: Callable[[Inputs], Callable[[], Any]]
    view: Callable[[Any, Inputs], tuple[torch.Tensor, ...]] = lambda output, inputs: as_tuple(output)
    package: str | None = None
    ours: bool = False
    gpu: bool = False  # runs on a GPU only
    slack: float = 1.0
    note: str = ""

    def missing(self, device: torch.device) -> str | None:
        """Why it cannot take part here; None if it can."""
        if self.package is not None and importlib.util.find_spec(self.package) is None:
            return f"{self.package} is not installed"
        return "needs a GPU" if self.gpu and device.type == "cpu" else None


@dataclass(frozen=True)
class Case:
    """An operation to measure. Costs are of one call on given inputs and assume nothing is read or written twice.

    full / quick / tiny: shapes for a GPU, for a short run on it, and for the CPU. axis: the key that varies among them.
    reference: the output in fp64, or of a part of it (some heads, some tokens); `part` takes the same part of a whole
    output. goals: milliseconds by the value of `axis`, on an H200.
    """

    op: str
    about: str
    axis: str
    full: Sequence[Shape]
    quick: Sequence[Shape]
    tiny: Sequence[Shape]
    inputs: Callable[[Shape, torch.device, torch.dtype, int], Inputs]
    contestants: Sequence[Contestant]
    reference: Callable[[Inputs], tuple[torch.Tensor, ...]]
    bytes: Callable[[Inputs], float]
    flops: Callable[[Inputs], float]
    part: Callable[[tuple[torch.Tensor, ...], Inputs], tuple[torch.Tensor, ...]] = lambda outputs, inputs: outputs
    goals: Mapping[int, float] = field(default_factory=dict)
    tolerance: Mapping[torch.dtype, float] = field(default_factory=lambda: TOLERANCE)
    matrix: str = "bf16"  # which matrix ceiling its floating-point operations have
    only_gpu: bool = False  # nothing of it runs on a CPU
    release: Callable[[], None] = lambda: None  # lets go of what `inputs` keeps from call to call

    def shapes(self, device: torch.device, quick: bool) -> Sequence[Shape]:
        if device.type == "cpu":
            return () if self.only_gpu else self.tiny
        return self.quick if quick else self.full
