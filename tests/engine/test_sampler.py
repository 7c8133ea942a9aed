"""The sampler against plain arithmetic on small distributions. S sequences, V vocabulary."""

import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from mmvl.engine import SamplingParams
from mmvl.engine.sampler import NOT_FINITE, Row, Sampler, SamplerState, apply_repetition_penalty, draw

PROBS = torch.tensor([0.1, 0.4, 0.05, 0.3, 0.15])
LOGITS_1V = PROBS.log()[None]


def choose(sampler: Sampler, logits_SV: torch.Tensor, states, number: int = 0) -> list[int]:
    """Token `number` of every request."""
    return sampler(logits_SV, [Row(state, number) for state in states])[0].tolist()


def frequencies(params: SamplingParams, n: int = 2000) -> dict[int, float]:
    """Shares of the ids drawn for n evenly spaced uniforms: exact to 1/n, no luck involved."""
    uniforms = [(i + 0.5) / n for i in range(n)]
    drawn = draw(LOGITS_1V.expand(n, -1), [params] * n, uniforms).tolist()
    return {token: count / n for token, count in Counter(drawn).items()}


def close(got: dict[int, float], expected: dict[int, float]) -> bool:
    return got.keys() == expected.keys() and all(abs(got[i] - expected[i]) < 2e-3 for i in expected)


def test_draws_follow_the_distribution():
    assert close(frequencies(SamplingParams(temperature=1.0)), dict(enumerate(PROBS.tolist())))


def test_temperature_is_a_power_of_the_distribution():
    squared = PROBS**2 / (PROBS**2).sum()
    assert close(frequencies(SamplingParams(temperature=0.5)), dict(enumerate(squared.tolist())))


def test_top_k_keeps_the_k_likeliest():
    assert close(frequencies(SamplingParams(temperature=1.0, top_k=2)), {1: 0.4 / 0.7, 3: 0.3 / 0.7})


def test_top_p_keeps_the_token_that_crosses():
    # 0.4 + 0.3 < 0.75 <= 0.4 + 0.3 + 0.15
    expected = {1: 0.4 / 0.85, 3: 0.3 / 0.85, 4: 0.15 / 0.85}
    assert close(frequencies(SamplingParams(temperature=1.0, top_p=0.75)), expected)
    assert close(frequencies(SamplingParams(temperature=1.0, top_p=1e-6)), {1: 1.0})


def test_top_p_counts_over_what_top_k_left():
    # Of the two left, 0.4 / 0.7 = 0.57 reaches 0.5 alone.
    assert close(frequencies(SamplingParams(temperature=1.0, top_k=2, top_p=0.5)), {1: 1.0})


def test_the_last_bits_of_logits_that_are_almost_equal_do_not_change_the_draw():
    generator = torch.Generator().manual_seed(0)
    logits_SV = torch.ones(500, 64)
    uniforms = torch.rand(500, generator=generator).tolist()
    drawn = draw(logits_SV, [SamplingParams(temperature=1.0)] * 500, uniforms)
    noise_SV = (torch.rand(500, 64, generator=generator) - 0.5) * 1e-6
    assert not torch.equal(logits_SV + noise_SV, logits_SV)
    assert torch.equal(draw(logits_SV + noise_SV, [SamplingParams(temperature=1.0)] * 500, uniforms), drawn)
    assert len(set(drawn.tolist())) > 60


def test_min_p_is_relative_to_the_likeliest():
    # 0.5 * 0.4 = 0.2
    assert close(frequencies(SamplingParams(temperature=1.0, min_p=0.5)), {1: 0.4 / 0.7, 3: 0.3 / 0.7})


def test_min_p_looks_at_the_distribution_after_temperature():
    # Squared, 0.3 is 0.5625 of 0.4.
    assert set(frequencies(SamplingParams(temperature=0.5, min_p=0.6))) == {1}
    assert set(frequencies(SamplingParams(temperature=1.0, min_p=0.6))) == {1, 3}


def test_tiny_temperature_is_greedy_and_does_not_overflow():
    logits_1V = torch.tensor([[100.0, 99.9, -3e4]])
    assert draw(logits_1V, [SamplingParams(temperature=1e-300)], [0.999]).tolist() == [0]


def test_repetition_penalty_makes_seen_tokens_less_likely_on_both_sides_of_zero():
    logits_V = torch.tensor([2.0, -2.0, 3.0])
    penalised = apply_repetition_penalty(logits_V, torch.tensor([True, True, False]), 2.0)
    assert penalised.tolist() == [1.0, -4.0, 3.0]


