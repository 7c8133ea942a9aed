"""Training through DeepSpeed's engine: it learns, stops and goes on exactly, and freezes what the recipe says."""

import errno
import gzip
import io
import itertools
import json
import os
import signal
import sys
import time

import pytest
import torch
from rich.console import Console

import mmvl.training.checkpoints as checkpoints
from mmvl.app import cli
from mmvl.checkpoint import load_model, read_tensors, save_model
from mmvl.data.shards import ShardSource
from mmvl.processor import Processor
from mmvl.text_backbone.packed import Packed
from mmvl.training.batch import Batch
from mmvl.training.build import build_model
from mmvl.training.engine import make_engine, param_groups, set_accumulation
from mmvl.training.loader import Encode, Loader
from mmvl.training.objective import Objective, cross_entropy
from mmvl.training.ranks import Ranks
from mmvl.training.recipe import DataSpec, load_recipe
from mmvl.training.report import read_metrics
from mmvl.training.train import train
from mmvl.vlm import VLM
from tests.processes import start_ranks


@pytest.fixture
def model(tiny_model_dir):
    return load_model(tiny_model_dir, dtype=torch.float32).requires_grad_(True)


def batches(recipe_dict, tiny_model_dir, n, **changes):
    data = DataSpec.model_validate(recipe_dict["data"] | changes)
    loader = Loader(data, Processor.from_pretrained(tiny_model_dir), seed=0)
    return [b.to(torch.device("cpu")) for b in itertools.islice(loader, n)]


def test_objective_is_the_mean_over_documents_seen_alone(model, recipe_dict, tiny_model_dir):
    """Against the plain definition: each document by itself, log-softmax of its targets."""
    batch = batches(recipe_dict, tiny_model_dir, 1)[0]
    loss, figures = Objective(model, balance=0.0, num_sources=2)(batch)
    images = model.embed_images(batch.images)
    x_TD = model.embed(batch.ids_T, images, batch.image_positions_I)
    total, count, start = 0.0, 0, 0
    for length in batch.lengths:
        alone = model.language_model(x_TD[start : start + length], Packed.from_lengths((length,), "cpu"))
        log_p = model.language_model.logits(alone.hidden_TD).log_softmax(-1)
        inside = (batch.target_positions_L >= start) & (batch.target_positions_L < start + length)
        for position, target in zip(batch.target_positions_L[inside], batch.targets_L[inside], strict=True):
            total, count = total - log_p[position - start, target].item(), count + 1
        start += length
    assert loss.item() == pytest.approx(total / count, rel=1e-5)
    assert figures["by_source"][2].sum() == count
    assert figures["by_source"][0].sum().item() == pytest.approx(total, rel=1e-5)


def test_a_rows_gradients_are_the_sum_of_its_documents_alone(model, shards, tiny_model_dir):
    """Documents with and without pictures, each as a batch of its own, against all in one packed row."""
    processor = Processor.from_pretrained(tiny_model_dir)
    encode = Encode(processor, 400, ["text", "colours"])
    read, seen = (ShardSource.from_dir(shards / name) for name in encode.names)
    examples = [encode(pair) for i in range(4) for pair in ((0, read[i]), (1, seen[i]))]
    objective = Objective(model, balance=0.0, num_sources=2)

    def gradients(*rows):
        model.zero_grad()
        for row in rows:
            batch = Batch.collate(row, 2, processor.image_id).to(torch.device("cpu"))
            objective(batch, targets=sum(sum(e.prompt.loss_mask[1:]) for e in examples))[0].backward()
        return {name: p.grad.clone() for name, p in model.named_parameters()}

    packed, alone = gradients(examples), gradients(*([example] for example in examples))
    for name, gradient in packed.items():
        assert (gradient - alone[name]).norm() <= 2e-6 * gradient.norm().clamp(min=1e-8), name
    assert min(packed[name].norm() for name in packed if "norm" not in name) > 0


def test_cross_entropy_in_chunks_is_the_same(model):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(50, 32, generator=generator, requires_grad=True)
    targets = torch.randint(0, 300, (50,), generator=generator)
    whole, hits = cross_entropy(model.language_model, hidden, targets)
    gradient = torch.autograd.grad(whole.mean(), hidden)[0]
    parts, part_hits = cross_entropy(model.language_model, hidden, targets, chunk=7)
    torch.testing.assert_close(parts, whole)
    assert torch.equal(hits, part_hits)
    torch.testing.assert_close(torch.autograd.grad(parts.mean(), hidden)[0], gradient)


def test_without_images_the_vision_half_still_has_gradients(model, recipe_dict, tiny_model_dir):
    """Zero ones: bucketed reduction needs them on every rank. The loss does not change."""
    sources = [s for s in recipe_dict["data"]["sources"] if s["path"].endswith("text")]
    batch = batches(recipe_dict, tiny_model_dir, 1, sources=sources)[0]
    assert batch.images is None
    loss, figures = Objective(model, balance=0.0, num_sources=1)(batch)
    loss.backward()
    sums = figures["by_source"].sum(1)
    assert loss.item() == pytest.approx((sums[0] / sums[2]).item())
    assert all(p.grad is not None for p in model.parameters())
    assert all(not p.grad.any() for p in model.vision_tower.parameters())


