"""Kill -9 at any moment: what goes on afterwards is the run that would have been.

Bit-exact on the CPU: everything, as long as the number of ranks stays. With another number: the order of the data, the
ledger and what is read from the checkpoint are exact; losses agree to the rounding of fp32 sums, because a step's
gradients are added up in another order.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mmvl.training.report import read_metrics

KILLED = {"two": {}, "experts": {"expert": 2}}  # runs of two ranks
RESUMED = {  # name -> (which of them, ranks, parallel)
    "two as 2": ("two", 2, {}),
    "two as 1": ("two", 1, {}),
    "two as 4": ("two", 4, {}),
    "experts as 1": ("experts", 1, {}),
    "experts as 4": ("experts", 4, {"expert": 2, "expert_tensor": 2, "sequence": 2}),
}
SAME = ("step", "tokens", "lr", "loss", "balance", "busiest_expert", "by_source", "skipped_updates", "grad_norm")


@pytest.fixture(scope="module")
def runs(recipe_dict, tmp_path_factory):
    """Where the runs lie, and what was killed when."""
    root = tmp_path_factory.mktemp("kills")
    recipe = recipe_dict | {"log_every_steps": 2, "save_every_steps": 3, "budget": {"tokens": 12000, "minutes": None}}
    (root / "recipe.yaml").write_text(json.dumps(recipe))  # JSON is YAML
    plan = {"seed": 4, "recipe": str(root / "recipe.yaml"), "root": str(root), "overrides": []}
    plan |= {"killed": KILLED, "resumed": RESUMED}
    (root / "plan.json").write_text(json.dumps(plan))
    command = [sys.executable, str(Path(__file__).parent / "forked_runs.py"), "plan.json", "result.json"]
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    environment |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    run = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=280)
    assert run.returncode == 0, run.stderr[-3000:]
    return root, json.loads((root / "result.json").read_text())


def told(out: Path) -> list[dict]:
    return [{name: record[name] for name in SAME} for record in read_metrics(out / "metrics.jsonl")]


def test_ten_kills_change_nothing(runs):
    root, result = runs
    kills = result["kills"][:10]
    assert all(kill["signals"] == [9] for kill in kills)
    assert sum(bool(kill["unfinished"]) for kill in kills) >= 3, "some met a checkpoint that was being written"
    assert len({kill["step"] for kill in kills}) > 3, "they met the run in many places"
    assert told(root / "killed") == told(root / "whole")
    for file in ("ledger.json", "model/model.safetensors"):
        assert (root / "killed" / file).read_bytes() == (root / "whole" / file).read_bytes(), file
    assert [d.name for d in (root / "killed" / "checkpoints").iterdir()] == [
        d.name for d in (root / "whole" / "checkpoints").iterdir()
    ], "nothing is left of what was half written"


def test_two_ranks_go_on_as_one_two_and_four(runs):
    """Other sizes of the data, expert, expert-tensor and sequence groups, against two ranks that were never stopped."""
    root, _ = runs
    whole, ledger = told(root / "two-whole"), (root / "two-whole" / "ledger.json").read_bytes()
    assert told(root / "two as 2") == whole, "the same ranks: to the last bit"
    for name in RESUMED:
        other = told(root / name)
        assert [(r["step"], r["tokens"], r["lr"]) for r in other] == [(r["step"], r["tokens"], r["lr"]) for r in whole]
        assert [r["loss"] for r in other] == pytest.approx([r["loss"] for r in whole], rel=1e-5), name
        assert (root / name / "ledger.json").read_bytes() == ledger
