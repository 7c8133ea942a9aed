"""The invariant everything rests on: any split of a sequence, alone or beside strangers, gives the same.

Legend: a chunk is a run of tokens given to the decoder at once; a round is one packed batch of chunks.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmvl.kernels.rope import Rotary
from mmvl.text_backbone.cache import HybridCache
from mmvl.text_backbone.packed import Packed


@pytest.fixture(scope="module")
def decoder(make_config, make_decoder):
    return make_decoder(make_config())


def one_shot(decoder, ids, dtype=torch.float32, **settings):
    """Hidden states and lightning states of one sequence, alone and at once."""
    cache = HybridCache(decoder.config, max_sequences=1, max_tokens=len(ids), device="cpu", dtype=dtype, **settings)
    slot = cache.allocate()
    hidden = decoder(decoder.embed(ids), cache.pack([(slot, len(ids))]), cache).hidden_TD
    return hidden, cache.state(slot)


def in_rounds(decoder, sequences, chunks, page_size=4, dtype=torch.float32, first_rounds=None, **settings):
    """Sequence s in chunks of chunks[s] tokens, one a round from round first_rounds[s] (default 0) on."""
    needed = sum(-(-len(ids) // page_size) * page_size for ids in sequences)
    cache = HybridCache(
        decoder.config, max_sequences=len(sequences), max_tokens=needed, page_size=page_size, device="cpu", dtype=dtype,
        **settings,
    )  # fmt: skip
    slots = [cache.allocate() for _ in sequences]
    hidden = [[] for _ in sequences]
    chunks = [[0] * wait + list(c) for wait, c in zip(first_rounds or [0] * len(chunks), chunks, strict=True)]
    for r in range(max(map(len, chunks))):
        now = [s for s in range(len(chunks)) if r < len(chunks[s]) and chunks[s][r]]
        if not now:
            continue
        packed = cache.pack([(slots[s], chunks[s][r]) for s in now])
        ids = torch.cat([sequences[s][cache.length(slots[s]) :][: chunks[s][r]] for s in now])
        out = decoder(decoder.embed(ids), packed, cache).hidden_TD
        for s, part in zip(now, out.split(packed.lengths), strict=True):
            hidden[s].append(part)
    return [torch.cat(parts) for parts in hidden], [cache.state(slot) for slot in slots]


def draw_ids(lengths, vocab, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, vocab, (n,), generator=generator) for n in lengths]


@settings(max_examples=25, deadline=None)
@given(
    arrivals=st.lists(
        st.tuples(st.integers(0, 3), st.lists(st.integers(1, 70), min_size=1, max_size=4)), min_size=1, max_size=4
    ),
    page_size=st.integers(1, 32),
    seed=st.integers(0, 10_000),
)
@torch.no_grad()
def test_any_split_beside_any_strangers(decoder, rmse_ratio, arrivals, page_size, seed):
    """Sequences arrive in different rounds, so that fresh ones stand beside ones with a past, as in serving."""
    first_rounds, chunks = zip(*arrivals, strict=True)
    sequences = draw_ids([sum(c) for c in chunks], decoder.config.vocab_size, seed)
    hidden, states = in_rounds(decoder, sequences, chunks, page_size, first_rounds=first_rounds)
    for ids, out, state in zip(sequences, hidden, states, strict=True):
        alone, alone_state = one_shot(decoder, ids)
        assert rmse_ratio(out, alone) < 1e-5
        assert rmse_ratio(state, alone_state) < 1e-5


@torch.no_grad()
def test_a_prompt_beside_sequences_with_a_past(decoder, rmse_ratio):
    sequences = draw_ids((70, 66, 40), decoder.config.vocab_size)
    hidden, _ = in_rounds(decoder, sequences, [[30, 40], [64, 1, 1], [40]], first_rounds=(1, 0, 1))
    for ids, out in zip(sequences, hidden, strict=True):
        assert rmse_ratio(out, one_shot(decoder, ids)[0]) < 1e-5


@pytest.mark.parametrize("kv_dtype", [torch.float8_e4m3fn, torch.int8])
@torch.no_grad()
def test_with_keys_in_8_bits(make_config, make_decoder, rmse_ratio, kv_dtype):
    """In fp64, where no rounding noise decides to which of two neighbours a key is rounded."""
    decoder, settings = make_decoder(make_config(), torch.float64), {"kv_dtype": kv_dtype}
    chunks = [[30, 40], [64, 1, 1], [40], [1] * 20]
    sequences = draw_ids([sum(c) for c in chunks], decoder.config.vocab_size)
    hidden, states = in_rounds(decoder, sequences, chunks, dtype=torch.float64, first_rounds=(1, 0, 1, 0), **settings)
    for ids, out, state in zip(sequences, hidden, states, strict=True):
        alone, alone_state = one_shot(decoder, ids, torch.float64, **settings)
        assert rmse_ratio(out, alone) < 1e-12 and rmse_ratio(state, alone_state) < 1e-12
        assert 1e-4 < rmse_ratio(alone, one_shot(decoder, ids, torch.float64)[0]) < 0.04


@torch.no_grad()
def test_token_by_token(decoder, rmse_ratio):
    lengths = (70, 1, 66)
    sequences = draw_ids(lengths, decoder.config.vocab_size)
    hidden, states = in_rounds(decoder, sequences, [[1] * n for n in lengths])
    for ids, out, state in zip(sequences, hidden, states, strict=True):
        alone, alone_state = one_shot(decoder, ids)
        assert rmse_ratio(out, alone) < 1e-5 and rmse_ratio(state, alone_state) < 1e-5


@pytest.mark.parametrize(
    "lengths", [(1,), (64,), (65,), (1,) * 40, (1, 130, 1, 64)], ids=["one", "block", "block+1", "ones", "mixed"]
)
@torch.no_grad()
def test_without_a_cache_as_in_training(decoder, rmse_ratio, lengths):
    sequences = draw_ids(lengths, decoder.config.vocab_size)
    out = decoder(decoder.embed(torch.cat(sequences)), Packed.from_lengths(lengths, "cpu")).hidden_TD
    for ids, part in zip(sequences, out.split(lengths), strict=True):
        assert rmse_ratio(part, one_shot(decoder, ids)[0]) < 1e-5


@torch.no_grad()
def test_in_bf16_a_split_costs_no_more_than_bf16_itself(make_config, make_decoder, rmse_ratio):
    """Rounding noise is carried on from layer to layer, so two bf16 runs differ as much as each does from fp32."""
    low = make_decoder(make_config(), torch.bfloat16)
    exact = make_decoder(make_config(), torch.bfloat16).float()
    chunks = [[30, 1, 1, 80], [64, 3], [1] * 20]
    sequences = draw_ids([sum(c) for c in chunks], low.config.vocab_size)
    hidden, states = in_rounds(low, sequences, chunks, dtype=torch.bfloat16)
    for ids, out, state in zip(sequences, hidden, states, strict=True):
        assert out.dtype == torch.bfloat16 and state.dtype == torch.float32
        alone, alone_state = one_shot(low, ids, torch.bfloat16)
        exactly, exactly_state = one_shot(exact, ids)
        assert rmse_ratio(out, alone) < 2 * rmse_ratio(alone, exactly) < 4e-2
        assert rmse_ratio(state, alone_state) < 2 * rmse_ratio(alone_state, exactly_state) < 4e-2


@pytest.mark.parametrize("kind", [0, 1], ids=["lightning", "softmax"])
@torch.no_grad()
def test_an_attention_layer_in_bf16(make_config, make_decoder, rmse_ratio, kind):
    config = make_config(num_hidden_layers=1, attn_type_list=(kind,))
    layer = make_decoder(config, torch.bfloat16).model.layers[0].self_attn
    x = torch.randn(150, config.hidden_size, generator=torch.Generator().manual_seed(0)).bfloat16()

    def run(chunks):
        cache = HybridCache(config, max_sequences=1, max_tokens=150, device="cpu", dtype=torch.bfloat16)
        slot, outputs = cache.allocate(), []
        for part in x.split(chunks):
            packed = cache.pack([(slot, len(part))])
            rope = () if kind == 0 else (Rotary.of(packed.positions_T, config.rotary_dim, config.rope_theta),)
            outputs.append(layer(part, packed, *rope, cache))
            cache.advance(packed)
        return torch.cat(outputs)

    for chunks in ([70, 1, 79], [1] * 150, [64, 86]):
        assert rmse_ratio(run(chunks), run([150])) < 5e-3


def test_documents_do_not_leak(decoder):
    x = decoder.embed(torch.cat(draw_ids((40, 70, 1), decoder.config.vocab_size))).detach().requires_grad_()
    hidden = decoder(x, Packed.from_lengths((40, 70, 1), "cpu")).hidden_TD
    (hidden[40:110] * torch.linspace(-1, 1, decoder.config.hidden_size)).sum().backward()
    assert x.grad[:40].count_nonzero() == 0 and x.grad[110:].count_nonzero() == 0
    assert (x.grad[40:110].abs().sum(-1) > 0).all()
