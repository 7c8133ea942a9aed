"""Keys and values in 8 bits: the format itself, and both kernels against its definition and against exact attention."""

import pytest
import torch

from mmvl.kernels.keys_8bit import KINDS, check_device, dequantize_keys, quantize_keys, read_8bit_rows
from mmvl.kernels.paged_attention import paged_attention, plan_pages
from mmvl.kernels.rope import Rotary, rope_into_pages

cuda = torch.cuda.is_available()
DEVICE = "cuda" if cuda else "cpu"
FP8, INT8 = KINDS["fp8"], KINDS["int8"]
STORED = [INT8] if cuda and torch.cuda.get_device_capability() < (8, 9) else [FP8, INT8]
ERROR = {FP8: 0.04, INT8: 0.02}  # of normal numbers, relative
by_kind = pytest.mark.parametrize("stored", STORED, ids=str)
# the interpreter's product of bf16 matrices is wrong, so the CPU takes fp16
DTYPES = {torch.float32: 1e-5, torch.bfloat16: 5e-3} if cuda else {torch.float32: 1e-5, torch.float16: 2e-3}
CASES = {  # old tokens, new tokens
    "decoding": ([0, 70, 15, 16, 130], [1] * 5),
    "drafts beside decoding": ([63, 0, 64, 3], [1, 2, 3, 1]),
    "everything": ([0, 0, 90, 31], [1, 90, 33, 2]),
}
SHAPES = [(4, 2, 16, 16)]  # heads, key heads, head dim, page size
SHAPES += [pytest.param(*shape, marks=pytest.mark.sanitize) for shape in ((4, 1, 8, 5), (6, 2, 24, 64))]
if cuda:
    CASES |= {"long decoding": ([1, 4095, 70_000], [1] * 3), "a long chunk": ([20_000, 0], [700, 3])}
    SHAPES += [(64, 8, 128, 64), (8, 2, 32, 64)]


def draw(*shape, dtype=torch.float32, seed=0, powers=(-3, 1)):
    """Each token's heads of sizes between these powers of ten."""
    generator = torch.Generator().manual_seed(seed)
    size = 10 ** torch.empty(*shape[:-1], 1).uniform_(*powers, generator=generator)
    return (torch.randn(shape, generator=generator) * size).to(DEVICE, dtype)


@by_kind
def test_what_is_stored_is_near_and_exact_in_bf16(stored):
    x = draw(500, 3, 24)
    x[0], x[1, 0, 0], x[2, 0] = 0, 1e30, 1e-30
    q, scale = quantize_keys(x, stored)
    assert q.dtype == stored and scale.dtype == torch.bfloat16
    back = dequantize_keys(q, scale, torch.float32)
    largest = x.abs().amax(-1, keepdim=True)
    most = torch.maximum(x.abs() / 16, largest / 2**18) if stored == FP8 else largest / 127
    assert ((back - x).abs() <= most).all()
    assert torch.equal(dequantize_keys(q, scale, torch.bfloat16).float(), back)
    assert not back[0].any()
    reach = (448 if stored == FP8 else 127) * scale.float()[..., None]
    assert (largest <= reach).all() and (largest > reach / 2)[1:].all()  # half of the scale would be too little
    again = quantize_keys(back, stored)
    assert torch.equal(dequantize_keys(*again, torch.float32), back)


def test_no_scale_is_used_up_at_the_borders():
    x = torch.tensor([448.0, 449.0, 464.0, 480.0, 511.9, 512.0, 896.0, 897.0])[:, None, None]
    q, scale = quantize_keys(x, FP8)
    assert scale[:, 0].tolist() == [1, 2, 2, 2, 2, 2, 2, 4]
    assert dequantize_keys(q, scale, torch.float32).flatten().tolist() == [448, 448, 448, 480, 512, 512, 896, 896]
    x = torch.tensor([127.0, 127.5, 128.0, 254.0, 255.0, 63.4, 0.5, -127.0])[:, None, None]
    q, scale = quantize_keys(x, INT8)
    assert scale[:, 0].tolist() == [1, 2, 2, 2, 4, 0.5, 2**-7, 1]
    assert q.flatten().tolist() == [127, 64, 64, 127, 64, 127, 64, -127]


