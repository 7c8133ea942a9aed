"""The command line as a whole: it starts fast, and ends with the right exit code."""

import contextlib
import os
import signal
import subprocess
import sys
import time

import mmvl
from mmvl.app import cli

# A model that talks until it is told to stop, in a process that starts fast.
ENDLESS = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # tests that run in the background inherit that it is ignored
from mmvl.app import cli
class Stream:
    closed = False
    def __next__(self):
        time.sleep(0.002)
        return "word "
    def close(self):
        print("closed", file=sys.stderr)
class VLM:
    def stream(self, messages, **sampling):
        return Stream()
cli._open_model = lambda model, device, quantize: VLM()
cli.main()
"""


def test_help_needs_neither_torch_nor_gradio():
    code = """
import sys
sys.argv = ["mmvl", "--help"]
from mmvl.app import cli
try:
    cli.main()
except SystemExit:
    print(sorted({"torch", "gradio", "numpy", "PIL"} & set(sys.modules)), file=sys.stderr)
"""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "Commands:" in done.stdout
    assert done.stderr.strip() == "[]"
    assert time.perf_counter() - start < 5, "0.1 s on an idle machine"


def test_every_command_of_the_design_is_there(run_cli):
    for command in ("ask", "caption", "vqa", "chat", "train", "convert", "replay", "eval", "doctor", "demo"):
        assert run_cli(command, "--help").out.startswith(f"Usage: mmvl {command}")
    for command in ("render", "import", "manifest", "inspect"):
        assert run_cli("data", command, "--help").out.startswith(f"Usage: mmvl data {command}")


def test_version(run_cli):
    assert run_cli("--version").out == f"mmvl {mmvl.__version__}\n"


def test_a_defect_of_ours_names_its_type_and_how_to_see_more(run_cli, monkeypatch, picture_path):
    def broken(model, device, quantize):
        raise RuntimeError("two\nlines")

    monkeypatch.setattr(cli, "_open_model", broken)
    monkeypatch.delenv("MMVL_DEBUG", raising=False)
    result = run_cli("ask", picture_path, "-q", "What?")
    assert (result.code, result.err) == (1, "mmvl: unexpected RuntimeError: two lines (MMVL_DEBUG=1 shows where)\n")
    monkeypatch.setenv("MMVL_DEBUG", "1")
    assert "Traceback" in run_cli("ask", picture_path, "-q", "What?").err
    monkeypatch.delenv("MMVL_DEBUG")
    assert "Traceback" in run_cli("--debug", "ask", picture_path, "-q", "What?").err
    monkeypatch.delenv("MMVL_DEBUG")


def test_ctrl_c_ends_the_answer_quietly_with_130(picture_path):
    with _start_endless(picture_path) as process:
        assert process.stdout.read(20) == b"word word word word "
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, b"closed\n")


def test_a_reader_that_goes_away_ends_the_answer_quietly(picture_path):
    with _start_endless(picture_path) as process:
        process.stdout.read(20)
        process.stdout.close()
        assert process.stderr.read() == b"closed\n"
        assert process.wait(timeout=30) == 1


@contextlib.contextmanager
def _start_endless(picture):
    """The process, which does not outlive the test."""
    process = subprocess.Popen(
        [sys.executable, "-c", ENDLESS, "ask", str(picture), "-q", "What?"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
