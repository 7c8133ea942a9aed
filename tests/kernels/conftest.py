"""Fixtures of the kernel tests: every one runs on the CPU, and on the GPU too where there is one."""

import pytest
import torch


@pytest.fixture(params=["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"])
def device(request):
    return request.param


@pytest.fixture
def rmse_ratio():
    """||out - ref|| / ||ref||, in fp64."""

    def ratio(out, ref):
        out, ref = out.detach().double().cpu(), ref.detach().double().cpu()
        return ((out - ref).norm() / ref.norm().clamp(min=1e-30)).item()

    return ratio
