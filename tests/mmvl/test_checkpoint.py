"""Checkpoints: the released layout, both ways; damage and misfits are refused with one line."""

import dataclasses
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from mmvl.checkpoint import load_config, load_model, names_digest, read_tensors, released_names, save_model
from mmvl.config import VLConfig
from mmvl.model import VLModel
from mmvl.text_backbone.config import TextConfig
from mmvl.text_backbone.decoder import Decoder
from mmvl.text_backbone.packed import Packed
from mmvl.vision.config import VisionConfig, released_grid_pinpoints

# Of the sorted names of the released MiniMax-VL-01, joined by line breaks.
RELEASED_DIGEST = "d0caf1b714cdfc4caa65b56cbec591668d77b0e2a5d6cf3b5af169531311c886"


@pytest.fixture
def copy(tiny_model_dir, tmp_path):
    return shutil.copytree(tiny_model_dir, tmp_path / "copy")


def released_config() -> VLConfig:
    text = {
        "hidden_size": 6144,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "rotary_dim": 64,
        "rope_theta": 10_000_000,
        "vocab_size": 200_064,
        "intermediate_size": 9216,
        "num_local_experts": 32,
        "num_experts_per_tok": 2,
        "attn_type_list": ([0] * 7 + [1]) * 10,
        "postnorm": True,
        "shared_intermediate_size": [0],
        "tie_word_embeddings": False,
    }
    return VLConfig(TextConfig.from_dict(text), VisionConfig(), 200_025, released_grid_pinpoints())


def test_released_names_are_exact():
    names = released_names(released_config())
    assert len(names) == 8637
    assert names_digest(names) == RELEASED_DIGEST
    assert sum(torch.Size(shape).numel() for shape in names.values()) == 456_437_219_328


def test_the_modules_hold_exactly_the_released_tensors():
    """On the meta device, without 912 GB: what our classes make fits the names and shapes of the release."""
    from mmvl.checkpoint import to_released

    with torch.device("meta"):
        model = VLModel(released_config())
    shapes = {name: tuple(t.shape) for name, t in to_released(model.state_dict(), model.config).items()}
    assert shapes == released_names(model.config)


@pytest.mark.parametrize("max_shard_bytes", [10**9, 30_000])
def test_save_load_save_gives_identical_bytes(tiny_model_dir, tmp_path, max_shard_bytes):
    save_model(load_model(tiny_model_dir), tmp_path / "a", max_shard_bytes=max_shard_bytes)
    save_model(load_model(tmp_path / "a"), tmp_path / "b", max_shard_bytes=max_shard_bytes)
    files = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert files == sorted(p.name for p in (tmp_path / "b").iterdir())
    assert (len(files) > 5) == (max_shard_bytes < 10**9)
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_saving_smaller_over_sharded_leaves_no_old_shards(tiny_model_dir, tmp_path):
    model = load_model(tiny_model_dir)
    save_model(model, tmp_path, max_shard_bytes=30_000)
    save_model(model, tmp_path)
    assert [p.name for p in tmp_path.glob("*.safetensors*")] == ["model.safetensors"]


def test_a_save_that_fails_loses_nothing(copy, monkeypatch):
    def full(*args, **kwargs):
        raise OSError("no space left on device")

    before = (copy / "model.safetensors").read_bytes()
    model = load_model(copy)
    monkeypatch.setattr("mmvl.checkpoint.write_safetensors", full)
    with pytest.raises(OSError, match="no space"):
        save_model(model, copy)
    assert (copy / "model.safetensors").read_bytes() == before
    assert load_config(copy) == model.config


