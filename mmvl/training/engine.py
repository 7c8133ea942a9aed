"""DeepSpeed's engine around the objective: optimizer groups, precision, ZeRO. One process for now."""

from __future__ import annotations

import atexit
import os

import torch
import torch.distributed as dist
from torch import nn

from mmvl.training.recipe import TrainRecipe


def init_single_process(device: torch.device) -> None:
    """A process group of one for DeepSpeed, without a launcher and without a port.

    Raises:
        ValueError: started by torchrun with several processes, which this version does not train with.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("mmvl train runs in one process for now; start it without torchrun")
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"  # read when deepspeed is imported
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed insists
    if not dist.is_initialized():
        dist.init_process_group(
            "gloo" if device.type == "cpu" else "nccl", store=dist.HashStore(), rank=0, world_size=1
        )
        atexit.register(lambda: dist.is_initialized() and dist.destroy_process_group())


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


def make_engine(objective: nn.Module, recipe: TrainRecipe, device: torch.device):
    """`deepspeed.initialize` with settings from the recipe; returns DeepSpeed's engine.

    Raises:
        ValueError: deepspeed is not installed.
    """
    init_single_process(device)
    try:
        import deepspeed
    except ImportError as e:
        raise ValueError("training needs DeepSpeed: pip install 'mmvl[train]'") from e
    # Ranks of one host may talk through a C++ extension that DeepSpeed compiles at first use; one rank has nobody to
    # talk to, so a missing compiler must not stop it, nor a minute of compiling delay it.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    optimizer = torch.optim.AdamW(
        param_groups(objective.model, recipe), betas=recipe.optimizer.betas, eps=1e-8, fused=device.type == "cuda"
    )
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_clipping": recipe.optimizer.clip,
        "bf16": {"enabled": recipe.precision == "bf16"},
        "zero_optimization": {"stage": recipe.zero_stage, "contiguous_gradients": True, "overlap_comm": False},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
    }
    engine, _, _, _ = deepspeed.initialize(
        model=objective, optimizer=optimizer, config=config, dist_init_required=False
    )
    return engine
