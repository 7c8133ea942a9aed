"""Whole training steps of full-width layers: ours with experts over all ranks, and transformers' under ZeRO.

A step is the forward and the backward pass over each rank's packed row, DeepSpeed's reduction of gradients, clipping
and AdamW on fp32 weights; both contestants do the same. Utilisation counts the model's own operations (mmvl's
training/flops.py: three times the forward pass), not what is computed twice.

Every step is the same: the learning rate is zero, so that AdamW does its work and the weights stay. Routers that learn
would give one variant other experts than the next, and the fullest one sets the pace. Where nothing is sent, layers
after the first see other tokens, and choose as they will.

How much of a step is communication that nothing hides is measured in two ways: by a run in which tokens are copied on
the spot instead of sent, and on GPUs from a profile: the time in which a NCCL kernel runs and no other does.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import nn

from mmvl.benchmark.communication import profiled, sending
from mmvl.benchmark.decoder import SLICE, SMALL
from mmvl.config import VLConfig
from mmvl.model import VLModel
from mmvl.text_backbone.config import TextConfig
from mmvl.training.batch import Batch
from mmvl.training.engine import GuardedAdamW, make_engine
from mmvl.training.fill import materialize
from mmvl.training.flops import decoder_flops, head_flops
from mmvl.training.objective import Objective
from mmvl.training.parallel import Parallel
from mmvl.training.ranks import Ranks
from mmvl.training.recipe import TrainRecipe
from mmvl.vision.config import VisionConfig

VOCABULARY = 512  # the head hardly counts beside one layer, as it does beside eighty
MEASURED_PEAK_TFLOPS = {"H200": 790.0}  # a product of two 8192 x 8192 matrices of random bf16 numbers
MIN_STEPS = 3
Row = Callable[[dict], None]


@dataclass(frozen=True)
class Size:
    """What is run: layers of the part `experts`, tokens a rank and step, of documents of so many tokens, tokens of the
    part `row`; seconds that one measurement may take; widths by the config."""

    text: TextConfig
    layers: int
    tokens: int
    document: int
    row: int
    seconds: float
    dtype: torch.dtype
    peak_tflops: float | None

    @classmethod
    def of(cls, ranks: Ranks, *, layers: int | None, tokens: int | None, seconds: float) -> Size:
        """Full width on GPUs; None: what fits two H200s. Small without GPUs.

        Raises:
            ValueError: the tokens are not whole documents.
        """
        gpu = ranks.device.type == "cuda"
        document = 8192 if gpu else 16
        tokens = tokens or (32768 if gpu else 48)
        if tokens % document:
            raise ValueError(f"--tokens {tokens}: a rank's tokens are documents of {document}")
        peak = None
        if gpu:
            name = torch.cuda.get_device_name(ranks.device)
            peak = next((p for part, p in MEASURED_PEAK_TFLOPS.items() if part in name), None)
        return cls(
            text=replace(SLICE if gpu else SMALL, vocab_size=VOCABULARY if gpu else 64),
            layers=layers or 2,
            tokens=tokens,
            document=document,
            row=131_072 if gpu else 96,
            seconds=seconds,
            dtype=torch.bfloat16 if gpu else torch.float32,
            peak_tflops=peak,
        )

    def stack(self, layers: int) -> TextConfig:
        """So many layers: lightning, and a softmax layer at the end if there is more than one."""
        kinds = (*[0] * (layers - 1), 1) if layers > 1 else (0,)
        return replace(self.text, num_hidden_layers=layers, attn_type_list=kinds)

    def described(self) -> dict:
        """For the result."""
        return asdict(self) | {"text": self.text.to_dict(), "dtype": str(self.dtype).removeprefix("torch.")}


def measure_experts(ranks: Ranks, size: Size, progress: Callable[[str], None], took: Row) -> None:
    """Our layers with experts over all ranks, tokens in 1, 2 and 4 groups, and with nothing sent."""
    _measure_ours(ranks, size, size.layers, (2, 1, 4), progress, took)


def measure_layer(ranks: Ranks, size: Size, progress: Callable[[str], None], took: Row) -> None:
    """One lightning layer: ours, then transformers' with DeepSpeed's ZeRO 2; a peer that fails is written down."""
    _measure_ours(ranks, size, 1, (2, 1), progress, took)
    progress("transformers: making the weights")
    try:
        contestant = _Transformers(ranks, size)
        progress("transformers: training")
        took({"name": "transformers, ZeRO 2", **_row(contestant, ranks, size)})
        contestant.close()
    except Exception as error:  # a peer may fail in any way
        why = f"{type(error).__name__}: {' '.join(str(error).split())}"
        took({"name": "transformers, ZeRO 2", "failed": why[:300]})


def _measure_ours(ranks, size, layers, token_groups, progress, took) -> None:
    progress(f"mmvl: making {layers} layers")
    ours = _Ours(ranks, size, layers)
    alone: dict[int, dict] = {}
    for groups in token_groups if ranks.world > 1 else (1,):
        ours.set_token_groups(groups)
        for sent in (True, False) if ranks.world > 1 else (True,):
            progress(f"mmvl: tokens in {groups} groups, {'sent' if sent else 'copied on the spot'}")
            with sending(sent):
                row = {"name": "mmvl", "token_groups": groups, "sent": sent, **_row(ours, ranks, size)}
            if sent:
                alone[groups] = row
                if ranks.device.type == "cuda":
                    row |= profiled(ours.step, ranks, progress)
            else:
                step = alone[groups]["step_ms"]
                row["exposed_share_by_difference"] = (step - row["step_ms"]) / step
            took(row)
    ours.close()


class _Ours:
    """The stack under DeepSpeed, as `mmvl train` runs it."""

    def __init__(self, ranks: Ranks, size: Size, layers: int):
        torch.set_float32_matmul_precision("high")  # as a stage does
        recipe = benchmark_recipe(ranks, size)
        self.ranks, self.config = ranks, size.stack(layers)
        parallel = Parallel(ranks, recipe.parallel)
        with torch.device("meta"):
            model = VLModel(around(self.config))
        parallel.shard(model)
        materialize(model, ranks.device, size.dtype)
        draw_weights(model)
        model.vision_tower.requires_grad_(False)
        model.multi_modal_projector.requires_grad_(False)
        model.image_newline.requires_grad_(False)
        self.decoder = model.language_model
        self.weights = sum(p.numel() for p in self.decoder.parameters())
        self.engine = make_engine(Objective(model.train(), recipe.balance_loss, 1), recipe, parallel)
        for group in self.engine.optimizer.param_groups:
            group["lr"] = 0.0
        self.batch = random_batch(size, ranks).to(ranks.device)
        self.lengths, self.targets = self.batch.lengths, len(self.batch.targets_L)

    def set_token_groups(self, groups: int) -> None:
        for layer in self.decoder.model.layers:
            moe = layer.block_sparse_moe
            moe.layout = replace(moe.layout, token_groups=groups)

    def forward_backward(self) -> dict:
        world = self.ranks.world
        loss, figures = self.engine(self.batch, self.targets * world, world)
        self.engine.backward(loss)
        return {"loss": loss, "busiest_expert": figures["busiest_expert"]}

    def update(self) -> None:
        self.engine.step()

    def step(self) -> None:
        self.forward_backward()
        self.update()

    def close(self) -> None:
        _close(self)


class _Transformers:
    """MiniMaxForCausalLM of one lightning layer under ZeRO 2: every rank has all experts, states are sharded."""

    def __init__(self, ranks: Ranks, size: Size):
        import deepspeed
        from transformers import MiniMaxConfig, MiniMaxForCausalLM

        self.config = size.stack(1)
        whole_heads = replace(self.config, rotary_dim=self.config.head_dim)  # it rotates no parts of heads
        with torch.device("meta"):
            model = MiniMaxForCausalLM(MiniMaxConfig(**whole_heads.to_native_dict())).to(size.dtype)
        decays = [name for name, _ in model.named_buffers()]
        model.to_empty(device=ranks.device)
        draw_weights(model)
        for name in decays:  # their values do not matter for time, only that they are numbers
            model.get_buffer(name).fill_(0.5)
        if ranks.device.type == "cuda":
            model.set_experts_implementation("grouped_mm")
        self.weights = sum(p.numel() for p in model.parameters())
        settings = {
            "train_micro_batch_size_per_gpu": 1,
            "gradient_clipping": 1.0,
            "bf16": {"enabled": size.dtype == torch.bfloat16},
            "zero_optimization": {"stage": 2, "contiguous_gradients": True, "overlap_comm": True},
            "zero_allow_untested_optimizer": True,
            "steps_per_print": 10**9,
        }
        optimizer = GuardedAdamW(model.parameters(), lr=0.0)
        self.engine, _, _, _ = deepspeed.initialize(
            model=model.train(), optimizer=optimizer, config=settings, dist_init_required=False
        )
        batch = random_batch(size, ranks).to(ranks.device)
        self.ids = batch.ids_T.view(-1, size.document)
        self.lengths, self.targets = batch.lengths, len(batch.targets_L)

    def forward_backward(self) -> dict:
        loss = self.engine(input_ids=self.ids, labels=self.ids, use_cache=False).loss
        self.engine.backward(loss)
        return {"loss": loss}

    def update(self) -> None:
        self.engine.step()

    def close(self) -> None:
        _close(self)


def _close(contestant) -> None:
    """Give the memory back: DeepSpeed's hooks tie engine and weights together."""
    contestant.engine.destroy()
    for name in list(vars(contestant)):
        delattr(contestant, name)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _row(contestant, ranks: Ranks, size: Size) -> dict:
    """Milliseconds of a step (the slowest rank's; median after one to warm up), tokens/s of all ranks, utilisation."""
    gpu = ranks.device.type == "cuda"
    if gpu:
        torch.cuda.reset_peak_memory_stats(ranks.device)
    steps, passes, began = [], [], None
    while True:
        ranks.wait()
        wait_for(ranks.device)
        start = time.perf_counter()
        figures = contestant.forward_backward()
        wait_for(ranks.device)
        middle = time.perf_counter()
        contestant.update()
        wait_for(ranks.device)
        end = time.perf_counter()
        slowest = [max(pair) for pair in zip(*ranks.gather((middle - start, end - start)), strict=True)]
        passes.append(slowest[0])
        steps.append(slowest[1])
        began = began or end
        spent = max(ranks.gather(end - began))
        if len(steps) > MIN_STEPS and spent + slowest[1] > size.seconds:
            break
    step, tokens = statistics.median(steps[1:]), sum(contestant.lengths)
    config = contestant.config
    flops = 3 * (decoder_flops(config, contestant.lengths) + head_flops(config, contestant.targets))
    row = {
        "layers": config.num_hidden_layers,
        "weights_a_rank": contestant.weights,
        "tokens_a_rank": tokens,
        "steps": len(steps) - 1,
        "step_ms": 1e3 * step,
        "low_ms": 1e3 * min(steps[1:]),
        "high_ms": 1e3 * max(steps[1:]),
        "forward_backward_ms": 1e3 * statistics.median(passes[1:]),
        "first_step_ms": 1e3 * steps[0],
        "tokens_per_second": tokens * ranks.world / step,
        "tflops_a_rank": flops / step / 1e12,
        "loss": figures["loss"].item(),
    }
    if "busiest_expert" in figures:
        row["busiest_expert"] = figures["busiest_expert"].item()
    if gpu:
        row["peak_gib"] = max(ranks.gather(torch.cuda.max_memory_allocated(ranks.device))) / 2**30
    if size.peak_tflops:
        row["utilisation"] = flops / step / 1e12 / size.peak_tflops
    return row


