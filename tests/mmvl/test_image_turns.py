"""Images are opened one request after the other, as memory for them gets free; whoever leaves gives it back."""

import asyncio
import threading

import pytest

import mmvl
from mmvl.engine import SamplingParams
from mmvl.vlm import Answer, user_turn
from tests.asking import collect, idle
from tests.waiting import wait_until


@pytest.fixture
def opened(vlm, monkeypatch):
    """Room for the images of one request; the sources that were opened. Opening waits for `may_open`."""
    iter_media = mmvl.vlm.iter_media

    class Opened(list):
        may_open = threading.Event()

        def __call__(self, source):
            self.append(source)
            assert self.may_open.wait(20)
            return iter_media(source)

    opened = Opened()
    opened.may_open.set()
    monkeypatch.setattr(mmvl.vlm, "iter_media", opened)
    monkeypatch.setattr(vlm._runner.images, "most", 1)
    yield opened
    opened.may_open.set()
    wait_until(lambda: vlm._runner.images.held == 0)


def test_images_are_opened_as_those_of_others_leave_memory(slow, picture_path, opened):
    """Whoever has an image waits while another one's is held, in threads and in an event loop; a text does not."""
    picture, params = user_turn(picture_path, "describe it"), {"max_tokens": 20}
    with slow.stream(picture, max_tokens=150) as first:
        next(first)
        threads = [
            threading.Thread(target=slow.chat, args=(picture,), kwargs=params),
            threading.Thread(target=collect, args=(slow, picture, SamplingParams(**params))),
            threading.Thread(target=lambda: list(slow.batch([picture, picture], **params))),
        ]
        for thread in threads:
            thread.start()
        assert slow.chat(user_turn(None, "talk"), **params).completion_tokens == 20
        assert len(opened) == 1
    for thread in threads:
        thread.join(20)
    assert len(opened) == 5 and not any(thread.is_alive() for thread in threads)


def test_images_of_many_tasks_are_opened_one_after_the_other(vlm, picture_path, opened):
    """Reserved before they are opened: else all would see the same room."""
    ended = []

    async def ask():
        params = SamplingParams(max_tokens=2)
        async for update in vlm.generate(user_turn(picture_path, "what?"), params):
            if update.finished:
                ended.append(len(opened))

    async def together():
        await asyncio.gather(*(ask() for _ in range(6)))

    asyncio.run(together())
    assert len(ended) == 6 and len(opened) == 6 and ended[0] < 3  # the next one's may be, when the first one is told


def test_who_is_cancelled_gives_room_for_images_back(vlm, picture_path, opened):
    """While it waits for its turn at once; while its images are opened when they are: the thread cannot be stopped."""

    async def ask():
        return [update async for update in vlm.generate(user_turn(picture_path, "what?"), SamplingParams(max_tokens=2))]

    async def until(true):
        async with asyncio.timeout(20):
            while not true():
                await asyncio.sleep(0.005)

    async def together():
        opened.may_open.clear()
        tasks = []
        for asking in range(3):  # one after the other, for headers are read in threads
            tasks.append(asyncio.create_task(ask()))
            await until(lambda before=asking: opened and len(vlm._runner.images._waiting) == before)
        opens, waits, after = tasks
        for task in (waits, opens):
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        await asyncio.sleep(0.05)
        assert len(opened) == 1 and vlm._runner.images.held > 0 and not after.done()
        opened.may_open.set()
        return await after

    assert asyncio.run(together())[-1].finished and len(opened) == 2


def test_requests_that_are_refused_or_not_heard_give_room_for_images_back(vlm, picture_path, tmp_path, opened):
    broken = tmp_path / "broken.png"
    broken.write_bytes(picture_path.read_bytes()[:70])
    for images, question in ((tmp_path / "missing.png", "what?"), (broken, "what?"), (picture_path, "why? " * 400)):
        asked = user_turn([picture_path, images], question)
        for ask in (vlm.chat, lambda asked: collect(vlm, asked)):
            with pytest.raises((OSError, ValueError)):
                ask(asked)
        assert [type(error) for _, error in vlm.batch([asked])] != [Answer]
        assert vlm._runner.images.held == 0
    prompt = vlm.processor.encode([{"role": "user", "content": [{"type": "image", "image": picture_path}]}])

    def deaf(update):
        raise RuntimeError("nobody listens")

    assert vlm.count(user_turn(picture_path, "what?")) > vlm.count(prompt) - 10 and vlm._runner.images.held == 0
    vlm._runner.submit(prompt, SamplingParams(max_tokens=50, ignore_eos=True), deaf)
    assert vlm._runner.images.held == prompt.image_bytes
    wait_until(lambda: idle(vlm) and vlm._runner.images.held == 0)


def test_whoever_reads_a_batch_may_ask_meanwhile(vlm, picture_path, opened):
    """The batch keeps no room for images that it does not use while its reader is at work."""
    picture = user_turn(picture_path, "what?")
    answers = vlm.batch([picture] * 4, max_tokens=2)
    for _ in answers:
        assert vlm.chat(picture, max_tokens=2).image_tokens > 0
    assert len(opened) == 8
