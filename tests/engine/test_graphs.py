"""Steps as CUDA graphs. Without a GPU nothing is captured: the batches run on the CPU, through Triton's interpreter."""

import random

import pytest
import torch

from mmvl.benchmark.engine_contestants import _TextOnly
from mmvl.engine import Engine, SamplingParams
from mmvl.engine.graphs import LADDER, ROWS, StepGraphs
from mmvl.engine.static_batch import OneTokenBatch, RaggedBatch
from mmvl.kernels import lightning_attention, paged_attention, rope
from mmvl.kernels.backend import TRITON
from mmvl.processor import Processor, Prompt
from mmvl.text_backbone.cache import HybridCache
from mmvl.text_backbone.config import TextConfig
from mmvl.text_backbone.decoder import Decoder

CONFIG = TextConfig(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=32, rotary_dim=16,
    vocab_size=320, intermediate_size=16, num_local_experts=4, num_experts_per_tok=2, attn_type_list=(0, 1),
    postnorm=True, max_position_embeddings=256,
)  # fmt: skip
SEQUENCES, TOKENS, PAGE = 4, 400, 16
CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")


class Again(StepGraphs):
    """Without a GPU what a graph would replay is computed again."""

    def _record(self, compute):
        if CUDA:
            return super()._record(compute)
        result = compute()

        class Graph:
            def replay(self):
                new = compute()
                if result is not None:
                    result.copy_(new)

        return Graph(), result


class Refuses(StepGraphs):
    error = RuntimeError("no room for a graph, say")

    def _record(self, compute):
        raise self.error


@pytest.fixture(autouse=True)
def inference():
    with torch.no_grad():
        yield


@pytest.fixture
def kernels(monkeypatch):
    """Those that a graph needs, on the CPU; for what is measured against it the references run."""

    def on():
        if CUDA:
            return
        for module in (paged_attention, rope, lightning_attention):
            monkeypatch.setattr(module, "choose", lambda *args, **kwargs: TRITON)
        monkeypatch.setattr(HybridCache, "has_kernels", lambda *args: True)

    return on


@pytest.fixture(scope="module")
def decoder():
    decoder = Decoder(CONFIG)
    decoder.init_weights(seed=0)
    return decoder.to(DEVICE).requires_grad_(False)


def new_cache():
    return HybridCache(
        CONFIG, max_sequences=SEQUENCES, max_tokens=TOKENS, page_size=PAGE, device=DEVICE, dtype=torch.float32
    )  # fmt: skip


def filled(decoder, lengths):
    """A cache with a sequence of each length, and the slots."""
    cache = new_cache()
    slots = [cache.allocate() for _ in lengths]
    for slot, length in zip(slots, lengths, strict=True):
        if length:
            ids_T = (torch.arange(length, device=DEVICE) * 7 + slot) % 64
            decoder(decoder.embed(ids_T), cache.pack([(slot, length)]), cache)
    return cache, slots


def same(cache, other):
    torch.testing.assert_close(cache._states, other._states, rtol=1e-5, atol=1e-5)
    assert cache._lengths == other._lengths


def close(got, want):
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_a_batch_of_one_token_each_with_rows_to_spare(decoder, kernels):
    lengths = (15, 16, 33)  # the next token fills a page, begins one, is within one
    x_SD = decoder.embed(torch.tensor([3, 4, 5], device=DEVICE))
    plain, slots = filled(decoder, lengths)
    expected = [decoder(x_SD, plain.pack([(slot, 1) for slot in slots]), plain).hidden_TD for _ in range(2)]

    cache, slots = filled(decoder, lengths)
    kernels()
    batch = OneTokenBatch(cache, rows=5, pages=4)
    x_BD = torch.cat((x_SD, x_SD.new_zeros(2, 32)))
    for want in expected:
        for slot in slots:
            cache.reserve(slot, 1)
        assert batch.fill(slots).tolist() == slots
        hidden_BD = decoder(x_BD, batch.packed, cache).hidden_TD
        cache.advance_by(slots, (1,) * 3)
        close(hidden_BD[:3], want)
    same(cache, plain)


# new tokens of sequences that hold 0, 15 and 33: longer and shorter than what attention calls short, alone and together
CHUNKS = [(0, 40, 0), (5, 1, 1), (33, 0, 20)]


