"""Kill -9 at any moment: what goes on afterwards is the run that would have been.

Bit-exact on the CPU: everything, as long as the number of ranks stays. With another number: the order of the data, the
ledger and what is read from the checkpoint are exact; losses agree to the rounding of fp32 sums, because a step's
gradients are added up in another order.
"""

import json
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

import mmvl.training.checkpoints as checkpoints
from mmvl.training.checkpoints import complete
from mmvl.training.report import read_metrics
from mmvl.training.train import train
from tests.processes import finish, run_ranks, start_ranks

KILLS = 10
KILLED = {"two": {}, "experts": {"expert": 2}}  # runs of two ranks
RESUMED = {  # name -> (which of them, ranks, parallel)
    "two as 2": ("two", 2, {}),
    "two as 1": ("two", 1, {}),
    "two as 4": ("two", 4, {}),
    "experts as 1": ("experts", 1, {}),
    "experts as 4": ("experts", 4, {"expert": 2, "expert_tensor": 2, "sequence": 2}),
}
OF_THE_CLOCK = {"seconds", "tokens_per_second", "pairs_per_second", "waited_for_data", "tflops", "mfu", "memory_gib",
                "eta_seconds"}  # fmt: skip


def run(recipe: Path, overrides: list[str]) -> None:
    """A stage whose writing takes a moment between the tensors of a file, so that a kill often meets a checkpoint."""
    write = checkpoints.write_safetensors

    def slowly(path, layout, tensor, metadata=None):
        def later(name):
            time.sleep(0.0003)
            return tensor(name)

        return write(path, layout, later, metadata)

    checkpoints.write_safetensors = slowly
    train(recipe, overrides, Console(quiet=True))


def step_of(out: Path) -> int:
    path = out / "metrics.jsonl"
    records = read_metrics(path) if path.exists() else []
    return records[-1]["step"] if records else 0


def unfinished(out: Path) -> set[str]:
    return {d.name for d in (out / "checkpoints").glob("step-*") if not (d / "manifest.json").exists()}


def kill_when(processes, out: Path, due: Callable[[], bool], delay: float) -> dict:
    """Kill `delay` seconds after `due`; what the kill met."""
    deadline = time.monotonic() + 60
    while not due() and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(delay)
    for p in processes:
        p.kill()
    for p in processes:
        p.join()
    return {"codes": [p.exitcode for p in processes], "step": step_of(out), "unfinished": sorted(unfinished(out))}


def killed_again_and_again(recipe: Path, root: Path, seed: int) -> list[dict]:
    """The run `whole`, undisturbed, and the run `killed`, that often: some steps on, or as a checkpoint begins."""
    rng, kills, out = random.Random(seed), [], root / "killed"
    whole = start_ranks(run, 1, recipe, [f"out={root / 'whole'}"])
    for i in range(KILLS):
        before, left, more = step_of(out), unfinished(out), rng.randint(0, 3)
        begun = [lambda: step_of(out) >= before + more, lambda: unfinished(out) - left]  # noqa: B023  used at once
        processes = start_ranks(run, 1, recipe, [f"out={out}"])
        kills.append(kill_when(processes, out, begun[i % 2], rng.uniform(0, 0.03)))
    run_ranks(run, 1, recipe, [f"out={root / 'killed'}"])
    finish(whole)
    return kills


def told(out: Path) -> list[dict]:
    """The lines of the log, without what they say of the clock."""
    records = read_metrics(out / "metrics.jsonl")
    return [{name: value for name, value in r.items() if name not in OF_THE_CLOCK} for r in records]


def written(root: Path, recipe: dict, **changes) -> Path:
    path = root / "recipe.yaml"
    path.write_text(json.dumps(recipe | {"log_every_steps": 2, "save_every_steps": 3} | changes))  # JSON is YAML
    return path


@pytest.mark.parametrize("stage", ["train", "contrastive"])
def test_ten_kills_change_nothing(stage, recipe_dict, contrastive_dict, tmp_path):
    if stage == "train":
        recipe = written(tmp_path, recipe_dict, budget={"tokens": 12000, "minutes": None})
    else:
        recipe = written(tmp_path, contrastive_dict)
    kills = killed_again_and_again(recipe, tmp_path, seed=4)
    assert all(kill["codes"] == [-9] for kill in kills), kills
    assert sum(bool(kill["unfinished"]) for kill in kills) >= 3, "some met a checkpoint that was being written"
    assert len({kill["step"] for kill in kills}) > 3, "they met the run in many places"
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert told(killed) == told(whole) and len(told(whole)) > 10
    for file in ("ledger.json", "model/model.safetensors"):
        assert (killed / file).read_bytes() == (whole / file).read_bytes(), file
    left, expected = (sorted(d.name for d in (out / "checkpoints").iterdir()) for out in (killed, whole))
    assert left == expected, "nothing is left of what was half written"


def test_two_ranks_go_on_as_one_two_and_four(recipe_dict, tmp_path):
    """Other sizes of the data, expert, expert-tensor and sequence groups, against two ranks that were never stopped."""
    data, rng = recipe_dict["data"] | {"batches_per_step": 4}, random.Random(4)
    recipe = written(tmp_path, recipe_dict, data=data, budget={"tokens": 16000, "minutes": None})

    def to(name: str, parallel: dict) -> list[str]:
        return [f"parallel={json.dumps(parallel)}", f"out={tmp_path / name}"]

    undisturbed = start_ranks(run, 2, recipe, to("whole", {}))
    for name, parallel in KILLED.items():
        processes, kept = start_ranks(run, 2, recipe, to(name, parallel)), tmp_path / name / "checkpoints"
        kill = kill_when(processes, tmp_path / name, lambda kept=kept: complete(kept), rng.uniform(0, 0.03))
        assert kill["codes"] == [-9, -9]
    finish(undisturbed)
    whole, ledger = told(tmp_path / "whole"), (tmp_path / "whole" / "ledger.json").read_bytes()
    resumed = []
    for name, (origin, world, parallel) in RESUMED.items():
        shutil.copytree(tmp_path / origin, tmp_path / name)
        begun = int(complete(tmp_path / name / "checkpoints")[-1].name.removeprefix("step-"))
        assert 0 < begun < whole[-1]["step"], "there is something to go on from, and to do"
        resumed += start_ranks(run, world, recipe, to(name, parallel))
    finish(resumed)
    for name in RESUMED:
        other = told(tmp_path / name)
        assert [(r["step"], r["tokens"], r["lr"]) for r in other] == [(r["step"], r["tokens"], r["lr"]) for r in whole]
        assert [r["loss"] for r in other] == pytest.approx([r["loss"] for r in whole], rel=1e-5), name
        assert (tmp_path / name / "ledger.json").read_bytes() == ledger
    assert told(tmp_path / "two as 2") == whole, "the same ranks: to the last bit"
