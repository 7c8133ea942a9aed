"""The decode step of lightning attention: like the packed operation token by token, in place, by both backends.

Legend: T tokens, S sequences, H heads, K head dim.
"""

import math

import pytest
import torch

from mmvl.kernels import tuning
from mmvl.kernels.lightning_attention import lightning_attention
from mmvl.kernels.lightning_decode import lightning_decode

SLOPES = torch.tensor([0.9, 0.004])
BACKENDS = pytest.mark.parametrize("backend", ["reference", pytest.param("triton", marks=pytest.mark.sanitize)])


def draw(T, K=32, slots=5, dtype=torch.float32, device="cpu"):
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(T, 2, 3 * K, generator=generator).to(device=device, dtype=dtype)
    return qkv, torch.randn(slots, 2, K, K, generator=generator).to(device)


def assert_near(out, ref, tolerance=1e-6):
    assert out.shape == ref.shape
    assert (out.double().cpu() - ref.double().cpu()).norm() <= tolerance * ref.double().norm().cpu()


@BACKENDS
@pytest.mark.parametrize("slots", [[3], [4, 0, 2]])
@pytest.mark.parametrize("K", [32, 128])
def test_one_token_each_in_place(slots, K, backend, device):
    qkv, pool = draw(len(slots), K, device=device)
    o_ref, state_ref = lightning_attention(
        qkv.double(), SLOPES, None, pool[slots].double(), lengths=[1] * len(slots), backend="reference"
    )
    expected = pool.clone()
    expected[slots] = state_ref.float()
    o = lightning_decode(qkv.flatten(1), pool, torch.tensor(slots, device=device), SLOPES, backend=backend)
    assert_near(o, o_ref)
    assert_near(pool, expected)
    untouched = [n for n in range(5) if n not in slots]
    assert torch.equal(pool[untouched], expected[untouched])


@pytest.mark.parametrize("S, width, streamed", [(1, 16, 1), (8, 32, 1), (64, 64, 0)])
def test_launch_parameters_are_the_measured_ones(S, width, streamed):
    expected = {"width": width, "num_warps": 4, "streamed": streamed}
    assert tuning.declared()["lightning_decode"].default_at({"S": S, "H": 64, "K": 128}) == expected


@pytest.mark.sanitize
@pytest.mark.parametrize("width", [16, 64])
def test_what_caches_are_told_changes_nothing(width, device):
    qkv, pool = draw(2, 128, device=device)
    slots = torch.tensor([1, 4], device=device)
    expected = pool.clone()
    o_ref = lightning_decode(qkv, expected, slots, SLOPES, backend="reference")
    found = []
    for streamed in (0, 1):
        states = pool.clone()
        with tuning.forced("lightning_decode", {"width": width, "num_warps": 4, "streamed": streamed}):
            found.append((lightning_decode(qkv, states, slots, SLOPES, backend="triton"), states))
    assert_near(found[0][0], o_ref)
    assert_near(found[0][1], expected)
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])


@BACKENDS
@pytest.mark.parametrize("at_once", [True, False], ids=["a draft", "token by token"])
def test_a_slow_decay_does_not_drift(backend, device, at_once):
    """1 - exp(-1e-7) is 40% off in fp32, and 1 - exp(-3.9e-8), the slowest of the released model, is 0."""
    T = 600 if at_once or backend == "reference" or device == "cuda" else 150
    slopes, slots = torch.tensor([1e-7, 3.9e-8], device=device), torch.tensor([1], device=device)
    qkv, pool = draw(T, 32, device=device)
    pool *= 100
    o_ref, state_ref = lightning_attention(
        qkv.double(), slopes, None, pool[[1]].double(), lengths=[T], backend="reference"
    )
    if at_once:
        starts = torch.tensor([0, T], dtype=torch.int32, device=device)
        o = lightning_decode(qkv, pool, slots, slopes, cu_seqlens_S1=starts, backend=backend)
    else:
        o = torch.cat([lightning_decode(x[None], pool, slots, slopes, backend=backend) for x in qkv])
    assert_near(o, o_ref, 1.5e-6)
    assert_near(pool[[1]], state_ref, 1.5e-6)


def test_parts_of_a_prompt_and_then_single_tokens_equal_one_call(device):
    """In 16 bits, decays of 0.9 to 1e-7; parts by the kernels for prompts, on Hopper the specialised ones."""
    dtype, K, parts, tokens = torch.float16, 32, [70, 1, 63, 129], 5
    if device == "cuda":
        dtype, K, parts, tokens = torch.bfloat16, 128, [1000, 1, 63, 2500, 700], 50
    slopes = torch.logspace(math.log10(0.9), -7, 4, dtype=torch.float64, device=device)
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(sum(parts) + tokens, 4, 3 * K, generator=generator).to(device=device, dtype=dtype)
    state, outputs = None, []
    for x in qkv[: sum(parts)].split(parts):
        o, state = lightning_attention(x, slopes, None, state, lengths=[len(x)], backend="triton")
        outputs.append(o)
    slot = torch.zeros(1, dtype=torch.int64, device=device)
    outputs += [lightning_decode(x[None], state, slot, slopes, backend="triton") for x in qkv[sum(parts) :]]
    for backend, x in (("triton", qkv), ("reference", qkv.double())):
        expected, expected_state = lightning_attention(x, slopes, lengths=[len(x)], backend=backend)
        assert_near(torch.cat(outputs), expected, 5e-3)
        assert_near(state, expected_state, 5e-3)


