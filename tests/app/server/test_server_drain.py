"""SIGTERM: what runs is finished, what comes is sent away, and the process ends with 0; with 1 if the engine broke."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time

import httpx
import pytest
import torch

from mmvl import VLM
from mmvl.app.server.run import _drain_seconds
from mmvl.app.server.settings import load_settings
from mmvl.engine import Engine
from tests.processes import free_port
from tests.waiting import wait_until


@pytest.fixture
def process(tmp_path):
    """`mmvl serve` on a free port: (its URL, its process)."""
    command = [sys.executable, "-m", "mmvl.app.cli", "serve", "--port", "0", "--device", "cpu", "--drain-seconds", "20"]
    with open(tmp_path / "log", "w") as log:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        options = dict(stdout=subprocess.PIPE, stderr=log, text=True, env=environment)
        with subprocess.Popen(command, **options) as process:
            try:
                line = process.stdout.readline()
                yield re.fullmatch(r"mmvl serves mmvl-tiny at (http://127.0.0.1:\d+)/v1 .*\n", line)[1], process
            finally:
                process.kill()


def test_running_answers_are_finished_and_new_ones_sent_away(process, asked):
    url, process = process
    body = asked("Go on.", stream=True, max_tokens=200, ignore_eos=True) | {"model": "mmvl-tiny"}
    lines, begun = [], threading.Event()

    def read():
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=60) as response:
            for line in response.iter_lines():
                lines.append(line)
                begun.set()

    reader = threading.Thread(target=read)
    with httpx.Client(base_url=url, timeout=30) as client:
        assert client.get("/health").json() == {"status": "ok"}
        reader.start()
        assert begun.wait(30)
        process.send_signal(signal.SIGTERM)
        start = time.monotonic()
        while client.get("/health").json() != {"status": "draining"}:
            assert time.monotonic() - start < 5
        refused = client.post("/v1/chat/completions", json=body)
        assert refused.status_code == 503 and int(refused.headers["retry-after"]) > 0
        assert reader.is_alive(), "it was still being answered"
    reader.join()
    events = [line[6:] for line in lines if line.startswith("data: ")]
    assert events[-1] == "[DONE]" and json.loads(events[-2])["choices"][0]["finish_reason"] == "length"
    assert process.wait(60) == 0
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/health")


def test_answers_that_take_too_long_are_told(serve, slow, asked, until):
    with serve(slow) as server:
        body = asked("Go on.", max_tokens=200, ignore_eos=True)
        with server.http.stream("POST", "/v1/chat/completions", json=body | {"stream": True}) as response:
            lines = response.iter_lines()
            next(lines)
            whole = threading.Thread(target=lambda: answers.append(server.post(json=body)))
            answers = []
            whole.start()
            until(lambda: slow.engine.stats().running == 2)
            server.loop.call_soon_threadsafe(server.service.abort_all)
            events = [line[6:] for line in lines if line.startswith("data: ")]
        assert json.loads(events[-2])["error"]["code"] == "shutting_down" and events[-1] == "[DONE]"
        whole.join()
        assert answers[0].status_code == 503 and answers[0].headers["retry-after"]
        until(server.idle)


@pytest.mark.parametrize(
    ("world", "asked_for", "given"),
    [(None, 30, 30), ("1", 30, 30), ("2", 30, 20), ("2", 5, 5), ("2", None, 20), ("1", None, 30)],
)
def test_under_torchrun_it_ends_before_it_is_killed(monkeypatch, caplog, world, asked_for, given):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if world is not None:
        monkeypatch.setenv("WORLD_SIZE", world)
    assert _drain_seconds(load_settings(None, {} if asked_for is None else {"drain_seconds": asked_for})) == given
    cut_down = asked_for is not None and given < asked_for  # of the default nobody wants to hear
    assert len(caplog.messages) == cut_down and all("get 20 s, not" in line for line in caplog.messages)


@pytest.fixture
def fault(monkeypatch):
    """What every step says from now on, and the device with it."""
    error = torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    def step(engine):
        raise error

    monkeypatch.setattr(Engine, "step", step)
    monkeypatch.setattr("mmvl.engine.engine.device_fault", lambda device: error)
    return error


def test_a_broken_engine_is_told_by_its_health_and_to_everyone(serve, tiny_model_dir, fault, asked, caplog):
    with serve(VLM(tiny_model_dir, device="cpu")) as server:
        assert server.http.get("/health").json() == {"status": "ok"}
        for _ in range(2):
            answer = server.post(json=asked())
            assert answer.status_code == 503 and answer.json()["error"]["code"] == "engine_broken"
            assert "illegal" not in answer.text, "of the error's own words nothing"
            health = server.http.get("/health")
            assert (health.status_code, health.json()) == (503, {"status": "broken"})
    logged = [record for record in caplog.records if record.message == "a request failed in the engine"]
    assert len(logged) == 1 and "illegal memory" in str(logged[0].exc_info[1])


def test_a_server_whose_engine_broke_ends_with_1(run_cli, tiny_model_dir, fault, asked):
    port, answers = free_port(), []

    def ask():
        url = f"http://127.0.0.1:{port}/v1/chat/completions"

        def answered():
            try:
                answers.append(httpx.post(url, json=asked() | {"model": tiny_model_dir.name}, timeout=30))
            except httpx.ConnectError:
                return False
            return True

        wait_until(answered)

    asking = threading.Thread(target=ask)
    asking.start()
    result = run_cli("serve", "--model", tiny_model_dir, "--device", "cpu", "--port", port)
    asking.join()
    assert answers[0].status_code == 503 and answers[0].json()["error"]["code"] == "engine_broken"
    told = [line for line in result.err.splitlines() if line.startswith("mmvl: ")]
    assert result.code == 1 and len(told) == 1
    assert "broken until the process is started anew (AcceleratorError: CUDA error: an illegal" in told[0]
