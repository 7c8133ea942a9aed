"""What is minimised: next-token cross-entropy on the tokens that count, plus the router's balance loss.

Shape suffixes: T tokens, L tokens that are predicted (targets), D model width, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmvl.model import ImageBatch, VLModel
from mmvl.training.batch import Batch
from mmvl.training.parallel import RowBatch


def cross_entropy(decoder: nn.Module, hidden_LD: Tensor, targets_L: Tensor, chunk: int = 16384):
    """Per-target loss (L,) fp32 and whether the target was the most likely token (L,) bool.

    Logits exist for `chunk` targets at a time; with more than one chunk they are recomputed in backward.
    """

    def part(hidden, targets):
        logits = decoder.logits(hidden)
        return F.cross_entropy(logits, targets, reduction="none"), logits.detach().argmax(-1) == targets

    if len(targets_L) <= chunk:
        return part(hidden_LD, targets_L)
    parts = [
        checkpoint(part, h, t, use_reentrant=False)
        for h, t in zip(hidden_LD.split(chunk), targets_L.split(chunk), strict=True)
    ]
    losses, hits = zip(*parts, strict=True)
    return torch.cat(losses), torch.cat(hits)


class Objective(nn.Module):
    """The module that the training engine wraps: batch -> (loss, figures to log).

    The loss is the mean over the targets of all ranks plus `balance` times the router's balance loss. The engine
    averages gradients over ranks, so a rank contributes `world` times its sum over the number of targets everywhere.

    A batch without images still runs the vision half on a black image, with weight zero, if that half is trained: every
    rank then has a gradient for every parameter, which bucketed gradient reduction needs. It is added to the
    embeddings: under a frozen decoder too all ranks then take part in what is exchanged on the way back.
    """

    def __init__(self, model: VLModel, balance: float, num_sources: int):
        super().__init__()
        self.model = model
        self.balance = balance
        self.num_sources = num_sources

    def forward(self, batch: Batch, targets: int | None = None, world: int = 1) -> tuple[Tensor, dict[str, Tensor]]:
        """`targets` of the `world` ranks together; None: this rank is alone."""
        out = self.model.language_model(self.embed(batch), batch.packed)
        hidden_LD = out.hidden_TD.index_select(0, batch.target_positions_L)
        loss_L, hit_L = cross_entropy(self.model.language_model, hidden_LD, batch.targets_L)
        loss = loss_L.sum() * (world / (targets or len(loss_L))) + self.balance * out.balance_loss
        with torch.no_grad():
            sums = torch.zeros(3, self.num_sources, device=loss.device)
            sums.index_add_(1, batch.source_L, torch.stack([loss_L, hit_L.float(), torch.ones_like(loss_L)]))
        figures = {
            "balance": out.balance_loss.detach(),
            "by_source": sums,
            "busiest_expert": _busiest(out.expert_counts_LE),
        }
        return loss, figures

    def embed(self, batch: Batch) -> Tensor:
        """The embeddings (T, D) of a batch's tokens and pictures; all ranks of a row call it together."""
        # With or without images, the vision half comes first: ZeRO 2 puts gradients into its buckets in the order in
        # which the backward pass makes them, and sums buckets of all ranks without asking what is in them.
        model = self.model
        if batch.images is None:
            vision = (model.vision_tower, model.multi_modal_projector)
            if not any(p.requires_grad for part in vision for p in part.parameters()):
                return model.embed(batch.ids_T, None, batch.image_positions_I)
            black = 0.0 * model.embed_images(self._black_image()).sum()
            return model.embed(batch.ids_T, None, batch.image_positions_I) + black
        image_ID = model.embed_images(batch.images)
        if isinstance(batch, RowBatch):
            image_ID = batch.own(image_ID)
        return model.embed(batch.ids_T, image_ID, batch.image_positions_I)

    def _black_image(self) -> ImageBatch:
        edge = self.model.tiling.tile
        grid = min(self.model.tiling.grid_pinpoints, key=lambda g: g[0] * g[1])
        tiles = 1 + grid[0] * grid[1] // edge**2
        black = torch.zeros(tiles, 3, edge, edge, dtype=torch.uint8, device=self.model.device)
        return ImageBatch(black, ((grid, grid),))


def _busiest(counts_LE: Tensor) -> Tensor:
    """Largest share of the tokens that one expert of one layer got, relative to an even split (1 is perfect)."""
    share = counts_LE.float() / counts_LE.float().sum(1, keepdim=True).clamp(min=1)
    return share.max() * counts_LE.shape[1]
