"""What the pools say would fit, fits: random requests over a small cache, prefixes shared and half pages copied."""

import random

import pytest

from mmvl.engine import Engine, SamplingParams
from mmvl.processor import Prompt


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("swap_bytes", [0, 1 << 20])
def test_what_would_be_admitted_is_and_what_would_not_drops_no_prefix(model, processor, swap_bytes, seed):
    settings = {"max_sequences": 4, "max_cached_tokens": 400, "swap_bytes": swap_bytes}
    engine = Engine(model, processor, **settings)
    pools, draw = engine.pools, random.Random(seed)
    words = processor.encode_text("one two three four five six seven eight nine ten " * 40)
    running, waiting, said = [], [], {True: 0, False: 0}
    for _ in range(150):
        if draw.random() < 0.4 or not waiting:
            prompt = Prompt([draw.choice((5, 6)), *words[: draw.randrange(1, 250)]])
            waiting.append(engine.prepare(prompt, SamplingParams()))
        request, out = draw.choice(waiting), draw.sample(running, min(draw.choice((0, 0, 1, 2)), len(running)))
        expected, prefixes = pools.would_admit(request, out), len(engine.prefixes)
        assert pools.would_admit(request, out) == expected and len(engine.prefixes) == prefixes
        for other in out:
            pools.preempt(other)
            running.remove(other)
            waiting.append(other)
        assert pools.admit(request) == expected
        said[expected] += 1
        if not expected:
            assert len(engine.prefixes) == prefixes
            continue
        waiting.remove(request)
        running.append(request)
        engine.cache.advance_by([request.slot], [request.num_missing])  # as if it had been computed
        request.num_cached = request.num_tokens
        if draw.random() < 0.5:
            pools.checkpoint(request)
        if draw.random() < 0.3:
            running.remove(request)
            pools.release(request)
    assert min(said.values()) > 10 and engine.counters.prefix_hit_tokens > 0
    for request in running + waiting:
        pools.release(request)
    engine.prefixes.clear()
    assert engine.cache.used_pages == 0 and engine.cache.free_pages == engine.num_pages


def test_while_all_places_are_taken_no_prefix_is_looked_for(model, processor, monkeypatch):
    """It is asked in every step, and takes longer the longer the prompt is that waits."""
    engine = Engine(model, processor, max_sequences=1)
    first, second = (engine.prepare(Prompt(processor.encode_text("one two three")), SamplingParams()) for _ in range(2))
    assert engine.pools.admit(first)
    monkeypatch.setattr(engine.prefixes, "match", None)
    assert not engine.pools.admit(second) and not engine.pools.would_admit(second)
