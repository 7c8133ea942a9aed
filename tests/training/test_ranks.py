"""Several ranks: the same order of data, the same loss and the same weights as plain PyTorch over all their batches."""

import itertools
import json
import os
import subprocess
import sys

import pytest
import torch

from mmvl.checkpoint import load_model
from mmvl.processor import Processor
from mmvl.training.batch import Batch
from mmvl.training.engine import param_groups
from mmvl.training.loader import Loader
from mmvl.training.objective import cross_entropy
from mmvl.training.recipe import DataSpec, load_recipe
from mmvl.training.schedule import lr_factor, progress
from mmvl.training.train import build_model


def take(loader, n) -> list[Batch]:
    return list(itertools.islice(loader, n))


def test_ranks_take_turns_and_their_states_join(recipe_dict, tiny_model_dir):
    """Two ranks together see what one alone sees; a joined state goes on with any number of ranks."""
    data = DataSpec.model_validate(recipe_dict["data"])
    processor = Processor.from_pretrained(tiny_model_dir)
    alone = [b.ids_T.tolist() for b in take(Loader(data, processor, 5), 16)]
    ranks = [Loader(data, processor, 5, rank=r, world=2) for r in range(2)]
    seen = [[b.ids_T.tolist() for b in take(loader, 3)] for loader in ranks]
    assert [ids for step in zip(*seen, strict=True) for ids in step] == alone[:6]
    state = json.loads(json.dumps(Loader.joined([loader.state for loader in ranks])))
    for world in (1, 2, 4):
        again = [
            [b.ids_T.tolist() for b in take(Loader(data, processor, 5, state, rank=r, world=world), 8 // world)]
            for r in range(world)
        ]
        assert [ids for step in zip(*again, strict=True) for ids in step] == alone[6:14]
    with pytest.raises(ValueError, match="multiple of 3 ranks"):
        Loader(data, processor, 5, rank=0, world=3)


def plain_training(recipe, world: int, steps: int):
    """`steps` optimizer steps over the batches of `world` ranks, with nothing but PyTorch."""
    torch.manual_seed(recipe.seed)
    model, processor = build_model(recipe)
    optimizer = torch.optim.AdamW(param_groups(model, recipe), betas=recipe.optimizer.betas, eps=1e-8)
    batches = iter(Loader(recipe.data, processor, recipe.seed))
    tokens = 0
    for step in range(steps):
        factor = lr_factor(step, progress(tokens, 0.0, recipe.budget), recipe.optimizer)
        for group in optimizer.param_groups:
            group["lr"] = recipe.optimizer.lr * group["lr_scale"] * factor
        together = [next(batches).to(torch.device("cpu")) for _ in range(world)]
        targets = sum(len(b.targets_L) for b in together)
        loss = 0.0
        for b in together:
            out = model(b.ids_T, b.packed, b.images, b.image_positions_I)
            losses, _ = cross_entropy(model.language_model, out.hidden_TD[b.target_positions_L], b.targets_L)
            loss = loss + losses.sum() / targets + recipe.balance_loss * out.balance_loss / world
            tokens += len(b.ids_T)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.optimizer.clip)
        optimizer.step()
    return model, tokens


def test_two_ranks_equal_plain_pytorch(recipe_file, tmp_path):
    """`mmvl train` as a whole, with the experts over both ranks; see test_parallel.py for other layouts."""
    steps, out = 4, tmp_path / "two"
    recipe = load_recipe(recipe_file)
    _, tokens = plain_training(recipe, world=2, steps=steps)
    overrides = [f"budget.tokens={tokens}", f"out={out}"]
    reference, _ = plain_training(load_recipe(recipe_file, overrides), world=2, steps=steps)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "mmvl.app.cli", "train", str(recipe_file)]
    for override in [*overrides, "parallel.expert=2", "parallel.token_groups=2", "checkpoint_layers=[0]"]:
        command += ["--set", override]
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    environment["OMP_NUM_THREADS"] = "1"
    run = subprocess.run(command, capture_output=True, text=True, timeout=200, env=environment)
    assert run.returncode == 0, run.stderr[-3000:]
    ledger = json.loads((out / "ledger.json").read_text())
    assert ledger["tokens"] == tokens
    trained = load_model(out / "model").state_dict()
    start, _ = build_model(recipe)
    for name, expected in reference.state_dict().items():
        moved = (expected - start.state_dict()[name]).norm()
        assert (trained[name] - expected).norm() <= 1e-3 * moved + 1e-6, name
