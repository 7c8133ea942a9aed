"""The Python API: five lines for a user, many threads at once for the chat page, one clear line for every mistake."""

import asyncio
import gc
import threading

import pytest
import torch
from PIL import Image

import mmvl
from mmvl.engine import Engine, SamplingParams
from mmvl.processor import Prompt
from mmvl.vlm import VLM, Answer, user_turn
from tests.asking import collect, idle
from tests.waiting import wait_until

SEEDED = {"temperature": 3.0, "max_tokens": 24, "seed": 5}


def test_the_five_lines(vlm, picture_path):
    assert mmvl.VLM is VLM
    answer = vlm.ask(picture_path, "what colour is the shape?", max_tokens=8)
    assert isinstance(answer, str)
    assert vlm.device.type == "cpu" and vlm.dtype == torch.float32


def test_every_kind_of_image_gives_the_same_answer(vlm, picture_path):
    picture = Image.open(picture_path)
    sources = [picture_path, str(picture_path), picture_path.read_bytes(), picture, [picture_path]]
    answers = {vlm.ask(source, "what colour?", **SEEDED) for source in sources}
    assert len(answers) == 1
    other = Image.new("RGB", picture.size, "yellow")
    assert vlm.ask(other, "what colour?", **SEEDED) not in answers


def test_bfloat16_answers_the_same_alone_and_in_a_batch(tiny_model_dir, picture_path):
    vlm = VLM(tiny_model_dir, device="cpu", dtype="bfloat16")
    assert vlm.dtype == torch.bfloat16 and vlm.engine.cache.state(vlm.engine.cache.allocate()).dtype == torch.float32
    conversations = [user_turn(picture_path, "what colour?"), user_turn(None, "is there a circle in it?")]
    together = dict(vlm.batch(conversations, max_tokens=6))
    assert [together[n].text for n in range(2)] == [vlm.chat(c, max_tokens=6).text for c in conversations]


def test_answer_counts_its_tokens_and_seconds(vlm, picture_path):
    answer = vlm.chat(user_turn([picture_path, picture_path], "and now?"), max_tokens=4)
    one = vlm.chat(user_turn(picture_path, "and now?"), max_tokens=4)
    assert answer.image_tokens == 2 * one.image_tokens > 0
    assert answer.prompt_tokens - one.prompt_tokens == one.image_tokens
    assert 1 <= answer.completion_tokens <= 4
    assert answer.finish_reason in ("stop", "length")
    assert answer.prefill_seconds > 0 and answer.decode_seconds >= 0


def test_a_stream_is_the_answer_in_pieces(vlm, picture_path):
    messages = user_turn(picture_path, "describe it")
    whole = vlm.chat(messages, **SEEDED)
    stream = vlm.stream(messages, **SEEDED)
    pieces = []
    while True:
        try:
            pieces.append(next(stream))
        except StopIteration as end:
            assert end.value is stream.last
            break
    assert "".join(pieces) == whole.text == stream.last.text
    assert len(pieces) > 3 and all(pieces)
    with pytest.raises(StopIteration):
        next(stream)


def test_the_pages_of_a_pdf_are_images(vlm, picture_path, tmp_path):
    picture = Image.open(picture_path)
    picture.save(tmp_path / "one.pdf")
    picture.save(tmp_path / "two.pdf", save_all=True, append_images=[picture])
    one, two = (vlm.chat(user_turn(tmp_path / name, "what?"), max_tokens=2) for name in ("one.pdf", "two.pdf"))
    assert two.image_tokens == 2 * one.image_tokens > 0


