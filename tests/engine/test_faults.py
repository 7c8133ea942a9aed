"""What goes wrong for one request, or once, is nobody else's matter."""

import asyncio
import queue
import subprocess
import sys
import threading

import pytest
import torch

from mmvl.engine import Engine, SamplingParams
from mmvl.engine.broken import EngineBroken, device_fault
from mmvl.engine.memory import is_out_of_memory
from mmvl.engine.runner import Runner
from mmvl.text_backbone.decoder import Decoder
from mmvl.vlm import VLM, Answer
from tests.waiting import wait_until


@pytest.fixture
def engine(model, processor):
    return lambda **settings: Engine(model, processor, **settings)


def asked(processor, text):
    return processor.encode([{"role": "user", "content": text}])


def drained(engine, steps=500):
    """All updates until nobody is left."""
    updates = []
    while engine.has_work and steps:
        updates += engine.step()
        steps -= 1
    assert not engine.has_work, "the engine does not come to an end"
    return updates


def answer_of(engine, prompt, **params):
    request = engine.submit(prompt, SamplingParams(ignore_eos=True, **params))
    drained(engine)
    return request.output_ids


@pytest.mark.parametrize("behind", [False, True])
def test_logits_that_are_not_finite_end_their_own_request_alone(engine, processor, behind):
    prompts = [asked(processor, text) for text in ("hello", "what is it")]
    alone = answer_of(engine(), prompts[1], max_tokens=8)
    shared = engine(behind=behind, draft_tokens=0)
    broken = shared.submit(prompts[0], SamplingParams(max_tokens=8, repetition_penalty=1e-39))
    good = shared.submit(prompts[1], SamplingParams(max_tokens=8, ignore_eos=True))
    drained(shared)
    assert broken.finish_reason == "error" and "not finite" in str(broken.error)
    assert good.finish_reason == "length" and good.output_ids == alone


def test_a_token_that_is_no_text_ends_its_own_request_alone(engine, processor):
    shared = engine(draft_tokens=0)
    first = shared.submit(asked(processor, "hello there"), SamplingParams(max_tokens=3, ignore_eos=True))
    second = shared.submit(asked(processor, "what is it"), SamplingParams(max_tokens=9, ignore_eos=True))

    def push(token, push=second.text_stream.push):
        if len(second.output_ids) == 3:
            raise AssertionError("no such id")
        return push(token)

    second.text_stream.push = push
    ends = {update.request: update for update in drained(shared) if update.finished}
    assert first.finish_reason == "length" and ends[first].error is None
    assert second.finish_reason == "error" and str(ends[second].error) == "no such id"


def test_who_had_finished_in_a_step_that_broke_is_told(engine, processor, monkeypatch):
    shared = engine(draft_tokens=0)
    first = shared.submit(asked(processor, "hello there"), SamplingParams(max_tokens=1, ignore_eos=True))
    second = shared.submit(asked(processor, "what is it"), SamplingParams(max_tokens=9, ignore_eos=True))

    def took(*_):
        raise RuntimeError("the device is gone")

    collect = shared._collect
    monkeypatch.setattr(shared, "_collect", lambda: collect() or took())
    with pytest.raises(RuntimeError, match="the device is gone"):
        drained(shared)
    updates = shared.give_up(RuntimeError("the device is gone"))
    ends = {update.request: update for update in updates if update.finished}
    assert ends[first].error is None and first.finish_reason == "length"
    assert str(ends[second].error) == "the device is gone" and not shared.has_work


@pytest.mark.parametrize("behind", [False, True])
def test_memory_that_runs_out_for_a_checkpoint_costs_the_checkpoint(engine, processor, behind, monkeypatch):
    prompt = asked(processor, "what is it? " * 20)
    alone = answer_of(engine(), prompt, max_tokens=5)
    shared = engine(behind=behind)
    put, left = shared.cache._store.put, [1]

    def full(*arguments):
        if left:
            left.pop()
            raise torch.OutOfMemoryError("CUDA out of memory")
        put(*arguments)

    monkeypatch.setattr(shared.cache._store, "put", full)
    assert answer_of(shared, prompt, max_tokens=5) == alone and not left
    shared.prefixes.clear()
    assert shared.cache.free_checkpoints == shared.sizes.max_checkpoints
    assert shared.cache.free_pages == shared.num_pages and shared.cache.free_slots == shared.max_sequences


@pytest.mark.parametrize("what", ["take", "put"])
def test_memory_that_runs_out_while_swapping_costs_computing_again(engine, processor, what, monkeypatch):
    prompts = [asked(processor, text * 20) for text in ("hello ", "you ", "me ")]
    alone = [answer_of(engine(), prompt, max_tokens=12) for prompt in prompts]
    shared = engine(max_sequences=3, draft_tokens=0, swap_bytes=1 << 26, prefix_cache="off")
    low = [shared.submit(prompt, SamplingParams(max_tokens=12, ignore_eos=True), priority=5) for prompt in prompts]
    for _ in range(4):
        shared.step()
    keys, tried = shared.cache._keys, []

    def full(*_):
        tried.append(what)
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(keys, what, full)
    high = shared.submit(asked(processor, "hi"), SamplingParams(max_tokens=3, ignore_eos=True))
    drained(shared)
    assert tried and [request.output_ids for request in low] == alone and high.finish_reason == "length"
    assert shared.cache.free_slots == 3 and shared.cache.used_pages == 0 and not shared.cache._swapped
    assert shared.pools._swap_bytes == 1 << 26