@BACKENDS
def test_padding_slots_are_skipped(backend, device):
    qkv, pool = draw(4, device=device)
    alone, other = pool.clone(), pool.clone()
    o = lightning_decode(qkv, pool, torch.tensor([-1, 2, -1, 0], device=device), SLOPES, backend=backend)
    assert o[[0, 2]].count_nonzero() == 0
    expected = lightning_decode(qkv[[1, 3]], alone, torch.tensor([2, 0], device=device), SLOPES, backend=backend)
    assert_near(o[[1, 3]], expected)
    assert_near(pool, alone)
    for slots in ([-1], [-1, -1]):
        o = lightning_decode(qkv[: len(slots)], other, torch.tensor(slots, device=device), SLOPES, backend=backend)
        assert o.count_nonzero() == 0
    assert torch.equal(other, draw(4, device=device)[1])


@BACKENDS
def test_no_sequence_at_all(backend, device):
    qkv, pool = draw(0, device=device)
    before = pool.clone()
    o = lightning_decode(qkv, pool, torch.empty(0, dtype=torch.int64, device=device), SLOPES, backend=backend)
    assert o.shape == (0, 2, 32) and torch.equal(pool, before)


@BACKENDS
def test_a_draft_is_verified_and_its_accepted_tokens_kept(backend, device):
    lengths, slots, accepted = [3, 1, 4, 0, 2], torch.tensor([4, 1, 0, 3, -1]), torch.tensor([2, 1, 0, 0, 2])
    slots, accepted = slots.to(device), accepted.to(device)
    starts = torch.tensor([0, 3, 4, 8, 8, 10], dtype=torch.int32, device=device)
    qkv, pool = draw(10, device=device)
    before, after = pool.clone(), torch.full((10, 2, 32, 32), torch.nan, device=device)
    o = lightning_decode(
        qkv, pool, slots, SLOPES, cu_seqlens_S1=starts, states_after_THKK=after, update=False, backend=backend
    )
    assert torch.equal(pool, before)
    o_ref, _ = lightning_attention(qkv[:8], SLOPES, None, before[[4, 1, 0, 3]], lengths=lengths[:4])
    assert_near(o[:8], o_ref)
    assert o[8:].count_nonzero() == 0 and after[8:].isnan().all()
    lightning_decode(qkv, pool, slots, SLOPES, cu_seqlens_S1=starts, counts_S=accepted, backend=backend)
    for s, (slot, count) in enumerate(zip(slots.tolist()[:4], accepted.tolist()[:4], strict=True)):
        expected = after[starts[s] + count - 1] if count else before[slot]
        assert_near(pool[slot], expected)
    assert torch.equal(pool[2], before[2])


@pytest.mark.sanitize
def test_16_bit_inputs(device):
    dtype = torch.float16 if device == "cpu" else torch.bfloat16
    qkv, pool = draw(3, 64, dtype=dtype, device=device)
    exact = pool.double()
    slots = torch.tensor([0, 1, 2], device=device)
    o = lightning_decode(qkv, pool, slots, SLOPES, backend="triton")
    o_ref = lightning_decode(qkv.double(), exact, slots, SLOPES, backend="reference")
    assert o.dtype == dtype
    assert_near(o, o_ref, 5e-3)
    assert_near(pool, exact)


def test_registered_operation_is_well_formed(device):
    from mmvl.kernels import lightning_decode_triton

    qkv, pool = draw(3, device=device)
    slots = torch.tensor([0, 1, 2], device=device)
    inputs = (qkv, pool, slots, SLOPES.to(device), None, None, None, True, True)
    torch.library.opcheck(lightning_decode_triton.op.overload, inputs)


def test_wrong_shapes_are_refused():
    qkv, pool = draw(3)
    with pytest.raises(ValueError, match="the states are"):
        lightning_decode(qkv, pool[:, :1], torch.tensor([0, 1, 2]), SLOPES)
    with pytest.raises(ValueError, match="states_after_THKK is .2, 2, 32, 32., it has to be .3, 2, 32, 32."):
        lightning_decode(qkv, pool, torch.tensor([0, 1, 2]), SLOPES, states_after_THKK=pool[:2])
    with pytest.raises(ValueError, match="give cu_seqlens_S1"):
        lightning_decode(qkv, pool, torch.tensor([0, 1]), SLOPES)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="graphs are CUDA's")
@pytest.mark.parametrize("cu_seqlens", [None, [0, 3, 3, 4]], ids=["a token each", "drafts"])
def test_a_cuda_graph_replays_on_new_tokens_and_slots(cu_seqlens):
    slots, slopes = torch.tensor([1, 3, 0, 2][: 4 if cu_seqlens is None else 3], device="cuda"), SLOPES.cuda()
    cu_seqlens_S1 = None if cu_seqlens is None else torch.tensor(cu_seqlens, dtype=torch.int32, device="cuda")
    qkv, pool = draw(4, 128, dtype=torch.bfloat16, device="cuda")

    def step(pool):
        return lightning_decode(qkv, pool, slots, slopes, cu_seqlens_S1=cu_seqlens_S1)

    step(pool.clone())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        o = step(pool)
    for turn in range(2):
        qkv.copy_(torch.randn_like(qkv))
        slots.copy_(slots.roll(1))
        other = pool.clone()
        expected = step(other)
        graph.replay()
        assert torch.equal(o, expected) and torch.equal(pool, other), turn