def draw_weights(module: nn.Module) -> None:
    """Natural sizes, the same on all ranks: norms 1, matrices whose outputs are as large as their inputs."""
    device = next(module.parameters()).device
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for p in module.parameters():
            if p.ndim == 1:
                p.fill_(1.0)
            else:
                p.normal_(0, p.shape[-1] ** -0.5, generator=generator)


def random_batch(size: Size, ranks: Ranks) -> Batch:
    """A row of whole documents of random tokens, every one of which but the first is to be predicted."""
    ids_T = torch.randint(0, size.text.vocab_size, (size.tokens,), generator=torch.Generator().manual_seed(ranks.rank))
    at_T = torch.arange(size.tokens)
    positions_L = at_T[at_T % size.document != size.document - 1]
    return Batch(
        ids_T=ids_T,
        lengths=(size.document,) * (size.tokens // size.document),
        target_positions_L=positions_L,
        targets_L=ids_T[positions_L + 1],
        source_L=torch.zeros_like(positions_L),
        images=None,
        image_positions_I=torch.zeros(0, dtype=torch.int64),
        text_tokens=(size.tokens,),
        image_tokens=(0,),
        samples=(size.tokens // size.document,),
    )


def wait_for(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def benchmark_recipe(ranks: Ranks, size: Size) -> TrainRecipe:
    """What the engine and the plan reads of a recipe; nothing is read from files."""
    data = {
        "sources": [{"path": "none", "weight": 1.0}],
        "batch_tokens": size.tokens,
        "batch_tiles": 0,
        "max_sample_tokens": size.document,
        "workers": 0,
        "virtual_workers": 1,
    }
    optimizer = {
        "lr": 1e-5, "betas": (0.9, 0.95), "weight_decay": 0.1, "clip": 1.0,
        "warmup_steps": 0, "decay_fraction": 0.0, "final_lr_ratio": 1.0,
    }  # fmt: skip
    return TrainRecipe(
        stage="train",
        name="benchmark",
        out=Path("none"),
        init_from=Path("none"),
        trainable=["language_model"],
        seed=0,
        precision="bf16" if size.dtype == torch.bfloat16 else "fp32",
        zero_stage=1,
        parallel={"expert": ranks.world},
        balance_loss=0.01,
        data=data,
        optimizer=optimizer,
        budget={"tokens": 1},
        log_every_steps=1,
        save_every_minutes=1,
    )


def around(text: TextConfig) -> VLConfig:
    """A model that has these layers, and a vision half that is as small as can be and never runs."""
    vision = VisionConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, image_size=14, patch_size=14
    )
    return VLConfig(text=text, vision=vision, image_token_index=0, image_grid_pinpoints=((14, 14),))
