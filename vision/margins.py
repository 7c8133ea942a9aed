"""Cut off the empty margins of a picture that is a good part margin: a till slip scanned on a sheet of A4, say.

Such a picture would be made smaller to fit a canvas, and the little that is on it with it. mmvl's own addition, off in
the released models. What is given up: where on the sheet it stood.
"""

import functools

import numpy as np
from PIL import Image, ImageChops

LONGEST = 1280  # pictures of twice this and more are looked at in half their size, of three times in a third, ...
CELL = 8  # pixels; ink is counted in windows of two by two cells
PADDING = 16  # pixels that stay around what is there
KEPT = 0.75  # of a picture with more on it nothing is cut off
RIM = 0.03  # of the width or height: what hangs on an edge of the picture and reaches no further in is the scanner's
# What a window needs to be no dust: so many pixels that differ from the margin by so many grey levels in some colour.
# A figure of 8-pixel print has some fifteen of the first kind; faint print has the second.
INK = ((48, 9), (24, 20))


def content_box(image: Image.Image) -> tuple[int, int, int, int] | None:
    """(left, top, right, bottom) around all that stands on an RGB or grey picture; None if nothing does.

    The margin's colour is the median of the outermost pixels. Specks of less ink than a single figure do not count, nor
    do shadows along the picture's own edges.
    """
    factor = max(1, max(image.size) // LONGEST)
    small = image.reduce(factor)
    width, height = small.size
    edges = [(0, 0, width, 1), (0, height - 1, width, height), (0, 0, 1, height), (width - 1, 0, width, height)]
    border = np.concatenate([np.asarray(small.crop(edge)).reshape(-1, len(small.getbands())) for edge in edges])
    margin = tuple(int(level) for level in np.median(border, axis=0))
    bands = ImageChops.difference(small, Image.new(small.mode, small.size, margin)).split()
    down, across = -(-height // CELL), -(-width // CELL)
    contrast_YX = np.zeros((down * CELL, across * CELL), dtype=np.uint8)
    contrast_YX[:height, :width] = np.asarray(functools.reduce(ImageChops.lighter, bands))
    something = np.zeros((down + 2, across + 2), dtype=bool)
    for level, least in INK:
        ink = np.pad((contrast_YX > level).reshape(down, CELL, across, CELL).sum((1, 3)), 1)
        windows = ink[:-1, :-1] + ink[1:, :-1] + ink[:-1, 1:] + ink[1:, 1:]
        rows, columns = np.nonzero(windows >= least)
        for y in range(2):
            for x in range(2):
                something[rows + y, columns + x] |= ink[rows + y, columns + x] > 0
    something = something[1:-1, 1:-1]
    for from_edge in (something, something[:, ::-1], something.T, something.T[:, ::-1]):
        reach = min(max(1, int(RIM * from_edge.shape[1])), from_edge.shape[1] - 1)
        hangs = np.logical_and.accumulate(from_edge[:, : reach + 1], axis=1)
        from_edge[:, : reach + 1] &= ~(hangs & ~hangs[:, reach:])
    rows, columns = np.flatnonzero(something.any(1)), np.flatnonzero(something.any(0))
    if not len(rows):
        return None
    edge = CELL * factor
    left, top = max(columns[0] * edge - PADDING, 0), max(rows[0] * edge - PADDING, 0)
    right, bottom = (columns[-1] + 1) * edge + PADDING, (rows[-1] + 1) * edge + PADDING
    return int(left), int(top), min(int(right), image.width), min(int(bottom), image.height)


def without_margins(image: Image.Image) -> Image.Image:
    """The picture, or the part with something on it if that is less than three quarters of it."""
    box = content_box(image)
    if box is None or (box[2] - box[0]) * (box[3] - box[1]) >= KEPT * image.width * image.height:
        return image
    return image.crop(box)
