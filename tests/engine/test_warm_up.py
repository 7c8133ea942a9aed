"""The warm-up, run on the CPU: it reaches what requests reach, and leaves nothing behind. Graphs are counted only."""

from types import SimpleNamespace

import pytest
import torch

from mmvl.checkpoint import load_model
from mmvl.engine import Engine, SamplingParams
from mmvl.engine import warm_up as warming
from mmvl.engine.warm_up import sizes, warm_up
from mmvl.processor import Processor
from mmvl.vlm import MMVL_TINY


@pytest.fixture(scope="module")
def parts():
    return load_model(MMVL_TINY, dtype=torch.float32), Processor.from_pretrained(MMVL_TINY)


def watched(engine, monkeypatch):
    """-> the works of each step, and the graphs that are asked for, as they come."""
    steps, captured, launch = [], [], engine._stepper.launch

    def capture(*shape):
        assert torch.is_inference_mode_enabled()
        captured.append(shape)
        return shape[0] != "draft"

    shapes = [("decode", 1, 1), ("decode", 1, 2), ("draft", 4, 1), ("chunk", 16, 8)]
    monkeypatch.setattr(engine, "graphs", SimpleNamespace(shapes=lambda: shapes, capture=capture))
    monkeypatch.setattr(engine._stepper, "launch", lambda works: steps.append(works) or launch(works))
    return steps, captured


def counted(engine):
    return {key: value for key, value in vars(engine.stats()).items() if key != "last_step_time"}


def test_it_reaches_what_requests_reach_and_leaves_nothing_behind(parts, monkeypatch):
    engine, told = Engine(*parts, behind=True, max_batch_tokens=130), []
    before, (steps, captured) = counted(engine), watched(engine, monkeypatch)
    monkeypatch.setattr(warming, "_PAST", 64)
    warm_up(engine, told.append)
    monkeypatch.undo()
    decoding = [("decode", 1, rows, context) for rows in (1, 2) for context in (1024, 4096)]
    chunks = [("chunk", 16, 8, context) for context in (1024, 4096)]
    assert captured == [*decoding, ("draft", 4, 1, 1024), *chunks]  # what failed once is not tried again
    assert "capturing graphs: drafts, 4 tokens of 1 sequences" in told
    assert {1, 2, 4, 8, 64, 128, 130} <= {work.count for works in steps for work in works}
    assert any(work.start == work.count == 64 for works in steps for work in works)
    assert any(len(works) > 2 and max(work.count for work in works) > 60 for works in steps)
    assert {1, 3, 7} <= {len(work.draft) for works in steps for work in works}
    assert "warming up: a prompt of 130 tokens" in told
    assert counted(engine) == before and engine.pace.most == 130 and engine.prefixes.enabled
    assert len(engine.prefixes) == 0 and engine.cache.free_pages == engine.num_pages

    prompt, said = parts[1].encode([{"role": "user", "content": "what is in the image?"}]), []
    for one in (engine, Engine(*parts)):
        request = one.submit(prompt, SamplingParams(max_tokens=9))
        while one.has_work:
            one.step()
        said.append(request.output_ids)
    assert said[0] == said[1]


def test_a_broken_model_says_so(parts):
    engine = Engine(*parts, max_batch_tokens=64, graphs=False)  # the decoder's own logits
    logits = engine.model.language_model.logits
    engine.model.language_model.logits = lambda hidden: logits(hidden) * float("nan")
    try:
        with pytest.raises(RuntimeError, match="not finite"):
            warm_up(engine, lambda what: None)
    finally:
        del engine.model.language_model.logits


def test_an_engine_with_little_room_is_warmed_up_as_far_as_it_goes(parts):
    engine = Engine(*parts, max_sequences=1, max_cached_tokens=64, prefix_cache="off", draft_tokens=0)
    warm_up(engine, lambda what: None)
    assert engine.cache.free_slots == 1 and not engine.has_work


def test_nothing_is_done_on_a_cpu(parts):
    engine = Engine(*parts)
    engine.warm_up(lambda what: pytest.fail(what))


def test_sizes():
    assert (sizes(1), sizes(8), sizes(9)) == ([1], [1, 2, 4, 8], [1, 2, 4, 8, 9])