@pytest.mark.parametrize("counts", CHUNKS, ids=str)
def test_chunks_filled_up_to_a_power_of_two_leave_output_and_state_exact(decoder, kernels, counts):
    plain, slots = filled(decoder, (0, 15, 33))
    cache, _ = filled(decoder, (0, 15, 33))
    wanted = [(slot, count) for slot, count in zip(slots, counts, strict=True) if count]
    x_TD = decoder.embed(torch.arange(sum(counts), device=DEVICE) * 5 % 64)
    want = decoder(x_TD, plain.pack(wanted), plain).hidden_TD

    kernels()
    graphs = Again(decoder, cache, 32, torch.float32, SEQUENCES, chunk_tokens=128)
    slots, counts = zip(*wanted, strict=True)
    states = cache._states.clone()
    assert graphs.takes(slots, counts, draft=False)
    torch.testing.assert_close(cache._states, states, rtol=0, atol=0)  # capturing changes nobody's
    close(graphs.run_ragged(slots, counts, x_TD), want)
    same(cache, plain)
    # one step more, by the same graph if it is as long: what the first one left in it is gone
    want = decoder(x_TD, plain.pack(wanted), plain).hidden_TD
    assert graphs.takes(slots, counts, draft=False)
    close(graphs.run_ragged(slots, counts, x_TD), want)
    same(cache, plain)


@pytest.mark.parametrize("counts, held", [((8, 1, 3), (3, 1, 3)), ((2,), (1,)), ((1, 20), (1, 18))], ids=str)
def test_drafts_leave_what_held(decoder, kernels, counts, held):
    lengths = (15, 16, 33)[: len(counts)]
    plain, slots = filled(decoder, lengths)
    cache, _ = filled(decoder, lengths)
    x_TD = decoder.embed(torch.arange(sum(counts), device=DEVICE) * 5 % 64)
    packed = plain.pack(list(zip(slots, counts, strict=True)), draft=True)
    want = decoder(x_TD, packed, plain).hidden_TD
    plain.accept(packed, held)

    kernels()
    graphs = Again(decoder, cache, 32, torch.float32, SEQUENCES, drafts=(20, 32))
    states = cache._states.clone()
    assert graphs.takes(slots, counts, draft=True)
    close(graphs.run_ragged(slots, counts, x_TD), want)
    torch.testing.assert_close(cache._states, states, rtol=0, atol=0)
    graphs.accept(slots, held)
    same(cache, plain)


def test_over_ranks_memory_for_a_graph_that_one_lacks_ends_the_job(decoder, kernels, monkeypatch):
    cache, slots = filled(decoder, (15, 16, 33))
    graphs = Refuses(decoder, cache, 32, torch.float32, SEQUENCES, drafts=(4, 12), chunk_tokens=64)
    graphs.error = torch.OutOfMemoryError("CUDA out of memory")
    monkeypatch.setattr(type(decoder), "ranks", property(lambda self: 2))
    with pytest.raises(torch.OutOfMemoryError):
        graphs.takes(slots, (2, 1, 1), draft=True)


def test_what_is_too_long_or_fails_is_left_to_the_decoder(decoder, kernels):
    cache, slots = filled(decoder, (15, 16, 33))
    graphs = Again(decoder, cache, 32, torch.float32, SEQUENCES, drafts=(4, 12), chunk_tokens=0)
    assert not graphs.takes(slots, (5, 5, 3), draft=True) and not graphs.takes(slots, (2, 1, 1), draft=False)
    graphs = Refuses(decoder, cache, 32, torch.float32, SEQUENCES, drafts=(4, 12), chunk_tokens=64)
    with pytest.warns(UserWarning, match="verifying drafts without CUDA graphs, capturing one failed: no room"):
        assert not graphs.takes(slots, (2, 1, 1), draft=True)
    assert not graphs.takes(slots, (2, 1, 1), draft=True)  # said once
    with pytest.warns(UserWarning, match="decoding without CUDA graphs"):
        assert graphs.prepare(slots) is None


