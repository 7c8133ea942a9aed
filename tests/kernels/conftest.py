"""Fixtures of the kernel tests: they run on the GPU where there is one, else on the CPU under Triton's interpreter."""

import pytest
import torch


@pytest.fixture(params=["cuda" if torch.cuda.is_available() else "cpu"])
def device(request):
    return request.param


@pytest.fixture(scope="session")
def kernel_device() -> str:
    """Where Triton kernels run: the GPU, or CPU tensors under Triton's interpreter (small shapes, please)."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture
def rmse_ratio():
    """||out - ref|| / ||ref||, in fp64."""

    def ratio(out, ref):
        out, ref = out.detach().double().cpu(), ref.detach().double().cpu()
        return ((out - ref).norm() / ref.norm().clamp(min=1e-30)).item()

    return ratio
