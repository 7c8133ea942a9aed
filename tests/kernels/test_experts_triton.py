"""The experts' and the router's Triton kernels against the reference in fp64; interpreted where there is no GPU."""

import pytest
import torch

from mmvl.kernels import tuning
from mmvl.kernels.experts import experts, route, router

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
HALF = torch.bfloat16 if CUDA else torch.float16  # the interpreter has no products in bf16
TOLERANCE = {torch.float32: (1e-5, 2e-5), torch.bfloat16: (5e-3, 1e-2), torch.float16: (5e-3, 1e-2)}

# T, D, I, E, k: widths that are no multiples of any tile, one choice, three, every expert
SHAPES = [pytest.param((70, 40, 36, 4, 3), marks=pytest.mark.sanitize)]
SHAPES += [(23, 16, 24, 5, 2), (1, 16, 24, 5, 1), (9, 24, 16, 2, 2)]
if CUDA:
    SHAPES += [(1, 256, 160, 8, 2), (300, 256, 160, 8, 2), (5000, 256, 160, 8, 2), (70000, 64, 32, 40, 2)]
    SHAPES += [(777, 1024, 1536, 6, 2), (64, 1024, 1536, 32, 2), (130, 520, 600, 4, 4)]


def draw(T, D, I, E, dtype, seed=0):
    g = torch.Generator().manual_seed(seed)
    scales = ((T, D), 1), ((E, D), D**-0.5), ((E, I, D), D**-0.5), ((E, I, D), D**-0.5), ((E, D, I), I**-0.5)
    return [(torch.randn(*shape, generator=g) * scale).to(DEVICE, dtype) for shape, scale in scales]


def run(leaves, k, backend, bias=None, indices=None):
    """Output and gradients of everything, of a loss that weighs all outputs differently."""
    x, gate, w1, w3, w2 = leaves = [a.detach().requires_grad_() for a in leaves]
    r = router(x, gate, k, backend=backend)
    if indices is None:
        indices, order, offsets, weights = r.indices_Tk, r.order_P, r.offsets_E1, r.weights_Tk
    else:
        order, offsets = None, None
        weights = torch.linspace(0.1, 1, indices.numel(), device=DEVICE).view(indices.shape) * r.weights_Tk
    y = experts(x, w1, w3, w2, weights, indices, order_P=order, offsets_E1=offsets, backend=backend)
    g = torch.Generator().manual_seed(1)
    dy = torch.randn(*y.shape, generator=g).to(DEVICE, y.dtype)
    grads = torch.autograd.grad(((y * dy).sum(dtype=torch.float32 if y.dtype != torch.float64 else None))
                                + 3.0 * len(x) * r.balance, leaves)  # fmt: skip
    return r, y, grads


def same_choice(r, ref):
    """Near ties aside, both chose the same experts; asked before anything else is compared."""
    return r.indices_Tk.tolist() == ref.indices_Tk.tolist()


