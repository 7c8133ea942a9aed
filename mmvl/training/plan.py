"""`mmvl train RECIPE --dry-run`: what a stage will take, from its recipe and config alone. No weight is made.

Parameters are counted on torch's meta device, operations by flops.py. Memory is an estimate: weights, gradients and
optimizer state are exact for the layout that training uses, activations count the tensors that backward needs. Beside
what `mmvl bench training` measured on H200s it is off by less than a twentieth (tests/training/test_plan.py).
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from mmvl.config import VLConfig
from mmvl.model import VLModel
from mmvl.training.build import extended, freeze, read_model_config, stage_config
from mmvl.training.engine import sums_in_fp32
from mmvl.training.flops import StepFlops
from mmvl.training.recipe import ContrastiveRecipe, PreferenceRecipe, TokenizerRecipe, TrainRecipe, load_recipe

GIB = 2**30
BUCKET = 500_000_000  # elements of DeepSpeed's reduction bucket (its default)
LOGITS_AT_ONCE = 16384  # targets whose logits exist at a time, as in objective.py
RUNTIME = 2 * GIB  # CUDA context, NCCL, workspaces


@dataclass(frozen=True)
class Parameters:
    """Numbers of parameters; `active` are those that a text token passes between embedding and head, as published."""

    total: int
    active: int
    trained: int
    experts: int
    trained_experts: int


@dataclass(frozen=True)
class Plan:
    """What one stage takes. `memory` is in bytes of one GPU, by part; `days` is None if no hardware is stated.

    `tokens_per_step`: one number, or several if the steps grow; `flops_per_step` is of the last.
    """

    name: str
    gpus: int
    data_parallel: int
    parameters: Parameters
    memory: dict[str, int]
    memory_limit: float | None
    tokens_per_step: tuple[int, ...]
    steps: int
    tokens: int
    flops_per_step: float
    flops: float
    days: float | None
    utilisation: float | None

    @property
    def memory_total(self) -> int:
        return sum(self.memory.values())

    def lines(self) -> list[str]:
        """The plan, ready to print."""
        p = self.parameters
        rows = [
            f"{self.name}: {self.gpus:,} GPU{'s' * (self.gpus > 1)}, {self.data_parallel:,} data-parallel",
            f"parameters    {billions(p.total)} total, {billions(p.active)} active a token, "
            f"{billions(p.trained)} trained ({billions(p.experts)} in experts)",
            f"tokens        {self.tokens:,} in {self.steps:,} steps of "
            + ", then ".join(f"{n:,}" for n in self.tokens_per_step),
            f"operations    {self.flops_per_step:.3g} FLOPs a {'last ' * (len(self.tokens_per_step) > 1)}step, "
            f"{self.flops:.3g} in all",
        ]
        if self.days is not None:
            rows.append(f"time          {duration(self.days)} at {self.utilisation:.0%} of the GPUs' peak")
        else:
            rows.append("time          unknown: the recipe states no hardware")
        parts = ", ".join(f"{part} {size(n)}" for part, n in self.memory.items())
        rows.append(f"memory a GPU  {size(self.memory_total)} ({parts})")
        if self.memory_limit is not None:
            left = self.memory_limit - self.memory_total
            fits = f"{size(left)} to spare" if left >= 0 else f"{size(-left)} TOO MUCH"
            rows.append(f"              {fits} of {size(self.memory_limit)}")
        return rows


def describe(recipe_path: Path, overrides: Sequence[str] = ()) -> list[str]:
    """The lines of `--dry-run` for a recipe of any stage.

    Raises:
        FileNotFoundError, ValueError: as `load_recipe` and `plan`.
    """
    recipe = load_recipe(recipe_path, list(overrides))
    if isinstance(recipe, TokenizerRecipe):
        return [f"{recipe.name}: {recipe.vocab_size:,} tokens from {recipe.max_bytes:,} bytes of text, on the CPU"]
    if isinstance(recipe, ContrastiveRecipe):
        from mmvl.training.contrastive_plan import plan_lines

        return plan_lines(recipe)
    return plan(recipe, recipe_path).lines()


def plan(recipe: TrainRecipe, recipe_path: Path | None = None, gpus: int | None = None) -> Plan:
    """Plan a stage for `gpus` (default: those of the recipe's hardware, else torchrun's, else one).

    Documents are taken to be as long as `max_sample_tokens`, and rows to hold as many tiles as `batch_tiles` allows and
    as fit with their image tokens: so operations and activations are upper bounds.

    Raises:
        FileNotFoundError, ValueError: no config to be found, or the parallel sizes do not divide the GPUs.
    """
    config = config_of(recipe, recipe_path)
    gpus = gpus or (recipe.hardware.gpus if recipe.hardware else int(os.environ.get("WORLD_SIZE", "1")))
    if gpus % (share := math.lcm(recipe.parallel.sequence, recipe.parallel.expert * recipe.parallel.expert_tensor)):
        raise ValueError(f"{gpus} GPUs do not divide by the sizes in parallel (they need a multiple of {share})")
    data = recipe.data
    ranks = gpus // recipe.parallel.sequence
    sizes = [(begin, batches * ranks) for begin, batches in data.batches_of(ranks)]
    if data.virtual_workers % (ranks * max(1, data.workers)):
        raise ValueError(
            f"data.virtual_workers ({data.virtual_workers}) must be a multiple of {ranks} data-parallel ranks times "
            f"{data.workers} workers"
        )
    length = min(data.max_sample_tokens, data.batch_tokens)
    lengths = [length] * (data.batch_tokens // length) + ([left] if (left := data.batch_tokens % length) else [])
    tiles = min(data.batch_tiles, data.batch_tokens // config.vision.patches)
    flops = StepFlops.of(config, recipe.trainable)(lengths, data.batch_tokens, tiles)
    steps, rows, tokens = 0, 0, recipe.budget.tokens
    ends = [*(begin for begin, _ in sizes[1:]), tokens]
    for (_, batches), end in zip(sizes, ends, strict=True):
        more = max(0, math.ceil((min(end, tokens) - rows * data.batch_tokens) / (batches * data.batch_tokens)))
        steps, rows = steps + more, rows + more * batches
    parameters = count_parameters(config, recipe.trainable)
    days = None
    if recipe.hardware:
        rate = gpus * recipe.hardware.peak_tflops * 1e12 * recipe.hardware.utilisation
        reference = 1 / 3 if isinstance(recipe, PreferenceRecipe) else 0.0  # every pair once through the reference
        days = flops * rows * (1 + reference) / rate / 86400
        if recipe.budget.minutes:
            days = min(days, recipe.budget.minutes / 1440)
    return Plan(
        name=recipe.name,
        gpus=gpus,
        data_parallel=ranks,
        parameters=parameters,
        memory=memory(recipe, config, parameters, gpus, lengths, tiles),
        memory_limit=recipe.hardware.memory_gib * GIB if recipe.hardware else None,
        tokens_per_step=tuple(data.batch_tokens * batches for _, batches in sizes),
        steps=steps,
        tokens=tokens,
        flops_per_step=flops * sizes[-1][1],
        flops=flops * rows,
        days=days,
        utilisation=recipe.hardware.utilisation if recipe.hardware else None,
    )


def config_of(recipe: TrainRecipe, recipe_path: Path | None = None) -> VLConfig:
    """The config of the stage's model, also before the stage that it starts from has run.

    The recipes beside this one are then searched for the stage whose `out` holds `init_from`, and so on back to the one
    that names a config file. A model that `mmvl grow` will make at runs/grown/model has its config beside: grown.json.

    Raises:
        FileNotFoundError: neither the model nor such a recipe is there.
    """
    if recipe.init_from is None or recipe.init_from.is_dir():
        return stage_config(recipe)
    for path in sorted(recipe_path.parent.glob("*.yaml")) if recipe_path else ():
        before = load_recipe(path)
        if isinstance(before, TrainRecipe) and recipe.init_from == before.out / "model" and before.out != recipe.out:
            return extended(config_of(before, path), recipe)
    if recipe_path and (grown := recipe_path.parent / f"{recipe.init_from.parent.name}.json").is_file():
        return extended(VLConfig.from_dict(read_model_config(grown)), recipe)
    raise FileNotFoundError(f"no model at {recipe.init_from}, and no recipe beside this one that makes it")


def count_parameters(config: VLConfig, trainable: Sequence[str]) -> Parameters:
    """Count the model's parameters on the meta device."""
    with torch.device("meta"):
        model = VLModel(config)
    freeze(model, list(trainable))
    sizes = [(p.numel(), ".experts." in name, p.requires_grad) for name, p in model.named_parameters()]
    experts = sum(n for n, expert, _ in sizes if expert)
    idle = experts * (config.text.num_local_experts - config.text.num_experts_per_tok) // config.text.num_local_experts
    total = sum(n for n, _, _ in sizes)
    layers = sum(p.numel() for p in model.language_model.model.layers.parameters())
    return Parameters(
        total=total,
        active=layers - idle,
        trained=sum(n for n, _, learns in sizes if learns),
        experts=experts,
        trained_experts=sum(n for n, expert, learns in sizes if expert and learns),
    )


