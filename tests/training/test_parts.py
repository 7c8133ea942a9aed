"""Schedule, ledger, metrics and their picture."""

import json

import pytest
import torch
from PIL import Image
from torch import nn

from mmvl.training.engine import GuardedAdamW
from mmvl.training.ledger import Ledger
from mmvl.training.recipe import Budget, OptimizerSpec
from mmvl.training.report import Metrics, draw_loss, read_metrics
from mmvl.training.schedule import lr_factor, progress


def spec(**changes):
    base = {"lr": 1.0, "betas": (0.9, 0.95), "weight_decay": 0, "clip": 1, "warmup_steps": 9, "decay_fraction": 0.4}
    return OptimizerSpec(**(base | {"final_lr_ratio": 0.1} | changes))


def test_rate_rises_stays_and_falls():
    assert lr_factor(0, 0.0, spec()) == pytest.approx(0.1)
    assert lr_factor(4, 0.0, spec()) == pytest.approx(0.5)
    assert lr_factor(9, 0.1, spec()) == lr_factor(999, 0.6, spec()) == 1.0
    assert lr_factor(999, 0.8, spec()) == pytest.approx(0.55)  # half way down a cosine from 1 to 0.1
    assert lr_factor(999, 1.0, spec()) == pytest.approx(0.1)
    assert lr_factor(999, 1.0, spec(decay_fraction=0.0)) == 1.0


def test_progress_is_whichever_is_further():
    assert progress(50, 0.0, Budget(tokens=100)) == 0.5
    assert progress(50, 54.0, Budget(tokens=100, minutes=1)) == 0.9
    assert progress(500, 0.0, Budget(tokens=100)) == 1.0


def test_ledger_counts_and_comes_back():
    ledger = Ledger(["a", "b"])
    ledger.add((3, 4), (5, 0), (1, 2))
    ledger.add((1, 0), (0, 0), (1, 0))
    assert ledger.tokens == 13
    stored = json.loads(json.dumps(ledger.to_dict()))
    assert stored["sources"]["a"] == {"text": 4, "image": 5, "samples": 2}
    assert Ledger.from_dict(stored, ["a", "b"]) == ledger
    assert Ledger.from_dict(stored, ["new", "b", "a"]).text == [0, 4, 4]
    with pytest.raises(ValueError, match="no longer names"):
        Ledger.from_dict(stored, ["a"])


def test_metrics_survive_a_kill_and_a_resume(tmp_path):
    metrics = Metrics(tmp_path)
    for step in (1, 2, 3):
        metrics.write({"step": step, "tokens": step * 1000, "loss": 1 / step, "by_source": {"a": {"loss": 1 / step}}})
    with metrics.path.open("a") as f:
        f.write('{"step": 4, "tok')  # cut short by a kill
    assert [r["step"] for r in read_metrics(metrics.path)] == [1, 2, 3]
    metrics.truncate(2)
    assert [r["step"] for r in read_metrics(metrics.path)] == [1, 2]
    draw_loss({"one": metrics.path, "two": metrics.path}, tmp_path / "loss.png")
    with Image.open(tmp_path / "loss.png") as picture:
        assert picture.width > 1000 and len(picture.convert("L").getcolors()) > 10


def test_damage_inside_the_metrics_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\nnonsense\n{"step": 2}\n')
    with pytest.raises(ValueError, match="line 2"):
        read_metrics(tmp_path / "metrics.jsonl")


def test_an_update_with_a_gradient_that_is_not_finite_is_left_out_and_counted():
    good, bad = nn.Parameter(torch.ones(5)), nn.Parameter(torch.ones(3))
    optimizer = GuardedAdamW([good, bad], lr=0.1, betas=(0.9, 0.95))
    plain = nn.Parameter(torch.ones(5))
    reference = torch.optim.AdamW([plain], lr=0.1, betas=(0.9, 0.95))
    for step, value in enumerate([1.0, float("nan"), float("inf"), -2.0]):
        good.grad, bad.grad = torch.full((5,), 0.5 + step), torch.full((3,), value)
        before = good.detach().clone()
        optimizer.step()
        if value in (1.0, -2.0):
            plain.grad = good.grad.clone()
            reference.step()
        else:
            assert torch.equal(good, before)
    torch.testing.assert_close(good, plain)  # moments and step counts too were left alone
    assert torch.isfinite(bad).all()
    assert optimizer.skipped == 2
