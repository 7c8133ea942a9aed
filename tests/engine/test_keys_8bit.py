"""Keys in 8 bits: any schedule gives the same text, pages are half as large, and what cannot be is refused.

In fp64, where no rounding noise decides to which of two neighbours a key is rounded.
"""

import pytest
import torch
from PIL import Image

from mmvl.benchmark.decoder import SLICE
from mmvl.checkpoint import load_model
from mmvl.engine import Engine, SamplingParams
from mmvl.engine.memory import choose_sizes
from mmvl.processor import Processor

PARAMS = [SamplingParams(max_tokens=70), SamplingParams(max_tokens=60, temperature=3.0, seed=1, ignore_eos=True)]


@pytest.fixture(scope="module")
def parts(tiny_model_dir):
    return load_model(tiny_model_dir, dtype=torch.float64), Processor.from_pretrained(tiny_model_dir)


@pytest.fixture(scope="module")
def prompts(parts):
    picture = Image.new("RGB", (90, 30), "green")
    contents = [
        "hi",
        [{"type": "image", "image": picture}, {"type": "text", "text": "what colour is the shape?"}],
        "is there a circle? " * 9,
    ]
    return [parts[1].encode([{"role": "user", "content": content}]) for content in contents]


def tokens(engine, prompts):
    """Of a greedy and a random answer to each, all asked at once."""
    requests = [engine.submit(prompt, params) for prompt in prompts for params in PARAMS]
    while engine.has_work:
        engine.step()
    assert all(request.error is None for request in requests)
    return [request.output_ids for request in requests]


@pytest.fixture(scope="module")
def alone(parts, prompts):
    settings = {"kv_cache_dtype": "int8", "max_sequences": 1, "draft_tokens": 0, "prefix_cache": "off"}
    return tokens(Engine(*parts, **settings), prompts)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"max_batch_tokens": 7, "behind": True},
        {"max_cached_tokens": 256, "swap_bytes": 10_000_000, "prefix_cache": "off"},
        {"max_cached_tokens": 256, "swap_bytes": 0, "prefix_cache": "off"},
    ],
    ids=["at once", "in chunks", "swapped out", "computed again"],
)
def test_the_same_tokens_by_any_schedule(parts, prompts, alone, settings):
    engine = Engine(*parts, kv_cache_dtype="int8", **settings)
    assert tokens(engine, prompts) == alone
    assert (engine.stats().preemptions_total > 0) == ("max_cached_tokens" in settings)


def test_the_same_tokens_behind_a_prefix_that_was_kept(parts, prompts, alone):
    engine = Engine(*parts, kv_cache_dtype="int8")
    assert tokens(engine, prompts) == alone
    before = engine.stats().prefix_hit_tokens
    assert tokens(engine, prompts) == alone
    assert engine.stats().prefix_hit_tokens > before + 100
    engine.prefixes.clear()
    assert engine.cache.free_pages == engine.num_pages


def test_it_is_another_cache_and_a_smaller_one(parts, prompts):
    engines = [Engine(*parts, kv_cache_dtype=kind, max_cached_tokens=1024) for kind in ("auto", "fp8")]
    plain, small = (engine.cache.swapped_bytes(100) - engine.cache.swapped_bytes(0) for engine in engines)
    heads = 2 * 1 * 100  # key heads of all softmax layers
    assert (plain, small) == (2 * heads * 8 * 8, heads * (2 * 8 + 4))
    assert engines[0].cache.num_bytes - engines[1].cache.num_bytes == (plain - small) // 100 * 17 * 64


def test_pages_get_twice_as_many(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (60 << 30, 140 << 30))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a GPU")
    plain, small = (
        choose_sizes(SLICE, torch.device("cuda"), dtype, max_sequences=64).num_pages
        for dtype in (torch.bfloat16, torch.float8_e4m3fn)
    )
    assert 1.95 < small / plain < 2, (plain, small)


def test_what_cannot_be_is_refused(parts, monkeypatch):
    with pytest.raises(ValueError, match="kv_cache_dtype is 'int3'; it can be auto, fp8, int8"):
        Engine(*parts, kv_cache_dtype="int3")
    monkeypatch.setattr(type(parts[0]), "device", property(lambda model: torch.device("mps")))
    with pytest.raises(ValueError, match="8 bits are for cuda and cpu, not for mps"):
        Engine(*parts, kv_cache_dtype="fp8")
