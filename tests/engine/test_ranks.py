"""mmvl-tiny over 2 and 4 gloo ranks says what it says alone, in fp32; a rank killed with -9 ends all within seconds.

Under torchrun this file is also the program that the ranks run.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw

from mmvl import VLM

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


def main(out: Path, busy: bool) -> None:
    torch.set_num_threads(1)
    (out / f"pid-{os.environ['RANK']}").write_text(str(os.getpid()))
    vlm = VLM(device="cpu")
    if str(out).endswith("ends"):
        vlm.ask(None, QUESTIONS[0], max_tokens=3)
        return
    said = {"plain": answers(vlm)}
    if busy:
        said["int8"] = answers(VLM(device="cpu", quantize="int8"))
    (out / "answers.part").write_text(json.dumps(said))
    (out / "answers.part").rename(out / "answers.json")
    while True:
        if busy:
            vlm.ask(None, QUESTIONS[1], max_tokens=50)
        time.sleep(0.01)


@pytest.fixture(scope="module")
def alone():
    return {"plain": answers(VLM(device="cpu")), "int8": answers(VLM(device="cpu", quantize="int8"))}


def start(out: Path, world: int, *arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world)]
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    environment["OMP_NUM_THREADS"] = "1"
    return subprocess.Popen([*command, __file__, str(out), *arguments], stderr=subprocess.PIPE, text=True,
                            env=environment)  # fmt: skip


@pytest.mark.parametrize("world, busy, killed", [(2, True, 1), (4, False, 0)])
def test_ranks_say_the_same_and_end_together(tmp_path, alone, world, busy, killed):
    run = start(tmp_path, world, *["busy"] * busy)
    deadline = time.monotonic() + 200
    while not (tmp_path / "answers.json").exists() and run.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    if run.poll() is not None or not (tmp_path / "answers.json").exists():
        run.kill()
        pytest.fail(f"no answers: {run.communicate()[1][-3000:]}")
    said = json.loads((tmp_path / "answers.json").read_text())
    assert said == {way: alone[way] for way in said} and ("int8" in said) == busy
    os.kill(int((tmp_path / f"pid-{killed}").read_text()), signal.SIGKILL)
    _, errors = run.communicate(timeout=60)
    assert run.returncode == 1
    assert f"mmvl: rank {killed} is gone" in errors, [line for line in errors.splitlines() if "mmvl" in line]


def test_ranks_end_well_when_the_first_does(tmp_path):
    out = tmp_path / "ends"
    out.mkdir()
    run = start(out, 2)
    _, errors = run.communicate(timeout=120)
    assert run.returncode == 0, errors[-3000:]


if __name__ == "__main__":
    main(Path(sys.argv[1]), "busy" in sys.argv)
