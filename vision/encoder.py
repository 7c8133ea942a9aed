"""The ViT: tiles -> patch features. timm's VisionTransformer in the shape of the released CLIP tower.

What makes it CLIP's: no bias on the patch embedding, a norm before the first block, erf GELU. What makes it
MiniMax-VL-01's: the output of the last block without a final norm, class token dropped.

Legend: N tiles, T tile edge in pixels, P patches of a tile, C width of the ViT.
"""

from functools import partial

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from mmvl.vision.config import CLIP_MEAN, CLIP_STD, VisionConfig


class VisionTower(nn.Module):
    """The ViT, and the colour normalisation in front of it, which runs on the device."""

    def __init__(self, config: VisionConfig, mean=CLIP_MEAN, std=CLIP_STD):
        super().__init__()
        self.config = config
        self.mean, self.std = tuple(mean), tuple(std)
        self.vit = VisionTransformer(
            img_size=config.image_size,
            patch_size=config.patch_size,
            embed_dim=config.hidden_size,
            depth=config.num_hidden_layers,
            num_heads=config.num_attention_heads,
            # timm rounds width * ratio down, and the quotient alone may be a hair too small
            mlp_ratio=(config.intermediate_size + 0.5) / config.hidden_size,
            num_classes=0,
            global_pool="",
            pre_norm=True,  # a norm before the blocks; timm then leaves out the patch embedding's bias
            final_norm=False,
            norm_layer=partial(nn.LayerNorm, eps=config.layer_norm_eps),
            act_layer=nn.GELU,
        )

    def forward(self, tiles_N3TT: torch.Tensor) -> torch.Tensor:
        """tiles_N3TT: uint8 0..255, or floats already normalised -> features (N, P, C) in the weights' dtype."""
        dtype = self.vit.patch_embed.proj.weight.dtype
        if tiles_N3TT.dtype == torch.uint8:
            tiles_N3TT = normalize(tiles_N3TT, self.mean, self.std)
        return self.vit.forward_features(tiles_N3TT.to(dtype))[:, 1:]


def normalize(tiles_N3TT: torch.Tensor, mean, std) -> torch.Tensor:
    """uint8 tiles -> fp32 (x / 255 - mean) / std, channel by channel."""
    # one number a channel stays on the host: no table to copy to the device, none to lose when built on "meta"
    x_N3TT = tiles_N3TT.float()
    for channel in range(3):
        x_N3TT[:, channel].sub_(255 * mean[channel]).div_(255 * std[channel])
    return x_N3TT
