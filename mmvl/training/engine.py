"""DeepSpeed's engine around the objective: optimizer groups, precision, ZeRO."""

from __future__ import annotations

import torch
from torch import nn

from mmvl.training.parallel import Parallel
from mmvl.training.recipe import TrainRecipe


def param_groups(model: nn.Module, recipe: TrainRecipe) -> list[dict]:
    """AdamW groups: learning-rate scale by module; no weight decay for vectors (norms, biases) and embeddings.

    Experts of which this rank holds only a part are in groups of their own, marked as DeepSpeed wants it.
    """
    scales = recipe.optimizer.lr_scale
    groups: dict[tuple[float, bool, str | None], list[nn.Parameter]] = {}
    for name, p in model.named_parameters():
        if not p.requires_grad:
            continue
        part = name.split(".")[0]
        scale = scales.get("multi_modal_projector" if part == "image_newline" else part, 1.0)
        decays = p.ndim >= 2 and "embed" not in name
        groups.setdefault((scale, decays, getattr(p, "group_name", None)), []).append(p)
    o = recipe.optimizer
    return [
        {"params": params, "lr": o.lr * scale, "lr_scale": scale, "weight_decay": o.weight_decay if decays else 0.0}
        | ({"moe": True, "name": group_name} if group_name else {})
        for (scale, decays, group_name), params in groups.items()
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


def make_engine(objective: nn.Module, recipe: TrainRecipe, parallel: Parallel | None = None, *, accumulate: int = 1):
    """DeepSpeed's engine with settings from the recipe; torch.distributed (`Ranks`) must be up already.

    `parallel` has cut the objective's model (`Parallel.shard`) if experts are spread. `accumulate` batches of this rank
    make one step of the optimizer.

    Raises:
        ValueError: deepspeed is not installed; a ZeRO stage that spread experts cannot have; `checkpoint_layers` that
            the model does not have.
    """
    spread = parallel is not None and parallel.experts.size > 1
    if spread and recipe.zero_stage not in (1, 2):
        raise ValueError(f"zero_stage {recipe.zero_stage} clips gradients of spread experts wrongly; set 1 or 2")
    try:
        import deepspeed
    except ImportError as e:
        raise ValueError("training needs DeepSpeed: pip install 'mmvl[train]'") from e
    # On CPUs DeepSpeed compiles a C++ extension at first use, for ranks of one host to talk through shared memory. gloo
    # does that as well, so a missing compiler must not stop a run, nor a minute of compiling delay it.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if spread:
        objective.add_module("declared_experts", _declared_experts(objective.model, parallel))
    _choose_recomputed(objective.model.language_model, recipe)
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
    if sums_in_fp32(recipe):
        config["data_types"] = {"grad_accum_dtype": "fp32"}
    engine, _, _, _ = deepspeed.initialize(
        model=objective, optimizer=optimizer, config=config, dist_init_required=False
    )
    return engine


def sums_in_fp32(recipe: TrainRecipe) -> bool:
    """Whether gradients of several batches are added up in fp32 beside bf16 weights: ZeRO 2 can, ZeRO 1 cannot."""
    return recipe.precision == "bf16" and recipe.zero_stage == 2


def set_accumulation(engine, accumulate: int) -> None:
    """From the next step on, `accumulate` batches of this rank make one step; between two steps only."""
    if engine.gradient_accumulation_steps() != accumulate:
        engine.set_train_batch_size(accumulate * engine.train_micro_batch_size_per_gpu() * engine.dp_world_size)
        engine.micro_steps = 0  # a step is due at its multiples


def _choose_recomputed(decoder: nn.Module, recipe: TrainRecipe) -> None:
    layers = range(len(decoder.model.layers))
    if not isinstance(recipe.checkpoint_layers, str) and (missing := set(recipe.checkpoint_layers) - set(layers)):
        raise ValueError(f"checkpoint_layers names layers {sorted(missing)}; the model's are 0 to {layers[-1]}")
    decoder.recomputed = frozenset(n for n in layers if recipe.recomputes(n))


def _declared_experts(model: nn.Module, parallel: Parallel) -> nn.Module:
    """An empty module of DeepSpeed's own kind: it looks for one to learn that there are experts, and of what groups.

    Where the experts are frozen it may not find one, only the groups.
    """
    from deepspeed.moe.layer import MoE
    from deepspeed.utils import groups

    trained = any(hasattr(p, "group_name") and p.requires_grad for p in model.parameters())

    class DeclaredExperts(MoE if trained else nn.Module):
        def __init__(self):
            nn.Module.__init__(self)
            self.num_experts = parallel.experts.size

        def set_deepspeed_parallelism(self, use_data_before_expert_parallel_=False):
            groups._create_expert_and_data_parallel(parallel.experts.size)

    return DeclaredExperts()