def test_repetition_penalty_counts_the_prompt_and_the_answer():
    sampler = Sampler(valid_vocab_size=4)
    state = SamplerState(SamplingParams(repetition_penalty=4.0), prompt_ids=[0, 3, 99])
    logits = [4.0, 3.0, 2.0, -1.0]
    # 4 / 4 < 3, so the second wins; then 3 / 4 < 2, so the third; then 0.5 < 0.75 < 1.
    assert [choose(sampler, torch.tensor([logits]), [state], n) for n in range(3)] == [[1], [2], [0]]


def test_presence_counts_once_and_frequency_every_time():
    sampler = Sampler(valid_vocab_size=3)
    state = SamplerState(SamplingParams(presence_penalty=1.0, frequency_penalty=0.5), prompt_ids=[1, 1])
    # 3, 1.5, 1, ... against 2.4: the prompt does not count; the second falls to 0.9 once it was said
    logits = [[3.0, 2.4, -9.0]]
    assert [choose(sampler, torch.tensor(logits), [state], n) for n in range(3)] == [[0], [1], [0]]


def test_masks_and_minimum_lengths_leave_out_what_may_not_come():
    sampler = Sampler(valid_vocab_size=3)
    state = SamplerState(SamplingParams(min_tokens=1), [0], end_ids={2, 7})
    logits = torch.tensor([[1.0, 2.0, 3.0, 9.0]])
    mask_V = torch.tensor([True, False, True, True])
    assert choose(sampler, logits.clone(), [state], 0) == [1] and choose(sampler, logits.clone(), [state], 1) == [2]
    assert sampler(logits.clone(), [Row(state, 0, mask_V)])[0].tolist() == [0]
    assert sampler(logits.clone(), [Row(state, 0, torch.zeros(4, dtype=torch.bool))])[0].tolist() == [NOT_FINITE]


def test_logprobs_are_the_models_own():
    sampler = Sampler(valid_vocab_size=5, banned_ids=[1])
    asks = SamplerState(SamplingParams(logprobs=2, temperature=0.1), [0])
    tokens_S, logprobs = sampler(LOGITS_1V.repeat(2, 1), [Row(SamplerState(SamplingParams(), [0]), 0), Row(asks, 0)])
    assert tokens_S.tolist() == [3, 3] and logprobs.rows == (1,)
    assert logprobs.ids_RN.tolist() == [[1, 3]]
    torch.testing.assert_close(logprobs.values_RN.exp(), torch.tensor([[0.4, 0.3]]))
    torch.testing.assert_close(logprobs.chosen_R.exp(), torch.tensor([0.3]))


def test_greedy_takes_the_likeliest_id_that_the_tokenizer_has():
    logits_SV = torch.tensor([[1.0, 2.0, 3.0, 9.0], [5.0, 2.0, 8.0, 9.0]])
    states = [SamplerState(SamplingParams(), [0]) for _ in range(2)]
    assert choose(Sampler(valid_vocab_size=3), logits_SV.clone(), states) == [2, 2]
    assert choose(Sampler(valid_vocab_size=3, banned_ids=[2]), logits_SV.clone(), states) == [1, 0]


def test_masked_ids_are_never_drawn():
    states = [SamplerState(SamplingParams(temperature=100.0, seed=s), [0]) for s in range(200)]
    drawn = choose(Sampler(valid_vocab_size=4, banned_ids=[1]), torch.zeros(200, 6), states)
    assert set(drawn) == {0, 2, 3}


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_broken_logits_spoil_their_own_row_only(broken):
    states = [SamplerState(SamplingParams(temperature=t), [0]) for t in (0.0, 1.0, 0.0)]
    logits_SV = torch.tensor([[0.0, broken, 1.0], [0.0, broken, 1.0], [0.0, 2.0, 1.0]])
    assert choose(Sampler(valid_vocab_size=3), logits_SV, states) == [NOT_FINITE, NOT_FINITE, 1]


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_a_row_is_drawn_the_same_alone_and_in_any_batch(data):
    rows = data.draw(st.integers(1, 6))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**32)))
    logits_SV = torch.randn(rows, 50, generator=generator) * 3
    params = [
        SamplingParams(
            temperature=data.draw(st.sampled_from([0.0, 0.5, 1.0, 2.0])),
            top_k=data.draw(st.integers(0, 60)),
            top_p=data.draw(st.floats(0.01, 1)),
            min_p=data.draw(st.floats(0, 1)),
            repetition_penalty=data.draw(st.sampled_from([1.0, 1.5])),
            seed=data.draw(st.integers(0, 9)),
        )
        for _ in range(rows)
    ]
    sampler = Sampler(valid_vocab_size=48)
    together = [SamplerState(p, [1, 2]) for p in params]
    alone = [SamplerState(p, [1, 2]) for p in params]
    for n in range(3):
        batch = choose(sampler, logits_SV.clone(), together, n)
        assert batch == [choose(sampler, logits_SV[row : row + 1].clone(), [alone[row]], n)[0] for row in range(rows)]


