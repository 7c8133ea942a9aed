"""A training batch: packed token ids, where the targets are, and the images, ready for the device.

Shape suffixes: T tokens, I image tokens, L targets, N tiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mmvl.model import ImageBatch
from mmvl.processor import Prompt
from mmvl.text_backbone.packed import Packed


@dataclass(frozen=True)
class Example:
    """An encoded sample and the index of the source that it came from: one document of a batch.

    With `rejected` it is a preference pair: `prompt` ends in the chosen answer, and both become documents of one batch.
    `key` is "source/key of the sample", unique in a recipe.
    """

    prompt: Prompt
    source: int
    rejected: Prompt | None = None
    key: str = ""

    @property
    def documents(self) -> tuple[Prompt, ...]:
        return (self.prompt,) if self.rejected is None else (self.prompt, self.rejected)

    @property
    def num_tokens(self) -> int:
        return sum(len(d.token_ids) for d in self.documents)

    @property
    def num_tiles(self) -> int:
        return sum(len(image.tiles_N3TT) for d in self.documents for image in d.images)


@dataclass
class Batch:
    """Documents packed one after the other; none sees another.

    `target_positions_L` are the places whose next token is predicted, `targets_L` those tokens, `source_L` their
    source and `document_L` the number of their document. `text_tokens` and `image_tokens` (per source) are what the
    ledger counts: every position of the batch. If `pairs`, documents 2i and 2i + 1 are what was chosen and rejected in
    preference pair i, whose sample is `keys[i]`.
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
    document_L: Tensor | None = None
    pairs: bool = False
    keys: tuple[str, ...] = ()
    packed: Packed | None = None

    @classmethod
    def collate(cls, examples: Sequence[Example], num_sources: int, image_token: int) -> Batch:
        """Pack examples. A token is a target if its `loss_mask` is set and it is not the first of its document.

        Raises:
            ValueError: preference pairs beside other samples.
        """
        pairs = examples[0].rejected is not None
        if any((e.rejected is not None) != pairs for e in examples):
            raise ValueError("a batch holds preference pairs or other samples, not both")
        documents = [(d, e.source) for e in examples for d in e.documents]
        ids_T = torch.cat([torch.tensor(d.token_ids, dtype=torch.int64) for d, _ in documents])
        mask_T = torch.cat([torch.tensor(d.loss_mask, dtype=torch.bool) for d, _ in documents])
        lengths = tuple(len(d.token_ids) for d, _ in documents)
        lengths_S = torch.tensor(lengths)
        mask_T[lengths_S.cumsum(0) - lengths_S] = False
        document_T = torch.repeat_interleave(torch.arange(len(lengths)), lengths_S)
        source_T = torch.tensor([source for _, source in documents])[document_T]
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
            images=ImageBatch.from_images([i for d, _ in documents for i in d.images]),
            image_positions_I=is_image.nonzero()[:, 0],
            text_tokens=tuple((all_by_source - image_by_source).tolist()),
            image_tokens=tuple(image_by_source.tolist()),
            samples=tuple(samples.tolist()),
            document_L=document_T[targets],
            pairs=pairs,
            keys=tuple(e.key for e in examples) if pairs else (),
        )

    def to(self, device: torch.device) -> Batch:
        """The batch on `device`, with its packing tables built there."""

        def move(t):
            return t.to(device, non_blocking=True)

        return replace(
            self,
            ids_T=move(self.ids_T),
            target_positions_L=move(self.target_positions_L),
            targets_L=move(self.targets_L),
            source_L=move(self.source_L),
            document_L=None if self.document_L is None else move(self.document_L),
            images=None if self.images is None else self.images.to(device),
            image_positions_I=move(self.image_positions_I),
            packed=Packed.from_lengths(self.lengths, device),
        )

    def pin_memory(self) -> Batch:
        """For the loader: page-locked tensors copy to a GPU without blocking."""
        for name in ("ids_T", "target_positions_L", "targets_L", "source_L", "document_L", "image_positions_I"):
            if getattr(self, name) is not None:
                setattr(self, name, getattr(self, name).pin_memory())
        if self.images is not None:
            self.images = self.images.pin_memory()
        return self
