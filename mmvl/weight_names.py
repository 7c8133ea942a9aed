"""Tensor names of a whole model: ours in memory, the released ones on disk, and those of transformers' classes.

Two dialects of names are read: the released one (`language_model.model.layers.0.block_sparse_moe.experts.3.w1.weight`)
and the one of transformers (stacked experts, `model.language_model....`). The released one is written. A matrix that is
stored quantised has its scales beside it, under its name with `_scale` at the end.
"""

from __future__ import annotations

import hashlib
import re
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from mmvl.config import VLConfig
from mmvl.text_backbone import names as text_names
from mmvl.text_backbone.config import TextConfig
from mmvl.vision import names as vision_names

TEXT_PREFIX = "language_model."
SCALE = "_scale"  # at the end of a quantised tensor's name


def released_names(config: VLConfig | TextConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor that a released checkpoint of this config holds: name -> shape."""
    if isinstance(config, TextConfig):
        return text_names.released_names(config)
    text = {TEXT_PREFIX + name: shape for name, shape in text_names.released_names(config.text).items()}
    return text | vision_names.released_names(config.vision, config.text.hidden_size)


def names_digest(names: Iterable[str]) -> str:
    """SHA-256 over the sorted names, one a line: a fingerprint of a checkpoint's layout."""
    return hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()


def to_released(state: Mapping[str, Tensor], config: VLConfig | TextConfig) -> dict[str, Tensor]:
    """A module's state dict -> tensors under their released names."""
    if isinstance(config, TextConfig):
        return text_names.to_released(dict(state))
    text, rest = _halves(state)
    return {TEXT_PREFIX + k: v for k, v in text_names.to_released(text).items()} | vision_names.to_released(rest)


def from_released(tensors: Mapping[str, Tensor], config: VLConfig | TextConfig) -> dict[str, Tensor]:
    """The inverse of `to_released`."""
    if isinstance(config, TextConfig):
        return text_names.from_released(dict(tensors))
    text, rest = _halves(tensors)
    return {TEXT_PREFIX + k: v for k, v in text_names.from_released(text).items()} | vision_names.from_released(rest)


def _halves(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The decoder's tensors under the names that it gives them, and all others."""
    text = {k.removeprefix(TEXT_PREFIX): v for k, v in tensors.items() if k.startswith(TEXT_PREFIX)}
    return text, {k: v for k, v in tensors.items() if not k.startswith(TEXT_PREFIX)}


_NATIVE_PREFIXES = (
    (re.compile(r"^lm_head\."), "language_model.lm_head."),
    (re.compile(r"^model\.language_model\."), "language_model.model."),
    (re.compile(r"^model\.vision_tower\.(?!vision_model\.)"), "vision_tower.vision_model."),
    (re.compile(r"^model\.(vision_tower\.|multi_modal_projector\.|image_newline$)"), r"\1"),
)


def from_native(tensors: Mapping[str, Tensor], config: VLConfig | TextConfig) -> dict[str, Tensor]:
    """Names of transformers' MiniMax and MiniMax-VL-01 classes -> released names; released names pass through."""
    if isinstance(config, TextConfig):
        return text_names.to_released(text_names.from_native(dict(tensors)))
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        for pattern, new in _NATIVE_PREFIXES:
            name = pattern.sub(new, name)
        renamed[name] = tensor
    text, rest = _halves(renamed)
    return {TEXT_PREFIX + k: v for k, v in from_native(text, config.text).items()} | rest


class FlatViews:
    """Imaginary tensors of given shapes, all views of one flat tensor, so that what becomes of them can be traced back.

    Renaming and slicing code runs on `views`; `origin` says where a result comes from.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]):
        self._names, self._starts, at = list(shapes), [], 0
        sizes = [torch.Size(shapes[name]).numel() for name in self._names]
        flat = torch.empty(sum(sizes), device="meta")
        self.views: dict[str, Tensor] = {}
        for name, size in zip(self._names, sizes, strict=True):
            self._starts.append(at)
            self.views[name] = flat[at : at + size].view(shapes[name])
            at += size

    def origin(self, view: Tensor) -> tuple[str, int]:
        """The name of the tensor that a contiguous view lies in, and its first element there (of the flat values)."""
        assert view.is_contiguous()
        i = bisect_right(self._starts, view.storage_offset()) - 1
        return self._names[i], view.storage_offset() - self._starts[i]


class Place(NamedTuple):
    """Where a released tensor lies in one of our parameters: from element `start` of its flat values on."""

    name: str
    start: int
    shape: tuple[int, ...]


def places_of(shapes: Mapping[str, tuple[int, ...]], config: VLConfig | TextConfig) -> dict[str, Place]:
    """Released name -> where it lies in a model whose parameters have these shapes."""
    flat = FlatViews(shapes)
    return {
        name: Place(*flat.origin(view), tuple(view.shape)) for name, view in to_released(flat.views, config).items()
    }
