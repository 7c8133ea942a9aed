"""What the model saw of its pictures: thumbnail and tiles, the tokens that each became, and which were cached."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from mmvl.image_tokens import image_positions, token_owners
from mmvl.processor import Processor, Prompt


@dataclass(frozen=True)
class Tile:
    """tokens: image tokens that its patches became; cached: how many of these the prefix cache had."""

    picture: str  # data: URL
    tokens: int
    cached: int


@dataclass(frozen=True)
class SeenImage:
    """size, grid: (width, height) in pixels of the picture as it was taken and of its canvas; rows: the canvas's tiles.

    newlines: tokens that end the rows of patches. tokens = thumbnail + tiles + newlines.
    """

    name: str
    size: tuple[int, int]
    grid: tuple[int, int]
    thumbnail: Tile
    rows: tuple[tuple[Tile, ...], ...]
    newlines: int
    tokens: int
    cached: int


def look(processor: Processor, prompt: Prompt, names: Sequence[str], cached_tokens: int) -> list[SeenImage]:
    """The pictures of a prompt, of whose tokens the first `cached_tokens` came from the prefix cache."""
    seen = []
    positions = image_positions(prompt, processor)
    for image, name, mine in zip(prompt.images, names, positions, strict=True):
        owners = token_owners(image, processor.tiling)
        cached = sum(position < cached_tokens for position in mine)  # from its first token on
        count = len(image.tiles_N3TT)
        tokens = np.bincount(owners[owners >= 0], minlength=count)
        before = np.bincount(owners[:cached][owners[:cached] >= 0], minlength=count)
        pictures = image.tiles_N3TT.permute(0, 2, 3, 1).numpy()
        tiles = [Tile(_data_url(pictures[i]), int(tokens[i]), int(before[i])) for i in range(count)]
        across = image.grid[0] // processor.tiling.tile
        rows = tuple(tuple(tiles[i : i + across]) for i in range(1, count, across))
        newlines = int((owners < 0).sum())
        seen.append(SeenImage(name, image.size, image.grid, tiles[0], rows, newlines, image.num_tokens, cached))
    return seen


def _data_url(pixels: np.ndarray) -> str:
    """pixels: uint8 (height, width, 3)."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "WEBP", quality=80)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
