"""Where a piece of a parameter lies in the whole parameter, and how pieces cut one way are put together another way.

A rank holds a *box* of a parameter: all of it, or with expert parallelism a block of it. Of that box, laid out flat,
ZeRO gives the rank a *range* to keep master weights and moments of. A fragment is such a range of such a box.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

_AT_ONCE = 1 << 22  # elements whose places are worked out at a time when boxes are cut along different dims


@dataclass(frozen=True)
class Box:
    """A block of a tensor: `size` elements along each dim from `offset` on."""

    offset: tuple[int, ...]
    size: tuple[int, ...]

    @classmethod
    def whole(cls, shape: tuple[int, ...]) -> Box:
        return cls((0,) * len(shape), tuple(shape))

    @property
    def numel(self) -> int:
        return prod(self.size)


def copy_overlap(src: Tensor, src_box: Box, src_start: int, out: Tensor, box: Box, start: int) -> int:
    """Copy what two fragments of one tensor share, and return how many elements that were.

    Args:
        src: 1-D, the elements of `src_box` (flat, row-major) from `src_start` on; a tensor, or a `FlatTensor` of a
            file, of which only what is copied is read.
        out: 1-D, the elements of `box` from `start` on; written in place, converted to its dtype.
    """
    count = src.shape[0]
    if src_box.offset[1:] == box.offset[1:] and src_box.size[1:] == box.size[1:]:
        row = prod(box.size[1:])  # cut along the first dim at most: both are ranges of one flat tensor
        shift = (src_box.offset[0] - box.offset[0]) * row if box.size else 0
        first = max(src_start + shift, start)
        last = min(src_start + shift + count, start + len(out))
        if last <= first:
            return 0
        low = first - shift - src_start
        out[first - start : last - start].copy_(src[low : low + last - first])
        return last - first
    copied = 0
    for low in range(0, count, _AT_ONCE):
        values = src[low : min(low + _AT_ONCE, count)]
        flat = torch.arange(src_start + low, src_start + low + len(values))
        place = torch.zeros_like(flat)
        inside = torch.ones_like(flat, dtype=torch.bool)
        coordinates = torch.unravel_index(flat, src_box.size)
        for at, src_offset, offset, size in zip(coordinates, src_box.offset, box.offset, box.size, strict=True):
            here = at + (src_offset - offset)
            inside &= (here >= 0) & (here < size)
            place = place * size + here
        place -= start
        inside &= (place >= 0) & (place < len(out))
        out[place[inside].to(out.device)] = values[inside.to(values.device)].to(out.device, out.dtype)
        copied += int(inside.sum())
    return copied
