"""`mmvl replay`: the batches of a step that stopped a run, run forward and backward once more, document by document.

Under torchrun the ranks share the model's experts and each batch's row, however the stage was spread: they look at one
batch at a time, and say what one process would.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mmvl.checkpoint import load_config, read_json
from mmvl.export import find_checkpoint
from mmvl.model import VLModel
from mmvl.processor import Processor
from mmvl.training.batch import Batch
from mmvl.training.checkpoints import MODEL, Checkpoint
from mmvl.training.fill import fill, fill_from_checkpoint, materialize
from mmvl.training.guard import load_batches
from mmvl.training.objective import Objective, cross_entropy
from mmvl.training.parallel import Parallel
from mmvl.training.ranks import Ranks
from mmvl.training.recipe import ParallelSpec

SHOWN = 160  # characters of the worst document


def replay(directory: Path, model_dir: Path | None = None, device: str | None = None) -> dict:
    """Run the batches that a stopped run kept in `directory` and tell what each does to the model.

    The weights are a model directory's, or those of the run's newest checkpoint (`directory` lies in the run's `out`):
    from before the bad step, by as many steps as the result says. Precision is the recipe's. All processes of torchrun
    call it, and each reads only its part of the experts; `device` is for one process alone.

    Returns:
        step, problem (why the run was stopped), weights (whose), weights_step (None for a model directory's), and
        `batches`, one a batch in the order of ranks: loss (mean over targets), documents (tokens, targets and mean loss
        of each), worst (number, text), grad_norm by part of the model, first_not_finite (the first module whose output
        was not finite; None if all were).

    Raises:
        FileNotFoundError, ValueError: no saved batches, no weights, or processes that the experts do not divide by; one
            line that says what is missing.
    """
    recipe = _recipe(directory)
    if recipe["stage"] == "contrastive":
        from mmvl.training.replay_pairs import replay_pairs

        return replay_pairs(directory, model_dir, device)
    step, problem, batches = load_batches(directory)
    source = find_checkpoint(directory.parent) if model_dir is None else model_dir
    settings = source / MODEL if model_dir is None else model_dir
    processor = Processor.from_pretrained(settings)
    ranks = Ranks()
    where = ranks.device if device is None or ranks.world > 1 else torch.device(device)
    with torch.device("meta"):
        model = VLModel(load_config(settings))
    experts = math.gcd(ranks.world, model.config.text.num_local_experts)
    spec = ParallelSpec(sequence=ranks.world, expert=experts, expert_tensor=ranks.world // experts)
    parallel = Parallel(ranks, spec)
    parallel.shard(model)
    materialize(model, where, torch.bfloat16 if recipe["precision"] == "bf16" else torch.float32)
    if model_dir is None:
        with Checkpoint(source) as checkpoint:
            fill_from_checkpoint(model, checkpoint)
    else:
        fill(model, source)
    model.requires_grad_(True).train()
    return {
        "step": step,
        "problem": problem,
        "weights": str(source),
        "weights_step": int(source.name.removeprefix("step-")) if model_dir is None else None,
        "batches": [_look(model, processor, batch, parallel, where) for batch in batches],
    }


def _recipe(directory: Path) -> dict:
    path = directory.parent / "recipe.json"
    if not path.is_file():
        raise FileNotFoundError(f"no saved batches in {directory}, or not in a stage's `out`: {path} is missing")
    return read_json(path)


def _look(model: VLModel, processor: Processor, whole: Batch, parallel: Parallel, device: torch.device) -> dict:
    ranks, objective = parallel.ranks, Objective(model, 0.0, 1)
    batch, bad = parallel.part(whole, model.tiling).to(device), []
    modules = [(name, m) for name, m in model.named_modules() if not any(True for _ in m.children())]
    hooks = [
        m.register_forward_hook(lambda m, args, out, i=i: bad.append(i) if broken(out) else None)
        for i, (_, m) in enumerate(modules)
    ]
    try:
        hidden_TD = model.language_model(objective.embed(batch), batch.packed).hidden_TD
        hidden_LD = hidden_TD.index_select(0, batch.target_positions_L)
        loss_L, _ = cross_entropy(model.language_model, hidden_LD, batch.targets_L)
        model.zero_grad()
        (loss_L.sum() / len(whole.targets_L)).backward()
    finally:
        for hook in hooks:
            hook.remove()
    count = len(whole.lengths)
    mine = torch.zeros(count, device=device).index_add_(0, batch.document_L, loss_L.detach().float())
    sums = torch.tensor(ranks.sum(mine.tolist()))
    targets = torch.bincount(whole.document_L, minlength=count)
    means = sums / targets.clamp(min=1)
    worst = int(torch.where(means.isfinite(), means, float("inf")).argmax())
    begin = sum(whole.lengths[:worst])
    ids = whole.ids_T[begin : begin + whole.lengths[worst]].tolist()
    first = min((i for found in ranks.gather(bad[:1]) for i in found), default=None)
    return {
        "loss": float(sums.sum() / len(whole.targets_L)),
        "documents": [
            {"tokens": n, "targets": int(t), "loss": float(mean)}
            for n, t, mean in zip(whole.lengths, targets, means, strict=True)
        ],
        "worst": {"document": worst, "text": processor.decode(ids, skip_special=False)[:SHOWN]},
        "grad_norm": _norms(model, ranks),
        "first_not_finite": None if first is None else modules[first][0],
    }


def _norms(model: nn.Module, ranks: Ranks) -> dict[str, float]:
    """Norms of the gradients by part of the model; each rank's are of its part of the row, experts' of all of it."""
    squares: dict[str, float] = {}
    for name, p in model.named_parameters():
        if p.grad is None:
            continue
        spread = hasattr(p, "placement")
        if ranks.world > 1 and not spread:
            dist.all_reduce(p.grad)
        share = 1 if spread else 1 / ranks.world  # what all ranks have alike is to count once
        part = name.split(".")[0]
        squares[part] = squares.get(part, 0.0) + share * float(p.grad.float().square().sum())
    totals = ranks.sum(list(squares.values()))
    return {part: math.sqrt(square) for part, square in zip(squares, totals, strict=True)}


def broken(out) -> bool:
    return isinstance(out, Tensor) and out.is_floating_point() and not bool(torch.isfinite(out).all())
