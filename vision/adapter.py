"""The adapter: patch features of the tiles -> image tokens in the decoder's width, in reading order.

Legend: N tiles, P patches of a tile, C width of the ViT, D width of the decoder, T image tokens.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import nn

from mmvl.vision.config import TilingConfig
from mmvl.vision.tiling import picture_patches


class Adapter(nn.Module):
    """Two linear layers with an erf GELU between them; (..., C) -> (..., D)."""

    def __init__(self, vision_hidden: int, text_hidden: int):
        super().__init__()
        self.linear_1 = nn.Linear(vision_hidden, text_hidden)
        self.linear_2 = nn.Linear(text_hidden, text_hidden)

    def forward(self, features_NPC: torch.Tensor) -> torch.Tensor:
        return self.linear_2(nn.functional.gelu(self.linear_1(features_NPC)))


def pack_image(features_NPD, size, grid, newline_D, tiling: TilingConfig) -> torch.Tensor:
    """One image's tile features (thumbnail first) -> its image tokens (num_tokens, D). See `pack_images`."""
    return pack_images(features_NPD, [(size, grid)], newline_D, tiling)


def pack_images(
    features_NPD: torch.Tensor,
    images: Sequence[tuple[tuple[int, int], tuple[int, int]]],
    newline_D: torch.Tensor,
    tiling: TilingConfig,
) -> torch.Tensor:
    """Tile features of several images, one after the other -> their image tokens (sum of num_tokens, D).

    images: (size, grid) of each, as in TiledImage. Per image: the thumbnail's P patches, then the canvas's patches
    that hold picture, row by row across tiles, each row followed by `newline_D`.
    Raises ValueError if the number of tiles does not fit the images.
    """
    P = features_NPD.shape[1]
    indices, first_patch = [], 0
    for size, grid in images:
        index_T = _token_patches(*picture_patches(size, grid, tiling.patch), grid, tiling.tile, tiling.patch)
        indices.append(np.where(index_T < 0, -1, index_T + first_patch))
        first_patch += (1 + (grid[0] // tiling.tile) * (grid[1] // tiling.tile)) * P
    if first_patch != features_NPD.shape[0] * P:
        raise ValueError(f"{len(images)} images need {first_patch // P} tiles, features of {len(features_NPD)} given")
    if not indices:
        return features_NPD.flatten(0, 1)
    index_T = torch.from_numpy(np.concatenate(indices)).to(features_NPD.device, non_blocking=True)
    tokens_TD = features_NPD.flatten(0, 1).index_select(0, index_T.clamp(min=0))
    # where, not a gather from an appended row: the newline's gradient is then one exact sum
    return torch.where(index_T[:, None] < 0, newline_D.to(tokens_TD.dtype), tokens_TD)


@lru_cache(maxsize=4096)
def _token_patches(columns: int, rows: int, grid: tuple[int, int], tile: int, patch: int) -> np.ndarray:
    """For each image token the patch (counted through thumbnail and tiles) it comes from, -1 for a newline; int64."""
    edge = tile // patch
    across, down = grid[0] // tile, grid[1] // tile
    tiles = edge * edge + np.arange(across * down * edge * edge).reshape(down, across, edge, edge)
    canvas = tiles.transpose(0, 2, 1, 3).reshape(down * edge, across * edge)
    top, left = (down * edge - rows) // 2, (across * edge - columns) // 2
    picture = canvas[top : top + rows, left : left + columns]
    with_newlines = np.concatenate([picture, np.full((rows, 1), -1)], axis=1)
    return np.concatenate([np.arange(edge * edge), with_newlines.reshape(-1)])
