"""Decode steps by the CPU's kernels: what the decoder itself computes, whatever the shapes, drafts included."""

import logging
from concurrent.futures import Future
from dataclasses import replace

import pytest
import torch

from mmvl.engine import cpu_decode
from mmvl.engine.cpu_decode import FEW, CpuDecode, in_8_bits
from mmvl.text_backbone.config import TextConfig
from mmvl.text_backbone.decoder import Decoder

CONFIG = TextConfig(
    hidden_size=32, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, head_dim=8, rotary_dim=4,
    vocab_size=64, intermediate_size=20, num_local_experts=4, num_experts_per_tok=2, attn_type_list=(0, 1, 0),
    postnorm=True, max_position_embeddings=256,
)  # fmt: skip
UNLIKE = replace(
    CONFIG, vocab_size=61, head_dim=12, rotary_dim=0, num_key_value_heads=4, num_experts_per_tok=3, postnorm=False,
    layernorm_linear_attention_alpha=0.7, layernorm_full_attention_beta=1.3, layernorm_mlp_beta=0.9,
)  # fmt: skip


def make(config, lengths, dtype=torch.float32, whole=False):
    """A decoder with random weights, its cache with a sequence of each length, and the slots.

    whole: matrices are whole numbers of 8 bits times a scale a row, as if they had been shipped so, but the router.
    """
    decoder = Decoder(config).to(dtype).requires_grad_(False)
    decoder.init_weights(seed=0)
    for name, weight in decoder.named_parameters() if whole else ():
        if weight.ndim > 1 and not name.endswith("moe.gate.weight"):
            scale = weight.abs().amax(-1, keepdim=True) / 127
            weight.copy_((weight / scale).round() * scale)
    if whole:
        decoder.model.layers[0].block_sparse_moe.experts.w1[0, 0] = 0
    cache = decoder.new_cache(max_sequences=8, max_tokens=1024, page_size=16, device="cpu", dtype=dtype)
    slots = [cache.allocate() for _ in lengths]
    for slot, length in zip(slots, lengths, strict=True):
        decoder(decoder.embed((torch.arange(length) * 7 + slot) % 60), cache.pack([(slot, length)]), cache)
    return decoder, cache, slots


@pytest.fixture(autouse=True)
def compiled():
    cpu_decode.kernels().result()


@pytest.mark.parametrize("config", [CONFIG, UNLIKE, replace(CONFIG, head_dim=32, rotary_dim=32)])
@pytest.mark.parametrize("lengths", [(1,), (15, 16, 100, 33)])  # the next token fills a page, begins one, is within one
@pytest.mark.parametrize("whole", [False, True])
@torch.no_grad()
def test_it_computes_what_the_decoder_does_step_after_step(config, lengths, whole):
    decoder, cache, slots = make(config, lengths, whole=whole)
    plain_decoder, plain, plain_slots = make(config, lengths, whole=whole)
    assert (in_8_bits(decoder.model.layers[0].block_sparse_moe.experts.w1[0]) is not None) == whole
    fast = CpuDecode.of(decoder, cache)
    for step in range(18):
        x_SD = decoder.embed((torch.arange(len(slots)) * 5 + step) % 60)
        want_SD = plain_decoder(x_SD, plain.pack([(slot, 1) for slot in plain_slots]), plain).hidden_TD
        assert fast.fits(slots)
        for slot in slots:
            cache.reserve(slot, 1)
        before_SD = x_SD.clone()
        hidden_SD = fast.run(slots, x_SD)
        assert torch.equal(x_SD, before_SD)
        torch.testing.assert_close(hidden_SD, want_SD, rtol=2e-5, atol=2e-5)
        torch.testing.assert_close(fast.logits(hidden_SD), decoder.logits(want_SD), rtol=2e-5, atol=2e-5)
    for slot, other in zip(slots, plain_slots, strict=True):
        assert cache.length(slot) == plain.length(other)
        torch.testing.assert_close(cache.state(slot), plain.state(other), rtol=2e-5, atol=2e-5)