@pytest.mark.parametrize("dtype", [torch.float32, HALF], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_layer_and_gradients_equal_the_reference(shape, dtype, rmse_ratio):
    *sizes, k = shape
    leaves = draw(*sizes, dtype)
    ref, expected, expected_grads = run([a.double() for a in leaves], k, "reference")
    r, y, grads = run(leaves, k, "triton")
    forward, backward = TOLERANCE[dtype]
    assert same_choice(r, ref)
    assert rmse_ratio(r.weights_Tk, ref.weights_Tk) < 1e-5 and rmse_ratio(r.balance, ref.balance) < 1e-5
    assert r.counts_E.tolist() == ref.counts_E.tolist() and y.dtype == dtype
    assert rmse_ratio(y, expected) < forward
    for name, a, b in zip(("x", "gate", "w1", "w3", "w2"), grads, expected_grads, strict=True):
        if b.norm() > 0:
            assert rmse_ratio(a, b) < backward, name


@pytest.mark.sanitize
@pytest.mark.parametrize("T, D", [(3, 16), (3, 1030), (150, 16)])
@pytest.mark.parametrize("E", [3, 7])
def test_pairs_are_sorted_stably_by_expert(T, D, E):
    x, gate, *_ = draw(T, D, 16, E, torch.float32)
    r = router(x, gate, 2, backend="triton")
    assert same_choice(r, router(x.double(), gate.double(), 2))
    flat = r.indices_Tk.flatten()
    assert r.order_P.tolist() == flat.argsort(stable=True).tolist()
    assert r.offsets_E1.diff().tolist() == flat.bincount(minlength=E).tolist() == r.counts_E.tolist()


@pytest.mark.sanitize
def test_one_expert_may_take_every_token_and_others_none(rmse_ratio):
    T = 4000 if CUDA else 40
    leaves = draw(T, 32, 24, 5, torch.float32)
    indices = torch.full((T, 1), 3, device=DEVICE)
    _, expected, expected_grads = run([a.double() for a in leaves], 1, "reference", indices=indices)
    _, y, grads = run(leaves, 1, "triton", indices=indices)
    assert rmse_ratio(y, expected) < 1e-5
    for a, b in zip(grads[2:], expected_grads[2:], strict=True):
        assert rmse_ratio(a, b) < 1e-5
        assert all(a[e].count_nonzero() == 0 for e in (0, 1, 2, 4)) and a[3].count_nonzero() > 0


@pytest.mark.sanitize
def test_weights_gradients_of_parts_of_the_rows_are_added_up(rmse_ratio):
    """Three parts of 16 rows and more, of which some experts fill one only."""
    leaves = draw(60, 24, 40, 5, torch.float32)
    _, _, expected = run([a.double() for a in leaves], 2, "reference")
    parts = {"BI": 32, "BD": 64, "BR": 16, "SPLIT": 3, "num_warps": 4, "num_stages": 2}
    with tuning.forced("experts_weights", parts):
        _, _, grads = run(leaves, 2, "triton")
    for a, b in zip(grads[2:], expected[2:], strict=True):
        assert rmse_ratio(a, b) < 2e-5


def test_no_token_gives_zero_gradients():
    x, _, w1, w3, w2 = (a.requires_grad_() for a in draw(0, 16, 24, 5, torch.float32))
    weights = torch.empty(0, 2, device=DEVICE, requires_grad=True)
    y = experts(x, w1, w3, w2, weights, torch.empty(0, 2, dtype=torch.int64, device=DEVICE), backend="triton")
    y.sum().backward()
    assert y.shape == (0, 16) and all(w.grad.count_nonzero() == 0 for w in (w1, w3, w2))


def test_equal_and_infinite_logits_still_choose_different_experts():
    gate = torch.zeros(6, 16, device=DEVICE)
    x = torch.ones(20, 16, device=DEVICE)
    assert router(x, gate, 3, backend="triton").indices_Tk.tolist() == [[0, 1, 2]] * 20
    gate[1:5] = torch.tensor([-torch.inf, torch.inf, torch.nan, -torch.inf], device=DEVICE)[:, None]
    chosen = router(x, gate, 4, backend="triton")
    assert all(len(set(row)) == 4 for row in chosen.indices_Tk.tolist())
    assert sorted(chosen.order_P.tolist()) == list(range(80))


def test_a_run_repeats_bit_for_bit():
    leaves = draw(500 if CUDA else 50, 32, 24, 5, HALF)
    (_, y, grads), (_, again, grads_again) = (run(leaves, 2, "triton") for _ in range(2))
    assert torch.equal(y, again) and all(torch.equal(a, b) for a, b in zip(grads, grads_again, strict=True))


def test_weights_of_a_view_and_other_dtypes_are_refused_or_run_by_the_reference():
    x, gate, w1, w3, w2 = draw(5, 16, 24, 5, torch.float32)
    weights, indices, _ = route(x @ gate.T, 2)
    with pytest.raises(ValueError, match="no Triton kernel"):
        experts(x.double(), w1, w3, w2, weights, indices, backend="triton")
    experts(x.double(), w1.double(), w3.double(), w2.double(), weights, indices)


def test_compiles_whole(rmse_ratio):
    """As custom operators, forward and backward: traced with fake tensors, run eagerly."""
    leaves = [a.requires_grad_() for a in draw(20, 16, 24, 5, torch.float32)]

    def layer(x, gate, w1, w3, w2):
        r = router(x, gate, 2, backend="triton")
        y = experts(x, w1, w3, w2, r.weights_Tk, r.indices_Tk, order_P=r.order_P, offsets_E1=r.offsets_E1,
                    backend="triton")  # fmt: skip
        return y, r.balance

    losses = []
    for f in (layer, torch.compile(layer, fullgraph=True, backend="aot_eager")):
        y, balance = f(*leaves)
        loss = y.square().sum() + balance
        losses.append([loss, *torch.autograd.grad(loss, leaves)])
    for a, b in zip(*losses, strict=True):
        assert rmse_ratio(a, b) < 1e-6


@pytest.mark.parametrize("first", [None, 1])
def test_experts_alone_compile_whole(first):
    """They sort by themselves; `first`: those of a rank of several."""
    x, gate, *weights = draw(20, 16, 24, 5, torch.float32)
    if first is not None:
        weights = [w[first : first + 3].contiguous() for w in weights]

    def layer(x, weights_Tk, indices_Tk):
        return experts(x, *weights, weights_Tk, indices_Tk, first_expert=first, backend="triton")

    with torch.no_grad():
        r = router(x, gate, 2, backend="reference")
        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(x, r.weights_Tk, r.indices_Tk), layer(x, r.weights_Tk, r.indices_Tk))


