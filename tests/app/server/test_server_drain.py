"""SIGTERM: what runs is finished, what comes is sent away, and the process ends with 0."""

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
