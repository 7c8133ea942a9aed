"""Cut off the empty margins of a picture that is mostly margin: a till slip scanned on a sheet of A4, say.

Such a picture would be made smaller to fit a canvas, and the little that is on it with it. mmvl's own addition, off in
the released models.
"""

import math

import numpy as np
from PIL import Image

LONGEST = 1280  # the picture is looked at with its longer side no longer than this
CELL = 8  # pixels of what is looked at; the edge of what counts as something or as dust
CONTRAST = 24  # grey levels from the margin's; faint print differs by 30
INK = 0.08  # share of a cell's pixels
NEIGHBOURS = 3  # cells with ink among a cell and the eight around it: fewer are a speck or the end of a scanner's line
PADDING = 2  # cells that stay around what is there


def content_box(image: Image.Image) -> tuple[int, int, int, int] | None:
    """(left, top, right, bottom) around what stands on the picture, with some margin; None if nothing does.

    What differs from the median of the outermost pixels in grey counts, but for specks.
    """
    factor = math.ceil(max(image.size) / LONGEST)
    grey_YX = np.asarray((image.convert("L") if image.mode != "L" else image).reduce(factor)).astype(np.int16)
    border = np.concatenate([grey_YX[0], grey_YX[-1], grey_YX[:, 0], grey_YX[:, -1]])
    ink_YX = np.abs(grey_YX - int(np.median(border))) > CONTRAST
    height, width = ink_YX.shape
    down, across = -(-height // CELL), -(-width // CELL)
    ink_YX = np.pad(ink_YX, ((0, down * CELL - height), (0, across * CELL - width)))
    cells = ink_YX.reshape(down, CELL, across, CELL).mean((1, 3)) > INK
    around = np.pad(cells.astype(np.int8), 1)
    near = sum(around[y : y + down, x : x + across] for y in range(3) for x in range(3))
    cells &= near >= NEIGHBOURS
    rows, columns = np.flatnonzero(cells.any(1)), np.flatnonzero(cells.any(0))
    if not len(rows):
        return None
    edge = CELL * factor
    left, top = max(columns[0] - PADDING, 0) * edge, max(rows[0] - PADDING, 0) * edge
    right, bottom = (columns[-1] + 1 + PADDING) * edge, (rows[-1] + 1 + PADDING) * edge
    return int(left), int(top), min(int(right), image.width), min(int(bottom), image.height)


def without_margins(image: Image.Image) -> Image.Image:
    """The picture, or the part with something on it if that is less than half of it."""
    box = content_box(image)
    if box is None or 2 * (box[2] - box[0]) * (box[3] - box[1]) >= image.width * image.height:
        return image
    return image.crop(box)
