"""Attention through a page table against fp64: ragged lengths, page borders, chunks of any size, CUDA graphs."""

import random

import pytest
import torch

from mmvl.kernels import tuning
from mmvl.kernels.paged_attention import paged_attention, plan_pages

cuda = torch.cuda.is_available()
DEVICE = "cuda" if cuda else "cpu"
# the interpreter's product of bf16 matrices is wrong, so the CPU takes fp16
DTYPES = {torch.float32: 1e-5, torch.bfloat16: 5e-3} if cuda else {torch.float32: 1e-5, torch.float16: 2e-3}
CASES = {  # old tokens, new tokens
    "decoding": ([0, 70, 15, 16, 17, 130], [1] * 6),
    "drafts beside decoding": ([63, 0, 64, 3], [1, 2, 3, 1]),
    "chunks": ([0, 7, 90], [40, 1, 70]),
    "everything": ([0, 0, 90, 31], [1, 90, 33, 2]),
}
# heads, key heads, head dim, page size
SHAPES = [(4, 2, 16, 16)]
SHAPES += [pytest.param(*shape, marks=pytest.mark.sanitize) for shape in ((4, 1, 8, 5), (6, 2, 32, 64))]
LONG = {"long decoding": ([1, 4095, 4096, 70_000], [1] * 4), "a long chunk": ([20_000, 0], [700, 3])}
if cuda:
    SHAPES += [(64, 8, 128, 64), (8, 2, 64, 64), (8, 2, 32, 64), (64, 8, 128, 16)]


