"""What the model saw: every token of a picture is counted, and those that were cached are the first."""

import pytest
from PIL import Image

from mmvl.app.chat.render import seen_html
from mmvl.app.chat.seen import look
from mmvl.processor import Processor


@pytest.fixture(scope="module")
def processor(tiny_model_dir):
    return Processor.from_pretrained(tiny_model_dir)


@pytest.fixture(scope="module")
def prompt(processor):
    content = [{"type": "image", "image": Image.new("RGB", size)} for size in ((60, 40), (30, 30))]
    return processor.encode([{"role": "user", "content": [*content, {"type": "text", "text": "What?"}]}])


def tiles_of(image):
    return [image.thumbnail, *(tile for row in image.rows for tile in row)]


def test_nothing_cached(processor, prompt):
    seen = look(processor, prompt, ["a", "b"], 0)
    assert [image.cached for image in seen] == [0, 0]
    for image, tiled in zip(seen, prompt.images, strict=True):
        tiles = tiles_of(image)
        assert sum(tile.tokens for tile in tiles) + image.newlines == image.tokens == tiled.num_tokens
        assert all(tile.picture.startswith("data:image/webp;base64,") and not tile.cached for tile in tiles)
    assert "None was cached" in seen_html(seen, len(prompt.token_ids), 0)


def test_the_first_picture_and_a_part_of_the_second_were_cached(processor, prompt):
    image_id = processor.image_id
    second = [i for i, token in enumerate(prompt.token_ids) if token == image_id][prompt.images[0].num_tokens]
    seen = look(processor, prompt, ["a", "b"], second + 5)
    assert [image.cached for image in seen] == [prompt.images[0].num_tokens, 5]
    assert [tile.cached for tile in tiles_of(seen[0])] == [tile.tokens for tile in tiles_of(seen[0])]
    assert [tile.cached for tile in tiles_of(seen[1])][:2] == [4, 1]
    html = seen_html(seen, len(prompt.token_ids), second + 5)
    assert "All were cached." in html and "1 cached" in html
