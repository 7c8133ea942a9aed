"""docs/server.md: its commands exist, and its examples run against a server."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import typer
from markdown_it import MarkdownIt
from PIL import Image

from mmvl.app import cli
from mmvl.app.server import ServerSettings

PAGE = (Path(__file__).parents[3] / "docs" / "server.md").read_text(encoding="utf-8")
URL = "http://127.0.0.1:8000"


def blocks(language: str) -> list[str]:
    return [t.content for t in MarkdownIt().parse(PAGE) if t.type == "fence" and t.info.strip() == language]


@pytest.fixture(scope="module")
def url(serve, tiny):
    with serve(tiny, served_names=("mmvl-tiny",), api_keys=(), default_max_tokens=60) as server:
        yield server.url


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with the files that the examples use."""
    Image.new("RGB", (40, 30), "red").save(tmp_path / "photo.png")
    Image.new("RGB", (40, 30), "red").save(tmp_path / "report.pdf")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("line", [line for block in blocks("") for line in block.splitlines() if line.strip()])
def test_a_command_exists_with_its_options(line):
    program, *arguments = shlex.split(line, comments=True)
    assert program == "mmvl"
    command = typer.main.get_command(cli.app)
    while hasattr(command, "commands"):
        name, *arguments = arguments
        command = command.commands[name]
    if "--help" not in arguments:
        command.make_context(name, arguments)  # raises on a wrong option or a missing argument


@pytest.mark.parametrize("option", sorted(set(re.findall(r"`(--[a-z-]+) [\d.]+`", PAGE))))
def test_an_option_that_it_names_has_that_default(option):
    command = typer.main.get_command(cli.app).commands["serve"]
    (found,) = [parameter for parameter in command.params if option in parameter.opts]
    (told,) = set(re.findall(rf"`{option} ([\d.]+)`", PAGE))
    assert found.default == int(told) or f"[default: {told}]" in found.help


@pytest.mark.parametrize(("name", "value"), re.findall(r"`--set (\w+)=(\d+)`", PAGE))
def test_a_setting_that_it_names_has_that_default(name, value):
    assert getattr(ServerSettings(), name) == int(value)


@pytest.mark.parametrize("code", blocks("sh"))
def test_its_curl_runs(url, folder, code):
    assert shutil.which("curl"), "curl is needed: apt-get install curl"
    result = subprocess.run(["bash", "-c", code.replace(URL, url)], capture_output=True, text=True, timeout=30)
    assert result.returncode == 0 and '"object":' in result.stdout and '"error"' not in result.stdout, result


def test_its_python_runs(url, folder, capsys):
    (code,) = blocks("python")
    exec(compile(code.replace(URL, url), "docs/server.md", "exec"), {})
    out = capsys.readouterr().out
    assert "tokens for the picture" in out and re.search(r'\{"shape": "\w+", "count": -?\d', out)
