"""What a request may name and gets nothing of: files that nobody uploaded, addresses, parts of Gradio not in use."""

import http.server
import json
import threading
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import safehttpx
from PIL import Image

META = {"meta": {"_type": "gradio.FileData"}}
PART = b'content-disposition: form-data; name="files"; filename="a.png"\r\n\r\nno picture'
MULTIPART = {"content-type": "multipart/form-data; boundary=x"}
OURS = "Only files that were uploaded to this page can be used, not paths or addresses."


@pytest.fixture
def listener(monkeypatch):
    """A web server of someone else, which Gradio takes for a public one; `hits` are the paths fetched from it."""
    hits = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            hits.append(self.path)
            self.send_response(200)
            self.end_headers()

        do_HEAD = do_GET

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(safehttpx, "is_public_ip", lambda ip: True)
    server.hits, server.url = hits, f"http://127.0.0.1:{server.server_port}"
    yield server
    server.shutdown()
    server.server_close()


def say(url: str, body=None) -> tuple[int, str]:
    """Status and text of what the server says to a request (a POST if it has a body)."""
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, {"content-type": "application/json"})) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def events_of(url: str, session: str, body: dict) -> list[dict]:
    """The messages of an event of the page, to its end."""
    status, text = say(f"{url}/gradio_api/queue/join", body | {"session_hash": session})
    assert status == 200, text
    _, text = say(f"{url}/gradio_api/queue/data?session_hash={session}")
    return [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith("data: ")]


def ask(url: str, file) -> str:
    """What the endpoint says of a file."""
    _, text = say(f"{url}/gradio_api/call/ask", {"data": ["What?", [file], 4, 0.0]})
    return say(f"{url}/gradio_api/call/ask/{json.loads(text)['event_id']}")[1]


def test_nothing_is_opened_or_fetched_that_was_not_uploaded(url, vlm, listener, tmp_path):
    secret = tmp_path / "secret.png"
    Image.new("RGB", (40, 40), "red").save(secret)
    (Path(tmp_path) / "link.png").symlink_to(secret)
    there = f"{listener.url}/picture.png"
    paths = (str(secret), f"{tmp_path}/link.png", "/etc/hostname", "", "a\0b", there, f"/{there}", "ftp://x/y.png")
    for path in paths:
        for file in ({"path": path} | META, {"path": path, "url": there} | META, {"path": path}):
            said = ask(url, file)
            assert said.startswith("event: error") and OURS in said, (path, said)
    assert "event: error" in ask(url, {"url": there} | META)
    request = urllib.request.Request(f"{url}/gradio_api/upload", b"--x\r\n" + PART + b"\r\n--x--\r\n", MULTIPART)
    (uploaded,) = json.load(urllib.request.urlopen(request))
    assert OURS in ask(url, {"path": uploaded, "inside": [{"path": there} | META]})

    config = json.loads(say(f"{url}/config")[1])
    box = next(part["id"] for part in config["components"] if part["props"].get("elem_id") == "box")
    for number, event in enumerate(part for part in config["dependencies"] if box in part["inputs"]):
        value = {"text": "What?", "files": [{"path": there, "url": there} | META]}
        data = [value if part == box else None for part in event["inputs"]]
        (*_, end, _) = events_of(url, f"s{number}", {"data": data, "fn_index": event["id"]})
        assert end["success"] is False and end["output"]["error"] == OURS
        assert OURS in say(f"{url}/gradio_api/run/x", {"data": data, "fn_index": event["id"], "session_hash": "r"})[1]
    for path in (secret, "/etc/passwd", __file__):
        assert say(f"{url}/gradio_api/file={path}")[0] in (403, 404)
    for address in (there, there.replace("://", ":%2F%2F"), there.replace("h", "%68", 1)):
        for way in ("file=", "file/", "proxy="):
            assert say(f"{url}/gradio_api/{way}{address}")[0] in (403, 404)
    assert listener.hits == [] and not vlm.prompts


def test_errors_are_a_line_and_no_echo(url, vlm, tmp_path):
    loud = "LOUD" * 5000
    api = f"{url}/gradio_api"
    wrong = [
        say(f"{api}/call/ask", {"data": {"x": loud}}),
        say(f"{api}/call/{loud[:2000]}", {"data": []}),
        say(f"{api}/call/v2/ask", {"LOUD": loud}),
        say(f"{api}/queue/join", {"data": [loud], "fn_index": 99999, "session_hash": "x"}),
        say(f"{api}/queue/join", b"LOUD{"),
        say(f"{api}/queue/join", b"[" * 100_000),
        say(f"{api}/run/ask", {"data": [loud]}),
        say(f"{api}/run/ask", {"data": [[loud], loud, loud, loud]}),
        say(f"{api}/upload", {"x": loud}),
        say(f"{api}/file={tmp_path}/LOUD"),
        say(f"{api}/file=LOUD\\u0000"),
        say(f"{api}/component_server", {"data": loud}),
        say(f"{api}/deep_link?session_hash=LOUD"),
        say(f"{api}/process_recording", {"x": loud}),
        say(f"{api}/vibe-edit", {"x": loud}),
        say(f"{url}/assets/LOUD"),
        say(f"{url}/monitoring/LOUD"),
    ]
    for status, text in wrong:
        assert 400 <= status < 600 and len(text) < 4096, (status, text[:500])
        assert not any(leak in text for leak in ("LOUD", "0x", "Traceback", str(tmp_path), "gradio", ".py")), text
        assert text.count("\n") == 0
    said = ask(url, {"path": "/LOUD/x.png", "meta": 5})
    assert len(said) < 4096 and "LOUD" not in said
    for body in ({"data": ["What?", loud, 4, 0]}, {"data": ["What?", [], loud, 0]}, {"data": [5, 5, 5, 5]}):
        _, text = say(f"{api}/call/ask", body)
        said = say(f"{api}/call/ask/{json.loads(text)['event_id']}")[1]
        assert said.startswith("event: error") and len(said) < 4096 and "LOUD" not in said, said
