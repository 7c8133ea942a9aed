"""The whole model: image tokens arrive in their places and order, what does not match is refused, parts add up."""

import dataclasses

import pytest
import torch
from PIL import Image

import mmvl.model as module
from mmvl.checkpoint import load_model
from mmvl.model import ImageBatch, VLModel
from mmvl.text_backbone.packed import Packed
from mmvl.vision.adapter import pack_image
from mmvl.vision.encoder import normalize
from mmvl.vision.tiling import tile_image


@pytest.fixture(scope="module")
def model(tiny_model_dir):
    """The tiny model with weights large enough that every part of it shows, and a newline unlike zero."""
    model = load_model(tiny_model_dir)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if not name.startswith("language_model"):
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.fixture(scope="module")
def images(model):
    """Three of different shapes: 2, 3 and 5 tiles."""
    pictures = [Image.effect_noise(size, 90).convert("RGB") for size in ((20, 20), (50, 25), (60, 50))]
    return [tile_image(picture, model.tiling) for picture in pictures]


def prompt(model, *parts):
    """Ids of a packed batch: numbers are text, tiled images become placeholders."""
    image = model.config.image_token_index
    return torch.tensor([i for part in parts for i in ([part] if isinstance(part, int) else [image] * part.num_tokens)])


def relative_error(ours, theirs):
    return ((ours - theirs).norm() / theirs.norm()).item()


def by_hand(model, image):
    """One image, tile by tile: colours, ViT, adapter, packing."""
    normal = normalize(image.tiles_N3TT, model.config.image_mean, model.config.image_std)
    features = torch.cat([model.multi_modal_projector(model.vision_tower(tile[None])) for tile in normal])
    return pack_image(features, image.size, image.grid, model.image_newline, model.tiling)


@pytest.mark.parametrize("at_once", [1, 4, 256])
@torch.no_grad()
def test_images_of_a_batch_are_embedded_as_each_alone(model, images, monkeypatch, at_once):
    monkeypatch.setattr(module, "TILES_AT_ONCE", at_once)
    image_ID = model.embed_images(ImageBatch.from_images(images))
    assert len(image_ID) == sum(image.num_tokens for image in images)
    for part, image in zip(image_ID.split([image.num_tokens for image in images]), images, strict=True):
        assert relative_error(part, by_hand(model, image)) < 1e-5


@torch.no_grad()
def test_image_tokens_stand_at_the_placeholders_in_order(model, images):
    a, b, c = images
    ids_T = prompt(model, 7, a, 8, 9, c, b, 10)
    image_ID = model.embed_images(ImageBatch.from_images([a, c, b]))
    x_TD = model.embed(ids_T, image_ID)
    text = ids_T != model.config.image_token_index
    assert torch.equal(x_TD[~text], image_ID)
    assert torch.equal(x_TD[text], model.language_model.embed(torch.tensor([7, 8, 9, 10])))
    assert torch.equal(model.embed(ids_T, image_ID, (~text).nonzero()[:, 0]), x_TD)


@torch.no_grad()
def test_forward_is_the_decoder_on_these_embeddings(model, images):
    a, b, _ = images
    ids_T = prompt(model, 7, a, 8, 9, b, 10)
    packed = Packed.from_lengths((a.num_tokens + 2, b.num_tokens + 2), "cpu")
    hidden_TD = model(ids_T, packed, ImageBatch.from_images([a, b])).hidden_TD
    first = model.language_model.embed(ids_T)
    first[ids_T == model.config.image_token_index] = torch.cat([by_hand(model, a), by_hand(model, b)])
    assert relative_error(hidden_TD, model.language_model(first, packed).hidden_TD) < 1e-4
    other = model(ids_T, packed, ImageBatch.from_images([b, a])) if a.num_tokens == b.num_tokens else None
    assert other is None or relative_error(other.hidden_TD, hidden_TD) > 1e-2


def test_mismatches_are_refused(model, images):
    a, b, _ = images
    image_ID = torch.zeros(a.num_tokens, model.config.text.hidden_size)
    for ids_T, given, counts in (
        (prompt(model, 7, a), None, (a.num_tokens, 0)),
        (prompt(model, 7, 8), image_ID, (0, a.num_tokens)),
        (prompt(model, a, b), image_ID, (a.num_tokens + b.num_tokens, a.num_tokens)),
        (prompt(model, a)[1:], image_ID, (a.num_tokens - 1, a.num_tokens)),
    ):
        with pytest.raises(ValueError, match=f"{counts[0]} image placeholders but the images give {counts[1]} tokens"):
            model.embed(ids_T, given)
    assert ImageBatch.from_images([]) is None


@torch.no_grad()
def test_the_colours_of_the_config_are_used(model, images):
    config = dataclasses.replace(model.config, image_mean=(0.1, 0.2, 0.3), image_std=(0.5, 0.6, 0.7))
    other = VLModel(config)
    other.load_state_dict(model.state_dict())
    image_ID = other.embed_images(ImageBatch.from_images(images[:1]))
    assert relative_error(image_ID, by_hand(other, images[0])) < 1e-5
    assert relative_error(image_ID, by_hand(model, images[0])) > 1e-2
    assert other.tiling.mean == config.image_mean and other.tiling.std == config.image_std


def test_every_part_learns_from_text_after_an_image(model, images):
    learner = VLModel(model.config)
    learner.load_state_dict(model.state_dict())
    ids_T = prompt(model, 7, images[1], 8, 9)
    out = learner(ids_T, Packed.from_lengths((len(ids_T),), "cpu"), ImageBatch.from_images(images[1:2]))
    learner.language_model.logits(out.hidden_TD[-2:]).logsumexp(-1).sum().backward()
    for name in ("vision_tower.vit.pos_embed", "multi_modal_projector.linear_1.weight", "image_newline"):
        gradient = learner.get_parameter(name).grad
        assert gradient.isfinite().all() and gradient.norm() > 0, name


def test_initial_weights_depend_on_the_seed_alone(model):
    one, two, three = (VLModel(model.config) for _ in range(3))
    before = torch.get_rng_state()
    one.init_weights(1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    two.init_weights(1)
    three.init_weights(2)
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), two.parameters(), strict=True))
    changed = [n for (n, p), q in zip(one.named_parameters(), three.parameters(), strict=True) if not torch.equal(p, q)]
    for part in ("vision_tower.vit.blocks.0.attn.qkv.weight", "multi_modal_projector.linear_1.weight", "image_newline"):
        assert part in changed
