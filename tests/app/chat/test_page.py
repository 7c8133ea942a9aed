"""The chat page without a browser: what its server gives away and what not, its endpoint, and its command."""

import json
import socket
import urllib.error
import urllib.request

import pytest
from gradio_client import Client, handle_file

from mmvl.app.chat.events import sampling_of
from mmvl.app.chat.session import Session
from mmvl.app.examples import load_examples
from mmvl.engine.sampling_params import SamplingParams

KEY = "a-long-enough-key"


@pytest.fixture(scope="module")
def client(url):
    return Client(url, verbose=False)


def get(url: str, **headers):
    return urllib.request.urlopen(urllib.request.Request(url, headers=headers))


def refused(url: str, **headers) -> int:
    with pytest.raises(urllib.error.HTTPError) as error:
        get(url, **headers)
    return error.value.code


def test_of_two_choices_the_later_holds_whichever_comes_first():
    session = Session()
    assert session.follows("files", {"order": 2}) and session.follows("a.pdf", {"order": 1})
    assert not session.follows("files", {"order": 1})
    assert session.follows("files", {"order": 2}), "the same one again"
    assert session.follows("files", {"order": 3})
    assert not session.follows("files", {"order": "hostile"}) and not session.follows("files", {})


def test_one_server_has_page_and_api(url):
    with get(url) as page:
        policy, config = page.headers["content-security-policy"], page.read().decode()
    assert policy.startswith("default-src 'self';")
    assert "http" not in policy and "*" not in policy
    assert "fonts.googleapis" not in config.lower().replace("preconnect", "")
    for example in load_examples():
        assert json.dumps(example.question)[1:-1] in config
    assert json.load(get(f"{url}/v1/models"))["data"]
    assert json.load(get(f"{url}/health")) == {"status": "ok"}


def test_the_endpoint_answers_and_says_what_is_wrong(client, vlm, picture_folder):
    vlm.script = ["red ", "square"]
    files = [handle_file(str(picture_folder / name)) for name in ("red.png", "two.pdf")]
    assert client.predict("What?", files, max_tokens=5, api_name="/ask") == "red square"
    assert len(vlm.prompts[-1].images) == 3
    damaged = [handle_file(str(picture_folder / "damaged.png"))]
    with pytest.raises(Exception, match="damaged.png"):
        client.predict("What?", damaged, api_name="/ask")
    vlm.script = None
    with pytest.raises(Exception, match="max_tokens must be"):
        client.predict("What?", [], max_tokens=0, api_name="/ask")
    with pytest.raises(Exception, match="reads 256 with the answer"):
        client.predict("why? " * 500, [], api_name="/ask")


def test_other_hosts_names_and_strangers_are_refused(url, vlm, serve_page):
    assert refused(url, Host="evil.example") == 403
    with serve_page(vlm, api_keys=(KEY,)) as guarded:
        assert refused(guarded) == 401
        assert refused(f"{guarded}/gradio_api/info") == 401


def test_streams_of_open_tabs_end_with_the_server(vlm, serve_page):
    with serve_page(vlm) as url:
        stream = get(f"{url}/gradio_api/heartbeat/tab")
        assert stream.readline() == b"data: ALIVE\n"
    assert stream.read() == b"\n"  # raises IncompleteRead if it was cut off


def test_a_port_that_is_taken_is_one_clear_line(run_cli, tiny_model_dir):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        result = run_cli("chat", "--no-browser", "--port", port, "--model", tiny_model_dir)
    assert (result.code, result.out, result.err.count("\n")) == (1, "", 1)
    assert f"127.0.0.1:{port}" in result.err and "--port" in result.err


def test_settings_of_the_page_are_sampling_parameters():
    said = {"max_tokens": 9, "temperature": 0.5, "top_p": 1.0, "top_k": 3.0, "min_p": 0, "repetition_penalty": 1.1}
    params = SamplingParams.from_kwargs(**sampling_of(said | {"seed": 4.0, "stop": "a b\n\nc\n"}))
    assert (params.top_k, params.seed, params.stop) == (3, 4, ("a b", "c"))
    assert sampling_of(said | {"seed": None, "stop": None})["seed"] is None
