"""Offsets beyond 2^31 elements: state slots and pages that lie far out, and a million tokens of norms and RoPE.

A pool is memory that nobody touches but at the ends, so that it costs nothing. Lightning attention and experts have
their million tokens in their own files. On a CPU, where Triton's interpreter would take hours, the tokens are few.

Legend: T tokens, D channels, H query heads, G key/value heads, K head dim, N slots or tokens that a pool holds.
"""

import pytest
import torch

from mmvl.kernels.keys_8bit import KINDS
from mmvl.kernels.lightning_decode import lightning_decode
from mmvl.kernels.norm import add_rms_norm, gated_rms_norm, sum_of_squares
from mmvl.kernels.paged_attention import paged_attention, plan_pages
from mmvl.kernels.rope import Rotary, apply_rope, rope, rope_into_pages

cuda = torch.cuda.is_available()
DEVICE = "cuda" if cuda else "cpu"
HALF = torch.bfloat16 if cuda else torch.float16  # the interpreter has no products in bf16
FORWARD, BACKWARD = (5e-3, 1e-2) if cuda else (1e-5, 1e-5)  # of many tokens, in fp32 on a CPU


def draw(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator(DEVICE).manual_seed(seed), device=DEVICE, dtype=dtype)


def empty_pool(rows, *shape, dtype):
    try:
        return torch.empty(rows, *shape, dtype=dtype, device=DEVICE)
    except RuntimeError as error:
        pytest.skip(f"no room for a pool beyond 2^31 elements: {error}")


def test_state_slots(rmse_ratio):
    H, K = 2, 32
    N = 2**31 // (H * K * K) + 3
    far, near = empty_pool(N, H, K, K, dtype=torch.float32), draw(3, H, K, K)
    slots = torch.tensor([N - 1, 0, N - 2], device=DEVICE)
    assert slots[2] * H * K * K >= 2**31
    far[slots] = near
    qkv, slopes = draw(3, H, 3 * K, seed=1), torch.tensor([0.9, 0.004], device=DEVICE)
    expected = lightning_decode(qkv, near, torch.arange(3, device=DEVICE), slopes, backend="reference")
    assert rmse_ratio(lightning_decode(qkv, far, slots, slopes, backend="triton"), expected) < 1e-6
    assert rmse_ratio(far[slots], near) < 1e-6


@pytest.mark.parametrize("stored", [HALF, KINDS["int8"]], ids=str)
def test_pages(stored, rmse_ratio):
    """New keys go into pages of which one lies at either end; then they and old ones are read from there."""
    H, G, K, page = 4, 2, 16, 16
    pages = 2**31 // (G * K * page) + 2
    pools = [empty_pool(pages * page, G, K, dtype=stored) for _ in range(2)]
    scales = None if stored == HALF else empty_pool(pages * page, G, 2, dtype=torch.bfloat16)
    table, starts, lengths = [[pages - 1, 0], [pages - 2]], [0, 3], [20, 1]
    far = plan_pages(table, [0, 0], [20, 4], page, H // G, DEVICE)
    assert far.write_T.max() * G * K >= 2**31
    q, k, v = draw(24, H, K, dtype=HALF), draw(24, G, K, dtype=HALF, seed=1), draw(24, G, K, dtype=HALF, seed=2)
    rotary = Rotary.of(torch.tensor([*range(20), *range(4)], device=DEVICE), 8, 1e4)
    near = [torch.zeros(24, G, K, device=DEVICE).to(stored) for _ in range(2)]
    near_scales = None if stored == HALF else torch.zeros(24, G, 2, dtype=torch.bfloat16, device=DEVICE)
    rows = torch.arange(24, device=DEVICE)
    known = [x.clone() for x in (q, k, v)]
    rope_into_pages(*known, rotary, *near, rows, scales_NG2=near_scales, backend="reference")
    rope_into_pages(q, k, v, rotary, *pools, far.write_T, scales_NG2=scales, backend="triton")
    for pool, expected in zip(pools, near, strict=True):
        assert rmse_ratio(pool[far.write_T], expected) < FORWARD + 1e-2 * (stored != HALF)
    new = torch.tensor([*range(20), 23], device=DEVICE)  # the last of the second sequence's tokens sees its old ones
    plan = plan_pages(table, starts, lengths, page, H // G, DEVICE)
    how = {"scale": K**-0.5, "scales_NG2": scales}
    expected = paged_attention(q[new].double(), *pools, plan, **how, backend="reference")
    assert rmse_ratio(paged_attention(q[new], *pools, plan, **how, backend="triton"), expected) < 5e-3


def parts(T):
    return slice(0, 40), slice(T // 2, T // 2 + 40), slice(T - 40, T)


def compare_norms(T, D, dtype, rmse_ratio):
    leaves, g = [draw(T, D, dtype=dtype, seed=n).requires_grad_() for n in range(3)], draw(T, D, dtype=dtype, seed=3)
    weight = torch.linspace(0.5, 1.5, D, device=DEVICE, dtype=dtype)

    def run(r, x, gate, g, weight, backend):
        total, normed = add_rms_norm(r, x, 2.1, 0.7, weight, 1e-5, postnorm=False, backend=backend)
        gated = gated_rms_norm(normed, gate, weight, 1e-6, backend=backend)
        squares = sum_of_squares(total, backend=backend)
        grads = torch.autograd.grad((gated, squares), (r, x, gate), (g, 0.1 * torch.ones_like(squares)))
        return total.detach(), gated.detach(), squares.detach(), *grads

    results = run(*leaves, g, weight, "triton")
    for part in parts(T):
        exact = [a[part].detach().double().requires_grad_() for a in (*leaves, g)]
        expected = run(*exact[:3], exact[3].detach(), weight.double(), "reference")
        for n, (out, ref) in enumerate(zip(results, expected, strict=True)):
            assert rmse_ratio(out[part], ref) < (FORWARD if n < 3 else BACKWARD), n


def compare_rope(T, H, K, dtype, rmse_ratio):
    q, k = draw(T, H, K, dtype=dtype), draw(T, 1, K, dtype=dtype, seed=1)
    rotary = Rotary.of(torch.arange(T, device=DEVICE), K // 2, 1e7)
    for x, out in zip((q, k), rope(q, k, rotary, backend="triton"), strict=True):
        for part in parts(T):
            angle = (rotary.positions_T[part].float()[:, None] * rotary.frequencies_R).double()
            expected = apply_rope(x[part].double(), angle.cos()[:, None], angle.sin()[:, None])
            assert rmse_ratio(out[part], expected) < FORWARD


def test_many_tokens(rmse_ratio):
    compare_norms(150, 48, torch.float32, rmse_ratio)
    compare_rope(150, 3, 16, torch.float32, rmse_ratio)


if cuda:

    @pytest.mark.skipif(torch.cuda.mem_get_info()[1] < 100e9, reason="takes some 80 GB")
    @pytest.mark.parametrize("compare, shape", [(compare_norms, (2176,)), (compare_rope, (18, 128))])
    def test_a_million_tokens(compare, shape, rmse_ratio):
        compare(1_000_000, *shape, HALF, rmse_ratio)
