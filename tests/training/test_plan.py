"""`--dry-run` and the count of operations: against the model itself, and against what is published."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode

import mmvl
from mmvl.app.cli import app
from mmvl.benchmark.training_step import Size, around, benchmark_recipe
from mmvl.checkpoint import load_model, released_names
from mmvl.text_backbone.config import TextConfig
from mmvl.training.flops import StepFlops, adapter_flops, decoder_flops, head_flops, peak_tflops, vision_flops
from mmvl.training.plan import GIB, RUNTIME, config_of, count_parameters, describe, memory, plan
from mmvl.training.recipe import load_recipe
from tests.training.test_recipe import RECIPES

RESULTS = Path(mmvl.__file__).parent / "benchmark" / "results"

HARDWARE = "hardware={gpus: 8, memory_gib: 80, peak_tflops: 100, utilisation: 0.5}"


def full(name, *overrides):
    path = RECIPES / "full" / f"{name}.yaml"
    return plan(load_recipe(path, list(overrides)), path)


def test_the_released_models_numbers():
    """456B in all and 45.9B a token, as the paper says; the ViT has 303M."""
    stage = full("understanding")
    assert round(stage.parameters.total / 1e9) == 456 and round(stage.parameters.active / 1e9, 1) == 45.9
    path = RECIPES / "full" / "understanding.yaml"
    config = config_of(load_recipe(path), path)
    names = released_names(config)
    assert stage.parameters.total == sum(torch.Size(shape).numel() for shape in names.values())
    vision = sum(torch.Size(s).numel() for n, s in names.items() if n.startswith("vision_tower"))
    assert int(vision / 1e6) == 303
    assert config.text.rope_theta == 1e7 and config.text.max_position_embeddings == 1048576, "of the stages before"


@pytest.mark.parametrize("path", sorted((RECIPES / "full").glob("t*.yaml")) + [RECIPES / "full" / "preference.yaml"])
def test_full_stages_fit_their_gpus(path):
    recipe = load_recipe(path)
    if recipe.stage != "tokenizer":
        stage = plan(recipe, path)
        assert stage.memory_total < stage.memory_limit and stage.days > 0
        assert stage.tokens_per_step[0] * (stage.steps - 1) < stage.tokens or len(stage.tokens_per_step) > 1
        assert stage.tokens <= stage.tokens_per_step[-1] * stage.steps


def test_memory_follows_the_layout():
    """Bytes of weights, gradients and optimizer by hand: 456B over 32 x 64 GPUs."""
    stage = full("text")
    p, m = stage.parameters, stage.memory
    experts, dense = p.experts / 32, p.total - p.experts
    assert m["weights"] == pytest.approx(2 * (experts + dense), rel=1e-6)
    trained = p.trained - p.trained_experts
    assert m["optimizer"] == pytest.approx(12 * (experts / 64 + trained / 2048), rel=1e-6)
    assert m["gradients"] == pytest.approx(4 * (experts / 64 + trained / 2048), rel=1e-6), "sums are fp32"
    first = full("text", "zero_stage=1").memory
    assert first["gradients"] == pytest.approx(2 * (experts + trained), rel=1e-6)
    halved = full("text", "parallel.expert_tensor=2").memory
    assert halved["weights"] == pytest.approx(2 * (experts / 2 + dense), rel=1e-6)
    kept = full("text", "checkpoint_layers=none").memory["activations"]
    some = full("text", f"checkpoint_layers={list(range(40))}").memory["activations"]
    assert stage.memory["activations"] < some < kept
    frozen = full("alignment").memory
    assert frozen["optimizer"] < 0.01 * GIB < m["optimizer"]


@pytest.mark.parametrize("part", ["experts", "layer"])
def test_memory_is_what_was_measured(part):
    """Steps of full-width layers on two H200s, by `mmvl bench training`: the most that torch had allocated."""
    result = json.loads((RESULTS / f"training-{part}.json").read_text())
    size, row = result["size"], result["results"][0]
    text = TextConfig.from_dict(size["text"])
    size = Size(**size | {"text": text, "dtype": torch.bfloat16})
    ranks = SimpleNamespace(world=result["ranks"], rank=0)
    recipe, config = benchmark_recipe(ranks, size), around(size.stack(row["layers"]))
    lengths = [size.document] * (size.tokens // size.document)
    parts = memory(recipe, config, count_parameters(config, recipe.trainable), ranks.world, lengths, 0)
    assert sum(parts.values()) - RUNTIME == pytest.approx(row["peak_gib"] * GIB, rel=0.05), parts


def test_layouts_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="multiple of 96"):
        full("text", "parallel.expert=32", "parallel.sequence=3")
    with pytest.raises(ValueError, match="batches_per_step"):
        full("text", "data.batches_per_step=1000")
    with pytest.raises(ValueError, match="virtual_workers"):
        full("text", "data.virtual_workers=4")
    with pytest.raises(FileNotFoundError, match="no recipe beside this one"):
        full("text-1m", "init_from=runs/nowhere/model")


def test_operations_are_those_that_torch_counts(tiny_model_dir):
    """The products of a forward pass, as torch's own counter sees them; lightning attention and experts by hand."""
    model = load_model(tiny_model_dir, dtype=torch.float32)
    config = model.config
    tiles = torch.zeros(3, 3, config.vision.image_size, config.vision.image_size, dtype=torch.uint8)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        features = model.vision_tower(tiles)
    assert vision_flops(config.vision, 3) == pytest.approx(counter.get_total_flops(), rel=0.01)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.multi_modal_projector(features)
    assert adapter_flops(config, 3) == pytest.approx(counter.get_total_flops(), rel=1e-6)
    hidden = torch.zeros(5, config.text.hidden_size)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.language_model.logits(hidden)
    assert head_flops(config.text, 5) == counter.get_total_flops()


