"""Direct preference optimisation: the loss, its reference, the early stop, and a stage that prefers what it should."""

import io
import json
import math

import pytest
import torch
import yaml
from PIL import Image

from mmvl.checkpoint import load_model, read_tensors
from mmvl.data.shards import ShardSource, ShardWriter
from mmvl.processor import Processor
from mmvl.text_backbone.packed import Packed
from mmvl.training.batch import Batch
from mmvl.training.loader import Encode
from mmvl.training.preference import Kept, PreferenceObjective, dpo_loss
from mmvl.training.report import read_metrics
from mmvl.training.train import train
from tests.processes import run_ranks

COLOURS = ("red", "green", "blue")


def text(s):
    return [{"type": "text", "text": s}]


@pytest.fixture(scope="module")
def pair_shards(tmp_path_factory):
    """`seen`: 24 pairs with a picture, the colour right or wrong. `read`: 12 pairs of text."""
    root = tmp_path_factory.mktemp("pairs")
    with ShardWriter(root / "seen", "seen") as writer:
        for i in range(24):
            data = io.BytesIO()
            Image.new("RGB", (20 + i, 30), COLOURS[i % 3]).save(data, "PNG")
            asked = [{"type": "image", "file": "0.png"}, *text("what is the shape?")]
            record = {"source": "seen", "kind": "preference", "messages": [{"role": "user", "content": asked}]}
            record |= {"chosen": text(f"a {COLOURS[i % 3]} circle"), "rejected": text(f"the {COLOURS[(i + 1) % 3]}")}
            writer.write(record, {"0.png": data.getvalue()})
    with ShardWriter(root / "read", "read") as writer:
        for i in range(12):
            messages = [{"role": "user", "content": text(f"what is {COLOURS[i % 3]}?")}]
            answers = {"chosen": text("a circle there"), "rejected": text("the shape is what is the shape")}
            writer.write({"source": "read", "kind": "preference", "messages": messages} | answers)
    return root


@pytest.fixture
def preference_file(recipe_dict, pair_shards, tiny_model_dir, tmp_path):
    d = json.loads(json.dumps(recipe_dict)) | {"stage": "preference", "out": str(tmp_path / "out")}
    del d["model_config_file"], d["tokenizer"]
    d["init_from"] = str(tiny_model_dir)
    d["data"]["sources"] = [{"path": str(pair_shards / n), "weight": w} for n, w in (("seen", 2), ("read", 1))]
    d["data"]["batch_tokens"] = 500
    d["data"]["virtual_workers"] = 2
    d["optimizer"] |= {"lr": 1e-3, "decay_fraction": 0.0}
    d["budget"]["tokens"] = 10**6
    d["preference"] = {
        "beta": 0.5,
        "sft_weight": 0.1,
        "held_out": 0.3,
        "check_every_steps": 4,
        "patience": 3,
        "max_epochs": 2.5,
    }
    path = tmp_path / "preference.yaml"
    path.write_text(yaml.safe_dump(d))
    return path


def test_the_loss_is_the_papers():
    generator = torch.Generator().manual_seed(0)
    policy, reference = torch.randn(2, 5, generator=generator) * 9 - 20, torch.randn(5, 2, generator=generator) * 9 - 20
    loss, margin = dpo_loss(policy[0], policy[1], reference, beta=0.3)
    for i in range(5):
        ratio = [policy[j, i].item() - reference[i, j].item() for j in (0, 1)]
        plain = -math.log(1 / (1 + math.exp(-0.3 * (ratio[0] - ratio[1]))))
        assert loss[i].item() == pytest.approx(plain, rel=1e-4, abs=1e-6)
        assert (margin[i] > 0) == (ratio[0] > ratio[1])
    same, _ = dpo_loss(reference[:, 0], reference[:, 1], reference, beta=0.3)
    assert torch.allclose(same, torch.full((5,), math.log(2))), "where the policy is the reference"


