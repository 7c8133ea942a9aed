"""The README, copied by a first-time reader: every command that needs no download and no hours of training runs.

What those need (`ELSEWHERE`) is checked for names, options and files by tests/test_readme.py.
"""

import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from PIL import Image

import mmvl.vlm

REPOSITORY = Path(__file__).parents[2]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    line
    for block in MarkdownIt().parse(README)
    if block.type == "fence" and not block.info.strip()
    for line in block.content.splitlines()
    if line.strip()
]
SERVERS = [line for line in COMMANDS if re.match(r"mmvl (chat|serve)\b", line)]
ELSEWHERE = re.compile(
    r"make |bash mmvl/recipes/tiny/material|FONTS=|mmvl (train mmvl/recipes/tiny/|grow |average runs/|quantize runs/)"
)
HERE = [line for line in COMMANDS if line not in SERVERS and not ELSEWHERE.match(line)]


@pytest.fixture
def clone(tmp_path, monkeypatch, tiny_model_dir):
    """A folder like a fresh clone, with the reader's own files, and a small model in place of mmvl-tiny."""
    for name in ("app", "mmvl"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    Image.new("RGB", (60, 40), "white").save(tmp_path / "page.png")
    pages = [Image.new("RGB", (40, 40), colour) for colour in ("white", "grey")]
    pages[0].save(tmp_path / "report.pdf", save_all=True, append_images=pages[1:])
    monkeypatch.setattr(mmvl.vlm, "MMVL_TINY", tiny_model_dir)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_way_from_the_clone_to_a_captioned_folder(run_cli, clone, tiny_model_dir):
    theirs = dict.fromkeys(("MODEL", "runs/tiny/int8"), str(tiny_model_dir)) | {"DIR": "quantised"}
    verbs = set()
    for line in HERE:
        program, *arguments = shlex.split(line, comments=True)
        assert program == "mmvl", f"nothing runs {line!r}"
        arguments = [theirs.get(word, word) for word in arguments]
        arguments += ["--limit", "1"] if arguments[0] == "eval" else []
        result = run_cli(*arguments)
        assert result.code == 0, f"{line}: {result.err}"
        verbs.add(arguments[0])
    assert verbs == {"ask", "caption", "vqa", "doctor", "quantize", "train", "data", "eval"}
    rows = (clone / "captions.jsonl").read_text().splitlines()
    assert len(rows) == len(list((REPOSITORY / "app" / "assets" / "examples").glob("*.*g")))
    assert list((clone / "answers.parquet").glob("*.parquet")) and list((clone / "quantised").glob("*.safetensors"))


@pytest.mark.parametrize("line", SERVERS)
def test_the_page_and_the_server_start_answer_and_end(line):
    """As they stand there, with mmvl-tiny; only on a free port, and without a browser."""
    _, verb, *rest = shlex.split(line, comments=True)
    command = [sys.executable, "-m", "mmvl.app.cli", verb, *rest, "--port", "0"]
    command += ["--no-browser"] if verb == "chat" else []
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    watchdog = threading.Timer(90, process.kill)
    watchdog.start()
    try:
        ready = process.stdout.readline()
        url = re.search(r"http://127\.0\.0\.1:\d+", ready)[0]
        assert urllib.request.urlopen(f"{url}/health", timeout=20).status == 200
        if verb == "chat":
            assert b"gradio" in urllib.request.urlopen(url, timeout=20).read()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0
    finally:
        watchdog.cancel()
        process.kill()
        process.stdout.close()
        process.wait()


def test_there_is_a_page_and_a_server():
    assert [line.split()[1] for line in SERVERS] == ["chat", "serve"]
