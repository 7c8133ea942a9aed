"""Continuous batching: alone or beside others, in chunks or at once, a request gets the same text."""

import copy
import json
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer

from mmvl.engine import Engine, SamplingParams
from mmvl.processor import Processor
from mmvl.text_backbone.packed import Packed

# Temperature 3 makes the tiny random model say different things; greedy repeats itself soon.
PARAMS = [
    SamplingParams(max_tokens=12),
    SamplingParams(max_tokens=20, temperature=3.0, seed=1),
    SamplingParams(max_tokens=5, temperature=2.0, top_p=0.9, seed=2),
    SamplingParams(max_tokens=17, temperature=3.0, top_k=40, min_p=0.01, repetition_penalty=1.3, seed=3),
    SamplingParams(max_tokens=9, repetition_penalty=1.5),
    SamplingParams(max_tokens=1, temperature=1.0, seed=4),
]


@pytest.fixture(scope="module")
def prompts(processor):
    """Six prompts of different lengths, some with one or two images."""
    red, wide = Image.new("RGB", (20, 20), "red"), Image.new("RGB", (90, 30), "green")
    contents = [
        "hi",
        [{"type": "image", "image": red}, {"type": "text", "text": "what colour is the shape?"}],
        "is there a circle? " * 5,
        [{"type": "image", "image": wide}, {"type": "image", "image": red}, {"type": "text", "text": "日本?"}],
        "what is it",
        [{"type": "text", "text": "before "}, {"type": "image", "image": wide}, {"type": "text", "text": " after"}],
    ]
    return [processor.encode([{"role": "user", "content": content}]) for content in contents]


def run(engine, requests):
    """Step until all are done. -> the joined deltas of each."""
    deltas = {request.number: "" for request in requests}
    for _ in range(10_000):
        if not engine.has_work:
            break
        for update in engine.step():
            deltas[update.request.number] += update.delta
    assert not engine.has_work, "the engine does not come to an end"
    return [deltas[request.number] for request in requests]


def outputs(model, processor, prompts, params, **settings):
    engine = Engine(model, processor, **settings)
    requests = [engine.submit(prompt, p) for prompt, p in zip(prompts, params, strict=True)]
    texts = run(engine, requests)
    assert texts == [request.text for request in requests]
    assert_empty(engine)
    return [request.output_ids for request in requests]


def assert_empty(engine):
    """Every slot is free again, and every page that no cached prefix holds."""
    assert engine.cache.free_slots == engine.max_sequences and engine.cache.used_pages == 0
    engine.prefixes.clear()
    assert engine.cache.free_pages == engine.num_pages
    assert engine.cache.free_checkpoints == engine.sizes.max_checkpoints
    assert not engine.has_work and not engine.cache._swapped


@pytest.fixture(scope="module")
def alone(model, processor, prompts):
    """The tokens of each request when it has the engine to itself."""
    return [outputs(model, processor, [prompt], [p])[0] for prompt, p in zip(prompts, PARAMS, strict=True)]


def test_greedy_is_the_likeliest_token_of_the_plain_forward_pass(model, processor, prompts, alone):
    """No cache, no chunks, no batch: the whole sequence again for every token."""
    prompt = prompts[0]
    ids = list(prompt.token_ids)
    for token in alone[0]:
        hidden_TD = model.language_model(
            model.embed(torch.tensor(ids)), Packed.from_lengths([len(ids)], "cpu")
        ).hidden_TD
        logits_V = model.language_model.logits(hidden_TD[-1:])[0, : processor.valid_vocab_size]
        logits_V[processor.image_id] = float("-inf")
        assert token == int(logits_V.argmax())
        ids.append(token)


def test_ids_without_a_token_are_never_sampled(model, processor, prompts, alone):
    """The token that the model likes best is taken out of its tokenizer; and a tokenizer may have more than a model."""
    gone = alone[0][0]
    settings, token = json.loads(processor.tokenizer.to_str()), processor.tokenizer.id_to_token(gone)
    del settings["model"]["vocab"][token]
    settings["model"]["merges"] = [(a, b) for a, b in settings["model"]["merges"] if token not in (a, b, a + b)]
    holey = Processor(Tokenizer.from_str(json.dumps(settings)), processor.tiling)
    assert holey.missing_ids == (gone,)
    (ids,) = outputs(model, holey, prompts[:1], PARAMS[:1])
    assert gone not in ids and len(ids) == len(alone[0])

    larger = copy.copy(processor)
    larger.valid_vocab_size = model.config.text.vocab_size + 40
    larger.missing_ids = (larger.valid_vocab_size - 1,)
    everything = SimpleNamespace(next_mask=lambda ids: torch.ones(larger.valid_vocab_size, dtype=torch.bool))
    outputs(model, larger, prompts[:1], [SamplingParams(max_tokens=2, logit_mask=everything)])


