"""Averages of models: every tensor the weighted sum, quantised ones as what they stand for, mistakes in one line."""

import json

import pytest
import torch
from typer.testing import CliRunner

from mmvl.app.cli import app
from mmvl.average import average_models
from mmvl.checkpoint import load_model, read_tensors, save_model
from mmvl.processor import Processor
from mmvl.quantize import quantize_model
from mmvl.vlm import MMVL_TINY


@pytest.fixture
def two(tiny_model_dir, tmp_path):
    """The tiny model, and the same with other weights."""
    other = load_model(tiny_model_dir, dtype=torch.float32)
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in other.parameters():
            p += 0.1 * torch.randn(p.shape, generator=g)
    save_model(other, tmp_path / "other")
    Processor.from_pretrained(tiny_model_dir).save(tmp_path / "other")
    return tiny_model_dir, tmp_path / "other"


def test_every_tensor_is_the_weighted_sum(two, tmp_path):
    average_models(two, tmp_path / "mean", [0.3, 0.7], dtype=torch.float32, max_shard_bytes=20_000)
    a, b, mean = map(read_tensors, (*two, tmp_path / "mean"))
    assert a.keys() == mean.keys() and len(list((tmp_path / "mean").glob("*.safetensors"))) > 1
    for name, tensor in mean.items():
        expected = (0.3 * a[name].double() + 0.7 * b[name].double()).float()
        assert torch.equal(tensor, expected), name
    load_model(tmp_path / "mean")
    assert (tmp_path / "mean" / "tokenizer.json").is_file()


def test_a_quantised_model_counts_as_what_it_stands_for(two, tmp_path):
    quantize_model(two[0], tmp_path / "int8", experts="int8", rest="all")
    average_models([two[1], tmp_path / "int8"], tmp_path / "mean", dtype=torch.float32)
    b, mean = read_tensors(two[1]), read_tensors(tmp_path / "mean")
    plain = load_model(tmp_path / "int8", dtype=torch.float32, quantize="none").state_dict()
    assert "quantization_config" not in json.loads((tmp_path / "mean" / "config.json").read_text())
    back = load_model(tmp_path / "mean", dtype=torch.float32).state_dict()
    other = load_model(two[1], dtype=torch.float32).state_dict()
    assert mean.keys() == b.keys()
    for name in back:
        torch.testing.assert_close(back[name], 0.5 * plain[name] + 0.5 * other[name], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ("0.5,0.6", "add up to 1.1, not to 1"),
        ("0.5", "2 models need 2 shares, not 1"),
        ("a,b", "--shares takes numbers"),
        ("nan,1", "not to 1"),
    ],
)
def test_mistakes_get_one_line(two, tmp_path, shares, message):
    run = CliRunner().invoke(app, ["average", *map(str, two), "-o", str(tmp_path / "mean"), "--shares", shares])
    assert isinstance(run.exception, ValueError) and message in str(run.exception)
    assert not (tmp_path / "mean").exists()


def test_models_of_other_shapes_are_refused(two, tmp_path):
    with pytest.raises(ValueError, match="are not of one shape"):
        average_models([MMVL_TINY, two[0]], tmp_path / "mean")
    with pytest.raises(ValueError, match="two models or more"):
        average_models(two[:1], tmp_path / "mean")
    with pytest.raises(ValueError, match="one of the models itself"):
        average_models(two, two[0])
