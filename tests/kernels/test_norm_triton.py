"""The norms' kernels against fp64: residual sums, gates, tensor-parallel shards, torch.compile, CUDA graphs."""

import pytest
import torch

from mmvl.kernels.norm import add_rms_norm, gated_rms_norm, rms_norm, sum_of_squares

SMALL = [(1, 24), (21, 256)] + [pytest.param(T, D, marks=pytest.mark.sanitize) for T, D in ((7, 24), (3, 300))]
LARGE = [(1, 6144), (1031, 6144), (777, 8192), (65_537, 256), (2, 16_384)]
SHAPES = SMALL + (LARGE if torch.cuda.is_available() else [])
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}  # of gradients
FORWARD = TOLERANCES | {torch.bfloat16: 5e-3}
DTYPES = list(TOLERANCES) if torch.cuda.is_available() else [torch.float32]
cuda = torch.cuda.is_available()
DEVICE = "cuda" if cuda else "cpu"


def draw(T, D, count):
    generator = torch.Generator().manual_seed(T + D)
    *tensors, weight = (torch.randn(T, D, generator=generator, dtype=torch.float64) for _ in range(count + 1))
    return [x.to(DEVICE) for x in tensors], 1 + 0.3 * weight[0].to(DEVICE)


def gradients(function, inputs, upstream, dtype, backend):
    """Outputs and gradients of `function` on `inputs` in `dtype`."""
    inputs = [x.to(dtype).requires_grad_() for x in inputs]
    outputs = function(*inputs, backend)
    torch.autograd.backward(outputs, [g.to(dtype) for g in upstream[: len(outputs)]])
    return *outputs, *(x.grad for x in inputs)


def compare(function, inputs, upstream, dtype, rmse_ratio):
    rounded = [x.to(dtype).double() for x in inputs]
    out = gradients(function, inputs, upstream, dtype, "triton")
    ref = gradients(function, rounded, [g.to(dtype) for g in upstream], torch.float64, "reference")
    for i, (a, b) in enumerate(zip(out, ref, strict=True)):
        if b is None:  # not used by the output
            assert a is None or not a.count_nonzero()
        else:
            assert rmse_ratio(a, b) < (FORWARD if i < len(out) - len(inputs) else TOLERANCES)[dtype], i


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("postnorm", [True, False], ids=["post-norm", "pre-norm"])
@pytest.mark.parametrize("T, D", SHAPES)
def test_residual_sum_and_norm(T, D, postnorm, dtype, rmse_ratio):
    (x, r, g, h), weight = draw(T, D, 4)

    def function(r, x, weight, backend):
        return add_rms_norm(r, x, 2.1, 0.7, weight, 1e-5, postnorm=postnorm, backend=backend)

    compare(function, (r, x, weight), (g, h), dtype, rmse_ratio)


@pytest.mark.parametrize("postnorm", [True, False], ids=["post-norm", "pre-norm"])
@pytest.mark.parametrize("used", ["residual", "normed"])
def test_one_output_alone_and_no_residual(postnorm, used, rmse_ratio):
    (x, r, g), weight = draw(9, 40, 3)

    def function(*inputs):
        r, x, weight, backend = inputs if len(inputs) == 4 else (None, *inputs)
        both = add_rms_norm(r, x, 1.5, 1.0, weight, 1e-5, postnorm=postnorm, backend=backend)
        return (both[used == "normed"],)

    compare(function, (r, x, weight), (g,), torch.float32, rmse_ratio)
    if used == "normed":
        compare(function, (x, weight), (g,), torch.float32, rmse_ratio)


