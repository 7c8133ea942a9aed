"""Few tokens and quantised weights: Triton kernels against the fp64 reference on (dequantised) weights."""

import pytest
import torch

from mmvl.kernels.experts import experts, router
from mmvl.kernels.experts_quantized import experts_quantized, quantize_experts

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
HALF = torch.bfloat16 if CUDA else torch.float16  # the interpreter has no products in bf16
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 5e-3, torch.float16: 5e-3}

# T, D, I, E, k
SHAPES = [(1, 48, 40, 5, 2), (20, 136, 72, 4, 3), (40, 64, 32, 3, 2)]
if CUDA:
    SHAPES += [(1, 256, 160, 8, 2), (64, 256, 160, 8, 2), (500, 256, 160, 8, 2), (64, 1024, 1536, 32, 2)]
    SHAPES += [(5, 1024, 3072, 4, 1), (900, 1024, 1536, 4, 2)]


def draw(T, D, I, E, dtype):
    g = torch.Generator().manual_seed(0)
    scales = ((T, D), 1), ((E, D), D**-0.5), ((E, I, D), D**-0.5), ((E, I, D), D**-0.5), ((E, D, I), I**-0.5)
    return [(torch.randn(*shape, generator=g) * scale).to(DEVICE, dtype) for shape, scale in scales]


@pytest.mark.parametrize("bits", [16, 8, 4])
@pytest.mark.parametrize("dtype", [torch.float32, HALF], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_the_reference_on_the_same_weights(shape, dtype, bits, rmse_ratio):
    *sizes, k = shape
    x, gate, *weights = draw(*sizes, dtype)
    r = router(x, gate, k, backend="triton")
    sort = {"order_P": r.order_P, "offsets_E1": r.offsets_E1}
    if bits == 16:
        y = experts(x, *weights, r.weights_Tk, r.indices_Tk, backend="triton", **sort)
    else:
        q = quantize_experts(*weights, bits)
        y = experts_quantized(x, q, r.weights_Tk, r.indices_Tk, backend="triton", **sort)
        weights = q.dequantize(torch.float64)
    weights = [w.double() for w in weights]
    expected = experts(x.double(), *weights, r.weights_Tk.double(), r.indices_Tk)
    assert y.dtype == dtype and rmse_ratio(y, expected) < TOLERANCE[dtype]


@pytest.mark.parametrize("bits, worst", [(8, 0.02), (4, 0.2)])
def test_quantised_weights_are_near_the_given_ones(bits, worst, rmse_ratio):
    x, gate, *weights = draw(30, 256, 160, 4, torch.float32)
    q = quantize_experts(*weights, bits)
    for w, back in zip(weights, q.dequantize(torch.float32), strict=True):
        assert w.shape == back.shape and rmse_ratio(back, w) < worst
        assert (back - w).abs().max() <= w.abs().max() / (127 if bits == 8 else 7)
    r = router(x, gate, 2)
    y = experts_quantized(x, q, r.weights_Tk, r.indices_Tk, backend="reference")
    assert rmse_ratio(y, experts(x, *weights, r.weights_Tk, r.indices_Tk)) < 1.5 * worst
    assert q.w1.numel() * 8 == weights[0].numel() * bits


def test_all_tokens_on_one_expert(rmse_ratio):
    x, _, *weights = draw(30, 48, 40, 5, torch.float32)
    indices = torch.full((30, 1), 2, device=DEVICE)
    ones = torch.ones(30, 1, device=DEVICE)
    expected = experts(x.double(), *(w.double() for w in weights), ones.double(), indices)
    with torch.no_grad():
        assert rmse_ratio(experts(x, *weights, ones, indices, backend="triton"), expected) < 1e-5


def test_what_cannot_be_done_is_said():
    x, gate, *weights = draw(4, 16, 16, 3, torch.float32)
    with pytest.raises(ValueError, match="8 or 4 bits, not 3"):
        quantize_experts(*weights, 3)
    q = quantize_experts(*weights, 8)
    r = router(x, gate, 2)
    with pytest.raises(ValueError, match="no gradient"):
        experts_quantized(x.requires_grad_(), q, r.weights_Tk, r.indices_Tk)


def test_quantised_experts_compile_whole():
    x, gate, *weights = draw(20, 48, 40, 5, torch.float32)
    q = quantize_experts(*weights, 4)

    def layer(x):
        r = router(x, gate, 2, backend="triton")
        sort = {"order_P": r.order_P, "offsets_E1": r.offsets_E1}
        return experts_quantized(x, q, r.weights_Tk, r.indices_Tk, backend="triton", **sort)

    with torch.no_grad():
        assert torch.equal(torch.compile(layer, fullgraph=True, backend="aot_eager")(x), layer(x))