def test_no_decay_for_vectors_and_embeddings(model, recipe_file):
    recipe = load_recipe(recipe_file, ["optimizer.lr_scale={vision_tower: 0.5}"])
    groups = param_groups(model, recipe)
    placed = {id(p): g for g in groups for p in g["params"]}
    assert len(placed) == len(list(model.parameters())) == sum(len(g["params"]) for g in groups)
    for name, p in model.named_parameters():
        assert (placed[id(p)]["weight_decay"] > 0) == (p.ndim >= 2 and "embed" not in name), name
        assert placed[id(p)]["lr"] == pytest.approx(recipe.optimizer.lr * (0.5 if "vision_tower" in name else 1.0))


def test_a_stage_learns_resumes_exactly_and_can_be_asked(recipe_file, tmp_path, picture_path):
    """One run of 24,000 tokens equals one that stopped at 12,000 and went on; the loss falls; the result answers."""
    whole = train(recipe_file, ["budget.tokens=24000", f"out={tmp_path / 'whole'}", "optimizer.decay_fraction=0"])
    for tokens in (12000, 24000):
        split = train(
            recipe_file, [f"budget.tokens={tokens}", f"out={tmp_path / 'split'}", "optimizer.decay_fraction=0"]
        )
    assert len(list((split / "checkpoints").glob("step-*"))) == 1, "old checkpoints go once a new one is whole"
    losses = [r["loss"] for r in read_metrics(whole / "metrics.jsonl")]
    assert losses[-1] < 0.5 * losses[0]
    assert (whole / "loss.png").stat().st_size > 5000
    ledgers = [json.loads((d / "ledger.json").read_text()) for d in (whole, split)]
    assert ledgers[0] == ledgers[1] and ledgers[0]["tokens"] >= 24000
    a, b = (load_model(d / "model").state_dict() for d in (whole, split))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert [r["step"] for r in read_metrics(split / "metrics.jsonl")] == [
        r["step"] for r in read_metrics(whole / "metrics.jsonl")
    ]
    assert VLM(whole / "model").ask(picture_path, "what is the shape?", max_tokens=5)


def test_frozen_parts_stay_and_the_next_stage_starts_from_the_last(recipe_file, tiny_model_dir, tmp_path):
    out = train(
        recipe_file,
        [
            f"init_from={tiny_model_dir}",
            "model_config_file=null",
            "tokenizer=null",
            "trainable=[multi_modal_projector]",
            "budget.tokens=1500",
            f"out={tmp_path / 'adapter'}",
        ],
    )
    before, after = load_model(tiny_model_dir).state_dict(), load_model(out / "model").state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if name.startswith(("multi_modal_projector", "image_newline"))}


def test_steps_grow_and_a_resumed_stage_grows_alike(recipe_file, tmp_path):
    """One batch a step, then three: the same weights whether or not a new process takes over in between."""
    growing = ["data.batches_per_step=1", "data.batch_growth=[{tokens: 3000, batches: 3}]", "log_every_steps=1"]
    growing += ["optimizer.decay_fraction=0", "data.virtual_workers=1", "data.workers=0"]
    whole = train(recipe_file, [*growing, "budget.tokens=9000", f"out={tmp_path / 'whole'}"])
    for tokens in (2000, 6000, 9000):
        split = train(recipe_file, [*growing, f"budget.tokens={tokens}", f"out={tmp_path / 'split'}"])
    a, b = (read_tensors(d / "model") for d in (whole, split))
    assert all(torch.equal(a[name], b[name]) for name in a)
    tokens = [0, *(r["tokens"] for r in read_metrics(whole / "metrics.jsonl"))]
    steps = [(before, after - before) for before, after in itertools.pairwise(tokens)]
    small = max(n for before, n in steps if before < 3000)
    assert all(n > 2 * small for before, n in steps if before >= 3000)
    with pytest.raises(ValueError, match="batch_growth needs batches_per_step"):
        load_recipe(recipe_file, growing[1:2])
    with pytest.raises(ValueError, match=r"data.batch_growth.0.batches \(3\) must be a multiple of the 2"):
        load_recipe(recipe_file, [*growing, "data.batches_per_step=2"]).data.batches_of(2)


def test_gradients_of_many_batches_are_added_up_in_fp32(recipe_file):
    """Sixteen times the same batch, each with a sixteenth of the weight, is that batch: bf16 sums would not be."""
    recipe = load_recipe(recipe_file, ["precision=bf16", "zero_stage=2", "data.workers=0"])
    Ranks()
    model, processor = build_model(recipe)
    batch = next(iter(Loader(recipe.data, processor, 0))).to(torch.device("cpu"))
    engine, norms = make_engine(Objective(model, 0.0, 2), recipe), []
    for group in engine.optimizer.param_groups:
        group["lr"] = 0.0
    for count in (1, 16):
        set_accumulation(engine, count)
        for _ in range(count):
            engine.backward(engine(batch, len(batch.targets_L) * count, count)[0])
            engine.step()
        norms.append(float(engine.get_global_grad_norm()))
    assert norms[1] == pytest.approx(norms[0], rel=1e-6)


