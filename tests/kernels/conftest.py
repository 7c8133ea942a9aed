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


@pytest.fixture(scope="session")
def ragged_lengths():
    """Document lengths that add up to `total`: many short and few long ones, and around every size kernels cut at."""

    def make(total: int, longest: int = 5000, seed: int = 0, empty: bool = False) -> tuple[int, ...]:
        generator = torch.Generator().manual_seed(seed)
        lengths = [n for n in (1, 2, 15, 16, 17, 31, 33, 63, 64, 65, 127, 128, 129, 255, 257) if n <= longest]
        while sum(lengths) < total:
            lengths.append(int(longest ** torch.rand((), generator=generator).item()))
        while sum(lengths) > total:
            lengths[-1] -= min(lengths[-1], sum(lengths) - total)
            lengths = [n for n in lengths if n]
        order = torch.randperm(len(lengths), generator=generator).tolist()
        lengths = [lengths[i] for i in order]
        return tuple([0, *lengths[:1], 0, 0, *lengths[1:], 0] if empty else lengths)

    return make


@pytest.fixture
def rmse_ratio():
    """||out - ref|| / ||ref||, in fp64."""

    def ratio(out, ref):
        out, ref = out.detach().double().cpu(), ref.detach().double().cpu()
        return ((out - ref).norm() / ref.norm().clamp(min=1e-30)).item()

    return ratio
