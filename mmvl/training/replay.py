"""`mmvl replay`: the batches of a step that stopped a run, run forward and backward once more, document by document."""

from __future__ import annotations

import itertools
from pathlib import Path

import torch
from torch import Tensor, nn

from mmvl.checkpoint import load_model, read_json
from mmvl.export import find_checkpoint, load_checkpoint
from mmvl.processor import Processor
from mmvl.training.batch import Batch
from mmvl.training.checkpoints import MODEL
from mmvl.training.guard import load_batches
from mmvl.training.objective import cross_entropy

SHOWN = 160  # characters of the worst document


def replay(directory: Path, model_dir: Path | None = None, device: str | None = None) -> dict:
    """Run the batches that a stopped run kept in `directory` and tell what each does to the model.

    The weights are a model directory's, or those of the run's newest checkpoint (`directory` lies in the run's `out`):
    from before the bad step, by as many steps as the result says. Precision is the recipe's.

    Returns:
        step, problem (why the run was stopped), weights (whose), weights_step (None for a model directory's), and
        `batches`, one a batch in the order of ranks: loss (mean over targets), documents (tokens, targets and mean loss
        of each), worst (number, text), grad_norm by part of the model, first_not_finite (the first module whose output
        was not finite; None if all were).

    Raises:
        FileNotFoundError, ValueError: no saved batches, no weights; one line that says what is missing.
    """
    recipe = _recipe(directory)
    if recipe["stage"] == "contrastive":
        from mmvl.training.replay_pairs import replay_pairs

        return replay_pairs(directory, model_dir, device)
    step, problem, batches = load_batches(directory)
    if model_dir is None:
        source = find_checkpoint(directory.parent)
        weights_step = int(source.name.removeprefix("step-"))
        model, processor = load_checkpoint(source), Processor.from_pretrained(source / MODEL)
    else:
        source, weights_step = model_dir, None
        model, processor = load_model(model_dir, dtype=torch.float32), Processor.from_pretrained(model_dir)
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = torch.bfloat16 if recipe["precision"] == "bf16" else torch.float32
    model = model.to(device, dtype).requires_grad_(True).train()
    return {
        "step": step,
        "problem": problem,
        "weights": str(source),
        "weights_step": weights_step,
        "batches": [_look(model, processor, batch.to(device)) for batch in batches],
    }


def _recipe(directory: Path) -> dict:
    path = directory.parent / "recipe.json"
    if not path.is_file():
        raise FileNotFoundError(f"no saved batches in {directory}, or not in a stage's `out`: {path} is missing")
    return read_json(path)


def _look(model: nn.Module, processor: Processor, batch: Batch) -> dict:
    bad: list[str] = []
    hooks = [
        m.register_forward_hook(lambda m, args, out, name=name: bad.append(name) if broken(out) else None)
        for name, m in model.named_modules()
        if not any(True for _ in m.children())
    ]
    try:
        out = model(batch.ids_T, batch.packed, batch.images, batch.image_positions_I)
        hidden_LD = out.hidden_TD.index_select(0, batch.target_positions_L)
        loss_L, _ = cross_entropy(model.language_model, hidden_LD, batch.targets_L)
        model.zero_grad()
        loss_L.mean().backward()
    finally:
        for hook in hooks:
            hook.remove()
    ends = torch.tensor(list(itertools.accumulate(batch.lengths)), device=loss_L.device)
    document_L = torch.searchsorted(ends, batch.target_positions_L, right=True)
    count = len(batch.lengths)
    sums = torch.zeros(count, device=loss_L.device).index_add_(0, document_L, loss_L.detach())
    targets = torch.bincount(document_L, minlength=count)
    means = sums / targets.clamp(min=1)
    worst = int(torch.where(means.isfinite(), means, float("inf")).argmax())
    ids = batch.ids_T[int(ends[worst]) - batch.lengths[worst] : int(ends[worst])].tolist()
    norms: dict[str, Tensor] = {}
    for name, p in model.named_parameters():
        if p.grad is not None:
            part = name.split(".")[0]
            norms[part] = norms.get(part, 0.0) + p.grad.float().square().sum()
    return {
        "loss": float(loss_L.detach().mean()),
        "documents": [
            {"tokens": n, "targets": int(t), "loss": float(mean)}
            for n, t, mean in zip(batch.lengths, targets, means, strict=True)
        ],
        "worst": {"document": worst, "text": processor.decode(ids, skip_special=False)[:SHOWN]},
        "grad_norm": {part: float(square.sqrt()) for part, square in norms.items()},
        "first_not_finite": bad[0] if bad else None,
    }


def broken(out) -> bool:
    return isinstance(out, Tensor) and out.is_floating_point() and not bool(torch.isfinite(out).all())
