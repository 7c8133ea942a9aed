"""The chat page without a browser: its server, asked through gradio's own client, over a scripted and a real model."""

import json
import time
import urllib.error
import urllib.request
from contextlib import contextmanager

import pytest
from gradio_client import Client, handle_file
from PIL import Image

from mmvl import VLM
from mmvl.app import cli
from mmvl.app.chat import build_page, launch
from mmvl.app.examples import load_examples

WORDS = [f"w{number} " for number in range(400)]


@contextmanager
def serving(vlm):
    page = build_page(vlm)
    launch(page, server_name="127.0.0.1", inbrowser=False, quiet=True)
    try:
        yield page.local_url
    finally:
        page.close()


@pytest.fixture(scope="module")
def slow(scripted):
    """A model that takes 20 s to say 400 words, and its page's address."""
    vlm = scripted(WORDS, pause=0.05)
    with serving(vlm) as url:
        yield vlm, url


@pytest.fixture
def client(slow):
    client = Client(slow[1], verbose=False)
    yield client
    client.predict(api_name="/stop")
    wait_until(lambda: all(stream.closed.is_set() for stream in slow[0].streams))


def wait_until(true, seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def said(text: str, *files) -> dict:
    return {"text": text, "files": [handle_file(str(file)) for file in files]}


def answer_of(window: list[dict]) -> str:
    """The text of the last message of the page's window."""
    content = window[-1]["content"]
    return content if isinstance(content, str) else "".join(block["text"] for block in content)


def test_a_real_model_answers_about_an_uploaded_picture_and_a_pdf(tiny_model_dir, picture_path, picture_folder):
    vlm = VLM(tiny_model_dir, device="cpu")
    with serving(vlm) as url:
        client = Client(url, verbose=False)
        window, *_ = client.predict(said("What?", picture_path), 8, 0, 1, api_name="/ask")
        assert [message["role"] for message in window] == ["user", "user", "assistant"]
        assert "8 tokens, " in answer_of(window)
        window, *_ = client.predict(said("And?", picture_folder / "two.pdf"), 4, 0, 1, api_name="/ask")
        assert len(window) == 6
        window, *_ = client.predict(said("why? " * 500), 4, 0, 1, api_name="/ask")
        assert "longer than the context" in answer_of(window)
        assert not vlm.engine.has_work


def test_the_answer_streams_and_stop_ends_the_work(slow, client, picture_path):
    job = client.submit(said("What?", picture_path), 256, 0, 1, api_name="/ask")
    wait_until(lambda: len(job.outputs()) > 5)
    stream = slow[0].streams[-1]
    client.predict(api_name="/stop")
    window, *_ = job.result(timeout=10)
    assert answer_of(window).startswith("w0 w1 ") and answer_of(window).endswith(", stopped*")
    assert stream.closed.is_set()
    assert 0 < stream.said < 350


def test_updates_come_ten_to_twenty_times_a_second(slow, client):
    job = client.submit(said("What?"), 256, 0, 1, api_name="/ask")
    wait_until(lambda: len(job.outputs()) > 3)
    before, start = len(job.outputs()), time.monotonic()
    time.sleep(1.5)
    rate = (len(job.outputs()) - before) / (time.monotonic() - start)
    assert 5 < rate <= 20


def test_clear_ends_the_work_and_forgets_everything(slow, client):
    job = client.submit(said("What?"), 256, 0, 1, api_name="/ask")
    wait_until(lambda: len(job.outputs()) > 2)
    window, *_ = client.predict(api_name="/clear")
    assert window == []
    window, *_ = job.result(timeout=10)
    assert window == []
    wait_until(slow[0].streams[-1].closed.is_set)
    before = len(slow[0].streams)
    client.submit(said("Again?"), 256, 0, 1, api_name="/ask")
    wait_until(lambda: len(slow[0].streams) > before)
    assert len(slow[0].asked[-1]) == 1, "nothing of before is read again"


def test_a_visitor_who_goes_away_ends_the_work(slow, client):
    job = client.submit(said("What?"), 256, 0, 1, api_name="/ask")
    wait_until(lambda: len(job.outputs()) > 2)
    job.cancel()
    wait_until(slow[0].streams[-1].closed.is_set)


def test_a_second_question_while_answering_is_refused(slow, client):
    job = client.submit(said("What?"), 256, 0, 1, api_name="/ask")
    wait_until(lambda: len(job.outputs()) > 2)
    with pytest.raises(Exception, match="press Stop first"):
        client.predict(said("Second?"), 256, 0, 1, api_name="/ask")


def test_an_empty_question_is_refused(client, picture_path):
    with pytest.raises(Exception, match="Write a question first"):
        client.predict(said("  ", picture_path), 256, 0, 1, api_name="/ask")


@pytest.mark.parametrize("contents", [b"not a picture", b""])
def test_a_file_that_cannot_be_used_is_told_by_its_name_and_the_talk_goes_on(slow, client, tmp_path, contents):
    (tmp_path / "odd.png").write_bytes(contents)
    window, *_ = client.predict(said("What?", tmp_path / "odd.png"), 256, 0, 1, api_name="/ask")
    assert "odd.png" in answer_of(window)
    assert "/" not in answer_of(window), "where the server keeps files is nobody's business"
    before = len(slow[0].streams)
    client.submit(said("Then?"), 256, 0, 1, api_name="/ask")
    wait_until(lambda: len(slow[0].streams) > before)
    assert [message["content"][-1]["text"] for message in slow[0].asked[-1]] == ["Then?"]


def test_a_defect_is_told_and_the_page_stays_usable(scripted, capfd):
    class Broken(scripted):
        def stream(self, messages, **sampling):
            raise RuntimeError("secret detail")

    with serving(Broken([])) as url:
        client = Client(url, verbose=False)
        for _ in range(2):
            window, *_ = client.predict(said("What?"), 256, 0, 1, api_name="/ask")
            assert "Something broke while answering (RuntimeError)" in answer_of(window)
            assert "secret" not in answer_of(window)
    assert "secret detail" in capfd.readouterr().err


def test_a_port_that_is_taken_is_one_clear_line(run_cli, monkeypatch, scripted, slow):
    monkeypatch.setattr(cli, "_open_model", lambda model, device: scripted([]))
    port = slow[1].rstrip("/").rpartition(":")[2]
    result = run_cli("chat", "--no-browser", "--port", port)
    assert (result.code, result.out, result.err.count("\n")) == (1, "", 1)
    assert f"127.0.0.1:{port}" in result.err and "--port" in result.err


def test_visitors_do_not_see_each_other(slow, client):
    other = Client(slow[1], verbose=False)
    job = client.submit(said("Mine?"), 256, 0, 1, api_name="/ask")
    wait_until(lambda: len(job.outputs()) > 2)
    theirs = other.submit(said("Theirs?"), 256, 0, 1, api_name="/ask")
    wait_until(lambda: len(theirs.outputs()) > 2)
    assert "Mine?" not in str(theirs.outputs()[-1])
    client.predict(api_name="/stop")
    assert answer_of(job.result(timeout=10)[0]).endswith(", stopped*")
    assert not theirs.done()
    other.predict(api_name="/stop")
    theirs.result(timeout=10)


def test_files_of_the_server_cannot_be_asked_about(slow, tmp_path):
    secret = tmp_path / "secret.png"
    Image.new("RGB", (9, 9)).save(secret)
    file = {"path": str(secret), "meta": {"_type": "gradio.FileData"}}
    body = json.dumps({"data": [{"text": "What?", "files": [file]}, 4, 0, 1]}).encode()
    asked = len(slow[0].asked)
    # Gradio's client would upload the file as its own: this is what someone without a right to it sends.
    request = urllib.request.Request(f"{slow[1]}gradio_api/call/ask", body, {"content-type": "application/json"})
    with urllib.request.urlopen(request) as call:
        event = json.load(call)["event_id"]
    with urllib.request.urlopen(f"{slow[1]}gradio_api/call/ask/{event}") as events:
        assert events.read().startswith(b"event: error")
    assert len(slow[0].asked) == asked


def test_files_of_the_server_cannot_be_fetched(slow, tmp_path):
    (tmp_path / "secret.txt").write_text("secret")
    for path in (tmp_path / "secret.txt", "/etc/passwd", __file__):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{slow[1]}gradio_api/file={path}")
        assert refused.value.code in (403, 404)


def test_the_page_may_fetch_from_this_server_only(slow):
    with urllib.request.urlopen(slow[1]) as page:
        policy = page.headers["content-security-policy"]
        config = page.read().decode()
    assert policy.startswith("default-src 'self' ")
    assert "http" not in policy and "*" not in policy
    assert "fonts.googleapis" not in config.lower().replace("preconnect", "")
    for example in load_examples():
        assert json.dumps(example.question)[1:-1] in config
