"""Files that nobody uploaded: a request may name one, and gets nothing of it."""

import json
import urllib.request

from PIL import Image


def ask(url: str, path: str) -> str:
    """What the page's endpoint says of a file named by its path."""
    file = {"path": path, "meta": {"_type": "gradio.FileData"}}
    body = json.dumps({"data": ["What?", [file], 4, 0.0]}).encode()
    headers = {"content-type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(f"{url}/gradio_api/call/ask", body, headers)) as reply:
        event = json.load(reply)["event_id"]
    with urllib.request.urlopen(f"{url}/gradio_api/call/ask/{event}") as events:
        return events.read().decode()


def test_a_file_of_the_machine_is_not_opened(url, vlm, tmp_path):
    secret = tmp_path / "secret.png"
    Image.new("RGB", (40, 40), "red").save(secret)
    before = len(vlm.prompts)
    assert "event: error" in ask(url, str(secret))
    assert "event: error" in ask(url, "/etc/hostname")
    assert len(vlm.prompts) == before
