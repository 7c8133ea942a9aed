"""The tiling rule, against the released token counts and against a second derivation of it."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.image_processing_utils import select_best_resolution

from mmvl.vision.config import TilingConfig, released_grid_pinpoints
from mmvl.vision.tiling import TiledImage, best_grid, picture_patches, tile_image, token_count

RELEASED = TilingConfig(336, 14, released_grid_pinpoints())
SMALL = TilingConfig(
    112, 14, tuple((112 * a, 112 * b) for a in range(1, 15) for b in range(1, 9) if a * b <= 24)
)  # not symmetric: up to 14 tiles wide, up to 8 high
SIZES = st.tuples(st.integers(1, 4000), st.integers(1, 4000))
TILINGS = pytest.mark.parametrize("tiling", [RELEASED, SMALL], ids=["released", "small"])


def test_released_grids():
    grids = released_grid_pinpoints()
    assert len(grids) == len(set(grids)) == 28
    assert grids[:7] == ((336, 336), (336, 672), (336, 1008), (336, 1344), (336, 1680), (336, 2016), (672, 336))
    assert grids[-1] == (2016, 1008)
    assert max(w * h for w, h in grids) == 18 * 336 * 336
    assert {(h, w) for w, h in grids} == set(grids)


@pytest.mark.parametrize(
    ("size", "grid", "tokens"),
    [
        ((336, 336), None, 1176),
        ((200, 300), None, 984),
        ((640, 480), (672, 672), 2340),
        ((800, 600), (1008, 672), 3696),
        ((672, 672), (672, 672), 2928),
        ((1008, 1008), (1008, 1008), 5832),
        ((1344, 1344), (1344, 1344), 9888),
        ((1920, 1080), (2016, 1008), 9864),
        ((2480, 3508), (1008, 1680), 8022),
        ((1008, 2016), (1008, 2016), 11088),
        ((2016, 1008), (2016, 1008), 11016),
        ((1000, 1), None, 576),
    ],
)
def test_released_token_counts(size, grid, tokens):
    assert token_count(*size, RELEASED) == tokens
    assert grid is None or best_grid(*size, RELEASED.grid_pinpoints) == grid


def test_most_tokens():
    assert max(token_count(w, h, RELEASED) for w in range(8, 4096, 56) for h in range(8, 4096, 56)) <= 11088


@TILINGS
@given(size=SIZES)
@settings(max_examples=200, deadline=None)
def test_best_grid_is_that_of_llava_next(tiling, size):
    width, height = size
    theirs = select_best_resolution((height, width), [(h, w) for w, h in tiling.grid_pinpoints])
    assert best_grid(width, height, tiling.grid_pinpoints) == theirs[::-1]


@given(size=SIZES, grids=st.lists(st.sampled_from(SMALL.grid_pinpoints), min_size=1, max_size=6, unique=True))
@settings(max_examples=200, deadline=None)
def test_best_grid_in_any_order(size, grids):
    """Of canvases that keep as much, the one with least black, wherever it stands; of those, the first."""
    width, height = size
    theirs = select_best_resolution((height, width), [(h, w) for w, h in grids])
    assert best_grid(width, height, tuple(grids)) == theirs[::-1]


def test_ties_between_canvases():
    for grids in (((112, 224), (224, 112), (224, 224)), ((224, 224), (224, 112), (112, 224))):
        assert best_grid(50, 50, grids) == next(grid for grid in grids if grid != (224, 224))


def _patches_again(size, grid, patch):
    """Columns and rows with picture, in exact fractions: the padding is halved and rounded down in whole patches."""
    (width, height), columns, rows = size, grid[0] // patch, grid[1] // patch
    if Fraction(width, height) > Fraction(columns, rows):
        return columns, rows - (rows - Fraction(height * columns, width).__floor__()) // 2 * 2
    return columns - (columns - Fraction(width * rows, height).__floor__()) // 2 * 2, rows


@TILINGS
@given(size=SIZES)
@settings(max_examples=300, deadline=None)
def test_token_count_in_fractions(tiling, size):
    grid = best_grid(*size, tiling.grid_pinpoints)
    columns, rows = _patches_again(size, grid, tiling.patch)
    assert picture_patches(size, grid, tiling.patch) == (columns, rows)
    assert token_count(*size, tiling) == (tiling.tile // tiling.patch) ** 2 + rows * columns + rows


@TILINGS
@given(size=st.tuples(st.integers(1, 700), st.integers(1, 700)), seed=st.integers(0, 9))
@settings(max_examples=25, deadline=None)
def test_tiles_by_pasting_and_cropping(tiling, size, seed):
    image = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    tiled = tile_image(image, tiling)
    T, (grid_w, grid_h) = tiling.tile, tiled.grid

    if Fraction(*size) > Fraction(grid_w, grid_h):
        fitted = image.resize((grid_w, max(1, int(grid_w * size[1] / size[0]))), Image.BICUBIC)
    else:
        fitted = image.resize((max(1, int(grid_h * size[0] / size[1])), grid_h), Image.BICUBIC)
    canvas = Image.new("RGB", (grid_w, grid_h), "black")
    canvas.paste(fitted, ((grid_w - fitted.width) // 2, (grid_h - fitted.height) // 2))
    expected = [image.resize((T, T), Image.BICUBIC)]
    expected += [canvas.crop((x, y, x + T, y + T)) for y in range(0, grid_h, T) for x in range(0, grid_w, T)]

    assert tiled.tiles_N3TT.dtype == torch.uint8 and tiled.size == size
    assert len(tiled.tiles_N3TT) == len(expected)
    for tile_3TT, tile in zip(tiled.tiles_N3TT, expected, strict=True):
        np.testing.assert_array_equal(tile_3TT.permute(1, 2, 0).numpy(), np.asarray(tile))
    assert tiled.num_tokens == token_count(*size, tiling)


@given(size=st.tuples(st.integers(20, 700), st.integers(20, 700)))
@settings(max_examples=40, deadline=None)
def test_kept_patches_hold_the_picture(size):
    """A white picture: what the kept patches leave out at an edge is less than two patches."""
    tiled = tile_image(Image.new("RGB", size, "white"), SMALL)
    columns, rows = picture_patches(size, tiled.grid, SMALL.patch)
    across, down = tiled.grid[0] // 112, tiled.grid[1] // 112
    canvas_YX = tiled.tiles_N3TT[1:, 0].reshape(down, across, 112, 112).permute(0, 2, 1, 3).reshape(tiled.grid[::-1])
    lost_y = canvas_YX.any(1).sum() - rows * SMALL.patch
    lost_x = canvas_YX.any(0).sum() - columns * SMALL.patch
    assert max(lost_x, lost_y) < 2 * SMALL.patch
    assert canvas_YX.any(1).all() or canvas_YX.any(0).all()


@TILINGS
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (1, 1000), (1000, 1), (5000, 1), (1, 5000), (3, 2000), (100_000, 2)])
def test_extreme_shapes(tiling, size):
    tiled = tile_image(Image.new("RGB", size, "red"), tiling)
    assert tiled.num_tokens == token_count(*size, tiling) >= tiling.thumbnail_tokens
    assert tiled.tiles_N3TT[0, 0].min() == 255  # the thumbnail still shows it
    assert tiled.tiles_N3TT[1:, 0].max() > 0


def test_square_tile_is_its_own_thumbnail():
    tiled = tile_image(Image.fromarray(np.arange(64 * 64 * 3, dtype=np.uint8).reshape(64, 64, 3)), SMALL)
    assert tiled.grid == (112, 112) and tiled.num_tokens == 64 + 8 * 9
    assert torch.equal(tiled.tiles_N3TT[0], tiled.tiles_N3TT[1])


def test_digest_tells_images_apart():
    def digest(image, tiling=SMALL):
        return tile_image(image, tiling).digest

    image = Image.effect_noise((50, 40), 90).convert("RGB")
    assert digest(image) == digest(image.copy()) and len(digest(image)) == 64
    assert digest(image) != digest(image.transpose(Image.Transpose.ROTATE_180))
    assert digest(image) != digest(image, RELEASED)
    # the same pixels in another shape, and the same tiles of another size
    assert digest(Image.new("RGB", (50, 40))) != digest(Image.new("RGB", (40, 50)))
    assert digest(Image.new("RGB", (112, 112))) != digest(Image.new("RGB", (112, 111)))


def test_digest_does_not_depend_on_memory_layout():
    tiled = tile_image(Image.effect_noise((50, 40), 90).convert("RGB"), SMALL)
    turned = tiled.tiles_N3TT.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    assert TiledImage(turned, tiled.size, tiled.grid, tiled.num_tokens).digest == tiled.digest


def test_refusals():
    with pytest.raises(ValueError, match="RGB"):
        tile_image(Image.new("RGBA", (10, 10)), SMALL)
    with pytest.raises(ValueError, match="nothing"):
        tile_image(Image.new("RGB", (0, 10)), SMALL)
    with pytest.raises(ValueError, match="nothing"):
        token_count(10, 0, SMALL)


@pytest.mark.parametrize("size", [(50, 40), (300, 20), (7, 90), (112, 112), (400, 250)])
def test_grey_gives_the_tiles_of_its_rgb_copy(size):
    grey = Image.effect_noise(size, 90)
    assert grey.mode == "L"
    one, three = tile_image(grey, SMALL), tile_image(grey.convert("RGB"), SMALL)
    assert one.digest == three.digest


@pytest.mark.parametrize(
    ("size", "taken"),
    [
        ((300, 20), (600, 40)),
        ((20, 300), (40, 600)),
        ((30, 30), (40, 40)),
        ((1, 1), (40, 40)),
        ((300, 40), (300, 40)),
        ((1200, 20), (1568, 26)),  # as far as the widest canvas goes
        ((10, 1000), (10, 1000)),  # higher than any canvas: it is made smaller, never larger
    ],
)
def test_small_images_are_taken_as_if_they_were_larger(size, taken):
    tiling = replace(SMALL, min_edge=40)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    tiled = tile_image(image, tiling)
    assert tiled.size == taken
    assert tiled.grid == best_grid(*taken, SMALL.grid_pinpoints)
    assert tiled.num_tokens == token_count(*size, tiling) == token_count(*taken, SMALL)
    assert torch.equal(tiled.tiles_N3TT[0], tile_image(image, SMALL).tiles_N3TT[0])  # its own pixels, squashed