def test_a_few_rows_at_once_give_what_all_give(monkeypatch):
    asked = [{}, {"logprobs": 3}, {"temperature": 1.0, "seed": 1}, {"temperature": 2.0, "seed": 2, "logprobs": 1},
             {"presence_penalty": 1.0, "logprobs": 0}, {"temperature": 1.0, "seed": 3}, {"logprobs": 2}]  # fmt: skip
    logits_SV = torch.randn(len(asked), 50, generator=torch.Generator().manual_seed(0))

    def sampled():
        rows = [Row(SamplerState(SamplingParams(**settings), [1, 2]), 0) for settings in asked]
        return Sampler(48, [5])(logits_SV.clone(), rows)

    whole_S, whole = sampled()
    for rows in (1, 2, 3):
        monkeypatch.setattr("mmvl.engine.sampler.AT_ONCE", rows * 48)
        tokens_S, logprobs = sampled()
        assert torch.equal(tokens_S, whole_S) and logprobs.rows == whole.rows == (1, 3, 4, 6)
        for part, of_whole in zip(vars(logprobs).values(), vars(whole).values(), strict=True):
            assert part == of_whole if isinstance(part, tuple) else torch.equal(part, of_whole)


class Ops(TorchDispatchMode):
    """Counts operations; a copy to the device that waits is an error. On tensors that are not there (fake ones)."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        made = function(*args, **(kwargs or {}))
        moved = isinstance(made, torch.Tensor) and args and args[0] is not made and made.is_cuda
        if moved and isinstance(args[0], torch.Tensor) and not args[0].is_cuda:
            assert kwargs.get("non_blocking"), f"{function} waits for the device"
        return made


def ops_of(settings, valid=48) -> int:
    """Of sampling for these on a GPU."""
    states = [SamplerState(SamplingParams(**asked), [1, 2], [3]) for asked in settings]
    for state in states:
        state.uniform(0)  # on the host
    with FakeTensorMode(), Ops() as ops:
        mask_V = torch.ones(valid, dtype=torch.bool)
        rows = [Row(state, 0, mask_V if n % 4 == 3 else None) for n, state in enumerate(states)]
        sampler = Sampler(valid, [5])
        sampler(torch.empty(len(rows), 50, device="cuda"), rows)
        sampler(torch.empty(len(rows), 50, device="cuda"), rows)
    return ops.count


def test_nothing_waits_for_the_device():
    penalised = {"temperature": 2.0, "logprobs": 0, "repetition_penalty": 1.1, "frequency_penalty": 0.5}
    ops_of([{}, {"logprobs": 3}, {"temperature": 1.0, "seed": 1, "top_p": 0.5}, {"min_tokens": 2}, penalised])


def test_greedy_rows_are_not_sampled_in_parts(monkeypatch):
    greedy, with_two_drawn = [{}] * 7, [{}] * 5 + [{"temperature": 1.0}] * 2
    whole = [ops_of(greedy), ops_of(with_two_drawn)]
    monkeypatch.setattr("mmvl.engine.sampler.AT_ONCE", 2 * 48)
    assert [ops_of(greedy), ops_of(with_two_drawn)] == whole


def test_a_seed_repeats_and_no_seed_does_not():
    def draws(seed):
        state = SamplerState(SamplingParams(temperature=1.0, seed=seed), [0])
        return [choose(Sampler(1000), torch.zeros(1, 1000), [state], n)[0] for n in range(8)], state.seed

    assert draws(7) == draws(7)
    first, seed = draws(None)
    assert first != draws(None)[0]
    assert draws(seed)[0] == first
