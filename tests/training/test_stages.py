"""The stages after each other, by the shipped tiny recipes on a little data: each starts from what another left."""

import io
import json
import random

import pytest
import torch
from PIL import Image

from mmvl.checkpoint import load_config, load_model, read_tensors
from mmvl.data.shards import ShardWriter
from mmvl.training.build import build_model
from mmvl.training.recipe import load_recipe
from mmvl.training.report import METRICS, progress_line, read_metrics
from mmvl.training.train import train
from tests.training.test_recipe import RECIPES

VISION, ADAPTER, TEXT = "vision_tower.", ("multi_modal_projector.", "image_newline"), "language_model."


@pytest.fixture(scope="module")
def preferences(tmp_path_factory):
    root, rng = tmp_path_factory.mktemp("pairs"), random.Random(0)
    with ShardWriter(root / "preferences", "preferences") as writer:
        for i in range(24):
            data = io.BytesIO()
            Image.new("RGB", (rng.randint(10, 60), 30), ("red", "green")[i % 2]).save(data, "PNG")
            asked = [{"type": "image", "file": "0.png"}, {"type": "text", "text": "what is the shape?"}]
            answers = [[{"type": "text", "text": f"a {c} circle"}] for c in (("red", "green"), ("green", "red"))[i % 2]]
            record = {"source": "pairs", "kind": "preference", "messages": [{"role": "user", "content": asked}]}
            writer.write(record | {"chosen": answers[0], "rejected": answers[1]}, {"0.png": data.getvalue()})
    return root


def moved(before, after):
    """First parts of the names of the tensors that differ."""
    a, b = (read_tensors(d) for d in (before, after))
    return {n.split(".")[0] for n in a if n not in b or not torch.equal(a[n].float(), b[n].float())}


def test_all_stages_in_turn(recipe_dict, shards, preferences, tmp_path, monkeypatch):
    """Text, context extension, ViT by CoCa, alignment, understanding, instruction, preference: two steps each."""
    monkeypatch.chdir(tmp_path)  # the recipes' paths count from here
    pictures, text = str(shards / "colours"), str(shards / "text")
    small = ["precision=fp32", "log_every_steps=1", "optimizer.warmup_steps=0"]
    rows = ["data.batch_tokens=400", "data.max_sample_tokens=256", "data.workers=0", "data.virtual_workers=2"]
    model = ["model_config_file=" + recipe_dict["model_config_file"], "tokenizer=" + recipe_dict["tokenizer"]]

    def run(name, *changes, sources, tokens=800):
        settings = [*small, f"data.sources={json.dumps(sources)}", *changes]
        if name != "contrastive":
            settings += [*rows, f"budget.tokens={tokens}"]
        return train(RECIPES / "tiny" / f"{name}.yaml", settings) / "model"

    one = [{"path": text, "weight": 1}]
    seen = [{"path": pictures, "weight": 20}, {"path": text, "weight": 1}]
    base = run("text", *model, sources=one)
    long = run("long-text", "max_positions=16384", sources=one)
    assert moved(base, long) == {"language_model"}
    config = load_config(long)
    assert (config.text.rope_theta, config.text.max_position_embeddings) == (1e5, 16384)
    assert load_model(long).language_model.config.rope_theta == 1e5, "and the decoder uses it"

    coca = ["contrastive.text={width: 16, heads: 2, layers: 1, decoder_layers: 1, context: 12}", "data.workers=0"]
    coca += ["contrastive.pooler_heads=2", "image_size=28", "data.batch_pairs=4", "budget.pairs=8", *model]
    tower = run("contrastive", *coca, sources=[{"path": pictures, "weight": 1}])
    assert not set(read_tensors(tower)) - set(read_tensors(long)), "released names, all of them the model's"

    aligned = run("alignment", sources=[{"path": pictures, "weight": 1}])
    assert moved(long, aligned) == {"vision_tower", "multi_modal_projector", "image_newline"}, "the decoder is frozen"
    started = build_model(load_recipe(RECIPES / "tiny" / "alignment.yaml", rows))[0]
    trained = started.vision_tower.state_dict()
    assert moved(tower, aligned) == {"vision_tower"} and all(torch.isfinite(t).all() for t in trained.values())
    understood = run("understanding", sources=seen)
    assert moved(aligned, understood) == {"vision_tower", "multi_modal_projector", "image_newline", "language_model"}
    sources = [{"path": pictures, "weight": 1}]
    instructed = run("instruction", "init_from=runs/tiny/understanding/model", sources=sources)
    pairs = [{"path": str(preferences / "preferences"), "weight": 1}]
    preferred = run("preference", "preference.held_out=0.3", "preference.max_epochs=0.5", sources=pairs, tokens=10**6)
    assert moved(instructed, preferred) == {"vision_tower", "multi_modal_projector", "image_newline", "language_model"}
    assert (preferred.parent / "reference.json").is_file() and (preferred.parent / "loss.png").is_file()
    assert load_config(preferred).text.rope_theta == 1e5, "settings of the stages before stay"

    records = read_metrics(understood.parent / METRICS)
    assert {"mfu", "memory_gib", "eta_seconds", "tflops", "grad_norm", "balance"} <= set(records[-1])
    assert records[-1]["tflops"] > 0 and records[-1]["memory_gib"] > 0
    line = progress_line(records[-1], 1.0)
    assert "\n" not in line
    for part in ("100.0% step", "loss", "tok/s", "mfu", "grad", "balance", "GiB", "eta 0m", "colours "):
        assert part in line, (part, line)


def test_the_numbers_go_to_tensorboard(recipe_file):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = train(recipe_file, ["budget.tokens=1600", "log_every_steps=1"])
    board = EventAccumulator(str(out / "tensorboard"))
    board.Reload()
    records = read_metrics(out / METRICS)
    assert [e.step for e in board.Scalars("loss")] == [r["step"] for r in records]
    assert board.Scalars("loss")[-1].value == pytest.approx(records[-1]["loss"], rel=1e-6)
    assert {"by_source/colours/loss", "by_source/text/accuracy", "grad_norm", "lr"} <= set(board.Tags()["scalars"])


def test_context_extension_changes_what_positions_mean(recipe_file, tiny_model_dir):
    start = ["model_config_file=null", "tokenizer=null", f"init_from={tiny_model_dir}"]
    theta = load_config(tiny_model_dir).text.rope_theta
    model, _ = build_model(load_recipe(recipe_file, [*start, f"rope_theta={theta * 50}", "max_positions=100000"]))
    assert model.language_model.config.rope_theta == model.config.text.rope_theta == theta * 50
    assert model.config.text.max_position_embeddings == 100000
    with pytest.raises(ValueError, match="below the model's"):
        build_model(load_recipe(recipe_file, [*start, f"rope_theta={theta / 2}"]))
    with pytest.raises(ValueError, match="raise max_positions"):
        build_model(load_recipe(recipe_file, [*start, "data.max_sample_tokens=99999", "data.batch_tokens=99999"]))
