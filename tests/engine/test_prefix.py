"""The prefix cache: who hits what, that a hit changes no token, and that it gives way to those who need the room."""

import pytest
import torch
from PIL import Image

from mmvl.checkpoint import load_model
from mmvl.engine import Engine, SamplingParams
from mmvl.engine.prefix_keys import PrefixKeys
from mmvl.evaluation.tasks import TASKS
from mmvl.processor import Processor, Prompt
from mmvl.vlm import MMVL_TINY

PAGE = 64


@pytest.fixture
def engine(model, processor):
    return Engine(model, processor, draft_tokens=0)


def ask(engine, prompt, max_tokens=6, **settings):
    """The finished request."""
    request = engine.submit(prompt, SamplingParams(max_tokens=max_tokens, ignore_eos=True, **settings))
    while engine.has_work:
        engine.step()
    return request


def plain(engine, prompt, max_tokens=6):
    other = Engine(engine.model, engine.processor, prefix_cache="off", draft_tokens=0)
    return ask(other, prompt, max_tokens).output_ids


def test_the_next_turn_of_a_conversation_goes_on_where_the_last_answer_ended(engine):
    first = ask(engine, Prompt(list(range(10, 60))))
    answered = [*first.prompt.token_ids, *first.output_ids]
    turn = Prompt([*answered, *range(100, 120)])
    second = ask(engine, turn)
    assert second.cached_tokens == 50  # of the short answer, less than the gap, no checkpoint was made
    assert second.output_ids == plain(engine, turn)
    long = ask(engine, turn, 40)
    again = Prompt([*turn.token_ids, *long.output_ids, 7, 8, 9])
    third = ask(engine, again)
    assert third.cached_tokens == len(turn.token_ids) + 39  # all but the last token, which was never fed
    assert third.output_ids == plain(engine, again)


def test_the_second_question_about_a_document_finds_its_pictures(engine, processor):
    page = Image.new("RGB", (90, 30), "green")

    def prompt(question):
        parts = [{"type": "image", "image": page}, {"type": "text", "text": question}]
        return processor.encode([{"role": "user", "content": parts}])

    first, second = prompt("what colour is it?"), prompt("is there a circle?")
    end = max(i for i, token in enumerate(first.token_ids) if token == processor.image_id) + 1
    assert ask(engine, first).cached_tokens == 0
    found = ask(engine, second)
    assert found.cached_tokens == end and found.output_ids == plain(engine, second)
    page = Image.new("RGB", (90, 30), "darkgreen")  # another content, the same tokens
    assert ask(engine, prompt("is there a circle?")).cached_tokens < end


def test_where_two_prompts_part_the_third_goes_on(engine):
    shared = [(n * 7) % 200 + 10 for n in range(150)]
    prompts = [Prompt([*shared, *range(20 * n + 10, 20 * n + 40)]) for n in range(3)]
    assert [ask(engine, prompt).cached_tokens for prompt in prompts[:2]] == [0, 0]
    third = ask(engine, prompts[2])
    assert third.cached_tokens == 2 * PAGE  # seen by the page
    assert third.output_ids == plain(engine, prompts[2])
    assert ask(engine, prompts[2]).cached_tokens >= 2 * PAGE


def test_what_is_used_least_goes_first_when_places_are_few(model, processor, monkeypatch):
    monkeypatch.setattr("mmvl.engine.memory.available_bytes", lambda: 16 * 2 * 2 * 4 * 8 * 8 * 4)
    engine = Engine(model, processor, draft_tokens=0)
    assert engine.sizes.max_checkpoints == 2
    prompts = [Prompt(list(range(start, start + 40))) for start in (10, 60, 110)]
    for prompt in prompts[:2]:
        ask(engine, prompt, 1)
    longer = [Prompt([*prompt.token_ids, 5]) for prompt in prompts]
    assert ask(engine, longer[0], 1).cached_tokens == 40  # used again
    ask(engine, prompts[2], 1)
    assert [ask(engine, prompt, 1).cached_tokens for prompt in (longer[0], longer[2], longer[1])] == [40, 40, 0]


def test_cached_prefixes_give_way_to_requests(model, processor):
    engine = Engine(model, processor, draft_tokens=0, max_cached_tokens=256)
    prompts = [Prompt([(n * k) % 200 + 10 for n in range(150)]) for k in (3, 5, 7)]
    expected = [plain(engine, prompt, 60) for prompt in prompts]
    for _ in range(2):
        assert [ask(engine, prompt, 60).output_ids for prompt in prompts] == expected
    assert engine.stats().preemptions_total == 0


def test_int8_checkpoints_hit_as_well(model, processor):
    engine = Engine(model, processor, draft_tokens=0, prefix_cache="int8")
    prompt = Prompt(list(range(10, 60)))
    ask(engine, prompt)
    assert ask(engine, Prompt([*prompt.token_ids, 7, 8])).cached_tokens == 50
    with pytest.raises(ValueError, match="prefix_cache is 'int4'"):
        Engine(model, processor, prefix_cache="int4")


def test_answers_behind_int8_checkpoints_are_those_of_mmvl_tiny_all_the_same():
    """The numbers of the sentence on int8 in mmvl/engine/README.md."""
    model, processor = load_model(MMVL_TINY, dtype=torch.float32), Processor.from_pretrained(MMVL_TINY)
    pictures = [example.messages[-1]["content"][0] for example in TASKS["print-lines"].load()[:3]]
    questions = ("What does it say?", "Which is the first word?", "How many words are there?", "Describe the picture.")
    turns = [[picture, {"type": "text", "text": question}] for question in questions for picture in pictures]
    prompts = [processor.encode([{"role": "user", "content": turn}], add_generation_prompt=True) for turn in turns]

    def answers(prefix_cache: str) -> tuple[list[list[int]], list[int], torch.Tensor]:
        """Tokens and what was cached of each of two rounds, and all tokens' log probabilities."""
        engine = Engine(model, processor, prefix_cache=prefix_cache, draft_tokens=0)
        requests, logprobs = [], []
        for prompt in prompts * 2:
            requests.append(engine.submit(prompt, SamplingParams(max_tokens=24, logprobs=0)))
            while engine.has_work:
                logprobs += [found.logprob for update in engine.step() for found in update.logprobs or ()]
        return [r.output_ids for r in requests], [r.cached_tokens for r in requests], torch.tensor(logprobs)

    exact, hits, before_T = answers("exact")
    rounded, same_hits, after_T = answers("int8")
    assert exact == rounded and hits == same_hits and sum(hit > 0 for hit in hits) == 21
    off_T = (after_T - before_T).abs()
    assert 0 < off_T.mean() < 0.001 and off_T.max() < 0.05, (off_T.mean(), off_T.max())  # measured: 0.0005 and 0.03


def test_a_key_is_the_content_up_to_a_length(processor):
    def keys(ids):
        return PrefixKeys(Prompt(ids), processor.image_id, 8)

    one, other = keys(list(range(10, 40))), keys([*range(10, 33), 99, *range(34, 40)])
    assert [one.at(n) == other.at(n) for n in (1, 8, 22, 23, 24, 30)] == [True, True, True, True, False, False]
    assert len({one.at(n) for n in range(30)}) == 30
    grown = keys(list(range(10, 20)))
    before = grown.at(9)
    grown.extend(range(20, 40))
    assert grown.at(9) == before and grown.at(30) == one.at(30)
