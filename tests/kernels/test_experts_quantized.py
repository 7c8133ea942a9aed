"""Few tokens and quantised weights: Triton kernels against the fp64 reference on (dequantised) weights."""

import pytest
import torch

from mmvl.kernels import tuning
from mmvl.kernels.experts import experts, router
from mmvl.kernels.experts_quantized import experts_quantized, quantize_experts

CUDA = torch.cuda.is_available()
HOPPER = CUDA and torch.cuda.get_device_capability() >= (9, 0)
DEVICE = "cuda" if CUDA else "cpu"
HALF = torch.bfloat16 if CUDA else torch.float16  # the interpreter has no products in bf16
PER_EXPERT = ("w1", "w3", "w2", "scale1", "scale3", "scale2")
FP8_ERROR = 0.08 if CUDA else 0.12  # the interpreter rounds to fp8 towards zero
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 5e-3, torch.float16: 5e-3}

# T, D, I, E, k
SMALL = pytest.mark.sanitize  # for compute-sanitizer
SHAPES = [(1, 48, 40, 5, 2), pytest.param((20, 136, 72, 4, 3), marks=SMALL), (40, 64, 32, 3, 2)]
if CUDA:
    SHAPES += [(1, 256, 160, 8, 2), (64, 256, 160, 8, 2), (500, 256, 160, 8, 2), (64, 1024, 1536, 32, 2)]
    SHAPES += [(5, 1024, 3072, 4, 1), (900, 1024, 1536, 4, 2)]


@pytest.fixture
def table(monkeypatch):
    """table(entries by operation): what is known of launch parameters."""

    def set_entries(entries):
        monkeypatch.setattr(tuning, "_table", lambda: entries)
        tuning._lookup.cache_clear()

    yield set_entries
    tuning._lookup.cache_clear()


def draw(T, D, I, E, dtype):
    g = torch.Generator().manual_seed(0)
    scales = ((T, D), 1), ((E, D), D**-0.5), ((E, I, D), D**-0.5), ((E, I, D), D**-0.5), ((E, D, I), I**-0.5)
    return [(torch.randn(*shape, generator=g) * scale).to(DEVICE, dtype) for shape, scale in scales]


