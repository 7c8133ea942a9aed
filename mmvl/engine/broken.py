"""Faults after which nothing more can be answered in this process, and how they are told."""

import torch

from mmvl.engine.memory import is_out_of_memory


class EngineBroken(RuntimeError):
    """No request is answered any more until the process is started anew; `__cause__` is what happened."""

    @classmethod
    def by(cls, error: BaseException) -> "EngineBroken":
        first = (str(error).strip().splitlines() or [""])[0]  # CUDA's advice on debugging follows it
        broken = cls(f"the engine is broken until the process is started anew ({type(error).__name__}: {first})")
        broken.__cause__ = error
        return broken


def device_fault(device: torch.device) -> Exception | None:
    """What the device says if it computes nothing more in this process; None if it still works.

    After an illegal or misaligned address, a device-side assert and the like, CUDA gives the same error to every later
    call until the process ends ("CUDA Runtime API", cudaErrorIllegalAddress and others); other errors are told once.
    """
    if device.type != "cuda":
        return None
    try:
        torch.cuda.synchronize(device)
    except Exception as error:
        return None if is_out_of_memory(error) else error
    return None
