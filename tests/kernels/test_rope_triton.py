"""RoPE's kernels against fp64: far positions, partial rotary, gradients, pages, torch.compile, CUDA graphs."""

import pytest
import torch

from mmvl.kernels.rope import Rotary, apply_rope, rope, rope_frequencies, rope_into_pages

cuda = torch.cuda.is_available()
DEVICE = "cuda" if cuda else "cpu"
DTYPES = {torch.float32: 1e-5, torch.bfloat16: 5e-3} if cuda else {torch.float32: 1e-5}
# tokens, query heads, key heads, head dim, rotary dim
SHAPES = [(1, 4, 2, 32, 16), (3, 6, 1, 16, 16), (4, 2, 2, 8, 0)]
SHAPES += [pytest.param(shape, marks=pytest.mark.sanitize) for shape in ((5, 3, 2, 10, 6), (19, 8, 2, 32, 16))]
if cuda:
    SHAPES += [(4099, 64, 8, 128, 64), (70_001, 8, 2, 32, 16), (65, 3, 1, 80, 80)]


def draw(T, H, G, K, rotary_dim):
    generator = torch.Generator().manual_seed(T)
    far = torch.tensor([1_000_000, 2**24 + 1, 2**22 + 3, 0, 10_239_999])
    positions = torch.cat((far, torch.randint(0, 2**26, (T,), generator=generator)))[:T].to(DEVICE)
    q, dq = torch.randn(2, T, H, K, generator=generator).to(DEVICE)
    k, v, dk = torch.randn(3, T, G, K, generator=generator).to(DEVICE)
    return q, k, v, dq, dk, Rotary.of(positions, rotary_dim, 1e7)


def exact(x, rotary, sign=1):
    """In fp64, but by the fp32 angles that define the operation."""
    angle = (rotary.positions_T.float()[:, None] * rotary.frequencies_R).double()
    return apply_rope(x.double(), angle.cos()[:, None], sign * angle.sin()[:, None])


@pytest.mark.parametrize("backend", ["triton", "reference"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_both_directions(shape, dtype, backend, rmse_ratio):
    q, k, _, dq, dk, rotary = draw(*shape)
    q, k, dq, dk = (x.to(dtype) for x in (q, k, dq, dk))
    inputs = [x.clone().requires_grad_() for x in (q, k)]
    outputs = rope(*inputs, rotary, backend=backend)
    torch.autograd.backward(outputs, (dq, dk))
    for out, x in zip(outputs, (q, k), strict=True):
        assert out.dtype == dtype and rmse_ratio(out, exact(x, rotary)) < DTYPES[dtype]
    for x, d in zip(inputs, (dq, dk), strict=True):
        assert rmse_ratio(x.grad, exact(d, rotary, -1)) < DTYPES[dtype]


@pytest.mark.parametrize("backend", ["triton", "reference"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_into_pages(shape, dtype, backend, rmse_ratio):
    q, k, v, *_, rotary = draw(*shape)
    q, k, v = (x.to(dtype) for x in (q, k, v))
    rows = shape[0] + 7
    write = torch.randperm(rows, generator=torch.Generator().manual_seed(0))[: shape[0]].to(DEVICE)
    k_pool, v_pool = torch.full((2, rows, *k.shape[1:]), 7.0, dtype=dtype, device=DEVICE)
    expected_q, expected_k = exact(q, rotary), exact(k, rotary)
    rope_into_pages(q, k, v, rotary, k_pool, v_pool, write, backend=backend)
    assert rmse_ratio(q, expected_q) < DTYPES[dtype] and rmse_ratio(k, expected_k) < DTYPES[dtype]
    assert torch.equal(k_pool[write], k) and torch.equal(v_pool[write], v)
    others = torch.ones(rows, dtype=torch.bool, device=DEVICE).index_fill_(0, write, False)
    assert (k_pool[others] == 7).all() and (v_pool[others] == 7).all()


def test_frequencies_are_the_released_ones():
    exponent = torch.arange(0, 64, 2, dtype=torch.float32) / 64
    assert torch.equal(rope_frequencies(64, 1e7, "cpu"), 1.0 / 1e7**exponent)


def test_one_gradient_alone():
    q, k, _, dq, _, rotary = draw(3, 2, 1, 8, 4)
    q.requires_grad_(), k.requires_grad_()
    rope(q, k, rotary, backend="triton")[0].backward(dq)
    assert k.grad is None or not k.grad.count_nonzero()
    assert torch.allclose(q.grad.double(), exact(dq, rotary, -1), atol=1e-5)


def test_under_torch_compile(rmse_ratio):
    q, k, v, dq, dk, rotary = draw(5, 4, 2, 16, 8)
    rotary.positions_T.clamp_(max=1000)

    def function(q, k):
        return rope(q * 1, k * 1, rotary, backend="triton")

    compiled = torch.compile(function, fullgraph=True, backend="inductor" if cuda else "aot_eager")
    q.requires_grad_(), k.requires_grad_()
    outputs = compiled(q, k)
    torch.autograd.backward(outputs, (dq, dk))
    assert rmse_ratio(outputs[0], exact(q, rotary)) < 1e-5 and rmse_ratio(k.grad, exact(dk, rotary, -1)) < 1e-5

    @torch.compile(fullgraph=True, backend="inductor" if cuda else "aot_eager")
    def into_pages(q, k, v, k_pool, v_pool, write):
        q, k = q * 1, k * 1
        rope_into_pages(q, k, v, rotary, k_pool, v_pool, write, backend="triton")
        return q, k

    k_pool, v_pool = (torch.zeros(9, 2, 16, device=DEVICE) for _ in range(2))  # inductor misreads views of one tensor
    with torch.no_grad():
        rotated = into_pages(q, k, v, k_pool, v_pool, torch.arange(5, device=DEVICE) + 2)
    assert rmse_ratio(rotated[0], exact(q, rotary)) < 1e-5
    assert torch.equal(k_pool[2:7], rotated[1]) and torch.equal(v_pool[2:7], v)


if cuda:

    def test_in_a_cuda_graph():
        q, k, v, *_, rotary = draw(5, 4, 2, 32, 16)
        k_pool, v_pool = torch.zeros(2, 9, 2, 32, device="cuda")
        write = torch.arange(5, device="cuda")
        rope(q, k, rotary)
        rope_into_pages(q.clone(), k.clone(), v, rotary, k_pool, v_pool, write)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            rotated = rope(q, k, rotary)
            fresh = k.clone()
            rope_into_pages(q.clone(), fresh, v, rotary, k_pool, v_pool, write)
        rotary.positions_T.add_(5)
        write.add_(2)
        graph.replay()
        assert all(torch.equal(a, b) for a, b in zip(rotated, rope(q, k, rotary), strict=True))
        assert torch.equal(k_pool[2:7], rotated[1])