def test_operations_of_the_full_decoder():
    """About two a token for each active weight, and attention on top; long documents cost softmax layers more."""
    path = RECIPES / "full" / "text.yaml"
    config = config_of(load_recipe(path), path)
    active = count_parameters(config, ["language_model"]).active
    short, long = decoder_flops(config.text, [8192]) / 8192, decoder_flops(config.text, [2**20]) / 2**20
    assert 2 * active < short < 2.05 * active
    assert long - short == pytest.approx(10 * 4 * 8192 * (2**20 - 8192) / 2, rel=1e-3)
    assert decoder_flops(config.text, [100, 200]) < decoder_flops(config.text, [300])


def test_frozen_parts_cost_less():
    path = RECIPES / "full" / "alignment.yaml"
    config = config_of(load_recipe(path), path)
    batch = ([1000, 500], 300, 4)
    vision, adapter = vision_flops(config.vision, 4), adapter_flops(config, 4)
    text = decoder_flops(config.text, batch[0]) + head_flops(config.text, 300)

    def step(*trainable):
        return StepFlops.of(config, trainable)(*batch)

    assert step("language_model", "vision_tower", "multi_modal_projector") == 3 * (text + vision + adapter)
    assert step("vision_tower", "multi_modal_projector") == 2 * text + 3 * (vision + adapter)
    assert step("multi_modal_projector") == 2 * text + vision + 2 * adapter
    assert step("language_model") == 3 * text + vision + adapter
    assert StepFlops.of(config, ["vision_tower"])([10], 5, 0) == text_only(config)


def text_only(config):
    return decoder_flops(config.text, [10]) + head_flops(config.text, 5)


def test_the_command_prints_the_plan_and_makes_nothing(recipe_file, tmp_path):
    from typer.testing import CliRunner

    result = CliRunner().invoke(app, ["train", str(recipe_file), "--dry-run", "--set", HARDWARE])
    assert result.exit_code != 0 and "virtual_workers" in str(result.exception)
    started = ["--local_rank=0", "train", str(recipe_file)]  # as deepspeed's launcher puts it
    result = CliRunner().invoke(app, [*started, "--dry-run", "--set", HARDWARE, "--set", "data.virtual_workers=8"])
    assert result.exit_code == 0, result.output
    for part in ("8 GPUs", "parameters", "steps of 3,200", "at 50% of the GPUs' peak", "optimizer", "to spare"):
        assert part in result.output
    assert not (tmp_path / "out").exists()


def test_the_plan_of_other_kinds_of_stages(recipe_file):
    assert "200,000 tokens" in describe(RECIPES / "full" / "tokenizer.yaml")[0]
    assert any("0.30B of them in the vision tower" in line for line in describe(RECIPES / "full" / "contrastive.yaml"))


@pytest.mark.parametrize("path", sorted((RECIPES / "tiny").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_tiny_stage_can_be_planned_before_any_has_run(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mmvl").symlink_to(RECIPES.parent)
    lines = describe(path)
    if path.stem in ("pages", "documents", "instruction"):
        assert any(line.split()[:2] == ["parameters", "27.96M"] for line in lines), "the grown model's"


def test_peaks_are_known_by_name():
    assert peak_tflops("NVIDIA H200") == 989 and peak_tflops("NVIDIA H100 PCIe") == 756
    assert peak_tflops("Some Accelerator") is None


def test_the_full_config_is_the_released_one():
    """But for the ids of special tokens, which are those of our own tokenizer, and RoPE before its extension."""
    config = json.loads((RECIPES / "full" / "model.json").read_text())
    text = config["text_config"]
    assert (text["hidden_size"], text["num_hidden_layers"], text["num_local_experts"]) == (6144, 80, 32)
    assert text["attn_type_list"] == ([0] * 7 + [1]) * 10
    assert len(config["image_grid_pinpoints"]) == 28
    assert yaml.safe_load((RECIPES / "full" / "text.yaml").read_text())["model_config_file"].endswith("full/model.json")
    assert mmvl.__version__
