"""The chat page in a real browser, as a visitor uses it. Its tests exist where the system has a Chromium."""

import http.server
import json
import shutil
import threading
import time

import pytest
from playwright.sync_api import expect

from mmvl.app.chat import render
from mmvl.app.examples import load_examples

CHROMIUM = any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome")))
WORDS = ["An ", "answer ", "of **four** ", "words."]


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


def attach(tab, *files) -> None:
    before = tab.get_by_label("Remove file").count()
    tab.locator("#box input[type=file]").set_input_files([str(file) for file in files])
    expect(tab.get_by_label("Remove file")).to_have_count(before + len(files))


def send(tab, text: str) -> None:
    tab.locator("#box textarea").fill(text)
    tab.locator("#box textarea").press("Enter")


def ask(tab, text: str, *files) -> None:
    """Asks, and waits for the whole answer."""
    turns = tab.locator(".turn").count()
    if files:
        attach(tab, *files)
    send(tab, text)
    expect(tab.locator(".turn")).to_have_count(turns + 1)
    expect(tab.locator("#box textarea")).to_have_value("")  # a busy browser may draw the answer before the box
    expect(tab.locator("#live .note")).to_be_visible()
    expect(tab.locator("#box .submit-button")).to_be_visible()  # till then the box takes no question


def questions(tab) -> list[str]:
    return tab.locator(".turn .question").all_inner_texts()


def max_tokens(tab, count: int) -> None:
    tab.locator("#settings .label-wrap").click()
    field = tab.locator("#settings input[type=number]").first
    field.fill(str(count))
    field.press("Tab")
    tab.locator("#settings .label-wrap").click()


