"""The released tiling rule: an RGB image -> a squashed thumbnail and tiles of a centred, aspect-true canvas.

An image of W x H pixels is scaled to fit the best canvas ("grid pinpoint"), centred on black and cut into tiles. The
ViT sees each tile by itself. Of the canvas's patches only the rows and columns that hold picture become image tokens
(counted with floor rounding, as released; LLaVA-NeXT rounds differently), and each row ends in a newline token. The
thumbnail, the whole image squashed to one tile, comes first.

No canvas is chosen to show an image larger than it is, so that a line of print 15 pixels high fills a seventh of a tile
of 112. A tiling with `min_edge` takes such an image as if it were larger, and one with `trim_margins` cuts off what is
empty where that lets it be shown larger (`relevant_part`): mmvl's own additions, off as released.

Legend: N tiles, T tile edge in pixels; sizes are always (width, height).
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch
from PIL import Image

from mmvl.vision.config import TilingConfig
from mmvl.vision.margins import without_margins


@dataclass
class TiledImage:
    """One image, ready for the ViT.

    tiles_N3TT: uint8, not yet normalised, thumbnail first, then the canvas's tiles row by row.
    size: (width, height) in pixels of the image as the tiling took it. grid: those of the chosen canvas.
    num_tokens: image tokens, newline tokens included.
    """

    tiles_N3TT: torch.Tensor
    size: tuple[int, int]
    grid: tuple[int, int]
    num_tokens: int

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of everything that decides the image's embedding: a key for caches of embeddings."""
        shape = (*self.tiles_N3TT.shape, *self.size, *self.grid, self.num_tokens)
        digest = hashlib.sha256(repr(shape).encode())
        digest.update(self.tiles_N3TT.contiguous().numpy())
        return digest.hexdigest()


@lru_cache(maxsize=65536)
def best_grid(width: int, height: int, grid_pinpoints: tuple[tuple[int, int], ...]) -> tuple[int, int]:
    """The canvas (width, height) that keeps most pixels of the image, and of those the one with least black."""
    best, best_key = None, None
    for grid_w, grid_h in grid_pinpoints:
        scale = min(grid_w / width, grid_h / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        key = (-kept, grid_w * grid_h - kept)
        if best_key is None or key < best_key:
            best, best_key = (grid_w, grid_h), key
    return best


@lru_cache(maxsize=65536)
def picture_patches(size: tuple[int, int], grid: tuple[int, int], patch: int) -> tuple[int, int]:
    """(columns, rows) of canvas patches that hold picture and become image tokens; floor rounding as released.

    A very long or very tall image gets 0 rows or columns: then only its thumbnail is seen, as in the released model.
    """
    (width, height), columns, rows = size, grid[0] // patch, grid[1] // patch
    if width / height > columns / rows:
        filled = int(height * columns) // width
        rows -= 2 * ((rows - filled) // 2)
    else:
        filled = int(width * rows) // height
        columns -= 2 * ((columns - filled) // 2)
    return columns, rows


def layout(width: int, height: int, tiling: TilingConfig) -> tuple[tuple[int, int], tuple[int, int], int]:
    """(size, grid, num_tokens) of the `TiledImage` of a `width` x `height` image.

    Raises ValueError for an empty image.
    """
    if width <= 0 or height <= 0:
        raise ValueError(f"an image of {width} x {height} pixels has nothing in it")
    size = _enlarged(width, height, tiling.min_edge, tiling.grid_pinpoints)
    grid = best_grid(*size, tiling.grid_pinpoints)
    columns, rows = picture_patches(size, grid, tiling.patch)
    return size, grid, tiling.thumbnail_tokens + (columns + 1) * rows


def token_count(width: int, height: int, tiling: TilingConfig) -> int:
    """Image tokens of a `width` x `height` image: the thumbnail's patches, the picture's, a newline for each row."""
    return layout(width, height, tiling)[2]


def _enlarged(width: int, height: int, min_edge: int, grid_pinpoints: tuple[tuple[int, int], ...]) -> tuple[int, int]:
    """The size with a shorter side of at least `min_edge`, as far as the widest and the highest canvas allow."""
    if min(width, height) >= min_edge:
        return width, height
    widest, highest = max(w for w, _ in grid_pinpoints), max(h for _, h in grid_pinpoints)
    factor = max(1.0, min(min_edge / min(width, height), widest / width, highest / height))
    return round(width * factor), round(height * factor)


def relevant_part(image: Image.Image, tiling: TilingConfig) -> Image.Image:
    """The image as `tile_image` takes it: itself, or what stands on it if the tiling trims margins and the image would
    be made smaller with them."""
    if not tiling.trim_margins:
        return image
    width, height = fitted_size(image.size, best_grid(*image.size, tiling.grid_pinpoints))
    return without_margins(image) if width < image.width and height < image.height else image


def fitted_size(size: tuple[int, int], grid: tuple[int, int]) -> tuple[int, int]:
    """(width, height) of the image scaled to touch the canvas; at least one pixel (the released code fails at zero)."""
    (width, height), (grid_w, grid_h) = size, grid
    if width / height > grid_w / grid_h:
        return grid_w, max(1, int(grid_w * height / width))
    return max(1, int(grid_h * width / height)), grid_h


def tile_image(image: Image.Image, tiling: TilingConfig) -> TiledImage:
    """Cut an RGB image into its thumbnail and tiles; bicubic scaling, up as well as down.

    8-bit grey (mode L) gives what it would give as RGB, in a third of the time: the channels are scaled one by one.
    Raises ValueError for another colour mode (`images.open_image` converts) or an empty image.
    """
    if image.mode not in ("RGB", "L"):
        raise ValueError(f"tiling needs an RGB image, this one is {image.mode}: open it with open_image first")
    image = relevant_part(image, tiling)
    size, grid, num_tokens = layout(*image.size, tiling)
    T, (grid_w, grid_h) = tiling.tile, grid
    across, down = grid_w // T, grid_h // T

    fitted = image.resize(fitted_size(size, grid), Image.Resampling.BICUBIC)
    left, top = (grid_w - fitted.width) // 2, (grid_h - fitted.height) // 2
    if fitted.size == (T, T):  # then the thumbnail is the same picture
        thumbnail = fitted
    else:
        thumbnail = image.resize((T, T), Image.Resampling.BICUBIC)

    # C is 3, or 1 for grey; the canvas is channels first, as the tiles are
    channels = len(image.getbands())
    canvas_CYX = np.zeros((channels, grid_h, grid_w), dtype=np.uint8)
    canvas_CYX[:, top : top + fitted.height, left : left + fitted.width] = _planes(fitted)
    tiles_N3TT = np.empty((1 + across * down, 3, T, T), dtype=np.uint8)
    tiles_N3TT[0] = _planes(thumbnail)
    tiles_N3TT[1:].reshape(down, across, 3, T, T)[:] = canvas_CYX.reshape(channels, down, T, across, T).transpose(
        1, 3, 0, 2, 4
    )
    return TiledImage(torch.from_numpy(tiles_N3TT), size, grid, num_tokens)


def _planes(image: Image.Image) -> np.ndarray:
    """Pixels (C, height, width), uint8."""
    pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
