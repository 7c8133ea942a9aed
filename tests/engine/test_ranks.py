"""mmvl-tiny over 2 and 4 gloo ranks says what it says alone, in fp32; a rank killed with -9 ends all within seconds,
also those that torchrun started; torchrun killed so ends them too."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from mmvl import VLM
from mmvl.text_backbone.sequence_prefill import SequenceParts
from tests.processes import start_ranks
from tests.waiting import wait_until

QUESTIONS = ["Transcribe the text.", "What is in the image?", "How many words are there, and which?", "x"]


def answers(vlm: VLM) -> list[str]:
    """Of one request alone, then of several in one batch, one of them sampled; one prompt is longer than a group."""
    image = Image.new("RGB", (300, 60), "white")
    ImageDraw.Draw(image).text((10, 20), "ranks 1 2 4", fill="black")
    said = [vlm.ask(image, QUESTIONS[0], max_tokens=12)]
    many = [[{"role": "user", "content": q}] for q in QUESTIONS]
    many.append([{"role": "user", "content": "words and " * 300}])
    said += [answer.text for _, answer in sorted(vlm.batch(many, max_tokens=12), key=lambda pair: pair[0])]
    return [*said, vlm.chat(many[0], max_tokens=12, temperature=0.8, seed=3).text]


def long_answers(vlm: VLM) -> list[str]:
    """Of a long prompt alone, whose parts are on several ranks, and of one that goes on behind it."""
    return [vlm.ask(None, "words and " * 300 + more, max_tokens=12) for more in ("", "what " * 600)]


def say_and_go_on(out: Path, busy: bool) -> None:
    """What every rank runs, until it is ended; rank 0 writes what the model said. What they say to stderr is kept."""
    os.dup2(os.open(out / f"stderr-{os.environ['RANK']}", os.O_WRONLY | os.O_CREAT), sys.stderr.fileno())
    vlm = VLM(device="cpu")
    said = {"plain": answers(vlm)}
    if busy:
        said["int8"] = answers(VLM(device="cpu", quantize="int8"))
    else:
        attend, parted = SequenceParts.attend, []
        SequenceParts.attend = lambda *args: parted.append(args) or attend(*args)
        said["by sequence"] = long_answers(VLM(device="cpu", sequence_parallel=True))
        assert parted
    (out / "answers.part").write_text(json.dumps(said))
    (out / "answers.part").rename(out / "answers.json")
    while True:
        if busy:
            vlm.ask(None, QUESTIONS[1], max_tokens=50)
        time.sleep(0.01)


@pytest.fixture(scope="module")
def alone():
    vlm = VLM(device="cpu")
    quantized = answers(VLM(device="cpu", quantize="int8"))
    return {"plain": answers(vlm), "by sequence": long_answers(vlm), "int8": quantized}


@pytest.mark.parametrize("world, busy, killed", [(2, True, 1), (4, False, 0)])
def test_ranks_say_the_same_and_end_together(tmp_path, alone, world, busy, killed):
    ranks = start_ranks(say_and_go_on, world, tmp_path, busy)
    deadline = time.monotonic() + 200
    while not (tmp_path / "answers.json").exists() and all(p.is_alive() for p in ranks) and time.monotonic() < deadline:
        time.sleep(0.05)
    told = {rank: tmp_path / f"stderr-{rank}" for rank in range(world)}
    if not (tmp_path / "answers.json").exists():
        pytest.fail("no answers: " + "\n".join(path.read_text()[-1000:] for path in told.values() if path.exists()))
    said = json.loads((tmp_path / "answers.json").read_text())
    assert said == {way: alone[way] for way in ("plain", "int8" if busy else "by sequence")}
    ranks[killed].kill()
    deadline = time.monotonic() + 60
    for p in ranks:
        p.join(max(0, deadline - time.monotonic()))
    errors = "".join(path.read_text() for path in told.values())
    assert [p.exitcode for p in ranks] == [-signal.SIGKILL if rank == killed else 1 for rank in range(world)], errors
    assert f"mmvl: rank {killed} is gone" in errors, [line for line in errors.splitlines() if "mmvl" in line]


TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
ASKS_FOR_EVER = """
import os, pathlib, sys
from mmvl import VLM
pathlib.Path(sys.argv[1], "pid" + os.environ["RANK"]).write_text(str(os.getpid()))
vlm = VLM(device="cpu")
while True:
    print(vlm.ask(None, "How many words are there?", max_tokens=5), flush=True)
"""


@pytest.fixture
def environment():
    """Of torchrun: it is no rank itself."""
    return {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")} | {
        "OMP_NUM_THREADS": "1"
    }


def test_a_command_under_torchrun_answers_and_ends(picture_path, environment):
    command = [*TORCHRUN, "-m", "mmvl.app.cli", "ask", str(picture_path), "-q", QUESTIONS[1], "--device", "cpu"]
    run = subprocess.run([*command, "--max-tokens", "3"], capture_output=True, text=True, timeout=120, env=environment)
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout.strip(), "rank 0 answers"


def test_a_rank_that_is_killed_under_torchrun_ends_the_job(tmp_path, environment):
    script, pids = tmp_path / "asks.py", [tmp_path / f"pid{rank}" for rank in range(2)]
    script.write_text(ASKS_FOR_EVER)
    with (tmp_path / "stderr").open("w") as told:
        command = [*TORCHRUN, str(script), str(tmp_path)]
        job = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=told, env=environment)
    try:
        assert job.stdout.readline(), (tmp_path / "stderr").read_text()[-3000:]  # they answer
        os.kill(int(pids[1].read_text()), signal.SIGKILL)
        assert job.wait(60) == 1
        with pytest.raises(ProcessLookupError):
            os.kill(int(pids[0].read_text()), 0)
    finally:
        job.kill()
        job.stdout.close()
        for pid in pids:
            if pid.exists():
                with suppress(ProcessLookupError):
                    os.kill(int(pid.read_text()), signal.SIGKILL)
    said = (tmp_path / "stderr").read_text()
    assert "rank      : 1" in said and "SIGKILL" in said, said[-3000:]


SLEEPS = """
import os, pathlib, sys, time
from mmvl.engine.ranks import join
join()
pathlib.Path(sys.argv[1], "pid" + os.environ["RANK"]).write_text(str(os.getpid()))
time.sleep(600)
"""


def test_ranks_end_when_torchrun_is_killed(tmp_path, environment):
    script, pids = tmp_path / "sleeps.py", [tmp_path / f"pid{rank}" for rank in range(2)]
    script.write_text(SLEEPS)
    with (tmp_path / "stderr").open("w") as told:
        job = subprocess.Popen([*TORCHRUN, str(script), str(tmp_path)], stderr=told, env=environment)
    try:
        wait_until(lambda: job.poll() is not None or all(pid.exists() and pid.read_text() for pid in pids), 100)
        numbers = [int(pid.read_text()) for pid in pids]
        job.kill()
        job.wait()
        wait_until(lambda: not any(alive(number) for number in numbers), 30)
    finally:
        job.kill()
        for pid in pids:
            if pid.exists():
                with suppress(ProcessLookupError):
                    os.kill(int(pid.read_text()), signal.SIGKILL)
    said = (tmp_path / "stderr").read_text()
    assert "mmvl: torchrun is gone" in said, said[-3000:]


def alive(pid: int) -> bool:
    """A process that has ended, and that whoever took it over has not asked after yet, is not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except FileNotFoundError:
        return False
