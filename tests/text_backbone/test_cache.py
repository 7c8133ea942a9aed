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
        {slot: list(pages) for slot, pages in cache._pages.items()}, cache._keys.keys.clone(), cache._states.clone(),
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


@torch.no_grad()
def feed(decoder, cache, slot, ids):
    packed = cache.pack([(slot, len(ids))])
    return decoder(decoder.embed(torch.tensor(ids)), packed, cache).hidden_TD


@pytest.fixture
def roomy(decoder):
    return HybridCache(
        decoder.config, max_sequences=3, max_tokens=120, page_size=8, max_checkpoints=2, device="cpu",
        dtype=torch.float32,
    )  # fmt: skip


IDS = [(7 * n) % 30 for n in range(40)]


@pytest.mark.parametrize("length", [1, 7, 8, 13, 16])
def test_a_checkpoint_is_continued_exactly_while_its_sequence_goes_on_or_is_gone(decoder, roomy, length):
    whole = feed(decoder, roomy, roomy.allocate(), IDS)
    first = roomy.allocate()
    feed(decoder, roomy, first, IDS[:length])
    kept = roomy.checkpoint(first)
    feed(decoder, roomy, first, [3] * 11)  # writes behind the checkpoint, in its last page
    pages = roomy.used_pages
    second = roomy.resume(kept)
    assert roomy.used_pages - pages == (length % 8 > 0)  # whole pages are shared
    assert roomy.length(second) == length
    torch.testing.assert_close(feed(decoder, roomy, second, IDS[length:]), whole[length:], rtol=1e-5, atol=1e-5)
    for slot in (first, second):
        roomy.free(slot)
    third = roomy.resume(kept)
    torch.testing.assert_close(feed(decoder, roomy, third, IDS[length:]), whole[length:], rtol=1e-5, atol=1e-5)


def test_pages_are_free_when_neither_sequence_nor_checkpoint_has_them(decoder, roomy):
    slot = roomy.allocate()
    feed(decoder, roomy, slot, IDS[:20])
    kept = roomy.checkpoint(slot)
    assert (roomy.free_pages, roomy.used_pages, roomy.free_checkpoints) == (12, 3, 1)
    roomy.free(slot)
    assert (roomy.free_pages, roomy.used_pages) == (12, 0)
    again = roomy.resume(kept)
    roomy.forget(kept)
    assert (roomy.free_pages, roomy.used_pages, roomy.free_checkpoints) == (12, 3, 2)
    roomy.free(again)
    assert (roomy.free_pages, roomy.used_pages, roomy.free_slots) == (15, 0, 3)


def test_no_room_for_a_checkpoint_or_its_last_page_changes_nothing(decoder, roomy):
    slot = roomy.allocate()
    feed(decoder, roomy, slot, IDS[:20])
    first, second = roomy.checkpoint(slot), roomy.checkpoint(slot)
    with pytest.raises(CacheFull, match="place"):
        roomy.checkpoint(slot)
    roomy.reserve(slot, 100)
    assert roomy.free_pages == 0
    with pytest.raises(CacheFull, match="last one"):
        roomy.resume(first)
    with pytest.raises(CacheFull, match="free pages"):
        roomy.reserve(slot, 101)
    assert roomy.free_slots == 2
    for kept in (first, second):
        roomy.forget(kept)
    roomy.free(slot)
    assert (roomy.free_pages, roomy.used_pages, roomy.free_checkpoints) == (15, 0, 2)


def test_a_sequence_swapped_out_comes_back_as_it_was(decoder, roomy):
    whole = feed(decoder, roomy, roomy.allocate(), IDS)
    slot = roomy.allocate()
    feed(decoder, roomy, slot, IDS[:21])
    roomy.swap_out(slot, 5)
    assert (roomy.free_pages, roomy.free_slots) == (10, 2)
    other = roomy.allocate()
    feed(decoder, roomy, other, [1] * 30)
    slot = roomy.swap_in(5)
    torch.testing.assert_close(feed(decoder, roomy, slot, IDS[21:]), whole[21:], rtol=1e-5, atol=1e-5)


def test_of_a_draft_only_what_was_accepted_ever_was(decoder, roomy):
    """Two sequences: of the first's four tokens two count, of the second's one all."""
    wholes = [feed(decoder, roomy, roomy.allocate(), IDS[n : n + 20]) for n in range(2)]
    for slot in range(2):
        roomy.free(slot)
    slots = [roomy.allocate() for _ in range(2)]
    for n, slot in enumerate(slots):
        feed(decoder, roomy, slot, IDS[n : n + 10])
    with torch.no_grad():
        packed = roomy.pack([(slots[0], 4), (slots[1], 1)], draft=True)
        hidden_TD = decoder(decoder.embed(torch.tensor([IDS[10], IDS[11], 5, 6, IDS[11]])), packed, roomy).hidden_TD
    torch.testing.assert_close(hidden_TD[:2], wholes[0][10:12], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(hidden_TD[4:], wholes[1][10:11], rtol=1e-5, atol=1e-5)
    roomy.accept(packed, [2, 1])
    assert [roomy.length(slot) for slot in slots] == [12, 11]
    for n, slot in enumerate(slots):
        rest = IDS[n + roomy.length(slot) : n + 20]
        torch.testing.assert_close(feed(decoder, roomy, slot, rest), wholes[n][-len(rest) :], rtol=1e-5, atol=1e-5)


def test_int8_checkpoints_are_off_by_half_a_step_and_a_quarter_as_large(decoder):
    settings = dict(max_sequences=1, max_tokens=64, page_size=16, max_checkpoints=1, device="cpu", dtype=torch.float32)
    exact = HybridCache(decoder.config, **settings)
    small = HybridCache(decoder.config, checkpoint_dtype=torch.int8, **settings)
    assert small._store.num_bytes < 0.4 * exact._store.num_bytes  # heads of 8 have many scales
    slot = small.allocate()
    feed(decoder, small, slot, IDS)
    state = small.state(slot)
    kept = small.checkpoint(slot)
    small.free(slot)
    back = small.state(small.resume(kept))
    assert ((back - state).abs() <= state.abs().amax(-1, keepdim=True) / 253).all()


def test_states_are_fp32_and_bytes_are_counted(make_config):
    config = make_config()
    cache = HybridCache(config, max_sequences=3, max_tokens=65, page_size=64, device="cpu", dtype=torch.bfloat16)
    slot = cache.allocate()
    assert cache.state(slot).dtype == torch.float32 and cache.state(slot).shape == (2, 6, 8, 8)
    keys_and_values = 2 * 1 * 128 * 2 * 8 * 2
    assert cache.num_bytes == keys_and_values + 2 * 3 * 6 * 8 * 8 * 4
