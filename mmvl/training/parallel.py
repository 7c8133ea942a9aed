"""How the processes of a stage share its work: experts, packed rows and batches over groups of ranks.

Ranks that share a row are consecutive, and so are those that hold a layer's experts; both kinds of group are cut from
the same ranks without regard to each other. What is left after `sequence` is data parallel.

DeepSpeed is told of one data-parallel group of all ranks, whose gradients it averages. That a rank sees only part of a
row is in its loss (the number of ranks times its own sum over all ranks' targets), so nothing else has to be weighted.
Experts are declared to it as such, and it reduces their gradients over the ranks that hold the same ones: the tokens of
the others were sent there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor

from mmvl.model import ImageBatch, VLModel
from mmvl.text_backbone.expert_parallel import ExpertLayout, Placement, placements
from mmvl.text_backbone.sequence_parallel import RowPart
from mmvl.training.batch import Batch
from mmvl.training.ranks import Ranks
from mmvl.training.recipe import ParallelSpec
from mmvl.vision.config import TilingConfig
from mmvl.vision.tiling import picture_patches

__all__ = ["Parallel", "Placement", "RowBatch", "placements", "split_row"]


class Parallel:
    """This process's place in the groups that a recipe asks for; all processes make it at the same moment.

    Attributes: sequence_size, sequence_rank (of those that share a row), data_world, data_rank (whose batches this rank
    reads: the same in one sequence group), experts (how they are spread).

    Raises:
        ValueError: the number of processes is no multiple of a group's size.
    """

    def __init__(self, ranks: Ranks, spec: ParallelSpec):
        holders = spec.expert * spec.expert_tensor
        for name, size in (("sequence", spec.sequence), ("expert x expert_tensor", holders)):
            if ranks.world % size:
                raise ValueError(f"parallel: {ranks.world} processes do not divide into groups of {size} ({name})")
        self.ranks = ranks
        self.sequence_size, self.sequence_rank = spec.sequence, ranks.rank % spec.sequence
        self.data_world, self.data_rank = ranks.world // spec.sequence, ranks.rank // spec.sequence
        groups: dict[int, dist.ProcessGroup | None] = {1: None}
        for size in sorted({spec.sequence, holders} - {1}):  # one communicator where the two coincide
            groups[size] = _consecutive(ranks, size)
        self._row = groups[spec.sequence]
        over_all = spec.global_balance
        self.experts = ExpertLayout(
            world=ranks.world,
            rank=ranks.rank,
            group=groups[holders],
            experts=spec.expert,
            tensor=spec.expert_tensor,
            token_groups=spec.token_groups,
            capacity=spec.capacity,
            balance_group=None if over_all else self._row,
            balance_ranks=ranks.world if over_all else spec.sequence,
        )

    @property
    def data_ranks(self) -> range:
        """The first rank of every sequence group, in the order of data_rank."""
        return range(0, self.ranks.world, self.sequence_size)

    def shard(self, model: VLModel) -> VLModel:
        """Keep this rank's part of the experts, in place; before the model is given to an optimizer.

        Works on the meta device too: then fill what is left by `placements(model)`.

        Raises:
            ValueError: the experts do not divide by the ranks.
        """
        model.language_model.spread(self.experts)
        if self.experts.size > 1:
            for layer in model.language_model.model.layers:
                for p in layer.block_sparse_moe.experts.parameters():  # DeepSpeed's marks of an expert's parameter
                    p.allreduce, p.group_name = False, self.deepspeed_group
        return model

    @property
    def deepspeed_group(self) -> str:
        """The name under which DeepSpeed keeps the groups of ranks that hold the same experts."""
        return f"ep_size_{self.experts.size}"

    def part(self, batch: Batch, tiling: TilingConfig) -> Batch:
        """This rank's part of a batch that its sequence group has read; before it is counted and moved to the device.

        Raises:
            ValueError: fewer tokens than ranks.
        """
        if self.sequence_size == 1:
            return batch
        return split_row(batch, RowPart(batch.lengths, self.sequence_rank, self.sequence_size, self._row), tiling)


def _consecutive(ranks: Ranks, size: int) -> dist.ProcessGroup:
    mine = None
    for first in range(0, ranks.world, size):
        group = dist.new_group(list(range(first, first + size)))
        if first <= ranks.rank < first + size:
            mine = group
    return mine


@dataclass
class RowBatch(Batch):
    """A part of a batch; its positions count from where the part begins. Only part 0 counts in the ledger.

    Of what its images give, the first `image_tokens_before` and what is left over at the end belong to other ranks.
    """

    row: RowPart | None = None
    image_tokens_before: int = 0

    def own(self, image_ID: Tensor) -> Tensor:
        """Of the tokens of this part's images (I, D), those that lie in it."""
        return image_ID.narrow(0, self.image_tokens_before, len(self.image_positions_I))

    def to(self, device: torch.device) -> Batch:
        """The part on `device`, with packing tables that know of the other ranks."""
        return replace(super().to(device), packed=self.row.pack(device))


def split_row(batch: Batch, row: RowPart, tiling: TilingConfig) -> RowBatch:
    """Part `row.rank` of a batch: its tokens, the targets that they predict, and the images that it shows any part of.

    An image across a border is embedded by both ranks, each of which keeps the tokens that are its own. Documents keep
    their numbers in the row.
    """

    def inside(positions: Tensor) -> slice:
        return slice(*torch.searchsorted(positions, torch.tensor([row.begin, row.end])).tolist())

    targets, placeholders = inside(batch.target_positions_L), inside(batch.image_positions_I)
    images, first = None, placeholders.start
    if placeholders.start < placeholders.stop:
        images, first = _images_of(batch.images, placeholders, tiling)
    counts = {
        name: getattr(batch, name) if row.rank == 0 else (0,) * len(getattr(batch, name))
        for name in ("text_tokens", "image_tokens", "samples")
    }
    return RowBatch(
        ids_T=batch.ids_T[row.begin : row.end],
        lengths=row.local_lengths,
        target_positions_L=batch.target_positions_L[targets] - row.begin,
        targets_L=batch.targets_L[targets],
        source_L=batch.source_L[targets],
        images=images,
        image_positions_I=batch.image_positions_I[placeholders] - row.begin,
        document_L=None if batch.document_L is None else batch.document_L[targets],
        pairs=batch.pairs,
        keys=batch.keys,
        image_tokens_before=placeholders.start - first,
        row=row,
        **counts,
    )


def _images_of(images: ImageBatch, tokens: slice, tiling: TilingConfig) -> tuple[ImageBatch, int]:
    """The images that have any of these image tokens, and the number of tokens of those before them."""
    token, tile, kept, kept_tiles, before = 0, 0, [], [], 0
    for size, grid in images.layout:
        columns, rows = picture_patches(size, grid, tiling.patch)
        token_end = token + tiling.thumbnail_tokens + (columns + 1) * rows
        tile_end = tile + 1 + (grid[0] // tiling.tile) * (grid[1] // tiling.tile)
        if token < tokens.stop and tokens.start < token_end:
            if not kept:
                before = token
            kept.append((size, grid))
            kept_tiles.append(images.tiles_N3tt[tile:tile_end])
        token, tile = token_end, tile_end
    return ImageBatch(torch.cat(kept_tiles), tuple(kept)), before
