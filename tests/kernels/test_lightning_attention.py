"""Lightning attention against the recurrence that defines it, written token by token in fp64.

Legend: T tokens, S sequences, H heads, K/V head dims.
"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmvl.kernels import lightning_attention as module
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
}


def recurrence(q, k, v, slopes, lengths, initial=None):
    """The definition, fp64, one token after the other."""
    q, k, v = q.double().cpu(), k.double().cpu(), v.double().cpu()
    outputs, states, at = [], [], 0
    for s, length in enumerate(lengths):
        state = torch.zeros(q.shape[1], q.shape[2], v.shape[2], dtype=torch.float64)
        if initial is not None:
            state = initial[s].double().cpu().clone()
        for t in range(at, at + length):
            for h, slope in enumerate(slopes):
                state[h] = math.exp(-slope) * state[h] + torch.outer(k[t, h], v[t, h])
            outputs.append(torch.einsum("hk,hkv->hv", q[t], state))
        states.append(state)
        at += length
    return torch.stack(outputs), torch.stack(states)


def draw_inputs(lengths, H=3, K=8, V=8, dtype=torch.float32, device="cpu", seed=0):
    """Of natural size: SiLU of normal numbers, as in the model."""
    generator = torch.Generator().manual_seed(seed)
    silu = torch.nn.functional.silu
    q, k, v = (silu(torch.randn(sum(lengths), H, n, generator=generator)) for n in (K, K, V))
    initial = torch.randn(len(lengths), H, K, V, generator=generator)
    return *(x.to(device=device, dtype=dtype) for x in (q, k, v)), initial.to(device)


@pytest.mark.parametrize("slopes", SLOPES.values(), ids=SLOPES)
@pytest.mark.parametrize("lengths", HOSTILE.values(), ids=HOSTILE)
def test_equals_the_recurrence(lengths, slopes, device, rmse_ratio):
    q, k, v, initial = draw_inputs(lengths, device=device)
    for start in (None, initial):
        o, state = lightning_attention(q, k, v, torch.tensor(slopes), initial_state_SHKV=start, lengths=lengths)
        o_ref, state_ref = recurrence(q, k, v, slopes, lengths, start)
        assert rmse_ratio(o, o_ref) < 1e-6
        assert rmse_ratio(state, state_ref) < 1e-6
        assert state.dtype == torch.float32
        alone, none = lightning_attention(
            q, k, v, torch.tensor(slopes), initial_state_SHKV=start, lengths=lengths, want_state=False
        )
        assert none is None and rmse_ratio(alone, o_ref) < 1e-6


@pytest.mark.parametrize("block", [1, 3, 16, 64, 256])
def test_any_block_size_gives_the_same(block, device, rmse_ratio):
    lengths, slopes = [5, 100, 1, 37], SLOPES["usual"]
    q, k, v, initial = draw_inputs(lengths, K=6, V=10, device=device)
    o_ref, state_ref = recurrence(q, k, v, slopes, lengths, initial)
    cu_seqlens = torch.tensor([0, 5, 105, 106, 143], dtype=torch.int32, device=device)
    o, state = lightning_attention(q, k, v, torch.tensor(slopes), cu_seqlens, initial, block=block)
    assert rmse_ratio(o, o_ref) < 1e-6 and rmse_ratio(state, state_ref) < 1e-6


def test_more_blocks_than_a_segment_holds(monkeypatch, device, rmse_ratio):
    monkeypatch.setattr(module, "MAX_SEGMENT", 3)
    lengths, slopes = [5, 61, 1, 24, 30], SLOPES["usual"]
    q, k, v, initial = draw_inputs(lengths, device=device)
    for start in (None, initial):
        o, state = lightning_attention(
            q, k, v, torch.tensor(slopes), initial_state_SHKV=start, lengths=lengths, block=8
        )
        o_ref, state_ref = recurrence(q, k, v, slopes, lengths, start)
        assert rmse_ratio(o, o_ref) < 1e-6 and rmse_ratio(state, state_ref) < 1e-6


def test_bf16_inputs_keep_an_fp32_state(device, rmse_ratio):
    lengths, slopes = [300, 70, 1], SLOPES["slow"]
    q, k, v, initial = draw_inputs(lengths, K=32, V=32, dtype=torch.bfloat16, device=device)
    o, state = lightning_attention(q, k, v, torch.tensor(slopes), initial_state_SHKV=initial, lengths=lengths)
    o_ref, state_ref = recurrence(q, k, v, slopes, lengths, initial)
    assert o.dtype == torch.bfloat16 and state.dtype == torch.float32
    assert rmse_ratio(o, o_ref) < 5e-3  # the output is rounded to bf16 once
    assert rmse_ratio(state, state_ref) < 1e-6


@settings(max_examples=20, deadline=None)
@given(
    chunks=st.lists(st.lists(st.integers(1, 90), min_size=1, max_size=4), min_size=1, max_size=4),
    slopes=st.sampled_from(list(SLOPES.values())),
    seed=st.integers(0, 1000),
)
def test_any_split_gives_the_same_output_and_state(chunks, slopes, seed):
    """Sequence s is cut into chunks[s]; round r runs the r-th chunk of every sequence that has one."""
    lengths = [sum(c) for c in chunks]
    slopes = torch.tensor(slopes)
    q, k, v, _ = draw_inputs(lengths, seed=seed)
    o_ref, state_ref = lightning_attention(q, k, v, slopes, lengths=lengths)
    starts = [sum(lengths[:s]) for s in range(len(lengths))]
    o, state = torch.zeros_like(o_ref), torch.zeros_like(state_ref)
    for r in range(max(map(len, chunks))):
        now = [s for s in range(len(chunks)) if r < len(chunks[s])]
        at = torch.cat([torch.arange(chunks[s][r]) + starts[s] + sum(chunks[s][:r]) for s in now])
        o[at], state[now] = lightning_attention(
            q[at], k[at], v[at], slopes, initial_state_SHKV=state[now], lengths=[chunks[s][r] for s in now]
        )
    assert (o - o_ref).norm() <= 1e-5 * o_ref.norm()
    assert (state - state_ref).norm() <= 1e-5 * state_ref.norm()


@pytest.mark.parametrize("lengths", [[1, 6, 3], [1, 1]], ids=["blocks", "single tokens"])
@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize("segment", [1024, 2])
def test_gradients_equal_finite_differences(lengths, with_state, segment, monkeypatch):
    monkeypatch.setattr(module, "MAX_SEGMENT", segment)
    generator = torch.Generator().manual_seed(0)
    q, k, v, initial = (
        torch.randn(*shape, generator=generator, dtype=torch.float64, requires_grad=True)
        for shape in ((sum(lengths), 2, 2), (sum(lengths), 2, 2), (sum(lengths), 2, 1), (len(lengths), 2, 2, 1))
    )
    slopes = torch.tensor([0.7, 0.05], dtype=torch.float64)

    def run(q, k, v, initial=None):
        return lightning_attention(q, k, v, slopes, initial_state_SHKV=initial, lengths=lengths, block=2)

    assert torch.autograd.gradcheck(run, (q, k, v, initial) if with_state else (q, k, v))


def test_documents_do_not_leak():
    q, k, v, _ = draw_inputs([70, 80, 3])
    q, k, v = (x.requires_grad_() for x in (q, k, v))
    o, _ = lightning_attention(q, k, v, torch.tensor(SLOPES["slow"]), lengths=[70, 80, 3])
    o[70:150].sum().backward()
    for x in (q, k, v):
        assert x.grad[:70].count_nonzero() == 0 and x.grad[150:].count_nonzero() == 0
        assert x.grad[70:150].count_nonzero() > 0


def test_only_the_inputs_are_kept_for_the_backward_pass():
    q, k, v, _ = draw_inputs([500, 12])
    q.requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.nbytes) or x, lambda x: x):
        lightning_attention(q, k, v, torch.tensor(SLOPES["usual"]), lengths=[500, 12])
    assert sum(kept) <= q.nbytes + k.nbytes + v.nbytes + 64


def test_wrong_lengths_are_refused():
    q, k, v, _ = draw_inputs([4])
    with pytest.raises(ValueError, match="at least 1 token"):
        plan_blocks([3, 0, 1], "cpu")
    with pytest.raises(ValueError, match="hold 5 tokens, q holds 4"):
        lightning_attention(q, k, v, torch.ones(3), lengths=[5])
    with pytest.raises(ValueError, match="one of plan, lengths, cu_seqlens_S1"):
        lightning_attention(q, k, v, torch.ones(3))
