"""Contrastive pre-training of the ViT: our VisionTower inside CoCa, with open_clip's text halves and losses.

CoCa (arXiv 2205.01917) teaches a ViT by two tasks at once: to find the caption of a picture among others, and to
write it. Only the tower is kept; pooler and text halves stay behind. The text halves and the attention pooling are
open_clip's (thanks to its authors), in the shape of its `coca_ViT-L-14`.

Legend: N pairs, T tile edge in pixels, Q queries, W text width, L tokens of a caption, V vocabulary.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from mmvl.vision.config import VisionConfig
from mmvl.vision.encoder import VisionTower

LARGEST_SCALE = math.log(100.0)  # of the similarities, as in CLIP (arXiv 2103.00020 section 2.5)


@dataclass(frozen=True)
class CaptionIds:
    """What a caption is made of beside its words: vocabulary size, and the ids of padding, beginning and end."""

    vocab_size: int
    pad: int
    begin: int
    end: int


class CoCa(nn.Module):
    """Vision tower, attention pooling, causal text encoder and captioning decoder.

    `open_clip_torch` is needed (the extra `train`); ValueError without it.
    """

    def __init__(
        self,
        vision: VisionConfig,
        ids: CaptionIds,
        *,
        embed_dim: int,
        queries: int,
        pooler_heads: int,
        width: int,
        heads: int,
        layers: int,
        decoder_layers: int,
        context: int,
    ):
        super().__init__()
        try:
            from open_clip.transformer import AttentionalPooler, MultimodalTransformer, TextTransformer
        except ImportError as e:
            raise ValueError("contrastive training needs open_clip: pip install 'mmvl[train]'") from e
        self.ids, self.context = ids, context
        self.vision_tower = VisionTower(vision)
        # The first query gives the vector that is compared, the others what the decoder looks at.
        self.pooler = AttentionalPooler(width, vision.hidden_size, n_head=pooler_heads, n_queries=1 + queries)
        self.pooler_norm = nn.LayerNorm(width)
        self.project = nn.Linear(width, embed_dim, bias=False)
        self.text = TextTransformer(
            context_length=context,
            vocab_size=ids.vocab_size,
            width=width,
            heads=heads,
            layers=layers,
            output_dim=embed_dim,
            embed_cls=True,
            correct_cls_mask=True,  # the released CoCa masks the wrong column
            pad_id=ids.pad,
            output_tokens=True,
        )
        self.decoder = MultimodalTransformer(width, decoder_layers, heads, context, output_dim=ids.vocab_size)
        # open_clip leaves it as it finds the memory, and its own method for this fails
        nn.init.normal_(self.decoder.text_projection, std=width**-0.5)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def forward(self, tiles_N3TT: torch.Tensor, captions_NL: torch.Tensor) -> dict[str, torch.Tensor]:
        """uint8 tiles and caption ids (int64, padded) -> what open_clip's CoCaLoss takes.

        image_features, text_features (N, embed_dim), of unit length; logits (N, L-1, V) of `labels` (N, L-1);
        logit_scale.
        """
        pooled_NQW = self.pooler_norm(self.pooler(self.vision_tower(tiles_N3TT)))
        image_NC = F.normalize(self.project(pooled_NQW[:, 0]), dim=-1)
        text_NC, tokens_NLW = self.text(captions_NL)
        return {
            "image_features": image_NC,
            "text_features": F.normalize(text_NC, dim=-1),
            "logits": self.decoder(pooled_NQW[:, 1:], tokens_NLW[:, :-1]),
            "labels": captions_NL[:, 1:],
            "logit_scale": self.logit_scale.clamp(max=LARGEST_SCALE).exp(),
        }

    def caption_ids(self, token_ids: list[int]) -> torch.Tensor:
        """Tokens of a caption -> (context,) int64: begin, tokens (cut to what fits), end, padding."""
        ids = [self.ids.begin, *token_ids[: self.context - 2], self.ids.end]
        return torch.tensor(ids + [self.ids.pad] * (self.context - len(ids)))
