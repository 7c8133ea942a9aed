"""Images to image tokens: tiling, ViT, adapter."""
