"""The whole model: tiles -> ViT -> adapter -> image tokens, scattered among text tokens -> decoder.

Shape suffixes: T tokens, I image tokens of the batch, N tiles, P patches a tile, C vision width, D model width,
t tile edge in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mmvl.config import VLConfig
from mmvl.text_backbone.cache import HybridCache
from mmvl.text_backbone.decoder import Decoder, DecoderOutput
from mmvl.text_backbone.packed import Packed
from mmvl.text_backbone.tensor_parallel import Shard
from mmvl.vision.adapter import Adapter, pack_images
from mmvl.vision.config import TilingConfig
from mmvl.vision.encoder import VisionTower
from mmvl.vision.tiling import TiledImage

TILES_AT_ONCE = 256  # through the ViT at inference; bounds its activations at 256 x 577 x 4096 values as released


@dataclass(frozen=True)
class ImageBatch:
    """All images of a batch: their tiles (uint8), one image after the other, and each one's (size, grid) in pixels."""

    tiles_N3tt: Tensor
    layout: tuple[tuple[tuple[int, int], tuple[int, int]], ...]

    @classmethod
    def from_images(cls, images: Sequence[TiledImage]) -> ImageBatch | None:
        """Join tiled images; None when there is none."""
        if not images:
            return None
        return cls(torch.cat([i.tiles_N3TT for i in images]), tuple((i.size, i.grid) for i in images))

    def to(self, device) -> ImageBatch:
        return ImageBatch(self.tiles_N3tt.to(device, non_blocking=True), self.layout)

    def pin_memory(self) -> ImageBatch:
        return ImageBatch(self.tiles_N3tt.pin_memory(), self.layout)


class VLModel(nn.Module):
    """MiniMax-VL-01-class vision-language model (arXiv 2501.08313 section 6; released `modeling_minimax_vl_01`).

    Attribute names are the first parts of the released tensor names: `vision_tower`, `multi_modal_projector`,
    `image_newline`, `language_model`. With a `shard` the decoder is that rank's part, at inference over several ranks.
    """

    def __init__(self, config: VLConfig, shard: Shard | None = None):
        super().__init__()
        self.config = config
        self.tiling = TilingConfig(
            tile=config.vision.image_size,
            patch=config.vision.patch_size,
            grid_pinpoints=config.image_grid_pinpoints,
            mean=config.image_mean,
            std=config.image_std,
            min_edge=config.image_min_edge,
            trim_margins=config.image_trim_margins,
        )
        self.vision_tower = VisionTower(config.vision, config.image_mean, config.image_std)
        self.multi_modal_projector = Adapter(config.vision.hidden_size, config.text.hidden_size)
        self.image_newline = nn.Parameter(torch.zeros(config.text.hidden_size))
        self.language_model = Decoder(config.text, shard)

    @property
    def device(self) -> torch.device:
        return self.image_newline.device

    @property
    def dtype(self) -> torch.dtype:
        return self.image_newline.dtype

    def init_weights(self, seed: int) -> None:
        """Random weights, on the CPU a pure function of `seed`; the decoder's as in text_backbone/init.py."""
        generator = torch.Generator(device=self.device).manual_seed(seed)
        self.language_model.init_weights(seed)
        with torch.random.fork_rng(devices=[]):  # timm draws from the global generator
            torch.manual_seed(seed)
            self.vision_tower.vit.init_weights()
        for linear in (self.multi_modal_projector.linear_1, self.multi_modal_projector.linear_2):
            nn.init.xavier_uniform_(linear.weight, generator=generator)
            nn.init.zeros_(linear.bias)
        nn.init.normal_(self.image_newline, std=self.config.text.hidden_size**-0.5, generator=generator)

    def embed_images(self, images: ImageBatch) -> Tensor:
        """Image tokens (I, D) of all images of the batch, in order."""
        tiles_N3tt = images.tiles_N3tt
        # Without gradients the activations of one chunk can be dropped before the next; with them chunks save nothing.
        at_once = len(tiles_N3tt) if torch.is_grad_enabled() else TILES_AT_ONCE
        features_NPD = torch.cat(
            [self.multi_modal_projector(self.vision_tower(tiles)) for tiles in tiles_N3tt.split(at_once)]
        )
        return pack_images(features_NPD, images.layout, self.image_newline, self.tiling)

    def embed(self, ids_T: Tensor, image_ID: Tensor | None = None, positions_I: Tensor | None = None) -> Tensor:
        """Token embeddings (T, D), with image tokens in the places of the image id.

        `positions_I` (int64) may give those places when the caller knows them, which saves a device sync.

        Raises:
            ValueError: as many placeholders as image tokens are needed, and there are not.
        """
        x_TD = self.language_model.embed(ids_T)
        if positions_I is None:
            positions_I = (ids_T == self.config.image_token_index).nonzero()[:, 0]
        tokens = 0 if image_ID is None else len(image_ID)
        if len(positions_I) != tokens:
            raise ValueError(
                f"the prompt has {len(positions_I)} image placeholders but the images give {tokens} tokens; "
                "encode text and images together with the processor"
            )
        if image_ID is None:
            return x_TD
        return x_TD.index_copy(0, positions_I, image_ID.to(x_TD.dtype))

    def forward(
        self,
        ids_T: Tensor,
        packed: Packed,
        images: ImageBatch | None = None,
        positions_I: Tensor | None = None,
        cache: HybridCache | None = None,
    ) -> DecoderOutput:
        """Packed tokens (and their images) -> final hidden states; `language_model.logits` gives the logits."""
        image_ID = None if images is None else self.embed_images(images)
        return self.language_model(self.embed(ids_T, image_ID, positions_I), packed, cache)