@pytest.mark.parametrize("seed", range(3))
def test_every_piece_of_attention_s_work_is_there_once(seed):
    rng = random.Random(seed)
    cache = new_cache()
    for draft in (False, True):
        batch = RaggedBatch(cache, 128, SEQUENCES, 16, draft)
        slots = [cache.allocate() for _ in range(rng.randint(1, SEQUENCES))]
        counts = [rng.choice((1, 2, 31, 32, 33, 65)) for _ in slots]
        counts[0] = min(counts[0], 128 - sum(counts[1:])) if sum(counts) > 128 else counts[0]
        if counts[0] < 1:
            counts = [1] * len(slots)
        for slot, count in zip(slots, counts, strict=True):
            cache.reserve(slot, count)
        batch.fill(slots, counts)
        plan, seen = batch.packed.keys.pages, []
        cu = plan.cu_new_S1.tolist()
        for n, (row, at) in enumerate(plan.work_W2.tolist()):
            tile = plan.short_rows // plan.group if n < plan.num_short else paged_attention.TILE_ROWS // plan.group
            seen += range(cu[row] + at, min(cu[row] + at + tile, cu[row + 1]))
        assert sorted(seen) == list(range(128))
        for slot in slots:
            cache.free(slot)


def test_the_ladder_wastes_little():
    for sizes, most in ((LADDER, 1 / 2), (ROWS, 7)):
        assert list(sizes) == sorted(set(sizes))
        assert all(after <= before + max(4, before * most) for before, after in zip(sizes, sizes[1:], strict=False))


def test_shapes_that_are_captured_beforehand(decoder):
    graphs = Again(decoder, new_cache(), 32, torch.float32, 12, drafts=(8, 100), chunk_tokens=100)
    shapes = list(graphs.shapes())
    assert [s for s in shapes if s[0] == "decode"] == [("decode", 1, n) for n in (*range(1, 9), 12)]
    assert [s[1:] for s in shapes if s[0] == "draft"] == [(2, 1), (4, 1), (8, 1), (16, 8), (32, 8), (64, 8)]
    assert [s[1:] for s in shapes if s[0] == "chunk"] == [(n, r) for r in (1, 8) for n in (16, 32, 64, 128)]


class Knows:
    """In the place of prompt look-up: two tokens of the answer, and one that is wrong."""

    hot = True

    def __init__(self, answer):
        self._left = list(answer)

    def propose(self, limit):
        return [*self._left[:2], 300][:limit]

    def push(self, token):
        self._left.pop(0)

    def learn(self, drafted, held):
        assert held == min(drafted, 2)


def test_an_engine_with_graphs_says_what_one_without_says(decoder, kernels, tiny_model_dir):
    """Chunks, an answer beside them, drafts; the host one step behind."""
    processor = Processor.from_pretrained(tiny_model_dir)
    model = _TextOnly(decoder, DEVICE, torch.float32)
    prompts = [Prompt([10 + (n * k) % 50 for n in range(20 + k)]) for k in (1, 9)]
    params = [SamplingParams(max_tokens=6, ignore_eos=True, temperature=t, seed=1) for t in (0.0, 2.0)]
    asked, kinds = [], []

    class Counted(Again):
        def _capture(self, kind, *shape):
            kinds.append(kind)
            return super()._capture(kind, *shape)

    for graphs in (False, True):
        settings = {"max_sequences": 3, "max_cached_tokens": 400, "max_batch_tokens": 24, "prefix_cache": "off"}
        engine = Engine(model, processor, graphs=False, behind=graphs, **settings)
        if graphs:
            kernels()
            engine._stepper.graphs = Counted(
                decoder, engine.cache, 32, torch.float32, 3, drafts=(8, 100), chunk_tokens=64
            )  # fmt: skip
        requests = [engine.submit(prompt, p) for prompt, p in zip(prompts, params, strict=True)]
        if graphs:
            requests[1].lookup = Knows(asked[0][1])
            requests[0].lookup = None
        while engine.has_work:
            engine.step()
        asked.append([request.output_ids for request in requests])
        assert [request.error for request in requests] == [None] * 2
    assert asked[0] == asked[1] and engine.cache.free_pages > 1  # the last one's end is where nobody's keys go
    assert set(kinds) == {"decode", "draft", "chunk"} and engine.stats().draft_tokens_accepted > 0
