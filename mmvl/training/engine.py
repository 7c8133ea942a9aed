"""DeepSpeed's engine around the objective: optimizer groups, precision, ZeRO."""

from __future__ import annotations

import torch
from torch import nn

from mmvl.training.recipe import TrainRecipe


def param_groups(model: nn.Module, recipe: TrainRecipe) -> list[dict]:
    """AdamW groups: learning-rate scale by module; no weight decay for vectors (norms, biases) and embeddings."""
    scales = recipe.optimizer.lr_scale
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, p in model.named_parameters():
        if not p.requires_grad:
            continue
        part = name.split(".")[0]
        scale = scales.get("multi_modal_projector" if part == "image_newline" else part, 1.0)
        decays = p.ndim >= 2 and "embed" not in name
        groups.setdefault((scale, decays), []).append(p)
    o = recipe.optimizer
    return [
        {"params": params, "lr": o.lr * scale, "lr_scale": scale, "weight_decay": o.weight_decay if decays else 0.0}
        for (scale, decays), params in groups.items()
    ]


class GuardedAdamW(torch.optim.AdamW):
    """AdamW that leaves weights and moments as they are where the gradients of a step are not all finite.

    The decision stays on the device: DeepSpeed's own check looks at every parameter's gradient and waits for it,
    a quarter of a step for a small model; this one is one norm of the flat gradient. `skipped` counts the steps left
    out, by parameter group, since ZeRO steps the groups one by one.
    """

    def __init__(self, params, **settings):
        super().__init__(params, fused=True, **settings)
        self.skipped: torch.Tensor | None = None

    def step(self, closure=None):
        grads = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        if grads:
            norm = torch.stack([torch.linalg.vector_norm(g, dtype=torch.float32) for g in grads]).sum()
            self.found_inf = (~torch.isfinite(norm)).float()
            self.skipped = self.found_inf if self.skipped is None else self.skipped + self.found_inf
        return super().step(closure)


def make_engine(objective: nn.Module, recipe: TrainRecipe, *, accumulate: int = 1):
    """DeepSpeed's engine with settings from the recipe; torch.distributed (`Ranks`) must be up already.

    `accumulate` batches of this rank make one step of the optimizer.

    Raises:
        ValueError: deepspeed is not installed.
    """
    try:
        import deepspeed
    except ImportError as e:
        raise ValueError("training needs DeepSpeed: pip install 'mmvl[train]'") from e
    # On CPUs DeepSpeed compiles a C++ extension at first use, for ranks of one host to talk through shared memory. gloo
    # does that as well, so a missing compiler must not stop a run, nor a minute of compiling delay it.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    optimizer = GuardedAdamW(param_groups(objective.model, recipe), betas=recipe.optimizer.betas, eps=1e-8)
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": accumulate,
        "gradient_clipping": recipe.optimizer.clip,
        "bf16": {"enabled": recipe.precision == "bf16", "check_grad_overflow": False},
        "zero_optimization": {"stage": recipe.zero_stage, "contiguous_gradients": True, "overlap_comm": False},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
    }
    engine, _, _, _ = deepspeed.initialize(
        model=objective, optimizer=optimizer, config=config, dist_init_required=False
    )
    return engine