def test_a_listener_that_raises_is_dropped_and_others_are_answered(engine, processor, caplog):
    runner, said = Runner(engine()), queue.SimpleQueue()

    def closed(update):
        raise RuntimeError("Event loop is closed")

    runner.submit(asked(processor, "hi"), SamplingParams(max_tokens=50, ignore_eos=True), closed)
    for _ in range(2):  # beside it, and after it
        runner.submit(asked(processor, "what is it"), SamplingParams(max_tokens=3, ignore_eos=True), said.put)
        while not said.get(timeout=30).finished:
            pass
    assert "Event loop is closed" in caplog.text and not runner._listeners


@pytest.mark.parametrize("what", ["give_up", "add", "abort"])
def test_an_engine_whose_books_fail_tells_everyone_and_takes_nothing_more(engine, processor, what, monkeypatch):
    broken, said = engine(max_sequences=1), [queue.SimpleQueue() for _ in range(3)]
    runner, begun = Runner(broken), threading.Event()
    step, fails = broken.step, threading.Event()

    def fail(*_):
        raise KeyError("a slot that is nobody's")

    def slow_step():
        begun.set()
        fails.wait(30)
        return fail() if what == "give_up" else step()

    monkeypatch.setattr(broken, "step", slow_step)
    requests = [runner.submit(asked(processor, "hi"), SamplingParams(max_tokens=50), put.put) for put in said[:1]]
    assert begun.wait(30)
    monkeypatch.setattr(broken, what, fail)
    requests += [runner.submit(asked(processor, "hi"), SamplingParams(max_tokens=50), put.put) for put in said[1:]]
    callers = [threading.Thread(target=runner.abort, args=(request,)) for request in requests if what == "abort"]
    for caller in callers:
        caller.start()
    wait_until(lambda: len(runner._dropped) == len(callers))
    fails.set()
    for updates in said:
        last = updates.get(timeout=30)
        while not last.finished:
            last = updates.get(timeout=30)
        assert isinstance(last.error, EngineBroken) and "KeyError" in str(last.error)
        assert isinstance(last.error.__cause__, KeyError)
    for caller in callers:
        caller.join(30)
        assert not caller.is_alive()
    assert [request.finish_reason for request in requests] == ["error"] * 3
    with pytest.raises(EngineBroken, match="until the process is started anew"):
        runner.submit(asked(processor, "hi"), SamplingParams(), said[0].put)
    runner.abort(requests[0])
    assert runner.images.held == 0 and not runner._leases and not runner.images._held


def test_a_device_that_computes_nothing_more_breaks_the_engine(tiny_model_dir, monkeypatch):
    fault = torch.AcceleratorError("CUDA error: an illegal memory access was encountered\nSearch for it in the manual.")
    vlm, forward = VLM(tiny_model_dir, device="cpu"), Decoder.forward

    def fails_once(*_):
        monkeypatch.setattr(Decoder, "forward", forward)
        raise fault

    monkeypatch.setattr(Decoder, "forward", fails_once)
    with pytest.raises(torch.AcceleratorError):  # it works on: an error that was told once
        vlm.ask(None, "hi", max_tokens=2)
    assert vlm.engine.broken is None and vlm.chat([{"role": "user", "content": "hi"}], max_tokens=2).completion_tokens
    monkeypatch.setattr(Decoder, "forward", fails_once)
    monkeypatch.setattr("mmvl.engine.engine.device_fault", lambda device: fault)
    for _ in range(2):
        with pytest.raises(EngineBroken) as told:
            vlm.ask(None, "hi", max_tokens=2)
        assert str(told.value) == (
            "the engine is broken until the process is started anew "
            "(AcceleratorError: CUDA error: an illegal memory access was encountered)"
        )
    assert told.value.__cause__ is fault and not vlm.engine.has_work


