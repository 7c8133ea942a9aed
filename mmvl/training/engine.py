"""DeepSpeed's engine around the objective: optimizer groups, precision, ZeRO. One process for now."""

from __future__ import annotations

import os
import socket

import torch
from torch import nn

from mmvl.training.recipe import TrainRecipe


def init_single_process() -> None:
    """What torch.distributed needs to know about a group of one.

    Raises:
        ValueError: started by torchrun with several processes, which this version does not train with.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("mmvl train runs in one process for now; start it without torchrun")
    if "MASTER_PORT" not in os.environ:
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            os.environ["MASTER_PORT"] = str(s.getsockname()[1])
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    if not torch.cuda.is_available():
        os.environ["DS_ACCELERATOR"] = "cpu"


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
    init_single_process()
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
    engine, _, _, _ = deepspeed.initialize(model=objective, optimizer=optimizer, config=config)
    return engine
