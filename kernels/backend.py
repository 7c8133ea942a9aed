"""Which implementation of an operation runs: its Triton kernels or the plain PyTorch reference beside them."""

import functools
import importlib.util
import os

import torch

TRITON, REFERENCE = "triton", "reference"
_HAS_TRITON = importlib.util.find_spec("triton") is not None  # found, not imported; once, so that it can be traced


def choose(backend: str | None, *tensors: torch.Tensor, supported: bool = True) -> str:
    """`backend` itself if given; else "triton" for CUDA tensors that it supports, "reference" for all others.

    MMVL_KERNELS=reference in the environment turns Triton off wherever no backend was asked for. Pass `supported=False`
    for shapes or dtypes without a kernel.

    Raises:
        ValueError: an unknown backend, or Triton was asked for and has no kernel for these tensors.
    """
    if backend not in (None, TRITON, REFERENCE):
        raise ValueError(f"backend is {backend!r}; it can be {TRITON!r}, {REFERENCE!r} or None")
    if backend == TRITON and not supported:
        shapes = ", ".join(f"{tuple(t.shape)} {t.dtype}" for t in tensors)
        raise ValueError(f"there is no Triton kernel for {shapes}; use backend={REFERENCE!r}")
    if backend == TRITON and not (_interpreted() or all(t.is_cuda for t in tensors)):
        raise ValueError("Triton kernels need tensors on a GPU (or TRITON_INTERPRET=1); use backend='reference'")
    if backend is not None:
        return backend
    if not supported or os.environ.get("MMVL_KERNELS") == REFERENCE:
        return REFERENCE
    return TRITON if all(_on_gpu(t) for t in tensors) and has_triton() else REFERENCE


def _on_gpu(tensor: torch.Tensor) -> bool:
    return tensor.is_cuda and tensor.dtype != torch.float64 and capability(tensor.device) >= (8, 0)


@functools.cache
def capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")


def has_triton() -> bool:
    """Whether triton can be imported (wheels of torch without CUDA come without it)."""
    return _HAS_TRITON
