"""Partial rotary embedding and the norms against their formulas, element by element."""

import math

import pytest
import torch

from mmvl.kernels.norm import gated_rms_norm, rms_norm
from mmvl.kernels.rope import apply_rope, rope_tables


@pytest.mark.parametrize("rotary_dim", [4, 6, 10])
def test_rope_rotates_the_pairs_i_and_i_plus_half(rotary_dim, device, rmse_ratio):
    torch.manual_seed(0)
    positions = torch.tensor([0, 1, 2, 77, 5], device=device)
    x = torch.randn(5, 2, 10, device=device)
    out = apply_rope(x, *rope_tables(positions, rotary_dim, 10_000.0))
    ref, half = x.double().cpu().clone(), rotary_dim // 2
    for t, position in enumerate(positions.tolist()):
        for h in range(2):
            for i in range(half):
                angle = position * 10_000.0 ** (-2 * i / rotary_dim)
                a, b = float(x[t, h, i]), float(x[t, h, i + half])
                ref[t, h, i] = a * math.cos(angle) - b * math.sin(angle)
                ref[t, h, i + half] = b * math.cos(angle) + a * math.sin(angle)
    assert rmse_ratio(out, ref) < 1e-5
    assert torch.equal(out[..., rotary_dim:], x[..., rotary_dim:])


def test_rope_angles_are_fp32_whatever_the_dtype(device):
    cos, sin = rope_tables(torch.tensor([10_239_999], device=device), 64, 1e7)
    assert cos.dtype == sin.dtype == torch.float32 and cos.shape == (1, 1, 32)
    angle = torch.tensor(10_239_999.0) * (1.0 / 1e7 ** (torch.arange(0, 64, 2, dtype=torch.float32) / 64))
    assert torch.allclose(cos.cpu().flatten().double(), angle.double().cos(), atol=1e-6)
    x = torch.randn(1, 2, 64, device=device)
    low = apply_rope(x.bfloat16(), cos, sin)
    assert low.dtype == torch.bfloat16
    assert torch.equal(low, apply_rope(x.bfloat16().float(), cos, sin).bfloat16())


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (torch.bfloat16, 5e-3)], ids=["fp32", "bf16"])
def test_norms_equal_their_formulas(dtype, tolerance, device, rmse_ratio):
    torch.manual_seed(0)
    x, gate = (torch.randn(7, 24, device=device).to(dtype) * 3 for _ in range(2))
    weight = torch.randn(24, device=device).to(dtype)
    ref = x.double() / (x.double().square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight.double()
    assert rmse_ratio(rms_norm(x, weight, 1e-6), ref) < tolerance
    gated = gated_rms_norm(x, gate, weight, 1e-6)
    assert gated.dtype == dtype
    assert rmse_ratio(gated, ref / (1 + (-gate.double()).exp())) < tolerance


def test_gradients_equal_finite_differences():
    torch.manual_seed(0)
    x, gate = (torch.randn(3, 2, 6, dtype=torch.float64, requires_grad=True) for _ in range(2))
    weight = torch.randn(6, dtype=torch.float64, requires_grad=True)
    tables = rope_tables(torch.tensor([0, 3, 9]), 4, 100.0)
    assert torch.autograd.gradcheck(lambda x: apply_rope(x, *tables), (x,))
    assert torch.autograd.gradcheck(lambda *a: gated_rms_norm(*a, 1e-6), (x, gate, weight))
