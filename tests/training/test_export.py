"""From a checkpoint to the released layout: what the run saves itself, and what its model holds in memory."""

import json

import pytest
import torch
from rich.console import Console

from mmvl.checkpoint import load_model, save_model
from mmvl.export import export, find_checkpoint
from mmvl.training.checkpoints import Checkpoint
from mmvl.training.fragments import Box
from mmvl.training.recipe import load_recipe
from mmvl.training.train import Stage
from mmvl.vlm import VLM


@pytest.fixture(scope="module")
def stage(recipe_dict, tiny_model_dir, tmp_path_factory):
    """A stage that has run: ZeRO 2, one part frozen, two checkpoints kept."""
    root = tmp_path_factory.mktemp("export")
    changes = {"out": str(root / "out"), "zero_stage": 2, "trainable": ["language_model", "multi_modal_projector"]}
    changes |= {"budget": {"tokens": 2500, "minutes": None}, "save_every_steps": 2, "keep_checkpoints": 2}
    origin = {"init_from": str(tiny_model_dir), "model_config_file": None, "tokenizer": None}
    (root / "recipe.yaml").write_text(json.dumps(recipe_dict | changes | origin))
    stage = Stage(load_recipe(root / "recipe.yaml"), Console(quiet=True))
    stage.run()
    return stage


def test_the_model_of_a_stage_is_the_one_that_was_trained(stage, tiny_model_dir):
    saved, held = load_model(stage.out / "model").state_dict(), stage.model.state_dict()
    assert saved.keys() == held.keys()
    assert all(torch.equal(saved[name], held[name]) for name in held)
    before = load_model(tiny_model_dir).state_dict()
    moved = {name.split(".")[0] for name in held if not torch.equal(before[name], held[name])}
    assert moved == {"language_model", "multi_modal_projector", "image_newline"}


def test_an_export_is_what_save_model_writes(stage, tmp_path):
    save_model(stage.model, tmp_path / "memory", dtype=torch.bfloat16, max_shard_bytes=40_000)
    export(find_checkpoint(stage.out), tmp_path / "streamed", dtype="bfloat16", max_shard_bytes=40_000)
    names = {f.name for f in (tmp_path / "memory").iterdir()}
    assert len(names) > 4
    for name in names - {"config.json"}:
        assert (tmp_path / "streamed" / name).read_bytes() == (tmp_path / "memory" / name).read_bytes(), name
    settings = json.loads((tmp_path / "streamed" / "config.json").read_text())
    assert settings == json.loads((tmp_path / "memory" / "config.json").read_text())


def test_ranks_export_together_what_one_exports_alone(stage, tmp_path):
    checkpoint = find_checkpoint(stage.out / "checkpoints")
    export(checkpoint, tmp_path / "one", max_shard_bytes=40_000)
    for rank in (2, 1, 0):  # the first finishes what the others have written
        export(checkpoint, tmp_path / "three", max_shard_bytes=40_000, rank=rank, world=3)
    files = sorted(f.name for f in (tmp_path / "one").iterdir())
    assert files == sorted(f.name for f in (tmp_path / "three").iterdir())
    assert all((tmp_path / "one" / n).read_bytes() == (tmp_path / "three" / n).read_bytes() for n in files)


def test_any_checkpoint_becomes_a_model(stage, tmp_path, run_mmvl, picture_path):
    old, new = sorted((stage.out / "checkpoints").iterdir())
    assert find_checkpoint(stage.out) == new
    assert run_mmvl("convert", str(old), "-o", str(tmp_path / "old")) == 0
    model = load_model(tmp_path / "old")
    with Checkpoint(old) as source:
        for name, p in model.named_parameters():
            weight = torch.full_like(p, torch.nan)
            source.read(name, "weight", Box.whole(p.shape), 0, weight.view(-1))
            assert torch.equal(p, weight), name
    assert not torch.equal(model.language_model.lm_head.weight, stage.model.language_model.lm_head.weight)
    assert VLM(tmp_path / "old").ask(picture_path, "what is the shape?", max_tokens=3)


def test_what_cannot_be_converted_is_one_line(stage, tmp_path, run_mmvl, capsys):
    assert run_mmvl("convert", str(tmp_path), "-o", str(tmp_path / "x")) == 1
    assert run_mmvl("convert", str(stage.out), "-o", str(tmp_path / "x"), "--dtype", "int3") == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and "no whole checkpoint at" in lines[0] and "dtype must be one of float32" in lines[1]


@pytest.fixture
def run_mmvl(monkeypatch):
    """run_mmvl(arguments) -> exit code of the command line, in this process."""
    from mmvl.app import cli

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["mmvl", *arguments])
        try:
            cli.main()
        except SystemExit as e:
            return e.code or 0
        return 0

    return run
