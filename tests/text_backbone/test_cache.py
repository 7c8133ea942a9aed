"""The hybrid cache: its books, its refusals, and that a refusal changes nothing."""

import pytest
import torch

from mmvl.text_backbone.cache import CacheFull, HybridCache
from mmvl.text_backbone.packed import Packed


@pytest.fixture
def decoder(make_config, make_decoder):
    return make_decoder(make_config())


@pytest.fixture
def cache(decoder):
    return HybridCache(decoder.config, max_sequences=2, max_tokens=40, page_size=8, device="cpu", dtype=torch.float32)


@torch.no_grad()
def step(decoder, cache, wanted):
    packed = cache.pack(wanted)
    ids = torch.arange(packed.num_tokens) % decoder.config.vocab_size
    return decoder(decoder.embed(ids), packed, cache).hidden_TD


def books(cache):
    return (
        cache.free_slots, cache.free_pages, {slot: cache.length(slot) for slot in cache._pages},
        {slot: list(pages) for slot, pages in cache._pages.items()}, cache._keys.clone(), cache._states.clone(),
    )  # fmt: skip


def same(a, b):
    return a[:4] == b[:4] and torch.equal(a[4], b[4]) and torch.equal(a[5], b[5])


def test_a_full_cache_stays_as_it_was(decoder, cache):
    a, b = cache.allocate(), cache.allocate()
    step(decoder, cache, [(a, 20), (b, 3)])
    before = books(cache)
    for refused in (lambda: cache.pack([(a, 1), (b, 30)]), lambda: cache.pack([(b, 22)]), cache.allocate):
        with pytest.raises(CacheFull):
            refused()
        assert same(books(cache), before)
    step(decoder, cache, [(a, 4), (b, 13)])  # what still fits is served
    assert (cache.length(a), cache.length(b), cache.free_pages) == (24, 16, 0)


def test_freed_room_is_used_again_and_clean(decoder, cache):
    a = cache.allocate()
    first = step(decoder, cache, [(a, 40)])
    cache.free(a)
    assert (cache.free_slots, cache.free_pages) == (2, 5)
    b, a = cache.allocate(), cache.allocate()
    assert cache.length(a) == cache.length(b) == 0
    assert cache.state(a).count_nonzero() == cache.state(b).count_nonzero() == 0
    assert torch.equal(step(decoder, cache, [(a, 40)]), first)


def test_pages_reserved_but_not_used_are_kept_for_the_sequence(decoder, cache):
    a = cache.allocate()
    cache.pack([(a, 30)])
    assert cache.free_pages == 1 and cache.length(a) == 0
    assert cache.pages_needed(a, 32) == 0
    step(decoder, cache, [(a, 32)])
    assert cache.free_pages == 1 and cache.length(a) == 32


def test_misuse_is_refused(decoder, cache):
    a = cache.allocate()
    before = books(cache)
    for wanted, message in (
        ([(a, 1), (a, 1)], "comes twice"),
        ([(7, 1)], "slot 7 is not allocated"),
        ([(a, 0)], "at least 1 token"),
        ([], "at least 1 token"),
    ):
        with pytest.raises(ValueError, match=message):
            cache.pack(wanted)
    with pytest.raises(ValueError, match="not allocated"):
        cache.free(7)
    assert same(books(cache), before)
    with pytest.raises(ValueError, match="make it with HybridCache.pack"):
        decoder(decoder.embed(torch.tensor([1])), Packed.from_lengths([1], "cpu"), cache)
    stale = cache.pack([(a, 1)])
    step(decoder, cache, [(a, 1)])
    with pytest.raises(ValueError, match="stale"):
        decoder(decoder.embed(torch.tensor([1])), stale, cache)
    assert cache.length(a) == 1
    with pytest.raises(ValueError, match="needs room"):
        HybridCache(decoder.config, max_sequences=0, max_tokens=1, device="cpu", dtype=torch.float32)


def test_states_are_fp32_and_bytes_are_counted(make_config):
    config = make_config()
    cache = HybridCache(config, max_sequences=3, max_tokens=65, page_size=64, device="cpu", dtype=torch.bfloat16)
    slot = cache.allocate()
    assert cache.state(slot).dtype == torch.float32 and cache.state(slot).shape == (2, 6, 8, 8)
    keys_and_values = 2 * 1 * 128 * 2 * 8 * 2
    assert cache.num_bytes == keys_and_values + 2 * 3 * 6 * 8 * 8 * 4
