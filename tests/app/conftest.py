"""What the tests of the app share: the command line run in this process, stand-ins for slow models, bad files."""

import shutil
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from mmvl.app import cli
from mmvl.vlm import Answer
from tests.waiting import wait_until

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def pytest_terminal_summary(terminalreporter):
    terminalreporter.write_line(
        f"chat page: tested in {CHROMIUM}" if CHROMIUM else "chat page: tested without a browser, no Chromium here"
    )


@dataclass
class Result:
    code: int
    out: str
    err: str


@pytest.fixture
def run_cli(monkeypatch, capsys):
    """run_cli("ask", ...) -> Result, as the console script does it but without a new process."""

    def run(*arguments) -> Result:
        monkeypatch.setattr(sys, "argv", ["mmvl", *map(str, arguments)])
        capsys.readouterr()
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = end.code or 0
        out, err = capsys.readouterr()
        return Result(code, out, err)

    return run


class ScriptedStream:
    """Says `words` with a pause before each; like `mmvl.vlm.Stream`, `close` ends it from any thread."""

    def __init__(self, words, pause: float):
        self.words, self.pause = list(words), pause
        self.said = 0
        self.last = None
        self.closed = threading.Event()

    def __iter__(self):
        return self

    def __next__(self) -> str:
        if self.last is None and not self.closed.wait(self.pause) and self.said < len(self.words):
            self.said += 1
            return self.words[self.said - 1]
        if self.last is None:
            reason = "stop" if self.said == len(self.words) else "abort"
            self.last = Answer("".join(self.words[: self.said]), reason, 10, 4, self.said, 0.1, 0.2)
        raise StopIteration(self.last)

    def close(self) -> None:
        self.closed.set()


class ScriptedVLM:
    """Answers every question with the same words, slowly enough to be watched. `streams` and `asked` are its past."""

    device, dtype, directory = torch.device("cpu"), torch.float32, Path("scripted")
    engine = SimpleNamespace(model=torch.nn.Linear(10, 10))

    def __init__(self, words, pause: float = 0.0):
        self.words, self.pause = words, pause
        self.streams: list[ScriptedStream] = []
        self.asked: list[list[dict]] = []

    def stream(self, messages, **sampling) -> ScriptedStream:
        self.asked.append(messages)
        self.streams.append(ScriptedStream(self.words, self.pause))
        return self.streams[-1]


@pytest.fixture(scope="session")
def scripted_stream():
    """The class `ScriptedStream` (test modules cannot import a conftest)."""
    return ScriptedStream


@pytest.fixture(scope="session")
def scripted():
    """scripted(words, pause=0.0) -> a `ScriptedVLM`."""
    return ScriptedVLM


@pytest.fixture
def picture_folder(tmp_path) -> Path:
    """Two pictures, one of them in a folder inside, a PDF of two pages, a damaged picture, and a file to leave out."""
    folder = tmp_path / "pictures"
    (folder / "inside").mkdir(parents=True)
    Image.new("RGB", (60, 40), "red").save(folder / "red.png")
    Image.new("RGB", (40, 60), "blue").save(folder / "inside" / "blue.jpg")
    pages = [Image.new("RGB", (50, 50), colour) for colour in ("white", "black")]
    pages[0].save(folder / "two.pdf", save_all=True, append_images=pages[1:])
    (folder / "damaged.png").write_bytes((folder / "red.png").read_bytes()[:50])
    (folder / "notes.txt").write_text("not a picture")
    return folder


@pytest.fixture(scope="session")
def until():
    """until(condition, seconds=20.0) waits for it."""
    return wait_until