if CHROMIUM:

    def test_two_images_and_pages_of_a_pdf_stop_in_mid_stream_and_regenerate(tab, vlm, picture_folder, until):
        attach(tab, picture_folder / "red.png", picture_folder / "inside" / "blue.jpg", picture_folder / "two.pdf")
        boxes = tab.locator("#picker input[type=checkbox]")
        expect(boxes).to_have_count(2)
        expect(boxes.first).to_be_checked()
        expect(tab.locator("#picker input[type=text]")).to_have_value("1-2")
        boxes.first.uncheck()
        expect(tab.locator("#picker input[type=text]")).to_have_value("2")
        vlm.pause = 0.05
        send(tab, "Which colours?")
        expect(tab.locator("#live .status")).to_contain_text("Writing… 1", timeout=20_000)  # ten of them or more
        assert len(vlm.prompts[-1].images) == 3
        expect(tab.locator("#live .files img")).to_have_count(3)
        expect(tab.locator("#live .files")).to_contain_text("two.pdf, pages 2")
        assert not vlm.free()
        tab.locator("#box .stop-button").click()
        clicked = time.monotonic()
        until(vlm.free, seconds=1.0)
        print(f"free {time.monotonic() - clicked:.3f} s after the click")
        expect(tab.locator("#live .note")).to_contain_text("stopped")
        expect(tab.locator("#box textarea")).to_have_value("")

        tab.get_by_label("Regenerate answer 1").click()
        expect(tab.locator("#live .versions")).to_contain_text("2 / 2")
        expect(tab.locator("#live .status")).to_contain_text("Writing… 1")
        tab.keyboard.press("Escape")
        until(vlm.free, seconds=1.0)
        expect(tab.locator("#live .note")).to_contain_text("stopped")
        assert vlm.prompts[0].token_ids == vlm.prompts[1].token_ids
        tab.get_by_label("Previous version").click()
        expect(tab.locator("#live .versions")).to_contain_text("1 / 2")

    def test_an_earlier_question_and_its_files_are_edited_and_a_branch_begins(tab, vlm, picture_folder):
        vlm.script = WORDS
        ask(tab, "First?", picture_folder / "red.png", picture_folder / "two.pdf")
        expect(tab.locator("#picker fieldset")).to_have_count(0)
        ask(tab, "Second?")
        expect(tab.locator("#live .answer strong")).to_have_text("four")
        tab.get_by_label("Edit question 1 and its files").click()
        expect(tab.locator("#editing")).to_contain_text("Editing question 1")
        expect(tab.locator("#box textarea")).to_have_value("First?")
        expect(tab.get_by_label("Remove file")).to_have_count(2)
        expect(tab.locator("#picker input[type=checkbox]")).to_have_count(2)
        tab.get_by_label("Remove file").first.click()
        expect(tab.get_by_label("Remove file")).to_have_count(1)
        tab.locator("#picker input[type=checkbox]").nth(1).uncheck()
        expect(tab.locator("#picker input[type=text]")).to_have_value("1")
        attach(tab, picture_folder / "inside" / "blue.jpg")
        send(tab, "Changed?")
        expect(tab.locator("#live .versions")).to_contain_text("2 / 2")
        expect(tab.locator("#live .note")).to_be_visible()
        assert questions(tab) == ["Changed?"]
        expect(tab.locator("#editing")).not_to_be_visible()
        expect(tab.locator("#live .files li")).to_have_count(2)
        expect(tab.locator("#live .files")).to_contain_text("blue.jpg")
        assert [len(prompt.images) for prompt in vlm.prompts] == [3, 3, 2]
        tab.get_by_label("Previous version").click()
        expect(tab.locator(".turn")).to_have_count(2)
        assert questions(tab) == ["First?", "Second?"]

        tab.get_by_label("Edit question 2 and its files").click()
        expect(tab.locator("#box textarea")).to_have_value("Second?")
        tab.locator("#cancel").click()
        expect(tab.locator("#box textarea")).to_have_value("")
        ask(tab, "Third?")
        assert questions(tab) == ["First?", "Second?", "Third?"]

    def test_the_history_survives_a_reload_and_a_server_that_starts_anew(
        context, vlm, serve_page, picture_folder, tmp_path, monkeypatch
    ):
        vlm.script = WORDS
        tab = context.new_page()
        with serve_page(vlm) as url:
            port = int(url.rpartition(":")[2])
            tab.goto(url)
            ask(tab, "Is it red?", picture_folder / "red.png")
            expect(tab.locator("#history li")).to_have_count(1)
            tab.reload()
            expect(tab.locator(".turn .files img")).to_be_visible()  # this tab goes on where it was
            assert questions(tab) == ["Is it red?"]
            expect(tab.locator("#history li button").first).to_have_text("Is it red?")
            tab.locator("#new").click()
            expect(tab.locator("#welcome")).to_be_visible()
            tab.evaluate("window.old = true")
        monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "another"))  # the old server's files are gone
        with serve_page(vlm, port):
            tab.wait_for_function("!window.old")  # it finds the new server, and loads the page again
            tab.get_by_label("Open: Is it red?").click()
            expect(tab.locator(".turn .files img")).to_be_visible()
            expect(tab.locator(".turn .answer")).to_contain_text("An answer of four words.")
            ask(tab, "Really?")
            assert len(vlm.prompts[-1].images) == 1
            tab.get_by_label("Delete: Is it red?").click()
            expect(tab.locator("#history li")).to_have_count(0)
            expect(tab.locator("#welcome")).to_be_visible()
            tab.goto("about:blank")

    def test_branches_of_two_tabs_are_both_kept(context, tab, url, vlm):
        vlm.script = WORDS
        ask(tab, "First?")
        other = context.new_page()
        other.goto(url)
        other.get_by_label("Open: First?").click()
        expect(other.locator(".turn")).to_have_count(1)
        ask(other, "There?")
        ask(tab, "Here?")
        expect(other.locator("#history li")).to_have_count(1)
        tab.reload()
        expect(tab.locator("#live .versions")).to_contain_text("1 / 2")
        assert questions(tab) == ["First?", "Here?"]
        tab.get_by_label("Next version").click()
        expect(tab.locator("#live .question")).to_have_text("There?")
        tab.get_by_label("Delete: First?").click()
        expect(other.locator("#history li")).to_have_count(0)

    def test_an_example_works_by_one_key_and_a_new_chat_is_empty(tab, vlm):
        vlm.script = WORDS
        tab.locator("#example-0").focus()
        tab.keyboard.press("Enter")
        expect(tab.locator("#live .note")).to_be_visible()
        assert questions(tab) == [load_examples()[0].question]
        expect(tab.locator(".turn img")).to_have_count(1)
        tab.locator("#new").click()
        expect(tab.locator(".turn")).to_have_count(0)
        ask(tab, "And now?")
        assert not vlm.prompts[-1].images

    def test_a_browser_that_was_busy_misses_nothing(tab, vlm):
        """All updates of the answer reach the page at once; the last is there, and is kept."""
        vlm.script = WORDS
        tab.evaluate("""() => {
            const fetched = window.fetch;
            window.fetch = (...asked) => {
                const reply = fetched(...asked);
                if (String(asked[0]?.url ?? asked[0]).includes("queue/data")) reply.then(() => {
                    const end = performance.now() + 1500;
                    while (performance.now() < end);
                });
                return reply;
            };
        }""")
        ask(tab, "What?")
        expect(tab.locator("#history li")).to_have_count(1)
        tab.reload()
        expect(tab.locator(".turn .answer")).to_have_text("An answer of four words.")
        expect(tab.locator(".turn .note")).to_contain_text("4 written")

    def test_a_long_prompt_shows_how_much_of_it_was_read(tab, vlm):
        tab.evaluate("""() => {
            window.said = [];
            new MutationObserver(() => window.said.push(document.querySelector("#live .status")?.textContent))
                .observe(document.querySelector("#live"), {subtree: true, childList: true, characterData: true});
        }""")
        vlm.pause = 0.3
        send(tab, "why? " * 40)
        expect(tab.locator("#live .status")).to_contain_text("Writing…")
        total = len(vlm.prompts[-1].token_ids)
        assert total > 3 * 64
        said = [text for text in tab.evaluate("window.said") if text]
        read = [int(text.split()[1]) for text in said if text.startswith("Reading…")]
        assert read == sorted(read) and {64, 128} <= set(read) and max(read) <= total
        assert f"Reading… 64 of {total} tokens ({6400 // total}%)" in said
        tab.keyboard.press("Escape")

    def test_a_closed_tab_ends_the_work(context, url, vlm, until):
        vlm.pause = 0.05
        tab = context.new_page()
        tab.goto(url)
        send(tab, "What?")
        expect(tab.locator("#live .status")).to_contain_text("Writing…")
        tab.close()
        closed = time.monotonic()
        until(vlm.free, seconds=2.0)
        print(f"free {time.monotonic() - closed:.3f} s after the tab was closed")

    def test_a_new_chat_ends_the_answer_of_the_old_one(tab, vlm, until):
        vlm.pause = 0.05
        send(tab, "What?")
        expect(tab.locator("#live .status")).to_contain_text("Writing…")
        tab.locator("#new").click()
        until(vlm.free, seconds=1.0)
        expect(tab.locator("#welcome")).to_be_visible()
        tab.wait_for_timeout(300)
        expect(tab.locator(".turn")).to_have_count(0)

    def test_words_are_gathered_to_at_most_twenty_updates_a_second(tab, vlm):
        vlm.script = [f"w{number} " for number in range(300)]  # 100 words a second
        tab.evaluate("""() => {
            window.changes = 0;
            new MutationObserver(() => window.changes++).observe(
                document.querySelector("#live"), {subtree: true, childList: true, characterData: true});
        }""")
        send(tab, "What?")
        expect(tab.locator("#live .answer")).to_contain_text("w1 ")
        before, start = tab.evaluate("window.changes"), time.monotonic()
        tab.wait_for_timeout(1000)
        rate = (tab.evaluate("window.changes") - before) / (time.monotonic() - start)
        assert 0 < rate < 21
        expect(tab.locator("#live .answer")).to_contain_text("w299")

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_on_a_narrow_screen_everything_fits(context, url, vlm, scheme, picture_folder):
        tab = context.new_page()
        tab.set_viewport_size({"width": 375, "height": 740})
        tab.emulate_media(color_scheme=scheme)
        tab.goto(url)
        expect(tab.locator("#example-0")).to_be_in_viewport()
        assert tab.evaluate("document.body.classList.contains('dark')") == (scheme == "dark")
        vlm.script = ["A very ", "long" * 60, "\n\n|a|b|\n|-|-|\n|" + "wide " * 40 + "|2|\n"]
        ask(tab, "What? " + "x" * 200, picture_folder / "red.png")
        expect(tab.locator("#box textarea")).to_be_in_viewport()
        expect(tab.locator("#live .note")).to_be_in_viewport()
        assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the page scrolls sideways"
        assert tab.evaluate("document.querySelector('#window').scrollWidth <= innerWidth")
        tab.locator("#side .toggle-button").click()
        expect(tab.locator("#new")).to_be_in_viewport()
        tab.locator("#new").click()
        expect(tab.locator("#new")).not_to_be_in_viewport()  # folded again
        expect(tab.locator("#example-0")).to_be_in_viewport()

    @pytest.mark.parametrize("escaping", [True, False])
    def test_text_of_a_model_makes_the_browser_fetch_nothing(tab, vlm, listener, monkeypatch, escaping):
        """Even without the escaping (as if it had a hole), the page's policy keeps the browser at home."""
        there = f"http://127.0.0.1:{listener.server_port}"
        vlm.script = [
            "**bold** ",
            f"![x]({there}/markdown.png) <img src={there}/html.png> ![y][1] {there}/bare\n\n",
            f"[1]: {there}/reference.png\n\n",
            f'<div style="background: url({there}/style.png)">x</div> <iframe src="{there}/frame"></iframe> ',
            f"<link rel=stylesheet href={there}/sheet.css> <video src={there}/video></video> [y]({there}/link) done",
        ]
        if not escaping:
            monkeypatch.setattr(render, "for_browser", lambda text: text)
        send(tab, "What?")
        expect(tab.locator("#live .note")).to_be_visible()
        expect(tab.locator("#live .answer")).to_contain_text("done")
        tab.wait_for_timeout(300)
        assert listener.hits == []
        if escaping:
            expect(tab.locator("#live .answer strong")).to_have_text("bold")
            assert f"<img src={there}/html.png>" in tab.locator("#live .answer").inner_text()
            assert tab.locator("#live .answer").locator("img, a, iframe, video, div").count() == 0
        else:
            tab.context.asked_for[:] = [url for url in tab.context.asked_for if not url.startswith(there)]

    def test_what_the_model_saw(tab, vlm, picture_folder):
        max_tokens(tab, 3)
        ask(tab, "What?", picture_folder / "red.png")
        tab.get_by_label("What the model saw in turn 1").click()
        expect(tab.locator("#seen .tile").first).to_be_in_viewport()
        (image,) = vlm.prompts[-1].images
        expect(tab.locator("#seen .tile")).to_have_count(len(image.tiles_N3TT))
        expect(tab.locator("#seen .total")).to_contain_text(f"{len(vlm.prompts[-1].token_ids)} tokens")
        expect(tab.locator("#seen .total")).to_contain_text(f"{image.num_tokens} of pictures")
        expect(tab.get_by_alt_text("Tile 1, 1")).to_be_visible()
        expect(tab.locator("#seen")).to_contain_text("60 × 40 pixels")

    def test_a_conversation_is_exported_and_imported(tab, vlm, picture_folder, tmp_path):
        vlm.script = WORDS
        tab.locator("#settings .label-wrap").click()
        tab.get_by_label("System prompt").fill("Be brief.")
        ask(tab, "What is it?", picture_folder / "red.png")
        tab.get_by_role("button", name="Export and import").click()
        for kind in ("json", "md"):
            with tab.expect_download() as download:
                tab.locator(f"#export-{'json' if kind == 'json' else 'markdown'}").click()
            assert download.value.suggested_filename == f"What-is-it.{kind}"
            download.value.save_as(tmp_path / f"saved.{kind}")
        record = json.loads((tmp_path / "saved.json").read_text())
        assert record["system"] == "Be brief." and len(record["data"]) == 1
        for kind in ("json", "md"):
            tab.locator("#new").click()
            expect(tab.locator(".turn")).to_have_count(0)
            with tab.expect_file_chooser() as chooser:
                tab.locator("#import").click()
            chooser.value.set_files(tmp_path / f"saved.{kind}")
            expect(tab.locator(".turn .answer")).to_contain_text("An answer of four words.")
            expect(tab.locator(".turn .files img")).to_have_count(1)
            expect(tab.get_by_label("System prompt")).to_have_value("Be brief.")
        expect(tab.locator("#history li")).to_have_count(3)

    def test_pasted_dropped_and_photographed_pictures_go_into_the_box(tab, vlm):
        vlm.script = WORDS
        tab.locator("#box textarea").focus()
        tab.evaluate("""async () => {
            const canvas = document.createElement("canvas");
            canvas.width = canvas.height = 40;
            canvas.getContext("2d").fillRect(5, 5, 20, 20);
            const blob = await new Promise((done) => canvas.toBlob(done, "image/png"));
            const data = new DataTransfer();
            data.items.add(new File([blob], "pasted.png", {type: "image/png"}));
            const paste = new ClipboardEvent("paste", {clipboardData: data, bubbles: true, cancelable: true});
            document.querySelector("#box textarea").dispatchEvent(paste);
            window.dropped = data;
        }""")
        expect(tab.get_by_label("Remove file")).to_have_count(1)
        tab.evaluate("""() => document.querySelector("#window").dispatchEvent(
            new DragEvent("drop", {dataTransfer: window.dropped, bubbles: true, cancelable: true}))""")
        expect(tab.get_by_label("Remove file")).to_have_count(2)
        tab.get_by_role("button", name="Camera").click()
        tab.locator("#camera .access-wrap, #camera [title='grant webcam access']").first.click()
        tab.wait_for_function("document.querySelector('#camera video')?.videoWidth > 0")
        tab.get_by_label("capture photo").click()
        expect(tab.get_by_label("Remove file")).to_have_count(3)
        send(tab, "What?")
        expect(tab.locator("#live .note")).to_be_visible()
        assert len(vlm.prompts[-1].images) == 3

    def test_what_is_wrong_is_told_and_nothing_is_lost(tab, vlm, picture_folder):
        send(tab, " ")
        expect(tab.get_by_test_id("toast-text")).to_have_text("Write a question first.")
        attach(tab, picture_folder / "damaged.png")
        send(tab, "What?")
        expect(tab.locator("#live .error")).to_contain_text("damaged.png")
        assert "/" not in tab.locator("#live .error").inner_text(), "where the server keeps files is nobody's business"
        vlm.script = WORDS
        ask(tab, "And without it?")
        assert not vlm.prompts[-1].images

    def test_everything_has_a_name(tab, vlm, picture_folder):
        vlm.script = WORDS
        ask(tab, "One?", picture_folder / "red.png")
        tab.get_by_label("Regenerate answer 1").click()
        expect(tab.locator("#live .note")).to_be_visible()
        attach(tab, picture_folder / "two.pdf")
        expect(tab.locator("#picker fieldset")).to_be_visible()
        tab.locator("#settings .label-wrap").click()
        expect(tab.get_by_label("Stop texts")).to_be_visible()
        nodes = tab.context.new_cdp_session(tab).send("Accessibility.getFullAXTree")["nodes"]
        kinds = ("button", "textbox", "checkbox", "slider", "spinbutton", "group", "navigation", "article")
        named = [
            (node["role"]["value"], node.get("name", {}).get("value", "").strip())
            for node in nodes
            if not node.get("ignored") and node["role"]["value"] in kinds
        ]
        assert len(named) > 30
        assert [node for node in named if not node[1]] == []
        assert {("textbox", "Question"), ("checkbox", "Page 2 of two.pdf"), ("button", "Previous version")} <= set(
            named
        )
