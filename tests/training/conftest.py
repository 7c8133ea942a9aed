"""Small shards, a tokenizer directory and a recipe that trains in seconds."""

import io
import json
import random

import pytest
import yaml
from PIL import Image, ImageDraw

from mmvl.data.shards import ShardWriter

WORDS = ("red", "green", "blue", "circle", "what", "is", "the", "shape", "there", "a")


def _sentence(rng, n):
    return " ".join(rng.choice(WORDS) for _ in range(n))


@pytest.fixture(scope="session")
def shards(tmp_path_factory):
    """Directories `text` (30 documents) and `colours` (30 pictures with a question)."""
    root = tmp_path_factory.mktemp("shards")
    rng = random.Random(0)
    with ShardWriter(root / "text", "text") as writer:
        for _ in range(30):
            writer.write({"source": "words", "kind": "text", "text": _sentence(rng, rng.randint(3, 30))})
    with ShardWriter(root / "colours", "colours") as writer:
        for i in range(30):
            colour = ("red", "green", "blue")[i % 3]
            picture = Image.new("RGB", (rng.randint(10, 60), rng.randint(10, 60)), "white")
            ImageDraw.Draw(picture).ellipse((2, 2, picture.width - 2, picture.height - 2), fill=colour)
            data = io.BytesIO()
            picture.save(data, "PNG")
            content = [{"type": "image", "file": "0.png"}, {"type": "text", "text": "what is the shape?"}]
            messages = [
                {"role": "user", "content": content},
                {"role": "assistant", "content": [{"type": "text", "text": f"a {colour} circle"}]},
            ]
            record = {"source": "colours", "kind": "vqa", "meta": {}, "messages": messages}
            writer.write(record, {"0.png": data.getvalue()})
    return root


@pytest.fixture(scope="session")
def more_shards(tmp_path_factory):
    """Directories `pages` (20 interleaved documents, two pictures each) and `pairs` (24 preference pairs)."""
    root = tmp_path_factory.mktemp("more-shards")
    rng = random.Random(1)

    def picture(colour) -> bytes:
        data = io.BytesIO()
        Image.new("RGB", (rng.randint(10, 60), rng.randint(10, 60)), colour).save(data, "PNG")
        return data.getvalue()

    def text(words) -> dict:
        return {"type": "text", "text": words}

    with ShardWriter(root / "pages", "pages") as writer:
        for _ in range(20):
            parts = [text("the red "), {"type": "image", "file": "0.png"}, text(_sentence(rng, 5))]
            record = {"source": "pages", "kind": "interleaved", "content": [*parts, {"type": "image", "file": "1.png"}]}
            writer.write(record, {"0.png": picture("red"), "1.png": picture("blue")})
    with ShardWriter(root / "pairs", "pairs") as writer:
        for i in range(24):
            image = [{"type": "image", "file": "0.png"}] if i % 2 else []
            turns = [
                {"role": "user", "content": [*image, text("what is there?")]},
                {"role": "assistant", "content": [text("a shape")]},
                {"role": "user", "content": [text("what is the shape?")]},
            ]
            answers = {"chosen": [text(f"a circle {i}")], "rejected": [text(_sentence(rng, 4))]}
            record = {"source": "pairs", "kind": "preference", "messages": turns, **answers}
            writer.write(record, {"0.png": picture("green")} if image else {})
    return root


@pytest.fixture(scope="session")
def recipe_dict(shards, tiny_model_dir, tiny_tokenizer, tmp_path_factory):
    """A whole training recipe, from random weights of the tiny model's config."""
    tokenizer = tmp_path_factory.mktemp("tokenizer")
    tiny_tokenizer.save(str(tokenizer / "tokenizer.json"))
    return {
        "stage": "train",
        "name": "tiny",
        "out": "out",
        "model_config_file": str(tiny_model_dir / "config.json"),
        "tokenizer": str(tokenizer),
        "trainable": ["language_model", "vision_tower", "multi_modal_projector"],
        "seed": 1,
        "precision": "fp32",
        "zero_stage": 1,
        "balance_loss": 0.01,
        "data": {
            "sources": [
                {"path": str(shards / "colours"), "weight": 2.0},
                {"path": str(shards / "text"), "weight": 1.0},
            ],
            "batch_tokens": 400,
            "batch_tiles": 40,
            "max_sample_tokens": 256,
            "workers": 0,
            "virtual_workers": 4,
        },
        "optimizer": {
            "lr": 3e-3,
            "betas": [0.9, 0.95],
            "weight_decay": 0.1,
            "clip": 1.0,
            "warmup_steps": 2,
            "decay_fraction": 0.5,
            "final_lr_ratio": 0.1,
        },
        "budget": {"tokens": 4000, "minutes": None},
        "log_every_steps": 2,
        "save_every_minutes": 100,
    }


@pytest.fixture(scope="session")
def contrastive_dict(recipe_dict, shards):
    """A recipe of a contrastive stage over the pictures of `shards`."""
    return {
        "stage": "contrastive",
        "name": "tiny-contrastive",
        "out": "out",
        "model_config_file": recipe_dict["model_config_file"],
        "tokenizer": recipe_dict["tokenizer"],
        "image_size": 28,
        "seed": 3,
        "precision": "fp32",
        "contrastive": {
            "embed_dim": 16,
            "pooler_queries": 4,
            "pooler_heads": 2,
            "clip_weight": 1.0,
            "caption_weight": 2.0,
            "text": {"width": 32, "heads": 2, "layers": 1, "decoder_layers": 1, "context": 20},
        },
        "data": {"sources": [{"path": str(shards / "colours"), "weight": 1.0}], "batch_pairs": 8, "workers": 0},
        "optimizer": recipe_dict["optimizer"],
        "budget": {"pairs": 320},
        "log_every_steps": 4,
        "save_every_minutes": 100,
    }


@pytest.fixture
def recipe_file(recipe_dict, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(json.loads(json.dumps(recipe_dict)) | {"out": str(tmp_path / "out")}))
    return path
