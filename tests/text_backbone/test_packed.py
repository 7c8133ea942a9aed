"""Packed batches: offsets, positions, refusals."""

import pytest
import torch

from mmvl.text_backbone.cache import HybridCache
from mmvl.text_backbone.packed import Packed


def test_positions_and_offsets():
    packed = Packed.from_lengths([3, 1, 2], "cpu", starts=[0, 7, 100])
    assert packed.cu_seqlens_S1.tolist() == [0, 3, 4, 6] and packed.cu_seqlens_S1.dtype == torch.int32
    assert packed.positions_T.tolist() == [0, 1, 2, 7, 100, 101] and packed.positions_T.dtype == torch.int64
    assert packed.last_S.tolist() == [2, 3, 5] and packed.num_tokens == 6


@pytest.mark.parametrize("lengths, starts", [([], None), ([2, 0], None), ([2], [1, 2]), ([2], [-1])])
def test_nonsense_is_refused(lengths, starts):
    with pytest.raises(ValueError):
        Packed.from_lengths(lengths, "cpu", starts=starts)


def test_wrong_number_of_embeddings_is_refused(make_config, make_decoder):
    decoder = make_decoder(make_config())
    with pytest.raises(ValueError, match="3 embeddings for a packed batch of 2 tokens"):
        decoder(decoder.embed(torch.tensor([1, 2, 3])), Packed.from_lengths([2], "cpu"))


def test_behind_four_million_tokens_any_split_gives_the_same(make_config, make_decoder, rmse_ratio):
    """The past is made up: its keys, values and state are random numbers."""
    config = make_config(
        num_hidden_layers=2, attn_type_list=(0, 1), num_attention_heads=2, num_key_value_heads=1, head_dim=4,
        rotary_dim=4, max_position_embeddings=1 << 23,
    )  # fmt: skip
    past, ids = (1 << 22) + 37, torch.tensor([5, 6, 7])
    out = []
    for dtype, split in ((torch.float64, [3]), (torch.float32, [3]), (torch.float32, [1, 2])):
        decoder = make_decoder(config, torch.float64).to(dtype)
        cache = HybridCache(config, max_sequences=1, max_tokens=past + 3, page_size=64, device="cpu", dtype=dtype)
        slot = cache.allocate()
        cache.reserve(slot, past)
        cache._lengths[slot] = past
        generator = torch.Generator().manual_seed(0)
        for pool in (cache._states, cache._keys.keys, cache._keys.values):
            pool.copy_(torch.randn(pool.shape, generator=generator))
        hidden = []
        for part in ids.split(split):
            packed = cache.pack([(slot, len(part))])
            assert packed.positions_T.tolist() == list(range(cache.length(slot), cache.length(slot) + len(part)))
            with torch.no_grad():
                hidden.append(decoder(decoder.embed(part), packed, cache).hidden_TD)
        out.append(torch.cat(hidden))
    assert rmse_ratio(out[1], out[0]) < 1e-5 and rmse_ratio(out[2], out[1]) < 1e-5
