"""`mmvl replay` of a contrastive stage: the pairs of a step that stopped a run, once more, pair by pair."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F

from mmvl.checkpoint import read_json
from mmvl.export import find_checkpoint
from mmvl.processor import Processor
from mmvl.training import replicated_state
from mmvl.training.checkpoints import Checkpoint
from mmvl.training.contrastive import build_coca, caption_processor, vision_config
from mmvl.training.pairs import PairBatch, load_pairs
from mmvl.training.recipe import ContrastiveRecipe
from mmvl.training.replay import broken
from mmvl.vision.contrastive import CoCa


def replay_pairs(directory: Path, model_dir: Path | None, device: str | None) -> dict:
    """As `mmvl.training.replay.replay`, whose result it gives: a batch is a rank's pairs, a document is a caption.

    A picture is sought among its own rank's captions alone, so the loss is smaller than the run's was on many ranks.

    Raises:
        FileNotFoundError, ValueError: no saved batches, no checkpoint, or other weights are asked for.
    """
    if model_dir is not None:
        raise ValueError("the weights of a contrastive stage lie in its own checkpoints: leave --model out")
    step, problem, batches = load_pairs(directory)
    recipe = ContrastiveRecipe.model_validate(read_json(directory.parent / "recipe.json"))
    source = find_checkpoint(directory.parent)
    processor, ids = caption_processor(recipe)
    model = build_coca(recipe, vision_config(recipe), ids)
    with Checkpoint(source) as checkpoint:
        replicated_state.put(model, None, checkpoint)
        weights_step = checkpoint.state["step"]
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    model.to(where).train()
    return {
        "step": step,
        "problem": problem,
        "weights": str(source),
        "weights_step": weights_step,
        "batches": [_look(model, processor, batch, recipe, where) for batch in batches],
    }


def _look(model: CoCa, processor: Processor, batch: PairBatch, recipe: ContrastiveRecipe, device: torch.device) -> dict:
    bad: list[str] = []
    hooks = [
        m.register_forward_hook(lambda m, args, out, name=name: bad.append(name) if broken(out) else None)
        for name, m in model.named_modules()
        if not any(True for _ in m.children())
    ]
    try:
        with torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
            out = model(batch.tiles_N3TT.to(device), batch.captions_NL.to(device))
    finally:
        for hook in hooks:
            hook.remove()
    similar_NN = out["logit_scale"].float() * out["image_features"].float() @ out["text_features"].float().T
    own_N = torch.arange(len(similar_NN), device=device)
    found_N = sum(F.cross_entropy(logits, own_N, reduction="none") / 2 for logits in (similar_NN, similar_NN.T))
    words_NL = out["labels"] != model.ids.pad
    losses_NL = F.cross_entropy(out["logits"].float().transpose(1, 2), out["labels"], reduction="none") * words_NL
    spec, words_N = recipe.contrastive, words_NL.sum(1)
    loss_N = spec.clip_weight * found_N + spec.caption_weight * losses_NL.sum(1) / words_N.clamp(min=1)
    loss = spec.clip_weight * found_N.mean() + spec.caption_weight * losses_NL.sum() / words_N.sum()
    model.zero_grad()
    loss.backward()
    norms: dict[str, float] = {}
    for name, p in model.named_parameters():
        if p.grad is not None:
            part = name.split(".")[0]
            norms[part] = norms.get(part, 0.0) + float(p.grad.float().square().sum())
    worst = int(torch.where(loss_N.isfinite(), loss_N, float("inf")).argmax())
    caption = batch.captions_NL[worst]
    caption = caption[(caption != model.ids.pad) & (caption != model.ids.begin) & (caption != model.ids.end)]
    return {
        "loss": float(loss.detach()),
        "documents": [
            {"tokens": int(n) + 1, "targets": int(n), "loss": float(value)}
            for n, value in zip(words_N, loss_N.detach(), strict=True)
        ],
        "worst": {"document": worst, "text": processor.decode(caption.tolist(), skip_special=False)},
        "grad_norm": {part: square**0.5 for part, square in norms.items()},
        "first_not_finite": bad[0] if bad else None,
    }
