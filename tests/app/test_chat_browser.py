"""The chat page in a real browser, as a visitor uses it. Its tests exist where the system has a Chromium."""

import http.server
import shutil
import threading
import time

import pytest
from playwright.sync_api import expect, sync_playwright

from mmvl.app import conversation
from mmvl.app.chat import build_page, launch
from mmvl.app.examples import load_examples

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]
WORDS = [f"w{number} " for number in range(300)]


@pytest.fixture(scope="module")
def vlm(scripted):
    return scripted(WORDS, pause=0.05)


@pytest.fixture(scope="module")
def url(vlm):
    page = build_page(vlm)
    launch(page, server_name="127.0.0.1", inbrowser=False, quiet=True)
    yield page.local_url
    page.close()


@pytest.fixture(scope="module")
def context(tmp_path_factory):
    with sync_playwright() as playwright:
        folder = tmp_path_factory.mktemp("browser")
        context = playwright.chromium.launch_persistent_context(
            folder, executable_path=CHROMIUM, headless=True, args=FLAGS, viewport={"width": 1200, "height": 900}
        )
        yield context
        context.close()


@pytest.fixture
def tab(context, url, vlm):
    """A fresh tab on the page; `tab.requested` are the addresses it asked for."""
    vlm.words = WORDS
    tab = context.new_page()
    tab.requested = []
    tab.on("request", lambda request: tab.requested.append(request.url))
    tab.goto(url)
    expect(tab.locator("#box textarea")).to_be_visible(timeout=30_000)
    yield tab
    tab.close()
    wait_until(lambda: all(stream.closed.is_set() for stream in vlm.streams))


@pytest.fixture
def listener():
    """A web server of someone else; `hits` are the paths that were fetched from it."""
    hits = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            hits.append(self.path)
            self.send_error(404)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    server.hits = hits
    yield server
    server.shutdown()
    server.server_close()


def wait_until(true, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def upload(tab, *files) -> None:
    tab.locator("#box input[type=file]").set_input_files([str(file) for file in files])
    expect(tab.get_by_label("Remove file")).to_have_count(len(files), timeout=10_000)


def send(tab, text: str) -> None:
    tab.locator("#box textarea").fill(text)
    tab.locator("#box textarea").press("Enter")


def answer(tab):
    return tab.locator("#window .bot").last


if CHROMIUM:

    def test_upload_ask_watch_it_stream_and_stop(tab, vlm, picture_folder):
        upload(tab, picture_folder / "red.png", picture_folder / "inside" / "blue.jpg")
        send(tab, "Which colours?")
        expect(answer(tab)).to_contain_text("w0 w1 w2", timeout=10_000)
        assert "w200" not in answer(tab).inner_text(), "it came at once, not as a stream"
        assert [part["type"] for part in vlm.asked[-1][0]["content"]] == ["image", "image", "text"]
        expect(tab.locator("#window img")).to_have_count(2)
        expect(tab.locator("#stop")).to_be_enabled()
        tab.locator("#stop").click()
        expect(answer(tab)).to_contain_text("stopped", timeout=5_000)
        assert vlm.streams[-1].closed.is_set() and vlm.streams[-1].said < 290
        expect(tab.locator("#stop")).to_be_disabled()
        expect(tab.locator("#box textarea")).to_have_value("")

    def test_a_pdf_is_read_page_by_page(tab, vlm, picture_folder):
        upload(tab, picture_folder / "two.pdf")
        send(tab, "What?")
        expect(answer(tab)).to_contain_text("w0 w1", timeout=10_000)
        assert [part["type"] for part in vlm.asked[-1][0]["content"]] == ["image", "image", "text"]

    def test_an_example_works_by_one_click_and_clear_empties_the_page(tab, vlm):
        first = load_examples()[0]
        tab.locator("#example-0").click()
        expect(answer(tab)).to_contain_text("w0 w1", timeout=10_000)
        expect(tab.locator("#window .user").last).to_contain_text(first.question)
        expect(tab.locator("#window img")).to_have_count(1)
        tab.locator("#clear").click()
        expect(tab.locator("#window .bot")).to_have_count(0, timeout=5_000)
        wait_until(vlm.streams[-1].closed.is_set)
        send(tab, "And now?")
        expect(answer(tab)).to_contain_text("w0 w1", timeout=10_000)
        assert len(vlm.asked[-1]) == 1

    def test_an_empty_question_is_refused_in_the_corner_and_hides_nothing(tab, vlm):
        vlm.words = ["An ", "answer."]
        send(tab, "What?")
        expect(answer(tab)).to_contain_text("tokens/s", timeout=10_000)
        send(tab, " ")
        expect(tab.get_by_test_id("toast-text")).to_have_text("Write a question first.")
        assert answer(tab).evaluate("""it => {
            const {x, y, width, height} = it.getBoundingClientRect();
            return it.contains(document.elementFromPoint(x + width / 2, y + height / 2));
        }"""), "something lies over the answer"

    def test_on_a_narrow_screen_an_example_brings_its_answer_into_view(tab, vlm):
        tab.set_viewport_size({"width": 390, "height": 844})
        vlm.words = ["An ", "answer."]
        tab.locator("#example-5").click()
        expect(answer(tab)).to_contain_text("An answer.", timeout=10_000)
        expect(answer(tab)).to_be_in_viewport(timeout=5_000)
        assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the page scrolls sideways"

    def test_a_closed_tab_ends_the_work(context, url, vlm):
        vlm.words = WORDS
        tab = context.new_page()
        tab.goto(url)
        tab.locator("#example-0").click(timeout=30_000)
        expect(answer(tab)).to_contain_text("w0 w1", timeout=10_000)
        tab.close()
        wait_until(vlm.streams[-1].closed.is_set)
        assert vlm.streams[-1].said < 290

    @pytest.mark.parametrize("escaping", [True, False])
    def test_text_of_a_model_makes_the_browser_fetch_nothing(tab, vlm, listener, monkeypatch, escaping):
        """Even without the escaping (as if it had a hole), the page's policy keeps the browser at home."""
        if not escaping:
            monkeypatch.setattr(conversation, "for_browser", lambda text: text)
        there = f"http://127.0.0.1:{listener.server_port}"
        vlm.words = [
            "**bold** ",
            f"![x]({there}/markdown.png) <img src={there}/html.png> ![y][1]\n\n[1]: {there}/reference.png\n\n",
            f'<div style="background: url({there}/style.png)">x</div> <iframe src="{there}/frame"></iframe> ',
            f"<link rel=stylesheet href={there}/sheet.css> <video src={there}/video></video> done",
        ]
        send(tab, "What?")
        expect(answer(tab).locator("strong").first).to_have_text("bold", timeout=10_000)
        expect(answer(tab)).to_contain_text("done")
        expect(answer(tab)).to_contain_text("tokens/s")
        tab.wait_for_timeout(300)
        assert listener.hits == []
        if escaping:
            assert f"<img src=http:\u200b//127.0.0.1:{listener.server_port}/html.png>" in answer(tab).inner_text()
            assert answer(tab).locator("img, a, iframe, video").count() == 0

    def test_the_page_needs_no_other_server(tab, url):
        tab.locator("#example-0").click()
        expect(answer(tab)).to_contain_text("w0 w1", timeout=10_000)
        away = [address for address in tab.requested if not address.startswith((url, "data:", "blob:"))]
        assert not away
        assert any(address.startswith(url) for address in tab.requested)
