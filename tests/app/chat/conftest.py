"""What the tests of the chat page share: a tiny model that takes its time, its page, and a browser."""

import asyncio
import shutil
import time
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest
from playwright.sync_api import expect, sync_playwright

from mmvl import VLM
from mmvl.app.chat import mount_page
from mmvl.app.chat.in_thread import in_thread
from mmvl.app.server import ServerSettings, create_app
from mmvl.engine.request import Update
from tests.waiting import wait_until

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]
expect.set_options(timeout=20_000)
FLAGS += ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]


class Talker(VLM):
    """A real model that never ends by itself. pause: seconds before each step. script: what it says instead, if any."""

    def __init__(self, directory):
        super().__init__(directory, device="cpu", max_sequences=2, engine={"max_batch_tokens": 64})
        self.pause, self.script = 0.0, None
        self.prompts = []
        step = self.engine.step

        def slow_step():
            time.sleep(self.pause)
            return step()

        self.engine.step = slow_step

    async def generate(self, prompt, params=None, priority=0):
        self.prompts.append(prompt)
        if self.script is None:
            async for update in super().generate(prompt, replace(params, ignore_eos=True), priority):
                yield update
            return
        for number, words in enumerate(self.script, 1):
            await asyncio.sleep(0.01)
            last = number == len(self.script)
            yield Update(_scripted(number, "stop" if last else None), words, last, token_ids=(1,))

    def free(self) -> bool:
        """Whether no request holds anything."""
        stats = self.engine.stats()
        return not (stats.running or stats.waiting or stats.state_slots_used)


def _scripted(count: int, reason):
    return SimpleNamespace(
        text="", finish_reason=reason, prompt_tokens=10, image_tokens=4, output_ids=[1] * count, cached_tokens=0,
        completion_tokens=count, prefill_seconds=0.1, decode_seconds=0.2, queued_seconds=0.0,
    )  # fmt: skip


@contextmanager
def served(vlm, port: int = 0, **settings):
    app = create_app(vlm, ServerSettings(**settings))
    mount_page(app)
    with in_thread(app, port) as url:
        yield url


@pytest.fixture(scope="session")
def serve_page():
    """serve_page(vlm, port=0, **settings) -> a context with the page's address."""
    return served


@pytest.fixture(scope="module")
def talker(tiny_model_dir):
    return Talker(tiny_model_dir)


@pytest.fixture(scope="module")
def url(talker):
    with served(talker, max_pdf_pages=3) as address:
        yield address


@pytest.fixture
def vlm(talker):
    """The model, fast and unscripted; every test leaves it free."""
    talker.pause, talker.script = 0.0, None
    talker.prompts.clear()
    yield talker
    talker.pause = 0.0
    wait_until(talker.free)


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)


@pytest.fixture(scope="module")
def window(browser):
    """A browser's context for all tests of a file, so that the page's many scripts are loaded once."""
    context = browser.new_context(viewport={"width": 1200, "height": 900}, accept_downloads=True)
    context.set_default_timeout(20_000)
    context.asked_for = []
    context.on("request", lambda request: context.asked_for.append(request.url))
    yield context
    context.close()


@pytest.fixture(scope="module")
def first_tab(window):
    """The tab that most tests use."""
    return window.new_page()


@pytest.fixture
def context(window, url, vlm, first_tab):
    """A browser that remembers nothing; `asked_for` are the addresses of all its requests. Its new tabs are closed."""
    yield window
    # Tabs go before what they keep: a page whose last event is still under way would keep its chat after the clearing.
    for tab in window.pages:
        if tab is not first_tab:
            tab.close()
    first_tab.goto("about:blank")
    kinds = "indexeddb,local_storage"
    window.new_cdp_session(first_tab).send("Storage.clearDataForOrigin", {"origin": url, "storageTypes": kinds})
    window.asked_for.clear()


@pytest.fixture
def tab(context, url, first_tab):
    """A tab on the page, loaded anew: an empty chat, no history. Whatever its test did, it asked no other host."""
    load(first_tab, url)
    expect(first_tab.locator("#history li")).to_have_count(0)
    yield first_tab
    away = [address for address in context.asked_for if not address.startswith((url, "data:", "blob:"))]
    assert not away
    assert any(address.startswith(url) for address in context.asked_for)


def load(tab, url: str) -> None:
    tab.goto(url)
    expect(tab.locator("#box textarea")).to_be_visible(timeout=30_000)
    expect(tab.locator("#history p")).to_contain_text("this browser")
