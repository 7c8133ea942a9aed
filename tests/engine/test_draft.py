"""Prompt look-up: what it proposes, how it learns; and that a draft changes no token."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from mmvl.checkpoint import load_model
from mmvl.engine import Engine, SamplingParams
from mmvl.engine.draft import PromptLookup, Worth
from mmvl.processor import Processor, Prompt


def test_what_followed_the_last_three_tokens_is_proposed():
    lookup = PromptLookup([1, 2, 3, 4, 5, 6, 7, 1, 2, 3, 8, 9, 5], skip_id=0, most=8)
    assert lookup.propose(9) == []
    for token in (1, 2, 3):
        lookup.push(token)
    assert lookup.propose(9) == [8, 9, 5, 1]  # the latest match
    assert lookup.propose(2) == [8, 9] and lookup.propose(0) == [] and lookup.hot


def test_what_repeats_goes_on_repeating():
    assert PromptLookup([5, 6, 5, 6, 5, 6], skip_id=0, most=8).propose(4) == [5, 6, 5, 6]


def test_images_are_never_proposed():
    assert PromptLookup([0, 0, 0, 0, 1, 2, 3, 0, 0, 1, 2, 3], skip_id=0, most=8).propose(4) == []


def test_drafts_grow_while_they_hold_and_pause_when_they_do_not():
    lookup = PromptLookup([1, 2, 3] * 9, skip_id=0, most=8)
    assert len(lookup.propose(9)) == 4
    lookup.learn(4, 4)
    assert len(lookup.propose(9)) == 8
    lookup.learn(8, 3)
    assert len(lookup.propose(9)) == 4
    lookup.learn(4, 0)
    assert lookup.propose(9) == []
    for token in (1, 2):
        lookup.push(token)
    assert len(lookup.propose(9)) == 2
    lookup.learn(2, 0)
    for token in (3, 1, 2):
        lookup.push(token)
        assert lookup.propose(9) == []


@given(st.lists(st.integers(1, 3), max_size=40), st.integers(0, 9), st.integers(1, 8))
def test_a_draft_is_never_too_long_and_matches_something_said(ids, limit, most):
    draft = PromptLookup(ids, skip_id=0, most=most).propose(limit)
    assert len(draft) <= min(limit, most, 4 if most >= 4 else most)
    if draft:
        text = ids + draft
        end = len(ids)
        assert any(text[n : n + 4] == text[end - 3 : end + 1] for n in range(end - 3))


def test_drafts_change_nothing_and_save_steps(tiny_model_dir):
    """Greedy answers of a random model repeat themselves soon, so that drafts hold; sampled ones are as they were."""
    model, processor = load_model(tiny_model_dir, dtype=torch.float32), Processor.from_pretrained(tiny_model_dir)
    prompts = [Prompt([(n * k) % 200 + 10 for n in range(30)]) for k in (3, 5, 7)]
    settings = [{}, {"temperature": 0.3, "seed": 1, "logprobs": 1}, {"temperature": 2.0, "seed": 2}]
    got, steps = [], []
    for drafts in (0, 8):
        engine = Engine(model, processor, draft_tokens=drafts, prefix_cache="off")
        params = [SamplingParams(max_tokens=80, ignore_eos=True, **own) for own in settings]
        asked = [engine.submit(prompt, p) for prompt, p in zip(prompts, params, strict=True)]
        said, logprobs = 0, []
        while engine.has_work:
            updates = engine.step()
            logprobs += [x for u in updates if u.request is asked[1] for x in u.logprobs]
            said += sum(u.request is asked[0] for u in updates)
        got.append([request.output_ids for request in asked])
        assert [x.token_id for x in logprobs] == asked[1].output_ids
        steps.append(said)
    stats = engine.stats()
    assert got[0] == got[1] and stats.draft_tokens_accepted > 40
    assert stats.generation_tokens_total == 240 and steps[1] < 0.7 * steps[0]


def steps(worth, count, drafted, tokens=2, seconds=1.0, requests=2):
    for _ in range(count):
        worth.took(requests, tokens, drafted, seconds)
    return worth.it


def test_drafts_pause_where_they_cost_more_than_they_bring():
    worth = Worth()
    assert steps(worth, 99, True, tokens=2, seconds=9.0)  # nobody knows yet what a step without takes
    steps(worth, 3, False)
    assert steps(worth, 5 * Worth.TRIAL, True, tokens=7, seconds=3.0)  # 7 tokens for 6
    assert not steps(worth, Worth.TRIAL, True, tokens=5, seconds=3.0)
    assert not steps(worth, Worth.FIRST_PAUSE - 1, False) and steps(worth, 1, False)
    assert not steps(worth, Worth.TRIAL, True, tokens=5, seconds=3.0)
    assert not steps(worth, 2 * Worth.FIRST_PAUSE - 1, False) and steps(worth, 1, False)
    assert steps(worth, Worth.TRIAL, True, tokens=9, seconds=3.0)
    assert not steps(worth, Worth.TRIAL, True, tokens=5, seconds=3.0)
    assert steps(worth, Worth.FIRST_PAUSE, False)
    # for as many requests only: one more may take longer for other reasons
    assert steps(worth, 99, True, tokens=3, seconds=9.0, requests=3)