def test_generate_gives_the_answer_of_chat_and_what_it_cost(vlm, picture_path):
    messages = user_turn(picture_path, "describe it")
    whole = vlm.chat(messages, **SEEDED)
    updates = collect(vlm, messages, SamplingParams(**SEEDED, logprobs=2), priority=3)
    assert "".join(update.delta for update in updates) == whole.text
    assert [update.finished for update in updates] == [False] * (len(updates) - 1) + [True]
    request = updates[-1].request
    ids = [token for update in updates for token in update.token_ids]
    assert len(ids) == request.completion_tokens == whole.completion_tokens and request.priority == 3
    assert (request.finish_reason, request.prompt_tokens) == (whole.finish_reason, vlm.count(messages))
    assert min(request.queued_seconds, request.prefill_seconds, request.decode_seconds) > 0
    logprobs = [logprob for update in updates for logprob in update.logprobs]
    assert [logprob.token_id for logprob in logprobs] == ids
    assert all(len(logprob.top) == 2 and logprob.top[0][1] >= logprob.logprob for logprob in logprobs)


def test_generate_continues_a_text_or_a_prompt(vlm):
    params = SamplingParams(max_tokens=5, ignore_eos=True)
    texts = {
        "".join(update.delta for update in collect(vlm, prompt, params))
        for prompt in ("is there a red", Prompt(vlm.processor.encode_text("is there a red")))
    }
    assert len(texts) == 1 and vlm.count("is there a red") == len(vlm.processor.encode_text("is there a red"))


def test_leaving_or_cancelling_generate_ends_the_request(slow):
    async def leave():
        updates = slow.generate(user_turn(None, "talk"), SamplingParams(max_tokens=200))
        async for update in updates:
            if update.delta:
                break
        await updates.aclose()

    async def cancel():
        async def read():
            async for _ in slow.generate("talk", SamplingParams(max_tokens=200)):
                begun.set()

        begun = asyncio.Event()
        task = asyncio.create_task(read())
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    for end in (leave, cancel):
        asyncio.run(end())
        wait_until(lambda: idle(slow), seconds=0.5)


class Mask:
    def __init__(self, answer):
        self.answer = answer

    def next_mask(self, token_ids):
        return self.answer(token_ids)


def test_a_mask_constrains_an_answer(vlm):
    allowed = vlm.processor.encode_text("abc")
    mask_V = torch.zeros(vlm.processor.valid_vocab_size, dtype=torch.bool)
    mask_V[allowed] = True
    params = SamplingParams(max_tokens=6, logit_mask=Mask(lambda ids: mask_V if len(ids) < 4 else None))
    ids = [token for update in collect(vlm, "is there", params) for token in update.token_ids]
    assert len(ids) == 6 and set(ids[:4]) <= set(allowed)


def test_one_broken_request_fails_alone(vlm):
    size, before = vlm.processor.valid_vocab_size, vlm.engine.stats().finished_total.get("error", 0)
    broken = [
        lambda ids: torch.zeros(size, dtype=torch.bool),  # nothing may come
        lambda ids: torch.ones(3, dtype=torch.bool),
        lambda ids: 1 / 0 if ids else None,
    ]

    async def together():
        async def last(**settings):
            return [u async for u in vlm.generate("is there", SamplingParams(max_tokens=6, **settings))][-1]

        return await asyncio.gather(*(last(logit_mask=Mask(answer)) for answer in broken), last())

    *failed, fine = asyncio.run(together())
    for update, kind in zip(failed, (RuntimeError, ValueError, ZeroDivisionError), strict=True):
        assert update.request.finish_reason == "error" and isinstance(update.error, kind)
    assert fine.request.finish_reason in ("stop", "length") and fine.error is None
    assert vlm.engine.stats().finished_total["error"] == before + 3 and idle(vlm)


def test_closing_a_stream_frees_its_slot_at_once(slow):
    stream = slow.stream(user_turn(None, "talk"), max_tokens=200)
    next(stream)
    assert not idle(slow)
    stream.close()
    assert idle(slow)
    assert stream.last.finish_reason == "abort"
    assert list(stream) == []


def test_leaving_and_dropping_a_stream_abort_it(slow):
    with slow.stream(user_turn(None, "talk"), max_tokens=200) as stream:
        next(stream)
    assert idle(slow)
    stream = slow.stream(user_turn(None, "talk"), max_tokens=200)
    next(stream)
    del stream
    gc.collect()
    wait_until(lambda: idle(slow))


