"""Packed causal GQA attention against explicit loops in fp64."""

import math
import resource

import pytest
import torch

from mmvl.kernels.softmax_attention import LONG_SEQUENCE, _for_cudnn, softmax_attention

CASES = {
    "no past": ([5, 1, 9], [5, 1, 9]),
    "decoding": ([1, 1, 1], [7, 1, 20]),
    "chunk after a past": ([4, 6], [10, 6]),
    "prefill beside decoding": ([1, 33, 1, 2], [50, 33, 1, 9]),
    "empty documents": ([0, 5, 0, 1, 0], [0, 5, 0, 1, 0]),
    "nothing new behind a past": ([0, 3, 0], [7, 9, 4]),
}


def by_loops(q, k, v, lengths_q, lengths_k, scale):
    q, k, v = q.double().cpu(), k.double().cpu(), v.double().cpu()
    group = q.shape[1] // k.shape[1]
    out, at_q, at_k = torch.zeros_like(q), 0, 0
    for n, m in zip(lengths_q, lengths_k, strict=True):
        for i in range(n):
            seen = m - n + i + 1
            for h in range(q.shape[1]):
                scores = [scale * float(q[at_q + i, h] @ k[at_k + j, h // group]) for j in range(seen)]
                weights = [math.exp(x - max(scores)) for x in scores]
                for j in range(seen):
                    out[at_q + i, h] += weights[j] / sum(weights) * v[at_k + j, h // group]
        at_q, at_k = at_q + n, at_k + m
    return out


def offsets(lengths, device):
    return torch.tensor([sum(lengths[:i]) for i in range(len(lengths) + 1)], dtype=torch.int32, device=device)


def run(q, k, v, lengths_q, lengths_k, scale):
    cu_q = offsets(lengths_q, q.device)
    cu_k = cu_q if lengths_q == lengths_k else offsets(lengths_k, q.device)
    return softmax_attention(q, k, v, cu_q, cu_k, tuple(lengths_q), tuple(lengths_k), scale)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 5e-3)], ids=["fp32", "bf16"])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("lengths_q, lengths_k", CASES.values(), ids=CASES)
def test_equals_explicit_loops(lengths_q, lengths_k, groups, dtype, tolerance, device, rmse_ratio):
    torch.manual_seed(0)
    q = torch.randn(sum(lengths_q), 4, 16, device=device).to(dtype)
    k, v = (torch.randn(sum(lengths_k), groups, 16, device=device).to(dtype) for _ in range(2))
    out = run(q, k, v, lengths_q, lengths_k, 0.25)
    assert out.dtype == dtype
    assert rmse_ratio(out, by_loops(q, k, v, lengths_q, lengths_k, 0.25)) < tolerance


@pytest.mark.parametrize("lengths_q, lengths_k", [([2, 1, 3], [2, 1, 3]), ([2, 1], [4, 2])], ids=["no past", "past"])
def test_gradients_equal_finite_differences(lengths_q, lengths_k):
    torch.manual_seed(0)
    q = torch.randn(sum(lengths_q), 2, 2, dtype=torch.float64, requires_grad=True)
    k, v = (torch.randn(sum(lengths_k), 1, 2, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(lambda *x: run(*x, lengths_q, lengths_k, 0.5), (q, k, v))


def test_documents_do_not_leak():
    q, k, v = (torch.randn(12, 2, 8, requires_grad=True) for _ in range(3))
    run(q, k, v, [5, 4, 3], [5, 4, 3], 1.0)[5:9].square().sum().backward()
    for x in (q, k, v):
        assert x.grad[:5].count_nonzero() == 0 and x.grad[9:].count_nonzero() == 0
        assert x.grad[5:9].count_nonzero() > 0


@pytest.mark.parametrize(
    "lengths_q, lengths_k, grad",
    [([5, 1, 0], [5, 1, 0], True), ([4, 1], [10, 6], False)],
    ids=["trained", "behind a past"],
)
def test_under_torch_compile(lengths_q, lengths_k, grad, device):
    dtype = torch.bfloat16 if device == "cuda" else torch.float32  # in which flash attention is called
    q = torch.randn(sum(lengths_q), 4, 16, device=device, dtype=dtype, requires_grad=grad)
    k, v = (torch.randn(sum(lengths_k), 2, 16, device=device, dtype=dtype) for _ in range(2))
    cu_q, cu_k = offsets(lengths_q, device), offsets(lengths_k, device)

    def layer(q):
        return softmax_attention(q * 1, k, v, cu_q, cu_k, tuple(lengths_q), tuple(lengths_k), 0.25)

    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")(q)
    torch.testing.assert_close(compiled, layer(q), rtol=0, atol=0)


def test_heads_that_do_not_divide_are_refused():
    q, k = torch.randn(2, 3, 8), torch.randn(2, 2, 8)
    with pytest.raises(ValueError, match="3 query heads are not a multiple of 2"):
        run(q, k, k, [2], [2], 1.0)


@pytest.mark.parametrize(
    "lengths, expected",
    [
        ((16_387,), True),
        ((4_096,), True),
        ((4_097,), False),
        ((1_024,), False),
        ((4_096,) * 3, True),
        ((4_096, 2_048), False),
    ],
    ids=str,
)
def test_long_or_round_lengths_go_to_cudnn(lengths, expected):
    assert _for_cudnn(lengths) is expected


if torch.cuda.is_available():

    def test_equal_lengths_equal_those_beside_another(rmse_ratio):
        q, k, v = (torch.randn(4097, heads, 64, device="cuda", dtype=torch.bfloat16) for heads in (8, 2, 2))
        both = run(q[:4096], k[:4096], v[:4096], [2048, 2048], [2048, 2048], 0.125)
        beside = run(q, k, v, [2048, 2048, 1], [2048, 2048, 1], 0.125)[:4096]
        assert both.shape == beside.shape and rmse_ratio(both, beside) < 1e-2

    def test_a_long_sequence_alone_equals_it_beside_another(rmse_ratio):
        L = LONG_SEQUENCE + 3
        generator = torch.Generator("cuda").manual_seed(0)
        q, k, v, g = (
            torch.randn(L, heads, 64, generator=generator, device="cuda", dtype=torch.bfloat16)
            for heads in (8, 2, 2, 8)
        )
        results = []
        for others in (0, 1):
            inputs = [torch.cat((x, x[:others])).requires_grad_() for x in (q, k, v)]
            out = run(*inputs, [L] + [1] * others, [L] + [1] * others, 0.125)[:L]
            out.backward(g)
            results.append((out, *(x.grad[:L] for x in inputs)))
        for alone, beside in zip(*results, strict=True):
            assert rmse_ratio(alone, beside) < 1e-2


def test_a_chunk_behind_a_long_past_takes_memory_for_itself_only():
    """As numbers a mask of this chunk and its keys would take 100 MB, keys repeated for every head of a group 200."""
    past, new = 200_000, 128
    k, v = (torch.randn(past + new, 1, 16) for _ in range(2))
    q = torch.randn(new, 8, 16)
    run(q, k[:1000], v[:1000], [new], [1000], 0.25)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    out = run(q, k, v, [new], [len(k)], 0.25)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 30 << 10  # KiB
    last = torch.softmax(0.25 * q[-1] @ k[:, 0].T, -1) @ v[:, 0]
    torch.testing.assert_close(out[-1], last, rtol=1e-4, atol=1e-6)
