"""Growth: the larger model computes what the smaller one did, and what is not growth is refused."""

from dataclasses import replace

import pytest
import torch
from PIL import Image

from mmvl.checkpoint import load_config, load_model
from mmvl.json_files import write_json
from mmvl.model import ImageBatch
from mmvl.processor import Processor
from mmvl.text_backbone.packed import Packed
from mmvl.training.grow import decay_change, grow, grown

LAYERS, BLOCKS = (0, 1, 3), (0, 2)


@pytest.fixture(scope="module")
def small(tiny_model_dir):
    return load_model(tiny_model_dir, dtype=torch.float64)


@pytest.fixture(scope="module")
def larger(small):
    """Two layers, a block, half as wide experts again, one canvas more."""
    config = small.config
    text = replace(config.text, num_hidden_layers=5, attn_type_list=(0, 0, 1, 1, 0), intermediate_size=24)
    vision = replace(config.vision, num_hidden_layers=3)
    grids = (*config.image_grid_pinpoints, (84, 28))
    return replace(config, text=text, vision=vision, image_grid_pinpoints=grids)


def hidden(model, directory):
    processor = Processor.from_pretrained(directory)
    prompt = processor.encode([{"role": "user", "content": [
        {"type": "image", "image": Image.radial_gradient("L").resize((50, 40))},
        {"type": "text", "text": "what is the shape?"},
    ]}])  # fmt: skip
    ids = torch.tensor(prompt.token_ids)
    with torch.no_grad():
        return model(ids, Packed.from_lengths([len(ids)], "cpu"), ImageBatch.from_images(prompt.images)).hidden_TD


def test_the_same_is_computed(small, larger, tiny_model_dir):
    big = grown(small, larger, LAYERS, BLOCKS)
    for number in (0, 1):  # the decay, which hangs on the depth, as it was
        attention = small.language_model.model.layers[number].self_attn
        big.language_model.model.layers[number].self_attn.slopes = attention.slopes
    want, got = hidden(small, tiny_model_dir), hidden(big, tiny_model_dir)
    assert (got - want).norm() / want.norm() < 1e-4, "but for the norms' epsilon"


def test_what_is_new_learns(small, larger, tiny_model_dir):
    """No gradient is cut off behind the zeros."""
    big = grown(small, larger, LAYERS, BLOCKS).train()
    processor = Processor.from_pretrained(tiny_model_dir)
    ids = torch.tensor(processor.encode_text("what is the shape?") * 3)
    big(ids, Packed.from_lengths([len(ids)], "cpu")).hidden_TD.square().sum().backward()
    for number in (2, 4):
        layer = big.language_model.model.layers[number]
        out = layer.self_attn.o_proj if number == 2 else layer.self_attn.out_proj
        assert not out.weight.any() and out.weight.grad.abs().max() > 0
        assert layer.block_sparse_moe.experts.w2.grad.abs().max() > 0
    wider = big.language_model.model.layers[0].block_sparse_moe.experts
    assert not wider.w2[..., 16:].any() and wider.w2.grad[..., 16:].abs().max() > 0 and wider.w1[:, 16:].any()


def test_files(tiny_model_dir, larger, tmp_path):
    write_json(tmp_path / "larger.json", larger.to_dict())
    change = grow(tiny_model_dir, tmp_path / "larger.json", tmp_path / "big", LAYERS, BLOCKS)
    assert load_config(tmp_path / "big") == larger
    assert Processor.from_pretrained(tmp_path / "big").tiling.grid_pinpoints == larger.image_grid_pinpoints
    assert change == pytest.approx((1 - 1 / 4) / (1 - 1 / 2) - 1, rel=1e-3), "layer 1 of 3 has become layer 1 of 5"
    small, big = load_model(tiny_model_dir), load_model(tmp_path / "big")
    assert decay_change(small, big, LAYERS) == change
    assert torch.equal(small.image_newline, big.image_newline)


@pytest.mark.parametrize(
    ("text", "vision", "layers", "message"),
    [
        ({"hidden_size": 64}, {}, LAYERS, "hidden_size is 64, the model's is 32"),
        ({"intermediate_size": 8}, {}, LAYERS, "shrinks from 16 to 8"),
        ({}, {"hidden_size": 64}, LAYERS, "vision_config: hidden_size"),
        ({}, {}, (0, 1), "give 3 rising places from 0 to 4"),
        ({}, {}, (0, 1, 5), "not 0,1,5"),
        ({}, {}, (0, 2, 3), "layer 1 would come to place 2"),
    ],
)
def test_refusals(small, larger, text, vision, layers, message):
    config = replace(larger, text=replace(larger.text, **text), vision=replace(larger.vision, **vision))
    with pytest.raises(ValueError, match=message):
        grown(small, config, layers, BLOCKS)


def test_canvases_stay(small, larger):
    with pytest.raises(ValueError, match="canvases may only join"):
        grown(small, replace(larger, image_grid_pinpoints=((28, 28),)), LAYERS, BLOCKS)
