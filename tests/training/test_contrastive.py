"""The contrastive stage: it learns, its loss over ranks is the loss of one process, and its tower is handed over."""

import io
import json
import shutil

import pytest
import torch
import yaml
from rich.console import Console

from mmvl.checkpoint import load_config, load_model, read_tensors
from mmvl.data.shards import ShardWriter
from mmvl.shipped import MMVL_TINY
from mmvl.training.build import build_model, vision_state
from mmvl.training.contrastive import ContrastiveStage
from mmvl.training.contrastive_plan import plan_lines
from mmvl.training.guard import BadLoss
from mmvl.training.pairs import Pairs
from mmvl.training.recipe import load_recipe
from mmvl.training.replay import replay
from mmvl.training.report import read_metrics
from mmvl.training.train import train
from mmvl.weight_files import WeightFiles
from tests.processes import run_ranks


@pytest.fixture
def contrastive_file(contrastive_dict, tmp_path):
    path = tmp_path / "contrastive.yaml"
    path.write_text(yaml.safe_dump(contrastive_dict | {"out": str(tmp_path / "out")}))
    return path


def run(path, *overrides):
    return ContrastiveStage(load_recipe(path, list(overrides)), Console(quiet=True)).run()


def test_it_learns_resumes_exactly_and_hands_its_tower_over(contrastive_file, recipe_file, tmp_path):
    same = "optimizer.decay_fraction=0"
    whole = run(contrastive_file, same)
    records = read_metrics(whole / "metrics.jsonl")
    assert records[-1]["by_source"]["caption"]["loss"] < 0.5 * records[0]["by_source"]["caption"]["loss"]
    assert records[-1]["pairs"] == 320 and (whole / "loss.png").stat().st_size > 5000
    for pairs in (160, 320):
        split = run(contrastive_file, same, f"budget.pairs={pairs}", f"out={tmp_path / 'split'}")
    a, b = (read_tensors(d / "model") for d in (whole, split))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert [d.name for d in (split / "checkpoints").iterdir()] == ["step-000000040"]
    assert all(name.startswith("vision_tower.vision_model.") for name in a), "released names"
    model, _ = build_model(load_recipe(recipe_file, [f"vision_from={whole / 'model'}"]))
    for name, tensor in vision_state(whole / "model", model.config.vision).items():
        assert torch.equal(model.vision_tower.state_dict()[name], tensor), name


def test_a_limit_of_minutes_ends_it_with_the_rate_gone_down(contrastive_file):
    changes = ("budget.pairs=1000000", "budget.minutes=0.05", "log_every_steps=1", "optimizer.final_lr_ratio=0.01")
    records = read_metrics(run(contrastive_file, *changes) / "metrics.jsonl")
    assert 2 < len(records) and records[-1]["pairs"] < 1_000_000
    assert records[-1]["lr"] < 0.5 * max(record["lr"] for record in records)


def test_two_ranks_learn_what_one_does(contrastive_file, tmp_path):
    """Contrastive gradients go through both ranks' features, captions count token by token: equal weights after.

    The two stop half-way; one goes on from their checkpoint.
    """
    changes = ["optimizer.lr=1e-3", "optimizer.decay_fraction=0"]
    one, two = run(contrastive_file, *changes, "budget.pairs=48", f"out={tmp_path / 'one'}"), tmp_path / "two"
    run_ranks(train, 2, contrastive_file, [*changes, "budget.pairs=24", f"out={two}"])
    assert len(list((two / "checkpoints" / "step-000000003").glob("rank-0000?-of-00002.safetensors"))) == 2
    run(contrastive_file, *changes, "budget.pairs=48", f"out={two}")
    a, b = (read_tensors(d / "model") for d in (one, two))
    worst = max((a[name] - b[name]).abs().max().item() for name in a)
    assert worst < 1e-6, worst


class Spoilt(ContrastiveStage):
    """Its sixth step has a loss that is none, and a gradient that is not finite."""

    def _update(self, batch, caption_share):
        return super()._update(batch, float("nan") if self.step == 5 else caption_share)