@pytest.mark.parametrize("backend", ["triton", "reference"])
@by_kind
def test_what_is_not_finite_is_not_hidden(stored, backend):
    for bad in (torch.nan, torch.inf, -torch.inf):
        q, k, v = (draw(2, heads, 8) for heads in (2, 1, 1))
        k[1, 0, 1], v[1, 0, 6] = bad, bad
        k_pool, v_pool, scales = pools_of(2, 1, 8, stored)
        rows, rotary = torch.arange(2, device=DEVICE), Rotary.of(torch.arange(2, device=DEVICE), 4, 1e4)
        rope_into_pages(q, k, v, rotary, k_pool, v_pool, rows, scales_NG2=scales, backend=backend)
        for new, pool, which in ((k, k_pool, 0), (v, v_pool, 1)):
            assert new[0].isfinite().all() and not new[1].isfinite().all()
            assert not read_8bit_rows(pool, scales, which, rows, torch.float32)[1].isfinite().any()


def pools_of(rows, G, K, stored):
    # not views of one tensor, which inductor of torch 2.11 misreads where they are written
    k_pool, v_pool = (torch.zeros(rows, G, K, device=DEVICE).to(stored) for _ in range(2))
    return k_pool, v_pool, torch.zeros(rows, G, 2, dtype=torch.bfloat16, device=DEVICE)


