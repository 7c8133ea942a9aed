"""The batch of a CUDA graph, run without a graph: on the CPU, through Triton's interpreter. The capture needs a GPU."""

import torch

from mmvl.engine.graphs import LADDER, StaticBatch
from mmvl.kernels import paged_attention, rope
from mmvl.kernels.backend import TRITON
from mmvl.text_backbone.cache import HybridCache
from mmvl.text_backbone.config import TextConfig
from mmvl.text_backbone.decoder import Decoder

CONFIG = TextConfig(
    hidden_size=32, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, head_dim=8, rotary_dim=4,
    vocab_size=64, intermediate_size=16, num_local_experts=4, num_experts_per_tok=2, attn_type_list=(0, 1, 0),
    postnorm=True, max_position_embeddings=256,
)  # fmt: skip


def filled(decoder, lengths):
    """A cache with a sequence of each length, and the slots."""
    cache = HybridCache(
        CONFIG, max_sequences=4, max_tokens=160, page_size=16, device="cpu", dtype=torch.float32
    )  # fmt: skip
    slots = [cache.allocate() for _ in lengths]
    for slot, length in zip(slots, lengths, strict=True):
        ids_T = (torch.arange(length) * 7 + slot) % 64
        decoder(decoder.embed(ids_T), cache.pack([(slot, length)]), cache)
    return cache, slots


@torch.no_grad()
def test_a_static_batch_with_rows_to_spare_computes_what_a_packed_one_does(monkeypatch):
    decoder = Decoder(CONFIG)
    decoder.init_weights(seed=0)
    lengths = (15, 16, 33)  # the next token fills a page, begins one, is within one
    x_SD = decoder.embed(torch.tensor([3, 4, 5]))
    plain, slots = filled(decoder, lengths)
    expected = [decoder(x_SD, plain.pack([(slot, 1) for slot in slots]), plain).hidden_TD for _ in range(2)]

    cache, slots = filled(decoder, lengths)
    for module in (paged_attention, rope):
        monkeypatch.setattr(module, "choose", lambda *args, **kwargs: TRITON)
    monkeypatch.setattr(HybridCache, "has_kernels", lambda *args: True)
    states = cache._states.clone()
    batch = StaticBatch(cache, rows=5, pages=4)
    x_BD = torch.cat((x_SD, torch.zeros(2, 32)))
    for want in expected:
        for slot in slots:
            cache.reserve(slot, 1)
        batch.fill(slots)
        hidden_BD = decoder(x_BD, batch.packed, cache).hidden_TD
        cache.advance_by(slots, (1,) * 3)
        torch.testing.assert_close(hidden_BD[:3], want, rtol=1e-5, atol=1e-5)
    assert torch.equal(cache._states[:, 3], states[:, 3])  # the free slot
    torch.testing.assert_close(cache._states[:, :3], plain._states[:, :3], rtol=1e-5, atol=1e-5)
    assert [cache.length(slot) for slot in slots] == [length + 2 for length in lengths]


def test_the_ladder_wastes_little():
    sizes = list(LADDER)
    assert sizes == sorted(set(sizes))
    assert all(after <= before + max(4, before // 2) for before, after in zip(sizes, sizes[1:], strict=False))