def test_a_stream_may_be_closed_from_another_thread(slow):
    stream = slow.stream(user_turn(None, "talk"), max_tokens=200)
    pieces = []
    reader = threading.Thread(target=lambda: pieces.extend(stream))
    reader.start()
    wait_until(lambda: pieces)
    stream.close()
    reader.join(timeout=10)
    assert not reader.is_alive()
    assert stream.last.finish_reason == "abort" and idle(slow)


def test_streams_of_several_threads_progress_together(slow):
    """Each has to see every other one's first piece before it ends, and gets the text it gets alone."""
    questions = [f"question {n}" for n in range(4)]
    settings = {"max_tokens": 60, "temperature": 3.0, "seed": 8}
    alone = [slow.ask(None, question, **settings) for question in questions]
    seen = threading.Barrier(len(questions), timeout=30)
    texts = [None] * len(questions)

    def read(n):
        stream = slow.stream(user_turn(None, questions[n]), **settings)
        first = next(stream)
        still_running = stream.last is None
        seen.wait()
        texts[n] = (first + "".join(stream), still_running)

    threads = [threading.Thread(target=read, args=(n,)) for n in range(len(questions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert texts == [(text, True) for text in alone]
    assert idle(slow)


def test_no_thread_is_left_when_all_is_said(vlm):
    vlm.ask(None, "hello", max_tokens=2)
    wait_until(lambda: not any(thread.name == "mmvl-engine" for thread in threading.enumerate()))


def test_every_front_hands_a_priority_to_the_engine_and_to_the_image_budget(vlm, picture_path, monkeypatch):
    told, images = [], vlm._runner.images
    prepare, ask = vlm.engine.prepare, images.ask
    monkeypatch.setattr(vlm.engine, "prepare", lambda *args: told.append(args[-1]) or prepare(*args))
    monkeypatch.setattr(images, "ask", lambda size, priority=0: told.append(priority) or ask(size, priority))
    turn = user_turn(picture_path, "what?")
    vlm.ask(picture_path, "what?", priority=3, max_tokens=1)
    vlm.chat(turn, priority=3, max_tokens=1)
    list(vlm.stream(turn, priority=3, max_tokens=1))
    list(vlm.batch([turn], priority=3, max_tokens=1))
    collect(vlm, turn, SamplingParams(max_tokens=1), priority=3)
    assert told == [3] * 10
    vlm.ask(picture_path, "what?", max_tokens=1)
    assert told[10:] == [0, 0]


def test_batch_answers_all_and_says_which_could_not_be_answered(vlm, picture_path, tmp_path):
    missing = tmp_path / "missing.png"
    conversations = [user_turn(picture_path if n % 2 else None, f"question {n}") for n in range(70)]
    conversations[3] = user_turn(missing, "what?")
    conversations[69] = user_turn(None, "  ")
    got = dict(vlm.batch(iter(conversations), max_tokens=3, temperature=2.0, seed=1))
    assert sorted(got) == list(range(70))
    assert isinstance(got[3], FileNotFoundError) and isinstance(got[69], ValueError)
    for n in (0, 1, 42):
        assert got[n].text == vlm.chat(conversations[n], max_tokens=3, temperature=2.0, seed=1).text
    assert all(isinstance(answer, Answer) for n, answer in got.items() if n not in (3, 69))


def test_an_item_of_a_batch_may_bring_its_own_settings(vlm):
    turn = user_turn(None, "is there a circle?")
    items = [turn, (turn, {"max_tokens": 2, "ignore_eos": True}), (turn, {"temprature": 1}), (turn, {}), tuple(turn)]
    got = dict(vlm.batch(items, max_tokens=5, ignore_eos=True))
    assert [got[n].completion_tokens for n in (0, 1, 3, 4)] == [5, 2, 5, 5]
    assert isinstance(got[2], ValueError)
    with pytest.raises(ValueError, match="temprature"):
        vlm.batch(items, temprature=1)


def test_batch_reads_its_source_as_places_get_free_and_stops_when_closed(vlm):
    taken = []

    def source():
        for n in range(10_000):
            taken.append(n)
            yield user_turn(None, f"question {n}")

    answers = vlm.batch(source(), max_tokens=2)
    next(answers)
    answers.close()
    assert len(taken) < 200
    wait_until(lambda: idle(vlm))


def test_a_broken_step_reaches_every_caller_and_the_next_request_works(vlm, monkeypatch):
    def broken(engine):
        raise RuntimeError("out of memory, say")

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "step", broken)
        with pytest.raises(RuntimeError, match="out of memory"):
            vlm.ask(None, "hello")
        got = dict(vlm.batch([user_turn(None, "a"), user_turn(None, "b")]))
        assert [type(error) for error in got.values()] == [RuntimeError, RuntimeError]
    assert idle(vlm)
    assert vlm.chat(user_turn(None, "hello"), max_tokens=2).completion_tokens <= 2


@pytest.mark.parametrize("question", ["", " \n\t"])
def test_an_empty_question_is_refused(vlm, picture_path, question):
    with pytest.raises(ValueError, match="question is empty"):
        vlm.ask(picture_path, question)


def test_mistakes_get_one_clear_line(vlm, picture_path, tmp_path):
    text = tmp_path / "notes.png"
    text.write_text("not a picture")
    empty = tmp_path / "empty"
    empty.mkdir()
    cases = [
        (FileNotFoundError, "nowhere.png", lambda: vlm.ask(tmp_path / "nowhere.png", "what?")),
        (ValueError, "notes.png", lambda: vlm.ask(text, "what?")),
        (ValueError, "longer than the context", lambda: vlm.ask(picture_path, "why? " * 400)),
        (ValueError, "temperature", lambda: vlm.ask(picture_path, "what?", temperature=-1)),
        (ValueError, "temprature", lambda: vlm.ask(picture_path, "what?", temprature=1)),
        (ValueError, "conversation is empty", lambda: vlm.chat([])),
        (ValueError, "list of messages", lambda: vlm.chat("hello")),
        (ValueError, "list of messages", lambda: collect(vlm, [5])),
        (ValueError, "question is empty", lambda: vlm.chat([{"role": "user", "content": 5}])),
        (
            ValueError,
            "message 1: a part must be",
            lambda: vlm.chat([{"role": "user", "content": [None, {"type": "text", "text": "hi"}]}]),
        ),
        (ValueError, "message 1: a part must be", lambda: vlm.chat([{"role": "user", "content": ["hi"]}])),
        (
            ValueError,
            "message 1: a part must be .*, not 'text' without it",
            lambda: vlm.chat([{"role": "user", "content": [{"type": "text"}, {"type": "text", "text": "hi"}]}]),
        ),
        (FileNotFoundError, "https://a.b/c.png; nothing is fetched", lambda: vlm.ask("https://a.b/c.png", "what?")),
        (ValueError, "stop must be a list of strings", lambda: vlm.ask(None, "what?", stop=5)),
        (ValueError, "must be the user's", lambda: vlm.chat([{"role": "assistant", "content": "hi"}])),
        (FileNotFoundError, "no-such-model", lambda: VLM(tmp_path / "no-such-model")),
        (FileNotFoundError, "config.json", lambda: VLM(empty)),
        (ValueError, "device", lambda: VLM(device="abacus")),
        (ValueError, "GPU", lambda: VLM(device="cuda:77")),
        (ValueError, "dtype", lambda: VLM(device="cpu", dtype="int3")),
    ]
    for kind, words, call in cases:
        with pytest.raises(kind, match=words) as caught:
            call()
        assert "\n" not in str(caught.value), words
    assert idle(vlm)


def test_a_model_directory_without_weights_is_refused(tiny_model_dir, tmp_path):
    (tmp_path / "config.json").write_bytes((tiny_model_dir / "config.json").read_bytes())
    with pytest.raises(FileNotFoundError, match="no weights"):
        VLM(tmp_path)