@by_kind
@pytest.mark.parametrize("backend", ["triton", "reference"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "T, H, G, K, rotary_dim",
    [(1, 4, 2, 32, 16), (3, 6, 1, 16, 16), pytest.param(19, 3, 2, 10, 6, marks=pytest.mark.sanitize), (4, 2, 2, 8, 0)],
)
def test_new_keys_become_what_their_pages_hold(T, H, G, K, rotary_dim, dtype, backend, stored, rmse_ratio):
    q, k, v = draw(T, H, K, dtype=dtype), draw(T, G, K, dtype=dtype, seed=1), draw(T, G, K, dtype=dtype, seed=2)
    rotary = Rotary.of(torch.arange(T, device=DEVICE) * 1000, rotary_dim, 1e7)
    plain_q, plain_k = q.clone(), k.clone()
    plain_pools = torch.zeros(2, T + 7, G, K, dtype=dtype, device=DEVICE)
    write = torch.randperm(T + 7, generator=torch.Generator().manual_seed(0))[:T].to(DEVICE)
    rope_into_pages(plain_q, plain_k, v.clone(), rotary, *plain_pools, write, backend=backend)
    expected_v = dequantize_keys(*quantize_keys(v, stored), dtype)
    k_pool, v_pool, scales = pools_of(T + 7, G, K, stored)
    rope_into_pages(q, k, v, rotary, k_pool, v_pool, write, scales_NG2=scales, backend=backend)
    assert torch.equal(q, plain_q)
    assert torch.equal(k, dequantize_keys(*quantize_keys(plain_k, stored), dtype)) and torch.equal(v, expected_v)
    for which, (pool, new) in enumerate(((k_pool, k), (v_pool, v))):
        assert torch.equal(read_8bit_rows(pool, scales, which, write, dtype), new)
    assert 1e-3 < rmse_ratio(k, plain_k) < ERROR[stored]
    others = torch.ones(T + 7, dtype=torch.bool, device=DEVICE).index_fill_(0, write, False)
    assert not k_pool.view(torch.uint8)[others].any() and not v_pool.view(torch.uint8)[others].any()
    assert not scales[others].any() and scales[write].all()


def build(starts, lengths, H, G, K, page, dtype, stored):
    """Shuffled pages; the scales of all that no sequence may read are NaN."""
    needed = [-(-(start + n) // page) for start, n in zip(starts, lengths, strict=True)]
    free = torch.randperm(sum(needed) + 3, generator=torch.Generator().manual_seed(0)).tolist()
    plan = plan_pages([[free.pop() for _ in range(n)] for n in needed], starts, lengths, page, H // G, DEVICE)
    rows = plan.rows_U()
    k_pool, v_pool, scales = pools_of(page * (sum(needed) + 3), G, K, stored)
    scales.fill_(torch.nan)
    exact = []
    for which, pool in enumerate((k_pool, v_pool)):
        x = draw(len(rows), G, K, dtype=dtype, seed=which, powers=(-2, 0))  # as large as those of a model
        exact.append(torch.zeros(pool.shape, dtype=dtype, device=DEVICE).index_copy_(0, rows, x))
        q, scale = quantize_keys(x, stored)
        pool.view(torch.uint8).index_copy_(0, rows, q.view(torch.uint8))
        scales[..., which].index_copy_(0, rows, scale)
    q = torch.randn(sum(lengths), H, K, generator=torch.Generator().manual_seed(7)).to(DEVICE, dtype)
    return q, (k_pool, v_pool), scales, exact, plan


@by_kind
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("H, G, K, page", SHAPES)
@pytest.mark.parametrize("starts, lengths", CASES.values(), ids=CASES)
def test_attention_reads_them(starts, lengths, H, G, K, page, dtype, stored, rmse_ratio):
    q, pools, scales, exact, plan = build(starts, lengths, H, G, K, page, dtype, stored)
    expected = paged_attention(q.double(), *pools, plan, K**-0.5, scales_NG2=scales, backend="reference")
    out = paged_attention(q, *pools, plan, K**-0.5, scales_NG2=scales, backend="triton")
    assert out.dtype == dtype and rmse_ratio(out, expected) < DTYPES[dtype]
    assert rmse_ratio(paged_attention(q, *pools, plan, K**-0.5, scales_NG2=scales), expected) < DTYPES[dtype]
    unquantised = paged_attention(q.double(), *(x.double() for x in exact), plan, K**-0.5, backend="reference")
    assert 1e-3 < rmse_ratio(out, unquantised) < 2 * ERROR[stored]


@by_kind
def test_under_torch_compile(stored, rmse_ratio):
    q, pools, scales, _, plan = build([5, 0], [1, 40], 4, 2, 16, 16, torch.float32, stored)
    k, v = draw(41, 2, 16), draw(41, 2, 16, seed=1)
    rotary = Rotary.of(torch.arange(41, device=DEVICE), 8, 1e7)

    def step(q, k, v, k_pool, v_pool, scales):
        q, k, v = q * 1, k * 1, v * 1
        rope_into_pages(q, k, v, rotary, k_pool, v_pool, plan.write_T, scales_NG2=scales, backend="triton")
        return paged_attention(q, k_pool, v_pool, plan, 0.25, scales_NG2=scales, backend="triton"), v

    with torch.no_grad():
        plain = step(q, k, v, *(x.clone() for x in (*pools, scales)))
        compiled = torch.compile(step, fullgraph=True, backend="inductor" if cuda else "aot_eager")
        for out, expected in zip(compiled(q, k, v, *pools, scales), plain, strict=True):
            assert rmse_ratio(out, expected) < 1e-5


def test_where_they_cannot_be_kept(monkeypatch):
    check_device(torch.device("cpu"), FP8)
    with pytest.raises(ValueError, match="not for mps"):
        check_device(torch.device("mps"), INT8)
    monkeypatch.setattr("mmvl.kernels.keys_8bit.capability", lambda device: (8, 0))
    with pytest.raises(ValueError, match="compute capability 8.9 .* cuda:1 has 8.0; int8"):
        check_device(torch.device("cuda:1"), FP8)
    check_device(torch.device("cuda:1"), INT8)


if cuda:

    @by_kind
    def test_in_a_cuda_graph(stored):
        q, pools, scales, _, plan = build([5000, 0, 64], [1, 1, 1], 64, 8, 128, 64, torch.bfloat16, stored)
        rotary = Rotary.of(torch.tensor([5000, 0, 64], device=DEVICE), 64, 1e7)
        k, v = (draw(3, 8, 128, dtype=torch.bfloat16, seed=n) for n in range(2))

        def step():
            new = [x.clone() for x in (q, k, v)]
            rope_into_pages(*new, rotary, *pools, plan.write_T, scales_NG2=scales)
            return paged_attention(new[0], *pools, plan, 0.1, scales_NG2=scales)

        step()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = step()
        for x in (q, k, v):
            x.normal_()
        graph.replay()
        got = out.clone()
        assert torch.equal(got, step())