def test_a_bad_step_stops_it_and_its_pairs_are_kept(contrastive_file, tmp_path):
    settings = ["save_every_steps=5", "budget.pairs=80", "log_every_steps=1", "optimizer.decay_fraction=0"]
    recipe = load_recipe(contrastive_file, settings)
    with pytest.raises(BadLoss, match="the loss is nan at step 6; `mmvl replay ") as e:
        Spoilt(recipe, Console(quiet=True)).run()
    assert "\n" not in str(e.value)
    assert [d.name for d in (recipe.out / "checkpoints").iterdir()] == ["step-000000005"]
    assert [r["step"] for r in read_metrics(recipe.out / "metrics.jsonl")] == [1, 2, 3, 4, 5]
    directory = recipe.out / "bad-step-000000006"
    seen = replay(directory)
    (batch,) = seen["batches"]
    assert seen["weights_step"] == 5 and batch["first_not_finite"] is None and len(batch["documents"]) == 8
    assert set(batch["grad_norm"]) >= {"vision_tower", "text", "decoder"} and "circle" in batch["worst"]["text"]

    again = ContrastiveStage(recipe, Console(quiet=True)).run()  # the same command goes on from the last checkpoint
    whole = run(contrastive_file, *settings, f"out={tmp_path / 'whole'}")
    sixth = next(r for r in read_metrics(whole / "metrics.jsonl") if r["step"] == 6)
    assert batch["loss"] == pytest.approx(sixth["loss"], rel=1e-5), "the pairs are found innocent"
    a, b = (read_tensors(d / "model") for d in (again, whole))
    assert all(torch.equal(a[name], b[name]) for name in a)
    with pytest.raises(ValueError, match="leave --model out"):
        replay(directory, whole / "model")
    (directory / "pairs-00000.pt").write_bytes(b"nonsense")
    with pytest.raises(ValueError, match="is no saved batch"):
        replay(directory)


def test_sources_have_their_shares_and_bad_samples_give_way(contrastive_file, shards, tmp_path):
    changes = [f"data.sources=[{{path: {shards / 'colours'}, weight: 3}}]"]
    stage = ContrastiveStage(load_recipe(contrastive_file, changes), Console(quiet=True))
    pairs = stage.pairs
    seen = [pairs[g] for g in range(30)]
    assert len({tuple(p.tile_3TT.flatten().tolist()) for p in seen}) == 30, "one epoch sees every picture once"
    assert torch.equal(pairs[17].tile_3TT, seen[17].tile_3TT) and not any(p.skipped for p in seen)
    shutil.copytree(shards / "colours", tmp_path / "colours")
    with ShardWriter(tmp_path / "colours", "bad") as writer:
        said = [{"role": "user", "content": [{"type": "image", "file": "0.png"}]}]
        said.append({"role": "assistant", "content": [{"type": "text", "text": "a"}]})
        key = writer.write({"source": "bad", "kind": "caption", "messages": said}, {"0.png": b"no picture"})
    with (tmp_path / "colours" / "cut.tar").open("wb") as cut:
        cut.write((shards / "colours" / "colours-00000.tar").read_bytes()[:30_000])
    lines, settings = io.StringIO(), [f"data.sources.0.path={tmp_path / 'colours'}", f"out={tmp_path / 'spoilt'}"]
    out = ContrastiveStage(load_recipe(contrastive_file, settings), Console(file=lines, width=500)).run()
    told = [line for line in lines.getvalue().splitlines() if line.startswith("skipped: ")]
    assert told and all(f"sample {key}: " in line and "not an image" in line for line in told)
    assert json.loads((out / "ledger.json").read_text())["skipped"] == {"colours": len(told)}
    assert "data: " in lines.getvalue() and "cut.tar" in lines.getvalue()
    text_only = load_recipe(contrastive_file, [f"data.sources.0.path={shards / 'text'}"])
    with pytest.raises(ValueError, match="20 unusable samples in a row"):
        Pairs(text_only, pairs.processor, stage.model)[0]
    with pytest.raises(ValueError, match="^source 'text': 20 unusable samples in a row") as e:
        run(contrastive_file, f"data.sources.0.path={shards / 'text'}", "data.workers=1")
    assert "\n" not in str(e.value)


def test_a_tower_for_larger_pictures_is_resampled(contrastive_file, recipe_file, tiny_model_dir, tmp_path):
    small = run(contrastive_file, "budget.pairs=16", "image_size=14")
    model = load_model(tiny_model_dir, dtype=torch.float32)
    state = vision_state(small / "model", model.config.vision)
    assert state["vit.pos_embed"].shape == model.vision_tower.vit.pos_embed.shape
    config = json.loads((small / "model" / "config.json").read_text())
    assert config["vision_config"]["image_size"] == 14
    with pytest.raises(ValueError, match="another than the model's"):
        vision_state(small / "model", type(model.config.vision)(hidden_size=64, num_attention_heads=4, image_size=28))


def test_a_tower_is_taken_from_quantised_weights():
    config = load_config(MMVL_TINY)
    with WeightFiles(MMVL_TINY, config) as files:
        name = "vision_tower.vision_model.encoder.layers.3.mlp.fc1.weight"
        assert files.kind(name) == "int8"
        matrix = files.plain(name)
    state = vision_state(MMVL_TINY, config.vision)
    assert torch.equal(state["vit.blocks.3.mlp.fc1.weight"], matrix)
    assert not [name for name in state if name.endswith("_scale")]


def test_the_plan_counts_on_the_meta_device(contrastive_file):
    hardware = "hardware={gpus: 2, memory_gib: 80, peak_tflops: 100, utilisation: 0.5}"
    lines = "\n".join(plan_lines(load_recipe(contrastive_file, [hardware])))
    assert "2 GPUs, 4 pairs each" in lines and "320 in 40 steps of 8" in lines and "to spare" in lines