def build(starts, lengths, H, G, K, page, dtype, seed=0):
    """Shuffled pages; all that no sequence may read is NaN."""
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    needed = [-(-(start + n) // page) for start, n in zip(starts, lengths, strict=True)]
    free = list(range(sum(needed) + 3))
    rng.shuffle(free)
    pages = [[free.pop() for _ in range(n)] for n in needed]
    plan = plan_pages(pages, starts, lengths, page, H // G, DEVICE)
    rows = plan.rows_U()
    pools = torch.full((2, page * (sum(needed) + 3), G, K), torch.nan, dtype=dtype, device=DEVICE)
    for pool in pools:
        pool[rows] = torch.randn(len(rows), G, K, generator=generator).to(DEVICE, dtype)
    q = torch.randn(sum(lengths), H, K, generator=generator).to(DEVICE, dtype)
    return q, *pools, plan


def by_sequence(q, k_pool, v_pool, plan, starts, lengths, scale):
    """In fp64, one sequence and one head after the other."""
    q, k, v = q.double(), k_pool.double()[plan.rows_U()], v_pool.double()[plan.rows_U()]
    out, at_q, at_k = torch.empty_like(q), 0, 0
    for start, n in zip(starts, lengths, strict=True):
        hidden = torch.ones(n, start + n, dtype=torch.bool, device=q.device).tril(start).logical_not()
        for h in range(q.shape[1]):
            g = h // plan.group
            scores = scale * q[at_q : at_q + n, h] @ k[at_k : at_k + start + n, g].T
            weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
            out[at_q : at_q + n, h] = weights @ v[at_k : at_k + start + n, g]
        at_q, at_k = at_q + n, at_k + start + n
    return out


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("H, G, K, page", SHAPES)
@pytest.mark.parametrize("starts, lengths", CASES.values(), ids=CASES)
def test_equals_fp64(starts, lengths, H, G, K, page, dtype, rmse_ratio):
    q, k_pool, v_pool, plan = build(starts, lengths, H, G, K, page, dtype)
    expected = by_sequence(q, k_pool, v_pool, plan, starts, lengths, K**-0.5)
    out = paged_attention(q, k_pool, v_pool, plan, K**-0.5, backend="triton")
    assert out.dtype == dtype and rmse_ratio(out, expected) < DTYPES[dtype]
    reference = paged_attention(q.double(), k_pool.double(), v_pool.double(), plan, K**-0.5)
    assert rmse_ratio(reference, expected) < 1e-12


@pytest.mark.sanitize
@pytest.mark.parametrize("page, keys", [(16, 16), (32, 16), (5, 16)])
def test_pages_looked_up_ahead_are_the_same(page, keys):
    """Chunks that end in the middle of a page, at its end and within the first step."""
    starts, lengths = [0, 7, 90, 31, 64], [40, 1, 70, 33, 32]
    q, k_pool, v_pool, plan = build(starts, lengths, 8, 1, 16, page, torch.float16)
    found = []
    for ahead in (0, 1):
        config = {"keys": keys, "num_warps": 4, "num_stages": 3, "ahead": ahead}
        with tuning.forced("paged_prefill", config):
            found.append(paged_attention(q, k_pool, v_pool, plan, 0.25, backend="triton"))
    assert torch.equal(*found) and found[0].isfinite().all()


@pytest.mark.parametrize(("K", "dtype", "ahead"), [(128, "bfloat16", 1), (128, "float32", 0), (64, "bfloat16", 0)])
def test_pages_are_looked_up_ahead_where_that_was_measured(K, dtype, ahead):
    config = tuning.declared()["paged_prefill"].default_at({"K": K, "page": 64, "dtype": dtype})
    assert config["ahead"] == ahead and config["num_warps"] == (8 if ahead or dtype == "float32" else 4)


@pytest.mark.skipif(not cuda, reason="too long for Triton's interpreter")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("H, G, K, page", [(4, 2, 16, 16), (4, 1, 8, 5), (64, 8, 128, 64), (8, 2, 32, 64)])
@pytest.mark.parametrize("starts, lengths", LONG.values(), ids=LONG)
def test_long_ones_equal_fp64(starts, lengths, H, G, K, page, dtype, rmse_ratio):
    q, k_pool, v_pool, plan = build(starts, lengths, H, G, K, page, dtype)
    expected = by_sequence(q, k_pool, v_pool, plan, starts, lengths, K**-0.5)
    out = paged_attention(q, k_pool, v_pool, plan, K**-0.5, backend="triton")
    assert rmse_ratio(out, expected) < DTYPES[dtype]


@pytest.mark.sanitize
def test_large_scores(rmse_ratio):
    """Differences of hundreds between scores, so that parts of the keys count for nothing."""
    starts, lengths = [300, 0], [1, 40]
    q, k_pool, v_pool, plan = build(starts, lengths, 4, 2, 16, 16, torch.float32)
    expected = by_sequence(q, k_pool, v_pool, plan, starts, lengths, 30.0)
    assert rmse_ratio(paged_attention(q, k_pool, v_pool, plan, 30.0, backend="triton"), expected) < 1e-5


def test_where_new_keys_are_written():
    plan = plan_pages([[4, 2], [0], [7, 1, 3]], [3, 0, 8], [3, 2, 1], 4, 2, "cpu")
    assert plan.write_T.tolist() == [4 * 4 + 3, 2 * 4, 2 * 4 + 1, 0, 1, 3 * 4]
    assert plan.rows_U().tolist() == [16, 17, 18, 19, 8, 9, 0, 1, 28, 29, 30, 31, 4, 5, 6, 7, 12]
    assert plan.lengths_S.tolist() == [6, 2, 9] and plan.cu_keys_S1.tolist() == [0, 6, 8, 17]


def test_wrong_heads_are_refused():
    q, k_pool, v_pool, plan = build([3], [1], 4, 2, 8, 4, torch.float32)
    with pytest.raises(ValueError, match="2 query heads and 2 key/value heads"):
        paged_attention(q[:, :2], k_pool, v_pool, plan, 1.0)


def test_under_torch_compile(rmse_ratio):
    q, k_pool, v_pool, plan = build([5, 0], [1, 40], 4, 2, 16, 16, torch.float32)

    @torch.compile(fullgraph=True, backend="inductor" if cuda else "aot_eager")
    def function(q):
        return paged_attention(q * 1, k_pool, v_pool, plan, 0.25, backend="triton") + 1

    assert rmse_ratio(function(q) - 1, by_sequence(q, k_pool, v_pool, plan, [5, 0], [1, 40], 0.25)) < 1e-5


if cuda:

    def test_in_a_cuda_graph():
        q, k_pool, v_pool, plan = build([5000, 0, 64], [1, 1, 1], 64, 8, 128, 64, torch.bfloat16)
        paged_attention(q, k_pool, v_pool, plan, 0.1)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = paged_attention(q, k_pool, v_pool, plan, 0.1)
        q.normal_()
        plan.lengths_S.sub_(torch.tensor([700, 0, 1], dtype=torch.int32, device="cuda"))  # as if less had been seen
        graph.replay()
        assert torch.equal(out, paged_attention(q, k_pool, v_pool, plan, 0.1))
