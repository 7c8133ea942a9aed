"""From tile features to image tokens: the order, against a version that unfolds, crops and appends step by step."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmvl.vision.adapter import Adapter, pack_image, pack_images
from mmvl.vision.config import TilingConfig, released_grid_pinpoints
from mmvl.vision.tiling import best_grid, token_count

RELEASED = TilingConfig(336, 14, released_grid_pinpoints())
SMALL = TilingConfig(112, 14, tuple((112 * a, 112 * b) for a in range(1, 15) for b in range(1, 9) if a * b <= 24))


def step_by_step(features_NPD, size, grid, newline_D, tiling):
    edge = tiling.tile // tiling.patch
    across, down = grid[0] // tiling.tile, grid[1] // tiling.tile
    D = features_NPD.shape[-1]
    canvas_DYX = features_NPD[1:].view(down, across, edge, edge, D).permute(4, 0, 2, 1, 3)
    canvas_DYX = canvas_DYX.reshape(D, down * edge, across * edge)
    height, width = canvas_DYX.shape[1:]
    if size[0] / size[1] > width / height:
        padding = (height - int(size[1] * width) // size[0]) // 2
        canvas_DYX = canvas_DYX[:, padding : height - padding]
    else:
        padding = (width - int(size[0] * height) // size[1]) // 2
        canvas_DYX = canvas_DYX[:, :, padding : width - padding]
    newlines_DY1 = newline_D[:, None, None].expand(D, canvas_DYX.shape[1], 1)
    rows_DYX = torch.cat([canvas_DYX, newlines_DY1], dim=-1)
    return torch.cat([features_NPD[0], rows_DYX.flatten(1).T])


@pytest.mark.parametrize("tiling", [RELEASED, SMALL], ids=["released", "small"])
@given(sizes=st.lists(st.tuples(st.integers(1, 2500), st.integers(1, 2500)), min_size=1, max_size=4))
@settings(max_examples=30, deadline=None)
def test_order_of_image_tokens(tiling, sizes):
    D, P = 3, tiling.thumbnail_tokens
    images = [(size, best_grid(*size, tiling.grid_pinpoints)) for size in sizes]
    tiles = [1 + w * h // tiling.tile**2 for _, (w, h) in images]
    features_NPD = torch.arange(sum(tiles) * P * D, dtype=torch.float64).view(-1, P, D)
    newline_D = -torch.ones(D, dtype=torch.float64)
    parts = features_NPD.split(tiles)
    expected = [step_by_step(part, *image, newline_D, tiling) for part, image in zip(parts, images, strict=True)]
    assert [len(tokens) for tokens in expected] == [token_count(*size, tiling) for size in sizes]
    assert torch.equal(pack_images(features_NPD, images, newline_D, tiling), torch.cat(expected))
    assert torch.equal(pack_image(parts[0], *images[0], newline_D, tiling), expected[0])


def test_gradients_reach_features_and_newline():
    size, grid = (100, 60), (224, 112)
    features_NPD = torch.randn(3, 64, 5, dtype=torch.float64, requires_grad=True)
    newline_D = torch.randn(5, dtype=torch.float64, requires_grad=True)
    tiling = TilingConfig(112, 14, (grid,))
    weight = torch.randn(token_count(*size, tiling), 5, dtype=torch.float64)
    ours = torch.autograd.grad(
        (pack_image(features_NPD, size, grid, newline_D, tiling) * weight).sum(), (features_NPD, newline_D)
    )
    theirs = torch.autograd.grad(
        (step_by_step(features_NPD, size, grid, newline_D, tiling) * weight).sum(), (features_NPD, newline_D)
    )
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other)


def test_wrong_number_of_tiles():
    with pytest.raises(ValueError, match="1 images need 3 tiles, features of 4"):
        pack_image(torch.zeros(4, 64, 2), (100, 60), (224, 112), torch.zeros(2), SMALL)
    assert pack_images(torch.zeros(0, 64, 2), [], torch.zeros(2), SMALL).shape == (0, 2)


def test_adapter():
    adapter = Adapter(4, 6).double()
    x = torch.randn(2, 3, 4, dtype=torch.float64)
    h = x @ adapter.linear_1.weight.T + adapter.linear_1.bias
    h = h * 0.5 * (1 + torch.erf(h / 2**0.5))
    torch.testing.assert_close(adapter(x), h @ adapter.linear_2.weight.T + adapter.linear_2.bias)
