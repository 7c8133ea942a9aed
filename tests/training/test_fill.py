"""A stage starts on several ranks without any of them ever holding more than its part of the experts."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import save_file

from mmvl.checkpoint import load_model, save_model
from mmvl.config import VLConfig
from mmvl.json_files import read_json, write_json
from mmvl.model import VLModel
from mmvl.quantize import quantize_model
from mmvl.text_backbone.expert_parallel import Placement
from mmvl.training.build import build_model
from mmvl.training.fill import fill, materialize
from mmvl.training.parallel import Parallel
from mmvl.training.ranks import Ranks
from mmvl.training.recipe import ParallelSpec, load_recipe
from tests.processes import run_ranks

WORLD = 4
LAYOUTS = ({"expert": 4}, {"expert": 2, "expert_tensor": 2}, {"expert_tensor": 2})
SPARE = 16 << 20  # bytes beside the part itself: the vision half, the file's header, one expert on its way


def peak() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) << 10


def start_of_a_stage(recipes: list[str], out: str) -> None:
    """What every rank runs: each layout and recipe; the first writes what each rank held and needed."""
    ranks, results = Ranks(), []
    for spec in LAYOUTS:
        parallel = Parallel(ranks, ParallelSpec(**spec))
        for recipe in map(load_recipe, recipes):
            if not results:
                build_model(recipe, parallel)  # after the fork, what Python itself touches first is copied
            ranks.wait()
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from what is held now
            before = peak()
            model, _ = build_model(recipe, parallel)
            grown = peak() - before
            held = sum(p.nbytes for p in model.parameters())
            with safe_open(recipe.out.with_suffix(".safetensors"), "pt") as whole:
                equal = all(torch.equal(_same_part(whole, name, p), p) for name, p in model.named_parameters())
            results.append({"grown": ranks.gather(grown), "held": ranks.gather(held), "equal": ranks.gather(equal)})
    if ranks.first:
        Path(out).write_text(json.dumps(results))
    ranks.wait()


def _same_part(whole, name: str, p: torch.Tensor) -> torch.Tensor:
    offset = getattr(p, "placement", Placement((), (0,) * p.ndim)).offset
    return whole.get_slice(name)[tuple(slice(o, o + n) for o, n in zip(offset, p.shape, strict=True))]


@pytest.fixture
def recipes(recipe_dict, tiny_model_dir, tmp_path) -> list[str]:
    """From random weights, and from files; a model whose experts are all its weight, whole in NAME.safetensors."""
    about = read_json(tiny_model_dir / "config.json")
    about["text_config"] |= {"num_local_experts": 16, "intermediate_size": 4096}
    write_json(tmp_path / "config.json", about)
    from_config = {"model_config_file": str(tmp_path / "config.json"), "out": str(tmp_path / "random")}
    from_files = {"init_from": str(tmp_path / "model"), "model_config_file": None, "tokenizer": None}
    from_files |= {"out": str(tmp_path / "files")}
    for name, changes, seed in (("random", from_config, 1), ("files", from_files, 5)):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(recipe_dict | changes))
        model, processor = build_model(load_recipe(tmp_path / "random.yaml", [f"seed={seed}"]))
        save_file(model.state_dict(), tmp_path / f"{name}.safetensors")
    save_model(model, tmp_path / "model", max_shard_bytes=10 << 20)
    processor.save(tmp_path / "model")
    return [str(tmp_path / "random.yaml"), str(tmp_path / "files.yaml")]


def test_no_rank_holds_more_than_its_part(recipes, tmp_path):
    out = tmp_path / "results.json"
    run_ranks(start_of_a_stage, WORLD, recipes, str(out))
    whole = sum(p.nbytes for p in load_model(tmp_path / "model").parameters())
    assert whole > 4 * SPARE
    for found in json.loads(out.read_text()):
        assert all(found["equal"]), found
        for grown, held in zip(found["grown"], found["held"], strict=True):
            assert held < 0.6 * whole
            assert grown < held + SPARE, found


def test_marks_and_frozen_weights_survive_getting_storage():
    with torch.device("meta"):
        module = torch.nn.Linear(3, 2)
    module.weight.placement, module.bias.requires_grad = Placement((4, 3), (2, 0)), False
    materialize(module, "cpu", torch.bfloat16)
    assert module.weight.placement.offset == (2, 0) and module.weight.dtype == torch.bfloat16
    assert module.weight.requires_grad and not module.bias.requires_grad and not module.bias.is_meta


def test_all_is_filled_and_what_does_not_fit_is_refused(tiny_model_dir, tmp_path):
    reference = load_model(tiny_model_dir, dtype=torch.float32)
    config = VLConfig.from_dict(read_json(tiny_model_dir / "config.json"))
    with torch.device("meta"):
        model = VLModel(config)
    materialize(model, "cpu", torch.float32)
    fill(model, tiny_model_dir)
    for name, p in model.named_parameters():
        assert torch.equal(p, reference.get_parameter(name)), name
    for kind in ("int8", "fp8"):  # a shipped model: what its weights stand for
        quantize_model(tiny_model_dir, tmp_path / kind, experts=kind, rest="all")
        fill(model, tmp_path / kind)
        meant = load_model(tmp_path / kind, dtype=torch.float32, quantize="none")
        moved = [name for name, p in model.named_parameters() if not torch.equal(p, reference.get_parameter(name))]
        assert moved and all(torch.equal(p, meant.get_parameter(name)) for name, p in model.named_parameters())
    quantize_model(tiny_model_dir, tmp_path / "int4", experts="int4")
    with pytest.raises(ValueError, match="weights in int4; training starts from those that they were made of"):
        fill(model, tmp_path / "int4")
    weights = next(tiny_model_dir.glob("*.safetensors"))
    for file in filter(Path.is_file, tiny_model_dir.iterdir()):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / weights.name).write_bytes(weights.read_bytes()[:-5])
    with pytest.raises(ValueError, match="is not a readable safetensors file"):
        fill(model, tmp_path)
