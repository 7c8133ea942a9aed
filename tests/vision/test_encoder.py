"""The ViT against transformers' CLIPVisionModel with the same weights, through the released tensor names."""

import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModel

from mmvl.vision.adapter import Adapter
from mmvl.vision.config import CLIP_MEAN, CLIP_STD, VisionConfig
from mmvl.vision.encoder import VisionTower, normalize
from mmvl.vision.names import from_released, released_names, to_released

CONFIG = VisionConfig(
    hidden_size=64, intermediate_size=160, num_hidden_layers=3, num_attention_heads=4, image_size=56, patch_size=14
)
PREFIX = "vision_tower.vision_model."


def relative_error(ours, theirs):
    return ((ours - theirs).norm() / theirs.norm()).item()


@pytest.fixture(scope="module")
def released():
    generator = torch.Generator().manual_seed(0)
    shapes = released_names(CONFIG, text_hidden=48)
    return {name: 0.3 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


@pytest.fixture
def ours(released):
    tower = VisionTower(CONFIG)
    state = {k.removeprefix("vision_tower."): v for k, v in from_released(released).items() if "vision_tower" in k}
    tower.load_state_dict(state)
    return tower.eval()


@pytest.fixture
def theirs(released):
    model = CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=64,
            intermediate_size=160,
            num_hidden_layers=3,
            num_attention_heads=4,
            image_size=56,
            patch_size=14,
            hidden_act="gelu",
            layer_norm_eps=1e-5,
        )
    )
    inner = "vision_model." if any(k.startswith("vision_model.") for k in model.state_dict()) else ""
    state = {inner + k.removeprefix(PREFIX): v for k, v in released.items() if k.startswith(PREFIX)}
    missing, surplus = model.load_state_dict(state, strict=False)
    assert not surplus and all("post_layernorm" in k or "position_ids" in k for k in missing)
    return model.eval()


def test_equals_clip(ours, theirs):
    tiles = torch.randint(0, 256, (3, 3, 56, 56), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (CLIP_MEAN, CLIP_STD))
    pixels = (tiles / 255 - mean) / std
    with torch.no_grad():
        last_NPC = theirs(pixel_values=pixels, output_hidden_states=True).hidden_states[-1][:, 1:]
        assert relative_error(ours(pixels), last_NPC) < 1e-5
        assert relative_error(ours(tiles), last_NPC) < 1e-5
    assert last_NPC.shape == (3, CONFIG.patches, 64)


def test_gradients_equal_clip(ours, theirs):
    pixels = torch.randn(2, 3, 56, 56, generator=torch.Generator().manual_seed(2))
    direction = torch.randn(2, CONFIG.patches, 64, generator=torch.Generator().manual_seed(3))
    (ours(pixels) * direction).sum().backward()
    last_NPC = theirs(pixel_values=pixels, output_hidden_states=True).hidden_states[-1][:, 1:]
    (last_NPC * direction).sum().backward()
    mine = to_released({f"vision_tower.{k}": v.grad for k, v in ours.named_parameters()})
    other = {k.removeprefix("vision_model."): v.grad for k, v in theirs.named_parameters() if v.grad is not None}
    assert len(mine) == len(other)
    for name, gradient in mine.items():
        short = name.removeprefix(PREFIX)
        if "k_proj.bias" in name:  # softmax does not see it: its gradient is rounding noise
            continue
        assert relative_error(gradient, other[short]) < 1e-4, name


def test_tiles_do_not_see_each_other(ours):
    tiles = torch.randint(0, 256, (4, 3, 56, 56), dtype=torch.uint8)
    with torch.no_grad():
        torch.testing.assert_close(ours(tiles)[2:3], ours(tiles[2:3]), rtol=1e-5, atol=1e-5)


def test_normalize():
    tiles = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(1, 3, 16, 16)
    before = tiles.clone()
    x_N3TT = normalize(tiles, (0.5, 0.25, 0.0), (0.5, 0.25, 1.0))
    assert x_N3TT.dtype == torch.float32 and torch.equal(tiles, before)
    torch.testing.assert_close(x_N3TT[0, 0].flatten()[[0, 255]], torch.tensor([-1.0, 1.0]))
    torch.testing.assert_close(x_N3TT[0, 1].flatten()[[0, 255]], torch.tensor([-1.0, 3.0]))
    torch.testing.assert_close(x_N3TT[0, 2].flatten()[[0, 255]], torch.tensor([0.0, 1.0]))


def test_bfloat16_follows_the_weights(ours):
    tiles = torch.randint(0, 256, (2, 3, 56, 56), dtype=torch.uint8)
    with torch.no_grad():
        full = ours(tiles)
        half = ours.bfloat16()(tiles)
    assert half.dtype == torch.bfloat16 and relative_error(half.float(), full) < 0.05


def test_released_size():
    """MiniMax-VL-01's vision half: 394 tensors, their shapes, the published numbers of parameters."""
    with torch.device("meta"):
        tower, adapter = VisionTower(VisionConfig()), Adapter(1024, 6144)
        state = {f"vision_tower.{k}": v for k, v in tower.state_dict().items()}
        state |= {f"multi_modal_projector.{k}": v for k, v in adapter.state_dict().items()}
        state["image_newline"] = torch.empty(6144)
        names = released_names(VisionConfig(), 6144)
        assert {k: tuple(v.shape) for k, v in to_released(state).items()} == names
    assert len(names) == 394
    assert sum(p.numel() for p in tower.parameters()) == 303_505_408
    assert sum(p.numel() for p in adapter.parameters()) == 44_052_480
    assert {k: v.shape for k, v in from_released(to_released(state)).items()} == {k: v.shape for k, v in state.items()}


@pytest.mark.parametrize("width", [56, 112, 1152])
def test_any_width_of_the_mlp_is_exact(width):
    """56 * (488 / 56) is a hair under 488, which timm would round down to 487."""
    for inner in (488, 920, 976, 3072, 4304):
        config = VisionConfig(hidden_size=width, intermediate_size=inner, num_attention_heads=8, num_hidden_layers=1)
        with torch.device("meta"):
            assert VisionTower(config).vit.blocks[0].mlp.fc1.out_features == inner


def test_names_round_trip(released):
    again = to_released(from_released(released))
    assert again.keys() == released.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in released.items())


def test_names_refuse(released):
    with pytest.raises(ValueError, match="post_layernorm"):
        from_released({PREFIX + "post_layernorm.weight": torch.ones(64)})
    partial = {k: v for k, v in released.items() if "layers.1.self_attn.k_proj.bias" not in k}
    with pytest.raises(ValueError, match="layer 1 lacks the bias of k_proj"):
        from_released(partial)
    with pytest.raises(ValueError, match="language_model"):
        to_released({"language_model.lm_head.weight": torch.ones(1)})
    with pytest.raises(ValueError, match="q_norm"):
        to_released({"vision_tower.vit.blocks.0.attn.q_norm.weight": torch.ones(1)})
