"""A training batch: packed token ids, where the targets are, and the images, ready for the device.

Shape suffixes: T tokens, I image tokens, L targets, N tiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmvl.model import ImageBatch
from mmvl.processor import Prompt
from mmvl.text_backbone.packed import Packed


@dataclass(frozen=True)
class Example:
    """One document of a batch: an encoded sample and the index of the source that it came from."""

    prompt: Prompt
    source: int

    @property
    def num_tokens(self) -> int:
        return len(self.prompt.token_ids)

    @property
    def num_tiles(self) -> int:
        return sum(len(image.tiles_N3TT) for image in self.prompt.images)


@dataclass
class Batch:
    """Documents packed one after the other; none sees another.

    `target_positions_L` are the places whose next token is predicted, `targets_L` those tokens, `source_L` their
    source. `text_tokens` and `image_tokens` (per source) are what the ledger counts: every position of the batch.
    """

    ids_T: Tensor
    lengths: tuple[int, ...]
    target_positions_L: Tensor
    targets_L: Tensor
    source_L: Tensor
    images: ImageBatch | None
    image_positions_I: Tensor
    text_tokens: tuple[int, ...]
    image_tokens: tuple[int, ...]
    samples: tuple[int, ...]
    packed: Packed | None = None

    @classmethod
    def collate(cls, examples: Sequence[Example], num_sources: int, image_token: int) -> Batch:
        """Pack examples. A token is a target if its `loss_mask` is set and it is not the first of its document."""
        ids_T = torch.cat([torch.tensor(e.prompt.token_ids, dtype=torch.int64) for e in examples])
        mask_T = torch.cat([torch.tensor(e.prompt.loss_mask, dtype=torch.bool) for e in examples])
        lengths = tuple(e.num_tokens for e in examples)
        starts = torch.tensor(lengths).cumsum(0) - torch.tensor(lengths)
        mask_T[starts] = False
        source_T = torch.repeat_interleave(torch.tensor([e.source for e in examples]), torch.tensor(lengths))
        targets = mask_T.nonzero()[:, 0]
        is_image = ids_T == image_token
        image_by_source = torch.bincount(source_T[is_image], minlength=num_sources)
        all_by_source = torch.bincount(source_T, minlength=num_sources)
        samples = torch.bincount(torch.tensor([e.source for e in examples]), minlength=num_sources)
        return cls(
            ids_T=ids_T,
            lengths=lengths,
            target_positions_L=targets - 1,
            targets_L=ids_T[targets],
            source_L=source_T[targets],
            images=ImageBatch.from_images([i for e in examples for i in e.prompt.images]),
            image_positions_I=is_image.nonzero()[:, 0],
            text_tokens=tuple((all_by_source - image_by_source).tolist()),
            image_tokens=tuple(image_by_source.tolist()),
            samples=tuple(samples.tolist()),
        )

    def to(self, device: torch.device) -> Batch:
        """The batch on `device`, with its packing tables built there."""

        def move(t):
            return t.to(device, non_blocking=True)

        return Batch(
            ids_T=move(self.ids_T),
            lengths=self.lengths,
            target_positions_L=move(self.target_positions_L),
            targets_L=move(self.targets_L),
            source_L=move(self.source_L),
            images=None if self.images is None else self.images.to(device),
            image_positions_I=move(self.image_positions_I),
            text_tokens=self.text_tokens,
            image_tokens=self.image_tokens,
            samples=self.samples,
            packed=Packed.from_lengths(self.lengths, device),
        )

    def pin_memory(self) -> Batch:
        """For the loader: page-locked tensors copy to a GPU without blocking."""
        for name in ("ids_T", "target_positions_L", "targets_L", "source_L", "image_positions_I"):
            setattr(self, name, getattr(self, name).pin_memory())
        if self.images is not None:
            self.images = self.images.pin_memory()
        return self