if CUDA:

    @pytest.mark.parametrize("T", [1, 40, 700])
    def test_a_cuda_graph_replays_on_new_tokens(T, rmse_ratio):
        x, gate, w1, w3, w2 = draw(T, 256, 160, 8, HALF)

        def layer():
            r = router(x, gate, 2)
            return experts(x, w1, w3, w2, r.weights_Tk, r.indices_Tk, order_P=r.order_P, offsets_E1=r.offsets_E1)

        with torch.no_grad():
            layer()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                y = layer()
            for seed in (5, 6):
                x.copy_(draw(T, 256, 160, 8, HALF, seed)[0])
                y.fill_(torch.nan)
                graph.replay()
                expected = layer()
                assert torch.equal(y, expected)

    def test_nothing_waits_for_the_device():
        leaves = draw(500, 256, 160, 8, HALF)
        run(leaves, 2, "triton")
        torch.cuda.set_sync_debug_mode("error")
        try:
            x, gate, w1, w3, w2 = (a.detach().requires_grad_() for a in leaves)
            r = router(x, gate, 2)
            y = experts(x, w1, w3, w2, r.weights_Tk, r.indices_Tk, order_P=r.order_P, offsets_E1=r.offsets_E1)
            (y.sum() + r.balance).backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("save", [False, True])
@pytest.mark.parametrize(
    "T, D, I, E",
    [pytest.param(70, 40, 24, 3, marks=pytest.mark.sanitize)]
    + ([(900, 520, 1000, 7), (3000, 1024, 512, 5)] if CUDA else []),
)
def test_persistent_kernels_equal_the_reference(T, D, I, E, save, rmse_ratio):
    from mmvl.kernels.experts_large_triton import forward

    x, gate, w1, w3, w2 = draw(T, D, I, E, HALF)
    r = router(x, gate, 2, backend="triton")
    y, kept_gate, _ = forward(x, w1, w3, w2, None, r.weights_Tk, r.order_P, r.offsets_E1, save)
    x, w1, w3, w2 = (a.double() for a in (x, w1, w3, w2))
    expected = experts(x, w1, w3, w2, r.weights_Tk.double(), r.indices_Tk)
    assert rmse_ratio(y, expected) < 5e-3
    if save:
        rows = r.order_P.long()
        by_hand = (w1[r.indices_Tk.flatten()[rows]] @ x[rows // 2][..., None])[..., 0]
        assert rmse_ratio(kept_gate, by_hand) < 5e-3


@pytest.mark.parametrize("T, D, I, E", [(70, 40, 24, 3)] + ([(3000, 1024, 512, 5)] if CUDA else []))
def test_persistent_kernels_with_every_token_on_one_expert(T, D, I, E, rmse_ratio):
    from mmvl.kernels.experts_large_triton import forward

    x, _, w1, w3, w2 = draw(T, D, I, E, HALF)
    weights = torch.linspace(0.1, 1, T, device=DEVICE)[:, None]
    for expert in (0, E - 1):
        order, ends = torch.arange(T, dtype=torch.int32, device=DEVICE), torch.arange(E + 1, device=DEVICE)
        offsets = ((ends > expert) * T).int()
        y, _, _ = forward(x, w1, w3, w2, None, weights, order, offsets, False)
        indices = torch.full((T, 1), expert, device=DEVICE)
        expected = experts(x.double(), w1.double(), w3.double(), w2.double(), weights.double(), indices)
        assert rmse_ratio(y, expected) < 5e-3


def compare_some_of_many_tokens(T, D, I, E, dtype, rmse_ratio):
    """Forward, by the kernels for many tokens: the first, some in the middle, the last."""
    _, gate, *weights = draw(1, D, I, E, dtype)
    x = torch.randn(T, D, generator=torch.Generator(DEVICE).manual_seed(0), device=DEVICE, dtype=dtype)
    with torch.no_grad():
        r = router(x, gate, 2, backend="triton")
        how = {"order_P": r.order_P, "offsets_E1": r.offsets_E1, "backend": "triton"}
        y = experts(x, *weights, r.weights_Tk, r.indices_Tk, **how)
    assert r.counts_E.sum() == 2 * T and (r.order_P.long().bincount(minlength=2 * T) == 1).all()
    for part in (slice(0, 40), slice(T // 2, T // 2 + 40), slice(T - 40, T)):
        given = r.weights_Tk[part].double(), r.indices_Tk[part]
        expected = experts(x[part].double(), *(w.double() for w in weights), *given)
        assert rmse_ratio(y[part], expected) < 5e-3


def test_tokens_of_a_long_batch_are_right_where_one_looks(rmse_ratio):
    compare_some_of_many_tokens(150, 24, 40, 4, HALF, rmse_ratio)


if CUDA:

    @pytest.mark.skipif(torch.cuda.mem_get_info()[1] < 64e9, reason="takes some 40 GB")
    def test_a_million_tokens(rmse_ratio):
        """More than 2^31 elements of x, of the hidden values and of the pairs' outputs."""
        compare_some_of_many_tokens(1_000_000, 2176, 1536, 4, HALF, rmse_ratio)