def test_dtype_is_kept_or_converted(tiny_model_dir, tmp_path):
    assert load_model(tiny_model_dir).dtype == torch.float32
    save_model(load_model(tiny_model_dir), tmp_path, dtype=torch.bfloat16)
    assert json.loads((tmp_path / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert load_model(tmp_path).dtype == torch.bfloat16
    assert load_model(tmp_path, dtype=torch.float32).dtype == torch.float32


def test_native_names_of_the_whole_model_load(tiny_model_dir, copy):
    """The names of transformers' port of MiniMax-VL-01, with stacked experts, give the same model."""
    from mmvl.text_backbone import names as text_names

    tensors = read_tensors(tiny_model_dir)
    text = {k.removeprefix("language_model."): v for k, v in tensors.items() if k.startswith("language_model.")}
    native = {}
    for name, tensor in text_names.to_native(text_names.from_released(text)).items():
        native[name if name.startswith("lm_head") else name.replace("model.", "model.language_model.", 1)] = tensor
    for name, tensor in tensors.items():
        if not name.startswith("language_model."):
            native["model." + name.replace("vision_tower.vision_model.", "vision_tower.")] = tensor
    assert not native.keys() & tensors.keys()
    save_file({k: v.contiguous() for k, v in native.items()}, copy / "model.safetensors")
    ours, theirs = load_model(tiny_model_dir).state_dict(), load_model(copy).state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_text_half_goes_to_transformers_and_back(tmp_path):
    from transformers import MiniMaxForCausalLM

    config = TextConfig(
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        rotary_dim=8,
        vocab_size=96,
        intermediate_size=16,
        num_local_experts=4,
        num_experts_per_tok=2,
        attn_type_list=(0, 0, 1),
        postnorm=True,
        eos_token_id=1,
    )
    ours = Decoder(config)
    ours.init_weights(0)
    save_model(ours, tmp_path / "native", native=True)
    theirs = MiniMaxForCausalLM.from_pretrained(tmp_path / "native", dtype=torch.float32)
    ids = torch.randint(0, 96, (50,), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = theirs(ids[None]).logits[0]
        got = ours.logits(ours(ours.embed(ids), Packed.from_lengths((50,), "cpu")).hidden_TD)
    assert (got - expected).norm() / expected.norm() < 1e-5
    theirs.save_pretrained(tmp_path / "theirs")
    back = load_model(tmp_path / "theirs")
    assert isinstance(back, Decoder)
    assert all(torch.equal(t, back.state_dict()[name]) for name, t in ours.state_dict().items())


def test_missing_surplus_and_misshapen_tensors_are_all_named(copy):
    tensors = load_file(copy / "model.safetensors")
    del tensors["image_newline"]
    tensors["language_model.model.norm.bias"] = torch.zeros(32)
    tensors["multi_modal_projector.linear_1.bias"] = torch.zeros(7)
    save_file(tensors, copy / "model.safetensors")
    with pytest.raises(ValueError) as e:
        load_model(copy)
    message = str(e.value)
    assert "1 missing: image_newline" in message
    assert "1 surplus: language_model.model.norm.bias" in message
    assert "multi_modal_projector.linear_1.bias is [7], config.json says [32]" in message
    assert "\n" not in message


def test_a_tied_head_written_out_is_taken_only_if_it_is_the_embedding(tiny_model_dir, tmp_path):
    config = load_config(tiny_model_dir)
    model = VLModel(dataclasses.replace(config, text=dataclasses.replace(config.text, tie_word_embeddings=True)))
    model.init_weights(0)
    save_model(model, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    assert "language_model.lm_head.weight" not in tensors
    tensors["language_model.lm_head.weight"] = tensors["language_model.model.embed_tokens.weight"].clone()
    save_file(tensors, tmp_path / "model.safetensors")
    assert load_model(tmp_path).state_dict().keys() == model.state_dict().keys()
    tensors["language_model.lm_head.weight"][3, 5] += 1
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="1 surplus: language_model.lm_head.weight"):
        load_model(tmp_path)


@pytest.mark.parametrize("damage", ["cut", "garbage", "empty"])
def test_corrupt_weights_are_refused(copy, damage):
    file = copy / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes({"cut": whole[: len(whole) // 2], "garbage": b"x" * 5000, "empty": b""}[damage])
    with pytest.raises(ValueError, match="model.safetensors is not a readable safetensors file"):
        load_model(copy)


def test_missing_files_are_named(copy, tmp_path):
    with pytest.raises(FileNotFoundError, match="no model directory"):
        load_model(tmp_path / "nowhere")
    (copy / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="model.safetensors missing"):
        load_model(copy)
    (copy / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match="no config.json"):
        load_config(copy)


def test_an_index_cannot_reach_outside(copy):
    index = {"weight_map": {"image_newline": "../x.safetensors"}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="outside"):
        load_model(copy)


@pytest.mark.parametrize(
    ("key", "value"), [("vision_feature_layer", -2), ("projector_hidden_act", "relu"), ("process_image_mode", "resize")]
)
def test_settings_with_another_forward_pass_are_refused(copy, key, value):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {key: value}))
    with pytest.raises(ValueError, match=key):
        load_model(copy)


def test_parts_of_sequences_that_change_nothing_are_told_of(tiny_model_dir, tmp_path):
    with pytest.warns(UserWarning, match="there is one rank"):
        load_model(tiny_model_dir, sequence_parallel=True)
    shared = dataclasses.replace(load_config(tiny_model_dir).text, shared_intermediate_size=16)
    model = Decoder(shared)
    model.init_weights(seed=0)
    save_model(model, tmp_path)
    with pytest.warns(UserWarning, match="beside a shared expert"):
        part = load_model(tmp_path, ranks=2, sequence_parallel=True)
    assert not part.shard.by_sequence