def memory(
    recipe: TrainRecipe, config: VLConfig, count: Parameters, gpus: int, lengths: Sequence[int], tiles: int
) -> dict[str, int]:
    """Bytes of one GPU, by part.

    Experts lie on `expert * expert_tensor` GPUs each, everything else on all. ZeRO 1 shares the optimizer's fp32
    weights and two moments (12 bytes a parameter), ZeRO 2 the gradients as well, summed in fp32, among the GPUs that
    hold the same.
    """
    width = 2 if recipe.precision == "bf16" else 4
    holders = recipe.parallel.expert * recipe.parallel.expert_tensor
    same = {"dense": gpus, "experts": gpus // holders}
    held = {"dense": count.total - count.experts, "experts": count.experts / holders}
    learns = {"dense": count.trained - count.trained_experts, "experts": count.trained_experts / holders}
    shared = {part: learns[part] / same[part] for part in learns}
    gradients = shared if recipe.zero_stage == 2 else learns
    optimizer = shared if recipe.zero_stage else learns
    summed = 4 if sums_in_fp32(recipe) else width
    buffers = min(BUCKET, sum(learns.values())) * width  # that is reduced at a time
    rank_tokens = math.ceil(sum(lengths) / recipe.parallel.sequence)
    if holders > 1:  # tokens sent to and received from other ranks' experts, and the same for what comes back
        buffers += 4 * rank_tokens * config.text.num_experts_per_tok * config.text.hidden_size * width
    parts = {
        "weights": width * sum(held.values()),
        "gradients": summed * sum(gradients.values()),
        "optimizer": 12 * sum(optimizer.values()),
        "activations": _activations(recipe, config, rank_tokens, tiles, width),
        "logits": _logits(config, rank_tokens, width),
    }
    if not sums_in_fp32(recipe):
        # The update copies the largest group's sums flat, and once more in fp32, when the backward pass has ended.
        copies = (width + 4 * (width < 4)) * max(optimizer.values())
        buffers += max(0.0, copies - buffers - parts["activations"] - parts["logits"])
    parts["buffers"] = buffers + RUNTIME
    return {part: int(n) for part, n in parts.items()}


def _activations(recipe: TrainRecipe, config: VLConfig, tokens: int, tiles: int, width: int) -> float:
    """What backward needs of the forward pass: a recomputed layer's input, of other layers their products' inputs."""
    text, vision = config.text, config.vision
    learns = set(recipe.trainable)
    total = 0.0
    if "vision_tower" in learns:
        # two norms' outputs, q k v, attention, projection and two residuals; the MLP before and after its activation
        block = 9 * vision.hidden_size + 2 * vision.intermediate_size
        total += tiles * (vision.patches + 1) * vision.num_hidden_layers * block * width
    if learns & {"vision_tower", "multi_modal_projector"}:
        total += tiles * vision.patches * (vision.hidden_size + 3 * text.hidden_size) * width
    if "language_model" in learns or tiles:
        layers = [_layer_activations(text, layer) for layer in range(text.num_hidden_layers)]
        recomputed = [recipe.recomputes(layer) for layer in range(text.num_hidden_layers)]
        kept = [2 * text.hidden_size if again else n for n, again in zip(layers, recomputed, strict=True)]
        at_once = max((n for n, again in zip(layers, recomputed, strict=True) if again), default=0)
        total += tokens * (sum(kept) + at_once + 2 * text.hidden_size) * width
    return total


def _layer_activations(text, layer: int) -> int:
    """Values a token that a decoder layer keeps for backward."""
    D, heads, k = text.hidden_size, text.num_attention_heads * text.head_dim, text.num_experts_per_tok
    keys = text.num_key_value_heads * text.head_dim
    attention = 3 * heads + 3 * heads if layer in text.lightning_layers else 2 * heads + 2 * keys
    # Two residuals, two norms' outputs; of each choice the expert's input, gate, up, product and output.
    return 4 * D + attention + k * (2 * D + 3 * text.intermediate_size) + 3 * text.shared_intermediate_size


def _logits(config: VLConfig, tokens: int, width: int) -> int:
    """fp32 logits of the targets in work, their softmax and its gradient, and the head's weights in fp32."""
    text = config.text
    head = text.vocab_size * text.hidden_size * 4 if width == 2 else 0
    return 3 * min(tokens, LOGITS_AT_ONCE) * text.vocab_size * 4 + head


def billions(n: int) -> str:
    return f"{n / 1e9:.2f}B" if n >= 1e8 else f"{n / 1e6:.2f}M"


def size(n: float) -> str:
    return f"{n / GIB:.1f} GiB" if n >= GIB / 10 else f"{n / 2**20:.1f} MiB"


def duration(days: float) -> str:
    return f"{days:,.1f} days" if days >= 1 else f"{days * 24:.1f} hours" if days > 1 / 24 else f"{days * 1440:.1f} min"