def test_the_samples_differ_enough_to_mean_something(alone):
    assert len({tuple(ids) for ids in alone}) == len(alone)
    assert len(set(alone[1])) > 5


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"max_batch_tokens": 7},  # every prompt in many chunks, cut inside images as well
        {"max_batch_tokens": 3, "max_sequences": 1},
        {"max_batch_tokens": 33, "max_sequences": 2},
        {"max_sequences": 4, "max_cached_tokens": 256},  # the KV pool is the bottleneck
        {"behind": True},
        {"behind": True, "max_batch_tokens": 7, "max_sequences": 3},
        {"draft_tokens": 0, "prefix_cache": "off", "graphs": False},
        {"graphs": False, "behind": True, "max_batch_tokens": 33},
    ],
)
def test_the_same_tokens_alone_and_in_any_batch(model, processor, prompts, alone, settings):
    order = [4, 1, 5, 0, 3, 2]
    got = outputs(model, processor, [prompts[n] for n in order], [PARAMS[n] for n in order], **settings)
    assert got == [alone[n] for n in order]


def test_requests_that_come_while_others_run(model, processor, prompts, alone):
    engine = Engine(model, processor, max_batch_tokens=16)
    requests = []
    for prompt, params in zip(prompts, PARAMS, strict=True):
        requests.append(engine.submit(prompt, params))
        engine.step()
        engine.step()
    run(engine, requests)
    assert [request.output_ids for request in requests] == alone


def test_many_more_requests_than_slots(model, processor, prompts, alone):
    assert outputs(model, processor, prompts * 3, PARAMS * 3, max_sequences=4) == alone * 3