@torch.no_grad()
def test_a_draft_leaves_the_states_until_it_is_known_what_held():
    decoder, cache, slots = make(CONFIG, (5, 30))
    plain_decoder, plain, plain_slots = make(CONFIG, (5, 30))
    counts, held = (3, 4), (2, 4)
    x_TD = decoder.embed(torch.arange(sum(counts)) % 60)
    fast, states = CpuDecode.of(decoder, cache), [cache.state(slot) for slot in slots]
    packed = cache.pack(list(zip(slots, counts, strict=True)), draft=True)
    expected = plain.pack(list(zip(plain_slots, counts, strict=True)), draft=True)
    torch.testing.assert_close(
        fast.verify(packed, x_TD), plain_decoder(x_TD, expected, plain).hidden_TD, rtol=2e-5, atol=2e-5
    )
    assert all(torch.equal(cache.state(slot), state) for slot, state in zip(slots, states, strict=True))
    cache.accept(packed, held)
    plain.accept(expected, held)
    for slot, other in zip(slots, plain_slots, strict=True):
        assert cache.length(slot) == plain.length(other)
        torch.testing.assert_close(cache.state(slot), plain.state(other), rtol=2e-5, atol=2e-5)


def test_weights_of_8_bits_are_found_and_others_are_not():
    generator = torch.Generator().manual_seed(1)
    whole_RN = torch.randint(-127, 128, (6, 16), generator=generator)
    whole_RN[:, 0] = 127  # as the largest of a row is by its scale
    scale_R = torch.rand(6, generator=generator) + 1e-3
    scale_R[1] = 0
    found_RN, found_R = map(torch.from_numpy, in_8_bits(whole_RN * scale_R[:, None]))
    assert found_RN.dtype == torch.int8 and found_R.is_contiguous()
    torch.testing.assert_close(found_RN * found_R[:, None], whole_RN * scale_R[:, None], rtol=1e-6, atol=0)
    assert in_8_bits(torch.randn((3, 16), generator=generator)) is None
    assert in_8_bits(torch.full((2, 4), float("nan"))) is None
    assert in_8_bits(torch.tensor([[1.0, float("inf")]])) is None


@torch.no_grad()
def test_numbers_that_are_not_finite_are_not_hidden():
    decoder, cache, slots = make(CONFIG, (3, 4))
    decoder.model.layers[1].self_attn.v_proj.weight[0, 0] = float("nan")
    for slot in slots:
        cache.reserve(slot, 1)
    assert CpuDecode.of(decoder, cache).run(slots, decoder.embed(torch.tensor([1, 2]))).isnan().any(-1).all()


def test_other_decoders_and_many_tokens_are_left_to_the_decoder():
    decoder, cache, slots = make(CONFIG, (3,), torch.float64)
    assert CpuDecode.of(decoder, cache) is None
    assert CpuDecode.of(*make(replace(CONFIG, shared_intermediate_size=8), (3,))[:2]) is None
    fast = CpuDecode.of(*make(CONFIG, (3,))[:2])
    assert fast.fits([0] * FEW) and not fast.fits([0] * (FEW + 1))


def test_without_compiled_kernels_nothing_fits(monkeypatch, caplog):
    decoder, cache, slots = make(CONFIG, (3,))
    waiting: Future = Future()
    monkeypatch.setattr(cpu_decode, "kernels", lambda: waiting)
    fast = CpuDecode.of(decoder, cache)
    assert not fast.fits(slots)
    waiting.set_exception(ImportError("no LLVM for this machine"))
    assert not fast.fits(slots)

    def broken(name):
        raise ImportError("no LLVM for this machine")

    monkeypatch.undo()
    monkeypatch.setattr(cpu_decode.importlib, "import_module", broken)
    with caplog.at_level(logging.WARNING):
        assert cpu_decode.kernels.__wrapped__().exception() is not None
    assert "no LLVM for this machine" in caplog.text
