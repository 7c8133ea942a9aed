"""Lightning attention, by the reference and by the Triton kernels, against the recurrence that defines it, in fp64.

Legend: T tokens, S sequences, H heads, K head dim.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from mmvl.kernels import lightning_plan, lightning_tuning, tuning
from mmvl.kernels.lightning_attention import lightning_attention, plan_blocks

SLOPES = {
    "usual": [0.9, 0.1, 0.004],
    "large": [60.0, 5.0, 1.0],  # exp(-60 * 64) underflows, exp(+60 * 64) would overflow
    "slow": [1e-5, 5e-7, 1e-3],
}
HOSTILE = {
    "one token": [1],
    "exactly a block": [64],
    "a block and one": [65],
    "two blocks less one": [127],
    "many single tokens": [1] * 50,
    "single tokens beside long": [1, 200, 1, 1, 64, 3],
    "many blocks": [700, 130],
    "empty sequences": [0, 5, 0, 0, 130, 0],
    "nothing but empty sequences": [0, 0],
}


def recurrence(qkv, slopes, lengths, initial=None):
    """The definition, fp64, one token after the other."""
    q, k, v = F.silu(qkv.double().cpu()).chunk(3, dim=-1)
    outputs, states, at = torch.empty_like(q), [], 0
    decay = torch.tensor([math.exp(-slope) for slope in slopes], dtype=torch.float64)[:, None, None]
    for s, length in enumerate(lengths):
        state = torch.zeros(q.shape[1], q.shape[2], q.shape[2], dtype=torch.float64)
        if initial is not None:
            state = initial[s].double().cpu()
        for t in range(at, at + length):
            state = decay * state + k[t, :, :, None] * v[t, :, None, :]
            outputs[t] = torch.einsum("hk,hkv->hv", q[t], state)
        states.append(state)
        at += length
    return outputs, torch.stack(states)


def draw_inputs(lengths, H=3, K=8, dtype=torch.float32, device="cpu", seed=0):
    """Of natural size: normal numbers before SiLU, as in the model."""
    generator = torch.Generator().manual_seed(seed)
    qkv = torch.randn(sum(lengths), H, 3 * K, generator=generator)
    initial = torch.randn(len(lengths), H, K, K, generator=generator)
    return qkv.to(device=device, dtype=dtype), initial.to(device)


def forced_segments(tokens):
    """Kernels cut every sequence after `tokens` tokens."""
    return tuning.forced("lightning_segments", {"programs": 1 << 40, "least": tokens / 2})


def assert_near(out, ref, tolerance):
    assert out.shape == ref.shape
    assert (out.double().cpu() - ref.double().cpu()).norm() <= tolerance * ref.double().norm().cpu()


@pytest.mark.parametrize("slopes", SLOPES.values(), ids=SLOPES)
@pytest.mark.parametrize("lengths", HOSTILE.values(), ids=HOSTILE)
def test_equals_the_recurrence(lengths, slopes, device):
    qkv, initial = draw_inputs(lengths, device=device)
    for start in (None, initial):
        o, state = lightning_attention(qkv, torch.tensor(slopes), initial_state_SHKK=start, lengths=lengths)
        o_ref, state_ref = recurrence(qkv, slopes, lengths, start)
        assert_near(o, o_ref, 1e-6)
        assert_near(state, state_ref, 1e-6)
        assert state.dtype == torch.float32
        alone, none = lightning_attention(
            qkv, torch.tensor(slopes), initial_state_SHKK=start, lengths=lengths, want_state=False
        )
        assert none is None
        assert_near(alone, o_ref, 1e-6)


@pytest.mark.parametrize(
    "slopes", [pytest.param(s, marks=[pytest.mark.sanitize][: name == "usual"], id=name) for name, s in SLOPES.items()]
)
@pytest.mark.parametrize(
    "lengths", {**HOSTILE, "many single tokens": [1] * 5, "many blocks": [330, 130]}.values(), ids=HOSTILE
)
def test_kernels_equal_the_recurrence_forward_and_backward(lengths, slopes, device):
    """fp32, segments of one chunk, so that states between segments are summed up on both ways."""
    qkv, initial = draw_inputs(lengths, K=32, device=device)
    o_ref, state_ref = recurrence(qkv, slopes, lengths, initial)
    results = []
    for backend, x in (("triton", qkv), ("reference", qkv.double())):
        x, start = x.clone().requires_grad_(), initial.to(x.dtype, copy=True).requires_grad_()
        with forced_segments(128):
            o, state = lightning_attention(
                x, torch.tensor(slopes), initial_state_SHKK=start, lengths=lengths, backend=backend
            )
        assert_near(o, o_ref, 1e-5)
        assert_near(state, state_ref, 1e-5)
        generator = torch.Generator().manual_seed(1)
        weights = [torch.randn(y.shape, generator=generator).to(y) for y in (o, state)]
        torch.autograd.backward((o, state), weights)
        results.append((x.grad, start.grad))
    for out, ref in zip(*results, strict=True):
        assert_near(out, ref, 1e-5)


@pytest.mark.sanitize
@pytest.mark.parametrize("K", [32, 64, 128])
def test_kernels_in_16_bits(K, device):
    lengths, slopes = ([70, 0, 1, 130], [0.9, 1e-3]) if device == "cpu" else ([700, 0, 1, 5000, 64], [0.9, 1e-3])
    dtype = torch.float16 if device == "cpu" else torch.bfloat16  # Triton's interpreter knows no bf16 products
    qkv, initial = draw_inputs(lengths, H=2, K=K, dtype=dtype, device=device)
    results = []
    for backend, x in (("triton", qkv), ("reference", qkv.double())):
        start = initial.to(torch.promote_types(x.dtype, torch.float32), copy=True).requires_grad_()
        x = x.clone().requires_grad_()
        with forced_segments(128):
            o, state = lightning_attention(
                x, torch.tensor(slopes), initial_state_SHKK=start, lengths=lengths, backend=backend
            )
        generator = torch.Generator().manual_seed(1)
        weights = [torch.randn(y.shape, generator=generator).to(y) for y in (o, state)]
        torch.autograd.backward((o, state), weights)
        results.append((o, state, *x.grad.chunk(3, dim=-1), start.grad))
    assert results[0][0].dtype == dtype and results[0][1].dtype == torch.float32
    for out, ref, tolerance in zip(*results, (5e-3, 5e-3, 1e-2, 1e-2, 1e-2, 1e-2), strict=True):
        assert_near(out, ref, tolerance)


@pytest.mark.parametrize("block", [1, 3, 16, 64, 256])
def test_any_block_size_gives_the_same(block, device):
    lengths, slopes = [5, 100, 1, 37], SLOPES["usual"]
    qkv, initial = draw_inputs(lengths, K=6, device=device)
    o_ref, state_ref = recurrence(qkv, slopes, lengths, initial)
    cu_seqlens = torch.tensor([0, 5, 105, 106, 143], dtype=torch.int32, device=device)
    o, state = lightning_attention(qkv, torch.tensor(slopes), cu_seqlens, initial, block=block)
    assert_near(o, o_ref, 1e-6)
    assert_near(state, state_ref, 1e-6)


def test_more_blocks_than_a_run_holds(monkeypatch, device):
    monkeypatch.setattr(lightning_plan, "MAX_SEGMENT", 3)
    lengths, slopes = [5, 61, 1, 24, 30], SLOPES["usual"]
    qkv, initial = draw_inputs(lengths, device=device)
    for start in (None, initial):
        o, state = lightning_attention(qkv, torch.tensor(slopes), initial_state_SHKK=start, lengths=lengths, block=8)
        o_ref, state_ref = recurrence(qkv, slopes, lengths, start)
        assert_near(o, o_ref, 1e-6)
        assert_near(state, state_ref, 1e-6)


def test_bf16_inputs_keep_an_fp32_state(device):
    lengths, slopes = [300, 70, 1], SLOPES["slow"]
    qkv, initial = draw_inputs(lengths, K=32, dtype=torch.bfloat16, device=device)
    o, state = lightning_attention(
        qkv, torch.tensor(slopes), initial_state_SHKK=initial, lengths=lengths, backend="reference"
    )
    o_ref, state_ref = recurrence(qkv, slopes, lengths, initial)
    assert o.dtype == torch.bfloat16 and state.dtype == torch.float32
    assert_near(o, o_ref, 5e-3)  # the output is rounded to bf16 once
    assert_near(state, state_ref, 1e-6)


def test_without_silu_and_as_rows(device):
    qkv, initial = draw_inputs([7, 40], K=32, device=device)
    slopes = torch.tensor(SLOPES["usual"])
    expected, _ = lightning_attention(qkv, slopes, None, initial, lengths=[7, 40])
    for backend in ("triton", "reference"):
        o, _ = lightning_attention(
            F.silu(qkv).flatten(1), slopes, None, initial, lengths=[7, 40], silu=False, backend=backend
        )
        assert_near(o, expected, 1e-6)


@settings(max_examples=10, deadline=None)
@given(
    chunks=st.lists(st.lists(st.integers(0, 90), min_size=1, max_size=4), min_size=1, max_size=3),
    slopes=st.sampled_from(list(SLOPES.values())),
    seed=st.integers(0, 1000),
)
@pytest.mark.parametrize("backend, K", [("reference", 8), ("triton", 32)])
def test_any_split_gives_the_same_output_and_state(chunks, slopes, seed, backend, K):
    """Sequence s is cut into chunks[s]; round r runs the r-th chunk of every sequence that has one."""
    device = "cuda" if backend == "triton" and torch.cuda.is_available() else "cpu"
    lengths = [sum(c) for c in chunks]
    slopes = torch.tensor(slopes, device=device)
    qkv, _ = draw_inputs(lengths, K=K, seed=seed, device=device)
    with forced_segments(128):
        o_ref, state_ref = lightning_attention(qkv, slopes, lengths=lengths, backend=backend)
    starts = [sum(lengths[:s]) for s in range(len(lengths))]
    o, state = torch.zeros_like(o_ref), torch.zeros_like(state_ref)
    for r in range(max(map(len, chunks))):
        now = [s for s in range(len(chunks)) if r < len(chunks[s])]
        at = torch.cat([torch.arange(chunks[s][r]) + starts[s] + sum(chunks[s][:r]) for s in now])
        o[at], state[now] = lightning_attention(
            qkv[at], slopes, initial_state_SHKK=state[now], lengths=[chunks[s][r] for s in now], backend=backend
        )
    assert (o - o_ref).norm() <= 1e-5 * o_ref.norm()
    assert (state - state_ref).norm() <= 1e-5 * state_ref.norm()


@pytest.mark.parametrize("lengths", [[1, 6, 0, 3], [1, 1]], ids=["blocks", "single tokens"])
@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize("run", [1024, 2])
def test_gradients_equal_finite_differences(lengths, with_state, run, monkeypatch):
    monkeypatch.setattr(lightning_plan, "MAX_SEGMENT", run)
    generator = torch.Generator().manual_seed(0)
    qkv, initial = (
        torch.randn(*shape, generator=generator, dtype=torch.float64, requires_grad=True)
        for shape in ((sum(lengths), 2, 6), (len(lengths), 2, 2, 2))
    )
    slopes = torch.tensor([0.7, 0.05], dtype=torch.float64)

    def run(qkv, initial=None):
        return lightning_attention(qkv, slopes, initial_state_SHKK=initial, lengths=lengths, block=2)

    assert torch.autograd.gradcheck(run, (qkv, initial) if with_state else (qkv,))


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_documents_do_not_leak(backend, device):
    qkv, _ = draw_inputs([70, 80, 3], K=32, device=device)
    qkv.requires_grad_()
    o, _ = lightning_attention(qkv, torch.tensor(SLOPES["slow"]), lengths=[70, 80, 3], backend=backend)
    o[70:150].sum().backward()
    assert qkv.grad[:70].count_nonzero() == 0 and qkv.grad[150:].count_nonzero() == 0
    assert qkv.grad[70:150].count_nonzero() > 0


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_only_the_input_is_kept_for_the_backward_pass(backend, device):
    qkv, _ = draw_inputs([500, 12], K=32, device=device)
    qkv.requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.nbytes) or x, lambda x: x):
        lightning_attention(qkv, torch.tensor(SLOPES["usual"]), lengths=[500, 12], backend=backend)
    assert sum(kept) <= 1.05 * qkv.nbytes  # a state between two segments


def test_the_reference_tables_are_not_made_for_the_kernels(device):
    qkv, _ = draw_inputs([300, 12], K=32, device=device)
    plan = plan_blocks([300, 12], device)
    for _ in range(2):
        with forced_segments(128):
            lightning_attention(qkv, torch.tensor(SLOPES["usual"]), plan=plan, backend="triton")
    assert "blocks" not in plan.__dict__ and list(plan._segments) == [128]
    table = plan.segments(128).table_N8.tolist()
    assert [row[:7] for row in table] == [
        [0, 0, 128, 0, 2, 0, 172], [0, 128, 128, 1, 1, 0, 44], [0, 256, 44, 2, 0, 0, 0], [1, 300, 12, 0, 0, 2, 0],
    ]  # fmt: skip


def test_compiles_as_one_graph_with_gradients(device):
    lengths, slopes = [150, 12], torch.tensor(SLOPES["usual"], device=device)
    qkv, initial = draw_inputs(lengths, K=32, device=device)
    plan = plan_blocks(lengths, device)

    def run(qkv, initial):
        o, state = lightning_attention(qkv * 2, slopes, None, initial, plan=plan, backend="triton")
        return o.square().sum() + state.sum()

    results = []
    for function in (run, torch.compile(run, fullgraph=True, backend="aot_eager")):
        x, start = qkv.clone().requires_grad_(), initial.clone().requires_grad_()
        loss = function(x, start)
        loss.backward()
        results.append((loss.detach(), x.grad, start.grad))
    for out, ref in zip(*results, strict=True):
        assert_near(out, ref, 1e-6)


def test_registered_operation_is_well_formed(device):
    from mmvl.kernels import lightning_triton

    qkv, initial = draw_inputs([150, 12], H=2, K=32, device=device)
    slopes, segments = torch.tensor([0.5, 0.01], device=device), plan_blocks([150, 12], device).segments(128)
    inputs = (
        qkv.requires_grad_(), slopes, initial.requires_grad_(), segments.table_N8, segments.tokens,
        segments.split_rows, segments.num_added, 2, True, True, False,
    )  # fmt: skip
    torch.library.opcheck(lightning_triton.op.overload, inputs)


def compare_a_long_sequence(T, H, K, dtype, device):
    """Slopes so small that a rounded decay of a chunk would drift, and the far end of 64-bit offsets; both ways."""
    generator = torch.Generator(device=device).manual_seed(0)
    qkv, grad = (torch.randn(T, H, n, generator=generator, device=device, dtype=dtype) for n in (3 * K, K))
    slopes = torch.logspace(math.log10(0.9), -7, H, dtype=torch.float64, device=device)
    plan = plan_blocks([T], device)
    qkv.requires_grad_()
    o, state = lightning_attention(qkv, slopes, plan=plan, backend="triton")
    (d_qkv,) = torch.autograd.grad(o, qkv, grad)
    forward, backward = (5e-3, 1e-2) if dtype == torch.bfloat16 else (1e-5, 1e-5)
    for h in sorted({0, H // 2 - 1, H - 1}):  # by heads, for memory
        one = slice(h, h + 1)
        x = qkv[:, one].detach().double().requires_grad_()
        o_ref, state_ref = lightning_attention(x, slopes[one], plan=plan, backend="reference")
        (d_ref,) = torch.autograd.grad(o_ref, x, grad[:, one].double())
        for part in (slice(0, 1000), slice(T // 2, T // 2 + 1000), slice(T - 1000, T)):
            assert_near(o[part, one], o_ref[part], forward)
            for ours, ref in zip(d_qkv[part, one].chunk(3, dim=-1), d_ref[part].chunk(3, dim=-1), strict=True):
                assert_near(ours, ref, backward)
        assert_near(state[:, one], state_ref, forward)


def test_a_longer_sequence(device):
    compare_a_long_sequence(300, 2, 32, torch.float32, device)


if torch.cuda.is_available():

    def gradients_on_cuda(qkv, initial, slopes, lengths, dtype):
        backend = "reference" if dtype == torch.float64 else "triton"
        x = qkv.to(dtype, copy=True).requires_grad_()
        start = initial.to(torch.promote_types(dtype, torch.float32), copy=True).requires_grad_()
        o, state = lightning_attention(x, slopes, None, start, lengths=lengths, backend=backend)
        generator = torch.Generator(device="cuda").manual_seed(1)
        weights = [torch.randn(y.shape, generator=generator, device="cuda").to(y.dtype) for y in (o, state)]
        torch.autograd.backward((o, state), weights)
        return o.detach(), state.detach(), *x.grad.chunk(3, dim=-1), start.grad

    @pytest.mark.parametrize("K", [32, 64, 128])
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
    def test_hostile_lengths_and_decays(K, dtype):
        """Ragged, with document borders everywhere and decays from 0.9 to 1e-7 a token."""
        generator = torch.Generator().manual_seed(0)
        lengths = [0, 1, 1, 5000, *torch.randint(0, 300, (40,), generator=generator).tolist(), 63, 64, 65, 0, 2000, 1]
        qkv, initial = draw_inputs(lengths, H=8, K=K, dtype=dtype, device="cuda")
        slopes = torch.logspace(math.log10(0.9), -7, 8, dtype=torch.float64, device="cuda")
        out = gradients_on_cuda(qkv, initial, slopes, lengths, dtype)
        ref = gradients_on_cuda(qkv, initial, slopes, lengths, torch.float64)
        tolerances = (1e-5,) * 6 if dtype == torch.float32 else (5e-3, 5e-3, 1e-2, 1e-2, 1e-2, 1e-2)
        for x, y, tolerance in zip(out, ref, tolerances, strict=True):
            assert_near(x, y, tolerance)

    @pytest.mark.skipif(torch.cuda.get_device_capability()[0] != 9, reason="kernels for Hopper")
    @pytest.mark.sanitize
    @pytest.mark.parametrize("halves", [1, 64], ids=["whole sequences", "many segments"])
    @pytest.mark.parametrize("stages", [3, 4])
    def test_specialized_warps(halves, stages):
        generator = torch.Generator().manual_seed(0)
        lengths = [0, 1, 1, 5000, *torch.randint(0, 300, (40,), generator=generator).tolist(), 63, 64, 65, 0, 2000, 1]
        qkv, initial = draw_inputs(lengths, H=8, K=128, dtype=torch.bfloat16, device="cuda")
        slopes = torch.logspace(math.log10(0.9), -7, 8, dtype=torch.float64, device="cuda")
        choice = {**lightning_tuning.SPECIALIZED, "stages": stages, "halves": halves, "shortest": 0}
        with tuning.forced("lightning_specialized", choice):
            out = gradients_on_cuda(qkv, initial, slopes, lengths, torch.bfloat16)
        ref = gradients_on_cuda(qkv, initial, slopes, lengths, torch.float64)
        for x, y, tolerance in zip(out, ref, (5e-3, 5e-3, 1e-2, 1e-2, 1e-2, 1e-2), strict=True):
            assert_near(x, y, tolerance)

    @pytest.mark.skipif(torch.cuda.mem_get_info()[1] < 100e9, reason="the fp64 reference takes some 60 GB")
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
    def test_a_million_tokens(dtype):
        compare_a_long_sequence(1_000_000, 8, 128 if dtype == torch.bfloat16 else 32, dtype, "cuda")

    def test_a_graph_replays_forward_and_backward():
        qkv, initial = draw_inputs([300, 0, 2000], K=64, dtype=torch.bfloat16, device="cuda")
        slopes, plan = torch.tensor(SLOPES["usual"], device="cuda"), plan_blocks([300, 0, 2000], "cuda")
        qkv.requires_grad_()

        def step():
            o, _ = lightning_attention(qkv, slopes, None, initial, plan=plan)
            return o, torch.autograd.grad(o.float().square().sum(), qkv)[0]

        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                step()
        torch.cuda.current_stream().wait_stream(stream)
        expected = [result.detach() for result in step()]  # what holds on to the graph, holds on to its stream
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            results = step()
        for result in results:
            result.detach().zero_()
        graph.replay()
        assert all(torch.equal(result, other) for result, other in zip(results, expected, strict=True))


def test_no_segment_is_too_long_to_add_up():
    device = torch.device("cpu")
    for longest in (lightning_tuning.LONGEST + 1, 3 * lightning_tuning.LONGEST, 1_000_000):
        tokens = lightning_tuning.segment_tokens(longest, 64, 128, longest, device)
        assert longest / 16 < tokens <= lightning_tuning.LONGEST and tokens % lightning_tuning.SEGMENT_MULTIPLE == 0
    assert lightning_tuning.segment_tokens(100, 64, 128, 100, device) == 100


def test_wrong_lengths_are_refused():
    qkv, _ = draw_inputs([4])
    with pytest.raises(ValueError, match="at least 0 tokens"):
        plan_blocks([3, -1, 1], "cpu")
    with pytest.raises(ValueError, match="hold 5 tokens, qkv holds 4"):
        lightning_attention(qkv, torch.ones(3), lengths=[5])
    with pytest.raises(ValueError, match="one of plan, lengths, cu_seqlens_S1"):
        lightning_attention(qkv, torch.ones(3))
    with pytest.raises(ValueError, match="no Triton kernel"):
        lightning_attention(qkv, torch.ones(3), lengths=[4], backend="triton")
