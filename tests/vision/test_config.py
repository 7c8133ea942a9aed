"""Vision settings: read from both files of a model directory, written back, refused where they contradict."""

import dataclasses

import pytest

from mmvl.vision.config import CLIP_MEAN, TilingConfig, VisionConfig, released_grid_pinpoints

CONFIG = {
    "image_grid_pinpoints": [[112, 112], [224, 112]],
    "vision_config": {"image_size": 112, "patch_size": 14, "hidden_size": 64, "num_attention_heads": 4, "x": 1},
}


def test_defaults_are_the_released_shape():
    config = VisionConfig()
    assert config.patches == 576
    assert VisionConfig.from_dict({}) == config
    assert VisionConfig.from_dict(config.to_dict()) == config


def test_vision_config_round_trip():
    config = VisionConfig.from_dict(CONFIG["vision_config"] | {"projection_dim": 99})
    assert (config.image_size, config.hidden_size, config.projection_dim) == (112, 64, 99)
    assert VisionConfig.from_dict(config.to_dict()) == config
    assert config.to_dict()["model_type"] == "clip_vision_model"


@pytest.mark.parametrize(
    ("change", "word"),
    [({"hidden_act": "quick_gelu"}, "hidden_act"), ({"patch_size": 13}, "patch_size"), ({"hidden_size": 63}, "heads")],
)
def test_vision_config_refuses(change, word):
    with pytest.raises(ValueError, match=word):
        VisionConfig.from_dict(CONFIG["vision_config"] | change)


def test_tiling_from_files():
    tiling = TilingConfig.from_dicts(CONFIG)
    assert tiling == TilingConfig(112, 14, ((112, 112), (224, 112)))
    assert tiling.mean == CLIP_MEAN and tiling.thumbnail_tokens == 64
    other = dataclasses.replace(tiling, mean=(0.5, 0.5, 0.25))
    assert TilingConfig.from_dicts(CONFIG, other.to_preprocessor_dict()) == other
    text = CONFIG | {"image_grid_pinpoints": "[[112, 112], [224, 112]]"}
    assert TilingConfig.from_dicts(text) == tiling
    assert TilingConfig(336, 14, released_grid_pinpoints()).thumbnail_tokens == 576


def test_tiling_refuses():
    with pytest.raises(ValueError, match="no 'vision_config'"):
        TilingConfig.from_dicts({"hidden_size": 6})
    with pytest.raises(ValueError, match="differ"):
        TilingConfig.from_dicts(CONFIG, {"image_grid_pinpoints": [[112, 112]]})
    with pytest.raises(ValueError, match="process_image_mode"):
        TilingConfig.from_dicts(CONFIG, {"process_image_mode": "resize"})
    for size in ({"height": 336, "width": 336}, [112, 336]):
        with pytest.raises(ValueError, match="image_size 112"):
            TilingConfig.from_dicts(CONFIG, {"size": size})
    with pytest.raises(ValueError, match="120x112"):
        TilingConfig(112, 14, ((120, 112),))
    with pytest.raises(ValueError, match="empty"):
        TilingConfig(112, 14, ())
    with pytest.raises(ValueError, match="patch"):
        TilingConfig(112, 15, ((112, 112),))
    with pytest.raises(ValueError, match="image_std"):
        TilingConfig(112, 14, ((112, 112),), std=(0.0, 1.0, 1.0))


@pytest.mark.parametrize("value", ["1024", None, True, [1]])
def test_a_width_that_is_no_number_is_named(value):
    with pytest.raises(ValueError, match="vision_config: hidden_size must be a number"):
        VisionConfig.from_dict({"hidden_size": value})
