"""A loss that is not finite or jumps stops the run; the batch that did it is kept and can be looked at again."""

import itertools
import json

import pytest
import torch
from rich.console import Console

import mmvl.training.train as training
from mmvl.app.convert import replay as command
from mmvl.checkpoint import load_model, save_model
from mmvl.processor import Processor
from mmvl.training.guard import BadLoss, LossGuard, load_batches
from mmvl.training.loader import Loader
from mmvl.training.objective import Objective
from mmvl.training.recipe import load_recipe
from mmvl.training.replay import replay
from mmvl.training.report import read_metrics
from mmvl.training.train import train
from tests.processes import run_ranks


def test_what_is_a_jump():
    guard = LossGuard(3.0)
    assert all(guard.judge(loss) is None for loss in [9.0, 50.0, *[2.0] * 14]), "the first ones may do as they like"
    assert guard.judge(149.0) is None, "three times the highest, not the mean"
    assert "jumped to 500" in guard.judge(500.0)
    assert 500.0 not in guard.losses
    assert LossGuard(3.0, list(guard.losses)).judge(500.0) == guard.judge(500.0), "a resumed one judges alike"
    assert LossGuard(None, [1.0] * 99).judge(1e9) is None
    for bad in (float("nan"), float("inf")):
        assert f"the loss is {bad}" in LossGuard(None).judge(bad)


class Spoilt(Objective):
    """Its tenth batch has a loss a thousand times too high, or none."""

    calls, factor = 0, 1.0

    def forward(self, *args):
        loss, figures = super().forward(*args)
        Spoilt.calls += 1
        if Spoilt.calls == 10:
            loss = loss * Spoilt.factor
            figures["by_source"][0] *= Spoilt.factor
        return loss, figures


@pytest.mark.parametrize(("factor", "line"), [(float("nan"), "the loss is nan at step 10"), (1e3, "loss jumped to")])
def test_a_bad_batch_stops_the_run_and_is_kept(recipe_file, tmp_path, monkeypatch, factor, line):
    settings = ["budget.tokens=6000", "log_every_steps=1", "save_every_steps=9"]
    whole = train(recipe_file, [*settings, f"out={tmp_path / 'whole'}"])
    monkeypatch.setattr(training, "Objective", Spoilt)
    monkeypatch.setattr("mmvl.training.guard.WARM_UP", 4)
    Spoilt.calls, Spoilt.factor = 0, factor
    with pytest.raises(BadLoss, match=line) as e:
        train(recipe_file, [*settings, f"out={tmp_path / 'out'}"], Console(quiet=True))
    assert "\n" not in str(e.value)
    directory = tmp_path / "out" / "bad-step-000000010"
    assert str(directory) in str(e.value)
    assert [d.name for d in (tmp_path / "out" / "checkpoints").iterdir()] == ["step-000000009"], "no spoilt one"
    records = read_metrics(tmp_path / "out" / "metrics.jsonl")
    assert [r["step"] for r in records] == list(range(1, 10))

    step, problem, (batch,) = load_batches(directory)
    assert step == 10 and problem in str(e.value)
    recipe = load_recipe(recipe_file)
    processor = Processor.from_pretrained(whole / "model")
    (expected,) = itertools.islice(Loader(recipe.data, processor, recipe.seed), 9, 10)
    assert torch.equal(batch.ids_T, expected.ids_T) and batch.lengths == expected.lengths
    assert torch.equal(batch.target_positions_L, expected.target_positions_L)
    assert (batch.images is None) == (expected.images is None)

    # the weights are those of step 9: the batch is found innocent, its loss that of the run that was not spoilt
    (seen,) = replay(directory)["batches"]
    tenth = next(r for r in read_metrics(whole / "metrics.jsonl") if r["step"] == 10)
    assert seen["loss"] == pytest.approx(tenth["loss"], rel=1e-5)
    assert seen["first_not_finite"] is None and set(seen["grad_norm"]) >= {"language_model", "vision_tower"}
    documents = seen["documents"]
    assert sum(d["targets"] for d in documents) == len(batch.targets_L)
    mean = sum(d["loss"] * d["targets"] for d in documents) / len(batch.targets_L)
    assert mean == pytest.approx(seen["loss"], rel=1e-5)
    assert max(d["loss"] for d in documents) == documents[seen["worst"]["document"]]["loss"]

    if factor > 1:  # four processes that share experts and rows say what one does
        run_ranks(command, 4, directory, None, None, tmp_path / "seen.json")
        (shared,) = json.loads((tmp_path / "seen.json").read_text())["batches"]
        assert shared["worst"] == seen["worst"] and shared["first_not_finite"] is None
        for key in ("tokens", "targets", "loss"):
            assert [d[key] for d in shared["documents"]] == pytest.approx([d[key] for d in documents], rel=1e-5)
        assert shared["grad_norm"] == pytest.approx(seen["grad_norm"], rel=1e-4)

    Spoilt.calls = 10**6  # the same command goes on from the last checkpoint
    again = train(recipe_file, [*settings, f"out={tmp_path / 'out'}"], Console(quiet=True))
    assert (again / "model" / "model.safetensors").read_bytes() == (whole / "model" / "model.safetensors").read_bytes()


def test_what_is_not_finite_is_found(recipe_file, tmp_path, monkeypatch, tiny_model_dir):
    """A broken weight: replay names the module, on the command line too."""
    monkeypatch.setattr(training, "Objective", Spoilt)
    Spoilt.calls, Spoilt.factor = 8, float("nan")
    with pytest.raises(BadLoss):
        train(recipe_file, [f"out={tmp_path / 'out'}"], Console(quiet=True))
    directory = tmp_path / "out" / "bad-step-000000002"
    with pytest.raises(FileNotFoundError, match="no whole checkpoint"):
        replay(directory)
    model = load_model(tiny_model_dir)
    with torch.no_grad():
        model.language_model.model.layers[1].self_attn.out_proj.weight[3, 3] = float("inf")
    save_model(model, tmp_path / "broken")
    Processor.from_pretrained(tiny_model_dir).save(tmp_path / "broken")
    command(directory, tmp_path / "broken", "cpu", tmp_path / "seen.json")
    seen = json.loads((tmp_path / "seen.json").read_text())
    assert seen["batches"][0]["first_not_finite"] == "language_model.model.layers.1.self_attn.out_proj"
    with pytest.raises(FileNotFoundError, match="no saved batches"):
        replay(tmp_path)
    (directory / "rank-00000.pt").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="is no saved batch"):
        replay(directory)