def test_decoding_goes_on_beside_the_prefill_of_a_long_prompt(model, processor, prompts):
    engine = Engine(model, processor, max_batch_tokens=8)
    first = engine.submit(prompts[0], SamplingParams(max_tokens=30))
    while first.first_token is None:
        engine.step()
    second = engine.submit(prompts[2], SamplingParams(max_tokens=2))
    before = len(first.output_ids)
    while second.first_token is None:
        engine.step()
    # 7 prompt tokens a step beside the one that decodes.
    assert len(first.output_ids) - before == -(-second.prompt_tokens // 7)


def test_abort_frees_at_once_and_leaves_the_others_alone(model, processor, prompts, alone):
    engine = Engine(model, processor, max_sequences=4)
    requests = [engine.submit(prompt, params) for prompt, params in zip(prompts, PARAMS, strict=True)]
    engine.step()
    engine.step()
    free = engine.cache.free_slots
    engine.abort(requests[1])
    assert engine.cache.free_slots == free + 1
    engine.abort(requests[5])  # still waits
    engine.abort(requests[1])  # twice is nothing
    run(engine, requests)
    assert [r.finish_reason for r in (requests[1], requests[5])] == ["abort", "abort"]
    assert requests[5].output_ids == []
    for n in (0, 2, 3, 4):
        assert requests[n].output_ids == alone[n]
    assert_empty(engine)


def test_stop_string_ends_the_answer_before_it(model, processor, prompts, alone):
    whole = processor.decode(alone[1])
    stop = next(whole[i : i + 2] for i in range(4, len(whole)) if "\ufffd" not in whole[i : i + 2])
    engine = Engine(model, processor)
    params = SamplingParams(max_tokens=20, temperature=3.0, seed=1, stop=[stop])
    request = engine.submit(prompts[1], params)
    [text] = run(engine, [request])
    assert text == request.text == whole[: whole.index(stop)]
    assert request.finish_reason == "stop"
    assert len(request.output_ids) < len(alone[1])
    assert_empty(engine)


def test_the_end_token_ends_the_answer_and_is_not_text(model, processor, prompts, monkeypatch, alone):
    end = alone[1][6]
    monkeypatch.setattr(processor, "eos_ids", (end,))
    engine = Engine(model, processor)
    request = engine.submit(prompts[1], PARAMS[1])
    run(engine, [request])
    cut = alone[1].index(end)
    assert request.output_ids == alone[1][: cut + 1]
    assert request.finish_reason == "stop"
    assert processor.decode(alone[1][:cut]).startswith(request.text)


def test_max_tokens_is_exact_or_clipped_to_the_context(model, processor, prompts, monkeypatch):
    monkeypatch.setattr(processor, "eos_ids", ())
    engine = Engine(model, processor)
    exact = engine.submit(prompts[0], SamplingParams(max_tokens=7))
    clipped = engine.submit(prompts[2], SamplingParams(max_tokens=100_000))
    run(engine, [exact, clipped])
    assert (len(exact.output_ids), exact.finish_reason) == (7, "length")
    assert (clipped.prompt_tokens + len(clipped.output_ids), clipped.finish_reason) == (256, "length")


def test_a_question_longer_than_the_context_is_refused(model, processor):
    engine = Engine(model, processor)
    prompt = processor.encode([{"role": "user", "content": "0123456789" * 30}])
    with pytest.raises(ValueError, match=r"longer than the context: it has 3\d\d tokens, and the model reads 256"):
        engine.submit(prompt)
    assert not engine.has_work


def test_images_that_do_not_match_the_prompt_are_refused(model, processor, prompts):
    prompt = prompts[1]
    broken = type(prompt)(token_ids=prompt.token_ids, images=prompt.images * 2)
    with pytest.raises(ValueError, match="placeholders"):
        Engine(model, processor).submit(broken)


def test_an_image_seen_before_is_not_encoded_again(model, processor, prompts, monkeypatch):
    engine = Engine(model, processor)
    calls = []
    encode = model.embed_images
    monkeypatch.setattr(model, "embed_images", lambda batch: calls.append(len(batch.tiles_N3tt)) or encode(batch))
    requests = [engine.submit(prompts[n], SamplingParams(max_tokens=3)) for n in (1, 1, 3)]
    run(engine, requests)
    # One call; the red image, which all three ask about, is in it once.
    assert calls == [sum(len(image.tiles_N3TT) for image in prompts[3].images)]
    again = engine.submit(prompts[3], SamplingParams(max_tokens=3))
    run(engine, [again])
    assert len(calls) == 1
    assert again.output_ids == requests[2].output_ids


def test_an_unseeded_request_can_be_repeated_from_the_seed_it_drew(model, processor, prompts):
    engine = Engine(model, processor)
    request = engine.submit(prompts[0], SamplingParams(max_tokens=10, temperature=3.0))
    run(engine, [request])
    params = SamplingParams(max_tokens=10, temperature=3.0, seed=request.sampler_state.seed)
    again = engine.submit(prompts[0], params)
    run(engine, [again])
    assert again.output_ids == request.output_ids


LONG = SamplingParams(max_tokens=110, ignore_eos=True)


@pytest.fixture(scope="module")
def long_alone(model, processor, prompts):
    plain = {"prefix_cache": "off", "draft_tokens": 0}
    return [outputs(model, processor, [prompt], [LONG], **plain)[0] for prompt in prompts[:4]]


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("swap_bytes", [0, 1 << 24])
def test_who_had_to_wait_goes_on_as_if_nothing_had_been(model, processor, prompts, long_alone, swap_bytes, behind):
    """Answers outgrow the memory: the last ones are computed again, or come back from the host."""
    short = {"max_cached_tokens": 256, "swap_bytes": swap_bytes, "prefix_cache": "off", "draft_tokens": 0}
    engine = Engine(model, processor, behind=behind, **short)
    requests = [engine.submit(prompt, LONG) for prompt in prompts[:4]]
    run(engine, requests)
    assert [request.output_ids for request in requests] == long_alone
    assert engine.stats().preemptions_total > 0
    assert_empty(engine)
    assert engine.pools._swap_bytes == swap_bytes


def test_a_request_of_a_higher_priority_is_served_first(model, processor, prompts, long_alone):
    engine = Engine(model, processor, max_sequences=1)
    low = engine.submit(prompts[0], LONG, priority=5)
    for _ in range(5):
        engine.step()
    high = engine.submit(prompts[1], LONG)
    run(engine, [low, high])
    assert high.finished < low.finished and high.output_ids == long_alone[1] and low.output_ids == long_alone[0]


@pytest.mark.parametrize("behind", [False, True])
def test_a_request_that_runs_out_of_memory_fails_alone(model, processor, prompts, alone, monkeypatch, behind):
    """The device cannot compute any step with the second prompt's first token, say."""
    engine = Engine(model, processor, behind=behind, draft_tokens=0)
    decoder = type(model.language_model)
    forward, marked = decoder.forward, model.language_model.model.embed_tokens.weight[5]

    def short(self, x_TD, packed, cache=None):
        if (x_TD == marked).all(-1).any():
            raise torch.OutOfMemoryError("CUDA out of memory, say")
        return forward(self, x_TD, packed, cache)

    monkeypatch.setattr(decoder, "forward", short)
    bad = type(prompts[1])([5, 6, 7])
    requests = [engine.submit(prompt, params) for prompt, params in zip(prompts, PARAMS, strict=True)]
    requests.insert(1, engine.submit(bad, PARAMS[0]))
    run(engine, requests)
    assert requests[1].finish_reason == "error" and isinstance(requests[1].error, torch.OutOfMemoryError)
    assert [request.output_ids for request in requests if request is not requests[1]] == alone
    assert_empty(engine)


def test_an_image_that_cannot_be_encoded_fails_its_request_alone(model, processor, prompts, alone, monkeypatch):
    engine = Engine(model, processor)
    encode, largest = model.embed_images, max(len(i.tiles_N3TT) for i in prompts[3].images)

    def short(batch):
        if len(batch.tiles_N3tt) >= largest:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return encode(batch)

    monkeypatch.setattr(model, "embed_images", short)
    requests = [engine.submit(prompts[n], PARAMS[n]) for n in (1, 3, 0)]
    run(engine, requests)
    assert [request.finish_reason == "error" for request in requests] == [False, True, False]
    assert [requests[0].output_ids, requests[2].output_ids] == [alone[1], alone[0]]
    assert_empty(engine)


def test_only_what_a_step_needs_of_many_images_is_on_the_device(model, processor, monkeypatch):
    """A prompt with more pictures than a step reads: they are encoded as their turn comes."""
    pictures = [Image.new("RGB", (28, 28), (n, 0, 0)) for n in range(20)]
    parts = [{"type": "image", "image": picture} for picture in pictures]
    prompt = processor.encode([{"role": "user", "content": [*parts, {"type": "text", "text": "?"}]}])
    calls, encode = [], model.embed_images
    monkeypatch.setattr(model, "embed_images", lambda batch: calls.append(len(batch.layout)) or encode(batch))
    assert outputs(model, processor, [prompt], [SamplingParams(max_tokens=2)], max_batch_tokens=40)
    assert sum(calls) == 20 and max(calls) < 10


def test_images_of_requests_that_wait_are_encoded_with_those_of_one_that_runs(model, processor, monkeypatch):
    """As on a GPU, where a batch of few tiles is filled up; one place, so that five of six requests wait."""
    pictures = [Image.new("RGB", (28 + 9 * n, 28), (40 * n, 0, 90)) for n in range(6)]
    contents = [[{"type": "image", "image": picture}, {"type": "text", "text": "?"}] for picture in pictures]
    prompts = [processor.encode([{"role": "user", "content": content}]) for content in contents]
    tiles = [len(prompt.images[0].tiles_N3TT) for prompt in prompts]
    calls, encode = [], model.embed_images
    monkeypatch.setattr(model, "embed_images", lambda batch: calls.append(len(batch.tiles_N3tt)) or encode(batch))
    said, called = {}, {}
    for fill_tiles in (0, sum(tiles[:2]), 64):
        engine = Engine(model, processor, max_sequences=1)
        engine._images._fill_tiles = fill_tiles
        requests = [engine.submit(prompt, PARAMS[1]) for prompt in prompts]
        run(engine, requests)
        assert_empty(engine)
        said[fill_tiles], called[fill_tiles] = [request.output_ids for request in requests], calls.copy()
        calls.clear()
    one_by_one, twos, at_once = called.values()
    assert one_by_one == tiles and at_once == [sum(tiles)]
    assert twos[0] == sum(tiles[:2]) and len(tiles) > len(twos) > 1 and sum(twos) == sum(tiles)
    alone, *together = said.values()
    assert together == [alone, alone]
