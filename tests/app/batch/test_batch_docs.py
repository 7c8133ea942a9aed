"""docs/batch.md: every command on the page runs, one after the other, as a reader would copy them."""

import json
import os
import re
import shlex
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from PIL import Image

import mmvl.vlm

PAGE = (Path(__file__).parents[3] / "docs" / "batch.md").read_text(encoding="utf-8")
COMMANDS = [
    line
    for block in MarkdownIt().parse(PAGE)
    if block.type == "fence" and not block.info.strip()
    for line in block.content.splitlines()
    if line.strip()
]
ELSEWHERE = ("--engine ray", "--device cpu,cpu")  # run by test_cluster.py and test_workers.py, whose start takes long


@pytest.fixture
def folder(tmp_path, monkeypatch, tiny_model_dir):
    """A folder with the files that the page speaks of, and a small model in place of mmvl-tiny."""
    photos = tmp_path / "photos"
    (photos / "trip").mkdir(parents=True)
    Image.new("RGB", (40, 30), "blue").save(photos / "trip" / "sea.jpg")
    Image.new("RGB", (30, 30), "red").save(photos / "house.png")
    Image.new("RGB", (30, 40), "white").save(photos / "report.pdf")
    rows = [{"id": n, "image": "photos/house.png", "question": "Which colour?", "answer": "red"} for n in range(2)]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    body = {"model": "m", "messages": [{"role": "user", "content": "Hi."}], "max_tokens": 3}
    request = {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": body}
    (tmp_path / "requests.jsonl").write_text(json.dumps(request) + "\n")
    monkeypatch.setattr(mmvl.vlm, "MMVL_TINY", tiny_model_dir)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_its_commands_run(run_cli, batch, folder):
    ran = []
    for line in COMMANDS:
        program, *arguments = shlex.split(line, comments=True)
        assert program == "mmvl" and arguments[0] in ("caption", "vqa")
        if any(words in line for words in ELSEWHERE):
            continue
        result = run_cli(*arguments)
        assert result.code == 0, f"{line}: {result.err}"
        ran.append(line)
    assert len(ran) == len(COMMANDS) - len(ELSEWHERE) >= 10
    assert set(batch.rows(folder / "captions.jsonl")) == {"trip/sea.jpg", "house.png", "report.pdf#page=1"}
    assert batch.rows(folder / "answers.jsonl")["1"]["answer"] == "red"
    assert (folder / "photos" / "trip" / "sea.txt").exists()
    assert batch.rows(folder / "results.jsonl")["1"]["response"]["status_code"] == 200


def test_the_files_it_links_exist():
    for path in re.findall(r"\]\(([^)#:]+)\)", PAGE):
        assert os.path.exists(Path(__file__).parents[3] / "docs" / path)
