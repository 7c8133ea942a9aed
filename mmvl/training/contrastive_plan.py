"""`mmvl train RECIPE --dry-run` of a contrastive stage; plan.py has those of the others."""

from __future__ import annotations

import torch

from mmvl.config import VLConfig
from mmvl.training.build import read_model_config
from mmvl.training.contrastive import build_coca, vision_config
from mmvl.training.flops import vision_flops
from mmvl.training.plan import GIB, RUNTIME, billions, duration, size
from mmvl.training.recipe import ContrastiveRecipe
from mmvl.vision.contrastive import CaptionIds


def plan_lines(recipe: ContrastiveRecipe) -> list[str]:
    """What `--dry-run` says of a contrastive stage; see plan.py."""
    vision = vision_config(recipe)
    text = VLConfig.from_dict(read_model_config(recipe.model_config_file)).text
    with torch.device("meta"):
        model = build_coca(recipe, vision, CaptionIds(text.vocab_size, 0, 1, 2))
    count = sum(p.numel() for p in model.parameters())
    tower = sum(p.numel() for p in model.vision_tower.parameters())
    spec, gpus = recipe.contrastive, recipe.hardware.gpus if recipe.hardware else 1
    if recipe.data.batch_pairs % gpus:
        raise ValueError(f"data.batch_pairs ({recipe.data.batch_pairs}) must be a multiple of the {gpus} GPUs")
    pairs, steps = recipe.data.batch_pairs // gpus, -(-recipe.budget.pairs // recipe.data.batch_pairs)
    blocks = 12 * spec.text.width**2 * (spec.text.layers + 2 * spec.text.decoder_layers)
    captions = 2.0 * spec.text.context * (blocks + spec.text.width * text.vocab_size)
    pooled = 2.0 * 2 * (vision.patches + spec.pooler_queries) * spec.text.width * vision.hidden_size
    flops = 3 * recipe.data.batch_pairs * (vision_flops(vision, 1) + captions + pooled)
    width = 2 if recipe.precision == "bf16" else 4
    rows = vision.num_hidden_layers * (vision.patches + 1) * (9 * vision.hidden_size + 2 * vision.intermediate_size)
    rows += 17 * spec.text.width * spec.text.context * (spec.text.layers + 2 * spec.text.decoder_layers)
    memory = {
        "weights": 4 * count,
        "gradients": 4 * count,
        "optimizer": 8 * count,
        "activations": pairs * rows * width,
        "logits": 3 * pairs * spec.text.context * text.vocab_size * 4,
        "buffers": 4 * count + RUNTIME,  # the ranks' gradient buckets
    }
    lines = [
        f"{recipe.name}: {gpus:,} GPU{'s' * (gpus > 1)}, {pairs:,} pairs each",
        f"parameters    {billions(count)} trained, {billions(tower)} of them in the vision tower that is kept",
        f"pairs         {recipe.budget.pairs:,} in {steps:,} steps of {recipe.data.batch_pairs:,}",
        f"operations    {flops:.3g} FLOPs a step, {flops * steps:.3g} in all",
    ]
    if recipe.hardware:
        rate = gpus * recipe.hardware.peak_tflops * 1e12 * recipe.hardware.utilisation
        days = duration(flops * steps / rate / 86400)
        lines.append(f"time          {days} at {recipe.hardware.utilisation:.0%} of the GPUs' peak")
    total = sum(memory.values())
    lines.append(f"memory a GPU  {size(total)} ({', '.join(f'{part} {size(n)}' for part, n in memory.items())})")
    if recipe.hardware:
        left = recipe.hardware.memory_gib * GIB - total
        lines.append(f"              {size(abs(left))} {'to spare' if left >= 0 else 'TOO MUCH'}")
    return lines