def test_the_post_norm_residual_costs_no_memory():
    x, weight = torch.randn(5, 16, device=DEVICE, requires_grad=True), torch.ones(16, device=DEVICE)
    residual, normed = add_rms_norm(None, x, 1.0, 1.0, weight, 1e-5, postnorm=True, backend="triton")
    assert residual.data_ptr() == normed.data_ptr()
    (2 * residual + 3 * normed).sum().backward()
    expected = torch.autograd.grad(5 * rms_norm(x, weight, 1e-5, backend="reference").sum(), x)[0]
    assert torch.allclose(x.grad, expected, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("T, D", SHAPES)
def test_norm_and_gate(T, D, dtype, rmse_ratio):
    (x, gate, g), weight = draw(T, D, 3)

    def function(x, gate, weight, backend):
        return (gated_rms_norm(x, gate, weight, 1e-6, backend=backend),)

    compare(function, (x, gate, weight), (g,), dtype, rmse_ratio)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("T, D", SHAPES)
def test_shards_with_shared_sums_equal_the_whole(T, D, dtype, rmse_ratio):
    """What two tensor-parallel ranks do, in one process: their sums of squares are added, all else is their own."""
    (x, gate, g), weight = draw(T, D, 3)
    cut = D // 3 // 4 * 4

    def function(x, gate, weight, backend):
        if backend == "reference":
            return (gated_rms_norm(x, gate, weight, 1e-6, backend=backend),)
        parts = [(x[:, s], gate[:, s], weight[s]) for s in (slice(0, cut), slice(cut, D))]
        squares = sum(sum_of_squares(x, backend=backend) for x, _, _ in parts)
        assert squares.dtype == torch.float32
        shards = [gated_rms_norm(*p, 1e-6, squares_T=squares, channels=D, backend=backend) for p in parts]
        return (torch.cat(shards, dim=1),)

    compare(function, (x, gate, weight), (g,), dtype, rmse_ratio)


def test_the_reference_of_a_shard_equals_the_whole():
    x, gate = torch.randn(2, 3, 8, dtype=torch.float64)
    weight = torch.randn(8, dtype=torch.float64)
    squares = sum_of_squares(x[:, :4]) + sum_of_squares(x[:, 4:])
    shards = [
        gated_rms_norm(x[:, s], gate[:, s], weight[s], 1e-6, squares_T=squares, channels=8)
        for s in (slice(0, 4), slice(4, 8))
    ]
    assert torch.allclose(torch.cat(shards, dim=1), gated_rms_norm(x, gate, weight, 1e-6))
    with pytest.raises(ValueError, match="squares_T and channels together"):
        gated_rms_norm(x, gate, weight, 1e-6, squares_T=squares)


def test_large_and_tiny_rows(rmse_ratio):
    (x, g), weight = draw(6, 64, 2)
    x[0], x[1], x[2], x[3] = x[0] * 1e4, x[1] * 1e-4, 0, x[3] * 1e-30

    def function(x, weight, backend):
        return (rms_norm(x, weight, 1e-6, backend=backend),)

    compare(function, (x, weight), (g,), torch.float32, rmse_ratio)


def test_the_weights_gradient_does_not_depend_on_timing():
    (x, gate, g), weight = draw(200, 48, 3)
    runs = [
        gradients(
            lambda x, gate, w, backend: (gated_rms_norm(x, gate, w, 1e-6, backend=backend),),
            (x, gate, weight), (g,), torch.float32, "triton",
        )
        for _ in range(3)
    ]  # fmt: skip
    assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(run, runs[0], strict=True))


def test_other_shapes_and_layouts():
    x = torch.randn(2, 3, 40, device=DEVICE)
    weight, wide = torch.randn(32, device=DEVICE), x[..., 4:36]
    expected = rms_norm(wide, weight, 1e-6, backend="reference")
    assert torch.allclose(rms_norm(wide, weight, 1e-6, backend="triton"), expected, atol=1e-5)
    assert rms_norm(wide[:0], weight, 1e-6, backend="triton").shape == (0, 3, 32)


@pytest.mark.parametrize("postnorm", [True, False], ids=["post-norm", "pre-norm"])
def test_under_torch_compile(postnorm, rmse_ratio):
    (x, r, gate, g), weight = draw(5, 32, 4)

    def function(r, x, gate, weight, backend):
        residual, normed = add_rms_norm(r, x, 2.1, 1.0, weight, 1e-5, postnorm=postnorm, backend=backend)
        return (residual * gated_rms_norm(normed, gate, weight, 1e-6, backend=backend),)

    compiled = torch.compile(function, fullgraph=True, backend="inductor" if cuda else "aot_eager")
    out = gradients(compiled, (r, x, gate, weight), (g,), torch.float32, "triton")
    ref = gradients(function, (r, x, gate, weight), (g,), torch.float64, "reference")
    for a, b in zip(out, ref, strict=True):
        assert rmse_ratio(a, b) < 1e-5


if cuda:

    def test_in_a_cuda_graph():
        x, r = torch.randn(2, 100, 256, device="cuda")
        weight = torch.randn(256, device="cuda")

        def run():
            residual, normed = add_rms_norm(r, x, 2.0, 1.0, weight, 1e-5, postnorm=False)
            return residual, gated_rms_norm(normed, r, weight, 1e-5)

        run()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = run()
        x.normal_()
        graph.replay()
        assert all(torch.equal(a, b) for a, b in zip(outputs, run(), strict=True))
