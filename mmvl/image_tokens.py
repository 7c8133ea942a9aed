"""Where the tokens of an image come from: which of its tiles, and where in a prompt they lie."""

from itertools import accumulate

import numpy as np

from mmvl.processor import Processor, Prompt
from mmvl.vision.config import TilingConfig
from mmvl.vision.tiling import TiledImage, picture_patches


def token_owners(image: TiledImage, tiling: TilingConfig) -> np.ndarray:
    """For each of its tokens: 0 the thumbnail, 1... the tile row by row, -1 a newline; int64 (num_tokens,)."""
    edge = tiling.tile // tiling.patch
    across, down = image.grid[0] // tiling.tile, image.grid[1] // tiling.tile
    columns, rows = picture_patches(image.size, image.grid, tiling.patch)
    row = (np.arange(rows) + (down * edge - rows) // 2) // edge
    column = (np.arange(columns) + (across * edge - columns) // 2) // edge
    owners = np.full((rows, columns + 1), -1)
    owners[:, :columns] = 1 + row[:, None] * across + column
    return np.concatenate([np.zeros(edge * edge, dtype=owners.dtype), owners.reshape(-1)])


def image_positions(prompt: Prompt, processor: Processor) -> list[list[int]]:
    """For each image of a prompt, where its tokens lie."""
    positions = [position for position, token in enumerate(prompt.token_ids) if token == processor.image_id]
    starts = [0, *accumulate(image.num_tokens for image in prompt.images)]
    return [positions[start:end] for start, end in zip(starts, starts[1:], strict=False)]