@pytest.mark.parametrize("kind", ["int8", "int4", None])
@pytest.mark.parametrize("dtype", [torch.float32, HALF], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_the_reference_on_the_same_weights(shape, dtype, kind, rmse_ratio):
    *sizes, k = shape
    x, gate, *weights = draw(*sizes, dtype)
    r = router(x, gate, k, backend="triton")
    sort = {"order_P": r.order_P, "offsets_E1": r.offsets_E1}
    if kind is None:
        y = experts(x, *weights, r.weights_Tk, r.indices_Tk, backend="triton", **sort)
    else:
        q = quantize_experts(*weights, kind)
        y = experts_quantized(x, q, r.weights_Tk, r.indices_Tk, backend="triton", **sort)
        weights = q.dequantize(torch.float64)
    weights = [w.double() for w in weights]
    expected = experts(x.double(), *weights, r.weights_Tk.double(), r.indices_Tk)
    assert y.dtype == dtype and rmse_ratio(y, expected) < TOLERANCE[dtype]


@pytest.mark.parametrize("kind, worst", [("int8", 0.02), ("int4", 0.2), ("fp8", 0.04)])
def test_quantised_weights_are_near_the_given_ones(kind, worst, rmse_ratio):
    x, gate, *weights = draw(30, 256, 160, 4, torch.float32)
    q = quantize_experts(*weights, kind)
    for w, back in zip(weights, q.dequantize(torch.float32), strict=True):
        assert w.shape == back.shape and rmse_ratio(back, w) < worst
        assert (back - w).abs().max() <= w.abs().max() / {"int8": 127, "int4": 7, "fp8": 15}[kind]
    r = router(x, gate, 2)
    y = experts_quantized(x, q, r.weights_Tk, r.indices_Tk, backend="reference")
    assert rmse_ratio(y, experts(x, *weights, r.weights_Tk, r.indices_Tk)) < 1.5 * worst
    assert q.w1.nbytes * (4 if kind != "int4" else 8) == weights[0].nbytes


@pytest.mark.parametrize("kind, unpacked", [(None, 0), ("int8", 0), ("int4", 0), ("int8", 1), ("int4", 1), ("fp8", 0)])
def test_all_tokens_on_one_expert(kind, unpacked, rmse_ratio):
    """The first, one in the middle, the last; the others have none. unpacked: ahead of the product."""
    if CUDA and not HOPPER and (kind == "fp8" or unpacked):
        pytest.skip("kernels of many tokens need Hopper")
    dtype = HALF if kind == "fp8" or unpacked else torch.float32
    x, _, *weights = draw(30, 48, 32, 5, dtype)
    ones, q = torch.ones(30, 1, device=DEVICE), kind and quantize_experts(*weights, kind)
    exact = [w.double() for w in (q.dequantize(torch.float64) if q else weights)]
    for expert in (0, 2, 4):
        indices = torch.full((30, 1), expert, device=DEVICE)
        with torch.no_grad(), tuning.forced("experts_unpack", {"use": unpacked}):
            if q:
                y = experts_quantized(x, q, ones, indices, backend="triton")
            else:
                y = experts(x, *weights, ones, indices, backend="triton")
        expected = experts(x.double(), *exact, ones.double(), indices)
        assert rmse_ratio(y, expected) < (FP8_ERROR if kind == "fp8" else TOLERANCE[dtype])


@pytest.mark.parametrize("backend", ["triton", "reference"])
@pytest.mark.parametrize("kind", ["int8", "int4", None] + ["fp8"] * CUDA)
@pytest.mark.parametrize(
    "shape",
    [pytest.param((20, 48, 32, 6, 2), marks=SMALL)] + [(64, 512, 1024, 6, 2), (900, 1024, 1536, 6, 2)] * CUDA,
    ids=str,
)
def test_parts_of_the_experts_add_up(shape, kind, backend, rmse_ratio):
    *sizes, k = shape
    dtype = HALF if CUDA else torch.float32
    x, gate, *weights = draw(*sizes, dtype)
    r = router(x, gate, k, backend="triton")
    if kind is not None:
        none = experts_quantized(x[:1], quantize_experts(*weights, kind), r.weights_Tk[:1], r.indices_Tk[:1] * 0,
                                 first_expert=1, backend=backend)  # fmt: skip
        assert not none.any(), "no expert of the token is here"
    total = torch.zeros_like(x, dtype=torch.float64)
    for first, count, given in ((0, 1, True), (1, 3, True), (4, 2, False)):
        part = [w[first : first + count].contiguous() for w in weights]
        how = {"order_P": r.order_P, "offsets_E1": r.offsets_E1} if given else {}
        how |= {"first_expert": first, "backend": backend}
        with torch.no_grad():
            if kind is None:
                total += experts(x, *part, r.weights_Tk, r.indices_Tk, **how)
            else:
                total += experts_quantized(x, quantize_experts(*part, kind), r.weights_Tk, r.indices_Tk, **how)
    if kind is not None:
        weights = quantize_experts(*weights, kind).dequantize(torch.float64)
    expected = experts(x.double(), *(w.double() for w in weights), r.weights_Tk.double(), r.indices_Tk)
    tolerance = TOLERANCE[dtype]
    if kind is not None:  # the reference rounds weights to 16 bits as well, and fp8 is coarse
        tolerance = 0.1 if kind == "fp8" else 2 * tolerance
    assert rmse_ratio(total, expected) < tolerance


def test_what_cannot_be_done_is_said():
    x, gate, *weights = draw(4, 16, 16, 3, torch.float32)
    with pytest.raises(ValueError, match="int8, int4, fp8, not 'int3'"):
        quantize_experts(*weights, "int3")
    q = quantize_experts(*weights, "int8")
    r = router(x, gate, 2)
    with pytest.raises(ValueError, match="no gradient"):
        experts_quantized(x.requires_grad_(), q, r.weights_Tk, r.indices_Tk)


@pytest.mark.parametrize("kind, given", [("int4", True), ("int4", False), ("int8", True), ("fp8", True)])
def test_quantised_experts_compile_whole(kind, given):
    """given: the router's order of the pairs."""
    if kind == "fp8" and CUDA and not HOPPER:
        pytest.skip("fp8 products need Hopper")
    x, gate, *weights = draw(20, 48, 32, 5, HALF)
    q = quantize_experts(*weights, kind)

    def layer(x):
        r = router(x, gate, 2, backend="triton")
        sort = {"order_P": r.order_P, "offsets_E1": r.offsets_E1} if given else {}
        return experts_quantized(x, q, r.weights_Tk, r.indices_Tk, backend="triton", **sort)

    with torch.no_grad():
        assert torch.equal(torch.compile(layer, fullgraph=True, backend="aot_eager")(x), layer(x))


@pytest.mark.skipif(not CUDA, reason="graphs are CUDA's")
@pytest.mark.parametrize("T, unpacked", [(1, 0), (40, 0), (700, 0)] + [(700, 1)] * HOPPER)
@pytest.mark.parametrize("kind", ["int8", "int4"] + ["fp8"] * HOPPER)
def test_a_cuda_graph_replays_on_new_tokens(kind, T, unpacked):
    x, gate, *weights = draw(T, 256, 160, 8, HALF)
    q = quantize_experts(*weights, kind)

    def layer():
        r = router(x, gate, 2)
        sort = {"order_P": r.order_P, "offsets_E1": r.offsets_E1}
        return experts_quantized(x, q, r.weights_Tk, r.indices_Tk, **sort)

    with torch.no_grad(), tuning.forced("experts_unpack", {"use": unpacked}):
        layer()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            y = layer()
        x.copy_(torch.randn_like(x))
        y.fill_(torch.nan)
        graph.replay()
        assert torch.equal(y, layer())


@pytest.mark.skipif(CUDA and not HOPPER, reason="fp8 products need Hopper")
@pytest.mark.parametrize(
    "T, D, I, E",
    [pytest.param(70, 48, 32, 3, marks=SMALL)] + ([(900, 512, 1024, 5), (3000, 1024, 512, 4)] if CUDA else []),
)
def test_fp8_products_equal_those_of_its_own_rounded_inputs(T, D, I, E, rmse_ratio):
    """x and h are rounded to 3 bits of mantissa, row by row: the reference here does the same."""
    x, gate, *weights = draw(T, D, I, E, HALF)
    q = quantize_experts(*weights, "fp8")
    r = router(x, gate, 2, backend="triton")
    sort = {"order_P": r.order_P, "offsets_E1": r.offsets_E1}
    y = experts_quantized(x, q, r.weights_Tk, r.indices_Tk, backend="triton", **sort)
    w1, w3, w2 = q.dequantize(torch.float32)
    expected = torch.zeros(T, D, device=DEVICE)
    for e in range(E):
        at, choice = (r.indices_Tk == e).nonzero(as_tuple=True)
        rounded = by_rows(x[at])
        h = torch.nn.functional.silu(rounded @ w1[e].T) * (rounded @ w3[e].T)
        expected[at] += by_rows(h.to(HALF)) @ w2[e].T * r.weights_Tk[at, choice][:, None]
    if CUDA:  # the interpreter rounds to fp8 towards zero
        assert rmse_ratio(y, expected) < 1e-2  # h is at times rounded to the other neighbour
    exact = experts(x.double(), *(w.double() for w in weights), r.weights_Tk.double(), r.indices_Tk)
    assert rmse_ratio(y, exact) < FP8_ERROR


def by_rows(x):
    scale = (x.float().abs().amax(1, keepdim=True) / 448).clamp(min=1e-20)
    return (x.float() / scale).to(torch.float8_e4m3fn).float() * scale


@pytest.mark.filterwarnings("ignore:invalid value")  # rows behind a part's last are not filled yet, and not stored
@pytest.mark.skipif(CUDA and not HOPPER, reason="kernels of many tokens need Hopper")
@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("partial", [False, True], ids=["all experts", "a rank's"])
@pytest.mark.parametrize(
    "T, D, I, E",
    [pytest.param(70, 48, 32, 5, marks=SMALL)] + ([(900, 512, 1024, 5), (3000, 1024, 1536, 7)] if CUDA else []),
)
def test_weights_are_unpacked_ahead_of_many_tokens(T, D, I, E, kind, partial, rmse_ratio):
    """Two experts at a time, the last one alone."""
    x, gate, *weights = draw(T, D, I, E, HALF)
    q = quantize_experts(*weights, kind)
    r = router(x, gate, 2, backend="triton")
    expected = experts(x.double(), *q.dequantize(torch.float64), r.weights_Tk.double(), r.indices_Tk)
    how = {"order_P": r.order_P, "offsets_E1": r.offsets_E1, "backend": "triton", "workspace": 2 * 3 * I * D * 2}
    with torch.no_grad(), tuning.forced("experts_unpack", {"use": 1}):
        if partial:
            parts = [(0, 2), (2, E)]
            y = torch.zeros_like(expected)
            for first, stop in parts:
                here = q._replace(**{name: getattr(q, name)[first:stop].contiguous() for name in PER_EXPERT})
                y += experts_quantized(x, here, r.weights_Tk, r.indices_Tk, first_expert=first, **how)
        else:
            y = experts_quantized(x, q, r.weights_Tk, r.indices_Tk, **how)
    assert rmse_ratio(y, expected) < TOLERANCE[HALF]


@pytest.mark.skipif(CUDA and not HOPPER, reason="kernels of many tokens need Hopper")
@pytest.mark.parametrize("kind, pairs", [("int8", 320), ("int4", 144)])
def test_weights_are_unpacked_ahead_from_so_many_pairs_an_expert_on(kind, pairs, rmse_ratio, table):
    table({})  # the declared rule, not what was measured on this GPU
    for T, kernel in ((pairs - 1, "experts_up_few"), (pairs, "experts_up_large")):
        x, gate, *weights = draw(T, 16, 512, 2, HALF)
        q = quantize_experts(*weights, kind)
        r = router(x, gate, 2, backend="triton")
        sort = {"order_P": r.order_P, "offsets_E1": r.offsets_E1}
        with tuning.asked() as asked:
            y = experts_quantized(x, q, r.weights_Tk, r.indices_Tk, backend="triton", **sort)
        assert kernel in dict(asked)
        expected = experts(x.double(), *q.dequantize(torch.float64), r.weights_Tk.double(), r.indices_Tk)
        assert rmse_ratio(y, expected) < TOLERANCE[HALF]


def test_quantised_weights_are_never_launched_as_plain_ones_were_measured(table):
    """A table whose entries are of 16 bits says nothing about 8 and 4: their tiles differ eightfold."""
    shape = {"E": 32, "I": 9216, "D": 6144, "dtype": "bfloat16"}
    entry = {"shape": {**shape, "P": 128, "bits": 16}, "config": {"BT": 16, "num_stages": 9}}
    table({"experts_up_few": [entry]})
    assert tuning.config("experts_up_few", **shape, P=128, bits=16)["num_stages"] == 9
    for bits in (8, 4):
        assert tuning.config("experts_up_few", **shape, P=128, bits=bits)["num_stages"] != 9
        assert tuning.config("experts_up_few", **shape, P=8192, bits=bits)["BT"] == 128
