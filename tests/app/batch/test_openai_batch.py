"""OpenAI batch files: answered as the server answers, row by row, in the shape of OpenAI's output files."""

import base64
import json

import pytest


def url(path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def line(custom_id, body, **more) -> dict:
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body} | more


@pytest.fixture
def requests(tmp_path, picture_path):
    picture = {"type": "image_url", "image_url": {"url": url(picture_path)}}
    text = {"type": "text", "text": "What is it?"}
    asked = {"model": "m", "messages": [{"role": "user", "content": [picture, text]}]}
    far = {"type": "image_url", "image_url": {"url": "http://169.254.169.254/x.png"}}
    broken = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGVsbG8="}}
    schema = {
        "type": "object",
        "properties": {"a": {"type": "boolean"}},
        "required": ["a"],
        "additionalProperties": False,
    }
    rows = [
        line("short", asked | {"max_tokens": 2}),
        line("long", asked | {"max_tokens": 7, "temperature": 0.5, "seed": 3}),
        line("json", asked | {"response_format": {"type": "json_schema", "json_schema": {"schema": schema}}}),
        line("text", {"model": "m", "messages": [{"role": "user", "content": "Hi."}], "max_tokens": 3}),
        line("far", {"model": "m", "messages": [{"role": "user", "content": [far, text]}]}),
        line("broken", {"model": "m", "messages": [{"role": "user", "content": [broken, text]}]}),
        line("unknown", asked | {"colour": "red"}),
        line("many", asked | {"n": 2}),
        line("hot", asked | {"temperature": 9}),
        line("other", asked, url="/v1/embeddings"),
        {"custom_id": "empty", "url": "/v1/chat/completions", "body": None},
    ]
    path = tmp_path / "requests.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "{cut\n")
    return path


def test_each_request_has_its_own_settings_and_its_own_failure(run_cli, batch, requests, tiny_model_dir, tmp_path):
    dest = tmp_path / "out.jsonl"
    arguments = ["vqa", requests, "-o", dest, "--model", tiny_model_dir]
    assert run_cli(*arguments).code == 3
    rows = batch.rows(dest)
    assert len(rows) == 12
    status = {id: row["response"]["status_code"] for id, row in rows.items()}
    assert [id for id, code in status.items() if code == 200] and {
        id for id, code in status.items() if code == 200
    } == {"short", "long", "json", "text"}
    assert status["broken"] == 422 and {status[id] for id in ("far", "unknown", "many", "hot", "other", "empty")} == {
        400
    }
    short, long = (rows[id]["response"]["body"] for id in ("short", "long"))
    assert short["object"] == "chat.completion" and short["usage"]["completion_tokens"] == 2
    assert long["usage"]["completion_tokens"] == 7
    assert short["usage"]["prompt_tokens_details"]["image_tokens"] > 0
    assert short["choices"][0]["finish_reason"] == "length"
    assert set(json.loads(rows["json"]["response"]["body"]["choices"][0]["message"]["content"])) == {"a"}
    assert "colour" in rows["unknown"]["response"]["body"]["error"]["message"]
    assert all(row["error"] is None and row["id"] for row in rows.values())
    again = run_cli(*arguments)
    assert "12 items had a row" in again.err and again.code == 3


def test_only_lines_can_hold_the_answers(run_cli, requests, tmp_path):
    result = run_cli("vqa", requests, "-o", tmp_path / "x.parquet")
    assert result.code == 2 and "OpenAI's own shape" in result.err
