"""The tile that each image token comes from, beside what the adapter does."""

import numpy as np
import pytest
import torch
from PIL import Image

from mmvl.image_tokens import image_positions, token_owners
from mmvl.processor import Processor
from mmvl.vision.adapter import pack_image
from mmvl.vision.config import TilingConfig
from mmvl.vision.tiling import tile_image

TILING = TilingConfig(28, 14, ((28, 28), (28, 56), (56, 28), (56, 56), (84, 28), (28, 84)))


@pytest.mark.parametrize("size", [(30, 30), (60, 40), (40, 60), (56, 56), (300, 20), (20, 300), (1, 1), (90, 30)])
def test_every_token_comes_from_the_tile_that_is_named(size):
    image = tile_image(Image.new("RGB", size), TILING)
    count = len(image.tiles_N3TT)
    # each tile's patches are its number, a newline is -1
    features = torch.arange(count).float()[:, None, None].expand(count, TILING.thumbnail_tokens, 1)
    packed = pack_image(features, image.size, image.grid, torch.tensor([-1.0]), TILING)
    owners = token_owners(image, TILING)
    assert len(owners) == image.num_tokens
    assert np.array_equal(owners, packed[:, 0].numpy())


def test_images_of_a_prompt_lie_where_their_tokens_are(tiny_model_dir):
    processor = Processor.from_pretrained(tiny_model_dir)
    pictures = [Image.new("RGB", size) for size in ((60, 40), (30, 30))]
    content = [{"type": "image", "image": picture} for picture in pictures] + [{"type": "text", "text": "<image>?"}]
    prompt = processor.encode([{"role": "user", "content": content}])
    positions = image_positions(prompt, processor)
    assert [len(where) for where in positions] == [image.num_tokens for image in prompt.images]
    assert all(prompt.token_ids[position] == processor.image_id for where in positions for position in where)
    assert positions[0][-1] < positions[1][0]