def command_line(recipe: str, *overrides: str) -> None:
    """`mmvl train` in a session of its own, as a terminal starts it."""
    os.setsid()
    sys.argv = ["mmvl", "train", recipe, *(word for override in overrides for word in ("--set", override))]
    cli.main()


def test_a_signal_saves_first(recipe_file, tmp_path):
    """A run that is told to end in the middle leaves a checkpoint, and the same command goes on from it.

    Terminals and job schedulers signal every process of a job, so the loader's workers get the signal as well.
    """
    (run,) = start_ranks(command_line, 1, str(recipe_file), "budget.tokens=100000000", "data.workers=2")
    metrics = tmp_path / "out" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < deadline and run.is_alive():
        time.sleep(0.05)
    os.killpg(run.pid, signal.SIGTERM)
    run.join(60)
    assert run.exitcode == 130
    step = json.loads(metrics.read_text().splitlines()[-1])["step"]
    tokens = json.loads((tmp_path / "out" / "ledger.json").read_text())["tokens"]
    train(recipe_file, [f"budget.tokens={tokens + 1000}"])
    assert json.loads(metrics.read_text().splitlines()[-1])["step"] > step


def test_a_checkpoint_that_cannot_be_written_does_not_stop_the_run(recipe_file, tmp_path, monkeypatch):
    """The disk is full for a while: one line each time, the old checkpoint stays, the run ends as if nothing was."""
    settings = ["budget.tokens=4000", "save_every_steps=2"]
    whole = train(recipe_file, [*settings, f"out={tmp_path / 'whole'}"])
    write, calls = checkpoints.write_safetensors, itertools.count()

    def sometimes_full(path, *args):
        write(path, *args)
        if next(calls) in (1, 2):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(checkpoints, "write_safetensors", sometimes_full)
    lines = io.StringIO()
    out = train(recipe_file, [*settings, f"out={tmp_path / 'out'}"], Console(file=lines, width=500))
    told = [line for line in lines.getvalue().splitlines() if "could not be written" in line]
    assert [line.split()[1] for line in told] == ["step-000000004", "step-000000006"]
    assert all("No space left on device" in line and "step-000000002 stays the newest" in line for line in told)
    assert (out / "model" / "model.safetensors").read_bytes() == (whole / "model" / "model.safetensors").read_bytes()

    def full(path, *args):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(checkpoints, "write_safetensors", full)
    with pytest.raises(OSError, match="the last checkpoint of tiny could not be written"):
        train(recipe_file, [f"out={tmp_path / 'full'}"], Console(quiet=True))


@pytest.mark.parametrize("at", [1, 2])
def test_profile_of_some_steps(recipe_file, tmp_path, at):
    """The table says what the steps were made of, also where the stage ends amid them; training is not changed."""
    plain = train(recipe_file, ["budget.tokens=1200", f"out={tmp_path / 'plain'}"])
    out = train(recipe_file, ["budget.tokens=1200", f"profile_at_step={at}", f"out={tmp_path / 'profiled'}"])
    table = (out / "profile.txt").read_text()
    assert table.startswith(f"3 steps from step {at} on\n") and "aten::mm" in table
    trace = json.loads(gzip.decompress((out / "profile-trace.json.gz").read_bytes()))
    assert any(event.get("name") == "aten::mm" for event in trace["traceEvents"])
    assert (out / "model" / "model.safetensors").read_bytes() == (plain / "model" / "model.safetensors").read_bytes()
    assert not (plain / "profile.txt").exists()


def test_zero_stages_agree(recipe_file, tmp_path):
    out = train(recipe_file, ["zero_stage=2", "budget.tokens=1200", f"out={tmp_path / 'zero'}"])
    plain = train(recipe_file, ["zero_stage=1", "budget.tokens=1200", f"out={tmp_path / 'plain'}"])
    a, b = (load_model(d / "model").state_dict() for d in (out, plain))
    assert all(torch.allclose(a[name], b[name], atol=1e-6) for name in a)


def test_what_does_not_fit_is_one_line(recipe_file, tiny_model_dir, tmp_path):
    with pytest.raises(FileNotFoundError, match="no nowhere.json; the paths in a recipe"):
        train(recipe_file, ["model_config_file=nowhere.json"])
    with pytest.raises(FileNotFoundError, match="no tokenizer.json"):
        train(recipe_file, [f"tokenizer={tmp_path}"])
    with pytest.raises(FileNotFoundError, match="no shards"):
        train(recipe_file, [f"data.sources.0.path={tmp_path}"])
    text_only = tmp_path / "text-only"
    save_model(load_model(tiny_model_dir).language_model, text_only)
    with pytest.raises(ValueError, match="text-only model"):
        train(recipe_file, [f"init_from={text_only}", "model_config_file=null", "tokenizer=null"])