# What it writes is the end of it: a fault of the device ends the process's use of it.
ASSERTS_ON_THE_DEVICE = """
import sys, torch
from mmvl import VLM
from mmvl.engine.broken import EngineBroken
vlm, turn = VLM(sys.argv[1], device="cuda"), [{"role": "user", "content": "hi"}]
assert vlm.chat(turn, max_tokens=3, ignore_eos=True).completion_tokens == 3
with vlm.stream(turn, max_tokens=200, ignore_eos=True) as stream:
    next(stream)
    torch.zeros(3, device="cuda")[torch.tensor([10], device="cuda")]
    for ask in (lambda: list(stream), lambda: vlm.ask(None, "hi"), lambda: list(vlm.batch([turn] * 3))):
        try:
            ask()
        except EngineBroken as broken:
            print(broken)
print("free", not vlm.engine.has_work)
"""


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU, whose context it breaks")
def test_an_assert_on_the_device_breaks_the_engine_and_ends_who_waits(tiny_model_dir):
    command = [sys.executable, "-c", ASSERTS_ON_THE_DEVICE, str(tiny_model_dir)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=240)
    told = [line for line in ended.stdout.splitlines() if line.startswith("the engine is broken")]
    assert len(told) == 3 and all("device-side assert" in line for line in told), ended.stdout + ended.stderr[-2000:]
    assert ended.stdout.splitlines()[-1] == "free True"


@pytest.mark.parametrize("when", ["while they run", "before they are asked"])
def test_a_broken_engine_ends_a_batch_instead_of_failing_its_items(tiny_model_dir, monkeypatch, when):
    """Else a job would note each as a failure of its own, and an evaluation score them as wrong."""
    vlm, step, turn = VLM(tiny_model_dir, device="cpu"), Engine.step, [{"role": "user", "content": "hi"}]
    fault, found = torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), {}
    monkeypatch.setattr("mmvl.engine.engine.device_fault", lambda device: fault)

    def breaks(engine):
        if when == "while they run" and found:
            raise fault
        return step(engine)

    monkeypatch.setattr(Engine, "step", breaks)
    with pytest.raises(EngineBroken, match="illegal memory"):
        for index, answer in vlm.batch([(turn, {"max_tokens": 2 + 9 * n}) for n in range(100)], ignore_eos=True):
            found[index] = answer
            if when == "before they are asked":
                vlm.engine.broken = EngineBroken.by(fault)
    assert found and all(isinstance(answer, Answer) for answer in found.values()) and len(found) < 100


@pytest.mark.parametrize("priority", ["high", None, 1.5, float("nan"), True])
def test_a_priority_that_cannot_be_compared_is_refused(tiny_model_dir, priority):
    """In a queue it would end the engine's thread, or the order of those who wait."""
    vlm, turn = VLM(tiny_model_dir, device="cpu", max_sequences=1), [{"role": "user", "content": "hi"}]

    async def generate():
        return [update async for update in vlm.generate(turn, priority=priority)]

    with vlm.stream(turn, max_tokens=200, ignore_eos=True) as runs, vlm.stream(turn, max_tokens=2) as waits:
        next(runs)
        prompt = vlm.processor.encode(turn, add_generation_prompt=True)
        for ask in (
            lambda: vlm.ask(None, "hi", priority=priority),
            lambda: vlm.chat(turn, priority=priority),
            lambda: vlm.stream(turn, priority=priority),
            lambda: vlm.batch([turn], priority=priority),
            lambda: asyncio.run(generate()),
            lambda: vlm.engine.prepare(prompt, priority=priority),
        ):
            with pytest.raises(ValueError, match="priority must be a whole number"):
                ask()
        runs.close()
        list(waits)
        assert waits.last.finish_reason in ("stop", "length")
    assert vlm.engine.broken is None


def test_which_faults_of_a_device_stay(monkeypatch):
    gpu, told = torch.device("cuda"), []

    def synchronize(device):
        if told:
            raise told[-1]

    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    assert device_fault(gpu) is None and device_fault(torch.device("cpu")) is None
    told.append(torch.AcceleratorError("CUDA error: device-side assert triggered"))
    assert device_fault(gpu) is told[-1] and device_fault(torch.device("cpu")) is None
    told.append(torch.OutOfMemoryError("CUDA out of memory"))
    assert device_fault(gpu) is None


def test_a_conversation_of_another_shape_is_its_own_matter(tiny_model_dir):
    vlm = VLM(tiny_model_dir, device="cpu")
    good = [{"role": "user", "content": "hi"}]
    bad = ["hello", [5], [{"role": "user", "content": 5}], [{"role": "user", "content": [None]}], (good, {"stop": 5})]
    answers = dict(vlm.batch([good, *bad, good], max_tokens=2))
    errors = {n: type(a).__name__ for n, a in answers.items() if isinstance(a, Exception)}
    assert errors.keys() <= set(range(1, 6)) and {1, 2, 3, 4} <= errors.keys()
    assert set(errors.values()) == {"ValueError"} and len(answers) == 7


@pytest.mark.parametrize(
    "words",
    ["Triton Error [CUDA]: out of memory", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate",
     "CUDA error: out of memory", "[enforce fail] DefaultCPUAllocator: can't allocate memory"],
)  # fmt: skip
def test_memory_that_runs_out_has_many_names(words):
    assert is_out_of_memory(RuntimeError(words)) and not is_out_of_memory(ValueError(words))
    assert not is_out_of_memory(RuntimeError("CUDA error: misaligned address"))