def test_a_pairs_log_probabilities_are_those_of_its_answers_alone(pair_shards, tiny_model_dir):
    model, processor = load_model(tiny_model_dir, dtype=torch.float32), Processor.from_pretrained(tiny_model_dir)
    encode = Encode(processor, 300, ["seen", "read"], pairs=True)
    seen, read = (ShardSource.from_dir(pair_shards / n) for n in ("seen", "read"))
    examples = [encode((0, seen[0])), encode((1, read[1])), encode((0, seen[4]))]
    batch = Batch.collate(examples, 2, processor.image_id).to(torch.device("cpu"))
    objective = PreferenceObjective(model, 0.0, 2, beta=0.5, sft_weight=0.2)
    log_p, tokens, source, _ = objective.answers(batch)
    assert source.tolist() == [0, 0, 1, 1, 0, 0]
    x_TD = model.embed(batch.ids_T, model.embed_images(batch.images), batch.image_positions_I)
    start, plain = 0, []
    for document, length in zip([d for e in examples for d in e.documents], batch.lengths, strict=True):
        alone = model.language_model(x_TD[start : start + length], Packed.from_lengths((length,), "cpu"))
        table = model.language_model.logits(alone.hidden_TD).log_softmax(-1)
        learned = [i for i in range(1, length) if document.loss_mask[i]]
        assert processor.decode([document.token_ids[i] for i in learned]).strip().startswith(("a ", "the "))
        plain.append(sum(table[i - 1, document.token_ids[i]].item() for i in learned))
        start += length
    assert log_p.tolist() == pytest.approx(plain, rel=1e-4)
    objective.reference = {e.key: (-3.0, -4.0) for e in examples}
    loss, figures = objective(batch)
    margins = [0.5 * ((plain[2 * i] + 3) - (plain[2 * i + 1] + 4)) for i in range(3)]
    terms = [math.log1p(math.exp(-m)) - 0.2 * plain[2 * i] / tokens[2 * i].item() for i, m in enumerate(margins)]
    assert loss.item() == pytest.approx(sum(terms) / 3, rel=1e-4)
    assert figures["by_source"][2].tolist() == [2, 1]
    assert figures["by_source"][0].sum().item() == pytest.approx(sum(terms), rel=1e-4)


def test_what_is_held_out_is_the_same_everywhere():
    keys = [f"seen/{i}" for i in range(2000)]
    held = [key for key in keys if not Kept(0.1, 7)(key)]
    assert 140 < len(held) < 260
    assert held != [key for key in keys if not Kept(0.1, 8)(key)]


def test_a_stage_prefers_what_was_chosen_and_resumes_exactly(preference_file, tmp_path):
    whole = train(preference_file, [f"out={tmp_path / 'whole'}"])
    checks = read_metrics(whole / "held-out.jsonl")
    assert checks[0]["step"] == 0 and checks[0]["accuracy"] == 0.0, "policy and reference are the same at the start"
    assert checks[-1]["loss"] < 0.7 * checks[0]["loss"] and checks[-1]["accuracy"] > 0.9
    reference = json.loads((whole / "reference.json").read_text())["log_probabilities"]
    assert len(reference) == 36 and {key.split("/")[0] for key in reference} == {"seen", "read"}
    learned = 36 - checks[0]["pairs"]
    samples = sum(r["samples"] for r in json.loads((whole / "ledger.json").read_text())["sources"].values())
    assert 2.5 <= samples / learned < 3.5, "it ends with its epochs, long before its budget"

    split = tmp_path / "split"
    train(preference_file, [f"out={split}", "preference.max_epochs=1"])
    made = (split / "reference.json").stat().st_mtime_ns
    train(preference_file, [f"out={split}"])
    assert (split / "reference.json").stat().st_mtime_ns == made, "the reference is computed once"
    a, b = (read_tensors(d / "model") for d in (whole, split))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert read_metrics(split / "held-out.jsonl") == checks

    (split / "reference.json").unlink()
    with pytest.raises(ValueError, match="the model has moved on"):
        train(preference_file, [f"out={split}"])


@pytest.mark.parametrize("shared", ["parallel.expert=2", "parallel={sequence: 2, expert: 2}"])
def test_two_ranks_that_share_experts_or_rows_prefer_what_one_does(preference_file, tmp_path, shared):
    """Also the reference and the held-out pairs are computed together: ranks meet in every forward pass."""
    changes = ["preference.max_epochs=1.0", "data.batches_per_step=2"]
    one, two = train(preference_file, [*changes, f"out={tmp_path / 'one'}"]), tmp_path / "two"
    run_ranks(train, 2, preference_file, [*changes, shared, f"out={two}"])
    a, b = (read_tensors(d / "model") for d in (one, two))
    assert max((a[name] - b[name]).abs().max().item() for name in a) < 1e-6
    for name in ("held-out.jsonl", "metrics.jsonl"):
        for mine, theirs in zip(*(read_metrics(d / name) for d in (one, two)), strict=True):
            keys = {"loss", "pairs", "tokens"}
            keys |= {"accuracy"} if mine["step"] else set()  # at first both answers are as likely as in the reference
            for key in mine.keys() & keys:
                assert mine[key] == pytest.approx(theirs[key], rel=1e-5), (name, mine["step"], key)


def test_it_stops_early_when_held_out_pairs_get_no_better(preference_file, tmp_path):
    """With a rate of nearly nothing no check is better than the first."""
    changes = ["optimizer.lr=1e-12", "optimizer.weight_decay=0", "preference.check_every_steps=1", "log_every_steps=1"]
    out = train(preference_file, [*changes, "preference.patience=2", f"out={tmp_path / 'flat'}"])
    assert [check["step"] for check in read_metrics(out / "held-out.jsonl")] == [0, 1, 2]
    assert (out / "model" / "config.json").is_file()


def test_what_a_preference_stage_refuses(preference_file):
    with pytest.raises(ValueError, match="both must be above 0"):
        train(preference_file, ["preference.held_out=1e-9"])
