"""The whole model's config.json: read, written back, refused where a part is missing or asks for something else."""

import json

import pytest
import torch

from mmvl.config import VLConfig
from mmvl.model import VLModel
from mmvl.vision.config import TilingConfig

PREPROCESSOR = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.6, 0.7]}


@pytest.fixture
def written(tiny_model_dir) -> dict:
    return json.loads((tiny_model_dir / "config.json").read_text())


def test_round_trip(written):
    own = {"image_min_edge": 20, "image_trim_margins": True}
    config = VLConfig.from_dict(written | own, PREPROCESSOR)
    assert config.image_mean == (0.1, 0.2, 0.3) and config.image_std == (0.5, 0.6, 0.7)
    assert config.image_min_edge == 20 and config.image_trim_margins
    assert not own.keys() & VLConfig.from_dict(written).to_dict().keys()  # as released
    again = VLConfig.from_dict(json.loads(json.dumps(config.to_dict())), PREPROCESSOR)
    assert again == config
    with torch.device("meta"):
        assert VLModel(config).tiling == TilingConfig.from_dicts(config.to_dict(), PREPROCESSOR)
    assert VLConfig.from_dict(written).image_mean != config.image_mean


def test_what_configs_in_the_wild_write_otherwise(written):
    index = written.pop("image_token_index")
    assert VLConfig.from_dict(written).image_token_index == 200_025  # as released
    assert VLConfig.from_dict(written | {"image_token_id": index}).image_token_index == index
    text = written["text_config"] | {"shared_intermediate_size": [0]}
    del text["eos_token_id"]
    config = VLConfig.from_dict(written | {"text_config": text})
    assert config.text.shared_intermediate_size == 0 and config.text.eos_token_id is None
    pinpoints = str(written["image_grid_pinpoints"])
    assert VLConfig.from_dict(written | {"image_grid_pinpoints": pinpoints}) == VLConfig.from_dict(written)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"vision_feature_select_strategy": "full"}, "vision_feature_select_strategy = 'full'"),
        ({"image_grid_pinpoints": "[[28, 28"}, "list of .width, height."),
        ({"image_grid_pinpoints": [28, 28]}, "list of .width, height."),
        ({"image_grid_pinpoints": [[30, 28]]}, "30x28"),
        ({"image_grid_pinpoints": None}, "image_grid_pinpoints is empty"),
        ({"image_min_edge": "40"}, "image_min_edge '40' is no number from 0"),
        ({"image_min_edge": 337}, "image_min_edge 337 is no number from 0"),
        ({"image_trim_margins": 1}, "image_trim_margins 1 is neither true nor false"),
    ],
)
def test_what_is_refused(written, change, says):
    with pytest.raises(ValueError, match=says):
        VLConfig.from_dict(written | change)


@pytest.mark.parametrize("part", ["text_config", "vision_config"])
def test_a_missing_half_is_named(written, part):
    del written[part]
    with pytest.raises(ValueError, match=f"no '{part}'"):
        VLConfig.from_dict(written)
