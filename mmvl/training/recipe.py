"""Recipes: YAML files that say everything about a training stage. Unknown keys are errors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from mmvl.data.remote import checked_address
from mmvl.shipped import MMVL_TINY


class Strict(BaseModel):
    """A part of a recipe: frozen, and refusing keys that it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _found(directory):
    return MMVL_TINY if str(directory) == "mmvl-tiny" and not Path(directory).is_dir() else directory


ModelDirectory = Annotated[Path, BeforeValidator(_found)]  # "mmvl-tiny" is the one that comes with mmvl


class SourceSpec(Strict):
    """One source of samples: a directory of WebDataset shards, and its share of the tokens.

    `weight_before` is its share at the stage's first token, if that is another one; see
    `DataSpec.transition_tokens`. Either may be 0: a source that is phased in or out. `url` (http or https) is a folder
    of shards with its manifest.json, fetched into `path` before the stage begins.
    """

    path: Path
    url: str | None = None
    weight: float = Field(ge=0)
    weight_before: float | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _is_used(self):
        if not self.weight and not self.weight_before:
            raise ValueError(f"{self.path}: a source that is never used; leave it out")
        if self.url is not None:
            checked_address(self.url)
        return self


class BatchGrowth(Strict):
    """From `tokens` of the stage on, an optimizer step has `batches` packed batches over all ranks."""

    tokens: int = Field(gt=0)
    batches: int = Field(gt=0)


class DataSpec(Strict):
    """What a training step sees.

    Over the first `transition_tokens` of the stage the sources' shares go linearly from `weight_before` to `weight`.
    `batches_per_step`: packed batches of one optimizer step over all ranks (None: one a data-parallel rank); with fewer
    ranks than that, a rank accumulates gradients. `batch_growth`: larger steps later in the stage. `open_rows`: rows
    that the packer of a virtual worker keeps open. `stall_seconds`: a wait for data that long is reported.
    """

    sources: list[SourceSpec] = Field(min_length=1)
    transition_tokens: int = Field(default=0, ge=0)
    open_rows: int = Field(default=2, ge=1)
    stall_seconds: float = Field(default=30, gt=0)
    batch_tokens: int = Field(gt=0)
    batches_per_step: int | None = Field(default=None, gt=0)
    batch_growth: list[BatchGrowth] = []
    batch_tiles: int = Field(ge=0)
    max_sample_tokens: int = Field(gt=0)
    workers: int = Field(ge=0)
    virtual_workers: int = Field(gt=0)

    @model_validator(mode="after")
    def _divides(self):
        if self.workers and self.virtual_workers % self.workers:
            raise ValueError(f"virtual_workers ({self.virtual_workers}) must be a multiple of workers ({self.workers})")
        if self.max_sample_tokens > self.batch_tokens:
            raise ValueError("max_sample_tokens must not exceed batch_tokens")
        blends = any(s.weight_before not in (None, s.weight) for s in self.sources)
        if blends != bool(self.transition_tokens):
            raise ValueError("weight_before of a source and data.transition_tokens go together: give both or neither")
        begins = [growth.tokens for growth in self.batch_growth]
        if begins and (self.batches_per_step is None or sorted(set(begins)) != begins):
            raise ValueError("data.batch_growth needs batches_per_step to grow from, and its tokens must rise")
        return self

    def batches_of(self, ranks: int) -> list[tuple[int, int]]:
        """(tokens, batches): from so many tokens of the stage on, each of `ranks` data-parallel ranks takes so many.

        Raises:
            ValueError: the batches of a step do not divide by the ranks.
        """
        steps = [("batches_per_step", 0, self.batches_per_step or ranks)]
        steps += [(f"batch_growth.{i}.batches", g.tokens, g.batches) for i, g in enumerate(self.batch_growth)]
        for key, _, batches in steps:
            if batches % ranks:
                raise ValueError(f"data.{key} ({batches}) must be a multiple of the {ranks} data-parallel ranks")
        return [(tokens, batches // ranks) for _, tokens, batches in steps]


class OptimizerSpec(Strict):
    """AdamW and its learning-rate schedule: linear warm-up, constant, then `decay` down to `final_lr_ratio`."""

    lr: float = Field(gt=0)
    lr_scale: dict[Literal["language_model", "vision_tower", "multi_modal_projector"], float] = {}
    betas: tuple[float, float]
    weight_decay: float = Field(ge=0)
    clip: float = Field(gt=0)
    warmup_steps: int = Field(ge=0)
    decay_fraction: float = Field(ge=0, le=1)
    final_lr_ratio: float = Field(ge=0, le=1)
    decay: Literal["cosine", "linear", "exponential"] = "cosine"

    @model_validator(mode="after")
    def _reaches_its_end(self):
        if self.decay == "exponential" and self.decay_fraction and not self.final_lr_ratio:
            raise ValueError("an exponential decay never reaches final_lr_ratio 0; give it a ratio above 0")
        return self


class ParallelSpec(Strict):
    """How the processes share the work; what is left of their number after `sequence` is data parallel.

    `expert`: processes that share the experts of a layer. `sequence`: processes that share a packed row.
    `expert_tensor`: processes that share one expert. `token_groups`: groups of a row's tokens, each of which travels to
    its experts while the one before is computed. `capacity`: tokens that an expert takes, relative to an even share
    over all processes; the rest are dropped (None: none is). `global_balance`: the balance loss is over the rows of all
    processes together instead of row by row; the loss then depends on how many rows are computed at once.
    """

    expert: int = Field(default=1, ge=1)
    sequence: int = Field(default=1, ge=1)
    expert_tensor: int = Field(default=1, ge=1)
    token_groups: int = Field(default=1, ge=1)
    capacity: float | None = Field(default=None, gt=0)
    global_balance: bool = False


class HardwareSpec(Strict):
    """The machines that a stage is planned for; `--dry-run` and the utilisation in the log use it.

    `peak_tflops`: dense bf16 of one GPU. `utilisation`: the share of it that the model's own operations are expected to
    reach. `memory_gib`: of one GPU.
    """

    gpus: int = Field(ge=1)
    memory_gib: float = Field(gt=0)
    peak_tflops: float = Field(gt=0)
    utilisation: float = Field(gt=0, le=1)


class Budget(Strict):
    """Where the stage ends: after `tokens` (text and image positions), or `minutes` of wall time if given and sooner.

    The learning rate follows whichever of the two is further along, so that a stage that ends early has still decayed.
    """

    tokens: int = Field(gt=0)
    minutes: float | None = Field(default=None, gt=0)


Module = Literal["language_model", "vision_tower", "multi_modal_projector"]


class TrainRecipe(Strict):
    """A training stage of the model.

    `rope_theta` and `max_positions` change the model that the stage starts from: context extension. `vision_from` is
    the model directory of a contrastive stage, whose vision tower replaces the model's. `checkpoint_layers`: decoder
    layers that keep only their input and compute again in backward: none, all, or a list of their numbers. `spike`:
    a loss above that many times the highest of late stops the run with its batch saved (None: only what is not finite).
    """

    stage: Literal["train"]
    name: str = Field(pattern=r"^[a-z0-9-]+$")
    out: Path
    model_config_file: Path | None = None
    init_from: ModelDirectory | None = None
    tokenizer: Path | None = None
    vision_from: Path | None = None
    rope_theta: float | None = Field(default=None, gt=0)
    max_positions: int | None = Field(default=None, gt=0)
    trainable: list[Module] = Field(min_length=1)
    seed: int
    precision: Literal["bf16", "fp32"]
    zero_stage: Literal[1, 2]
    parallel: ParallelSpec = ParallelSpec()
    checkpoint_layers: Literal["none", "all"] | list[int] = "none"
    hardware: HardwareSpec | None = None
    balance_loss: float = Field(ge=0)
    data: DataSpec
    optimizer: OptimizerSpec
    budget: Budget
    log_every_steps: int = Field(gt=0)
    save_every_minutes: float = Field(gt=0)
    save_every_steps: int | None = Field(default=None, gt=0)
    profile_at_step: int | None = Field(default=None, ge=0)
    keep_checkpoints: int = Field(default=1, ge=1)
    spike: float | None = Field(default=3.0, gt=1)

    def recomputes(self, layer: int) -> bool:
        """Whether decoder layer number `layer` computes its activations again in backward."""
        if isinstance(self.checkpoint_layers, str):
            return self.checkpoint_layers == "all"
        return layer in self.checkpoint_layers

    @model_validator(mode="after")
    def _one_origin(self):
        if (self.model_config_file is None) == (self.init_from is None):
            raise ValueError("give model_config_file (random weights) or init_from (weights of a stage), not both")
        if (self.model_config_file is None) != (self.tokenizer is None):
            raise ValueError("tokenizer (directory of a tokenizer stage) goes with model_config_file, and only with it")
        if self.max_positions is not None and self.data.max_sample_tokens > self.max_positions:
            raise ValueError("data.max_sample_tokens must not exceed max_positions")
        return self


class PreferenceSpec(Strict):
    """Direct preference optimisation (arXiv 2305.18290) and when to stop early.

    Every `check_every_steps` the loss on the `held_out` share of the pairs is measured; the stage ends when it has not
    fallen for `patience` checks in a row, and never later than after `max_epochs` (below 1: before all pairs are seen).
    """

    beta: float = Field(gt=0)
    sft_weight: float = Field(ge=0)
    held_out: float = Field(gt=0, lt=1)
    check_every_steps: int = Field(gt=0)
    patience: int = Field(gt=0)
    max_epochs: float = Field(gt=0)


class PreferenceRecipe(TrainRecipe):
    """The stage that learns from pairs of a better and a worse answer, against the model it starts from."""

    stage: Literal["preference"]
    preference: PreferenceSpec

    @model_validator(mode="after")
    def _has_a_reference(self):
        if self.init_from is None:
            raise ValueError("a preference stage starts from a trained model: give init_from")
        return self


class TextTowerSpec(Strict):
    """The text half of CoCa, used in this stage only: a causal encoder, and a decoder that captions."""

    width: int = Field(gt=0)
    heads: int = Field(gt=0)
    layers: int = Field(gt=0)
    decoder_layers: int = Field(gt=0)
    context: int = Field(gt=1)


class ContrastiveSpec(Strict):
    """CoCa's losses (arXiv 2205.01917) and pooling: weights of the two losses, width of the shared space, queries."""

    embed_dim: int = Field(gt=0)
    pooler_queries: int = Field(gt=0)
    pooler_heads: int = Field(gt=0)
    clip_weight: float = Field(ge=0)
    caption_weight: float = Field(ge=0)
    text: TextTowerSpec

    @model_validator(mode="after")
    def _learns(self):
        if not self.clip_weight and not self.caption_weight:
            raise ValueError("clip_weight and caption_weight are both 0: nothing would be learned")
        return self


class ContrastiveDataSpec(Strict):
    """Pairs of a picture and a caption: `batch_pairs` in all of the ranks' batches together."""

    sources: list[SourceSpec] = Field(min_length=1)
    batch_pairs: int = Field(gt=1)
    workers: int = Field(ge=0)

    @model_validator(mode="after")
    def _shares_stay(self):
        if any(s.weight_before is not None or not s.weight for s in self.sources):
            raise ValueError("the shares of a contrastive stage's sources stay as they are: no weight_before, no 0")
        return self


class PairBudget(Strict):
    """Where a contrastive stage ends: after `pairs`, or `minutes` of wall time if given and sooner."""

    pairs: int = Field(gt=0)
    minutes: float | None = Field(default=None, gt=0)


class ContrastiveRecipe(Strict):
    """The stage that teaches the vision tower with captions, before any language model sees it."""

    stage: Literal["contrastive"]
    name: str = Field(pattern=r"^[a-z0-9-]+$")
    out: Path
    model_config_file: Path
    tokenizer: Path
    vision_from: Path | None = None
    image_size: int = Field(gt=0)
    seed: int
    precision: Literal["bf16", "fp32"]
    hardware: HardwareSpec | None = None
    contrastive: ContrastiveSpec
    data: ContrastiveDataSpec
    optimizer: OptimizerSpec
    budget: PairBudget
    log_every_steps: int = Field(gt=0)
    save_every_minutes: float = Field(gt=0)
    save_every_steps: int | None = Field(default=None, gt=0)
    keep_checkpoints: int = Field(default=1, ge=1)
    spike: float | None = Field(default=3.0, gt=1)

    @model_validator(mode="after")
    def _one_rate(self):
        if self.optimizer.lr_scale:
            raise ValueError("optimizer.lr_scale: all parts of a contrastive stage learn at one rate; leave it {}")
        return self


class TokenizerRecipe(Strict):
    """The tokenizer stage: byte-level BPE over the texts of some shards."""

    stage: Literal["tokenizer"]
    name: str = Field(pattern=r"^[a-z0-9-]+$")
    out: Path
    vocab_size: int = Field(ge=300)
    max_bytes: int = Field(gt=0)
    sources: list[SourceSpec] = Field(min_length=1)


AnyRecipe = TrainRecipe | PreferenceRecipe | ContrastiveRecipe | TokenizerRecipe
STAGES = ("train", "preference", "contrastive", "tokenizer")


def load_recipe(path: str | Path, overrides: list[str] | None = None) -> AnyRecipe:
    """Read a recipe; `overrides` are `key=value` with dots for nesting and YAML values (`optimizer.lr=1e-3`).

    Raises:
        FileNotFoundError: no such recipe. ValueError: not YAML, a misspelt or missing key, a value out of range; one
            line that names each.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no recipe at {path}")
    try:
        d = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise ValueError(f"{path} is not valid YAML: {' '.join(str(e).split())}") from e
    if not isinstance(d, dict):
        raise ValueError(f"{path} is not a recipe: it must be a mapping with the key stage")
    for override in overrides or []:
        _override(d, override)
    try:
        return TypeAdapter(Annotated[AnyRecipe, Field(discriminator="stage")]).validate_python(d)
    except ValidationError as e:
        raise ValueError(f"{path}: " + "; ".join(_explain(error) for error in e.errors())) from None


def _override(d: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise ValueError(f"--set {override!r}: write key=value, with dots for nesting (optimizer.lr=0.001)")
    *parents, last = key.split(".")
    here: Any = d
    for i, part in enumerate(parents):
        if isinstance(here, dict):
            here = here.setdefault(part, {})
        else:
            here = here[_item(here, part, parents[:i], override)]
        if not isinstance(here, dict | list):
            raise ValueError(f"--set {override!r}: {part} is a value, not a section")
    here[last if isinstance(here, dict) else _item(here, last, parents, override)] = yaml.safe_load(value)


def _item(items: list, number: str, where: list[str], override: str) -> int:
    if not number.isdigit() or int(number) >= len(items):
        raise ValueError(f"--set {override!r}: {'.'.join(where)} has no item {number}, it has {len(items)}")
    return int(number)


def _explain(error: dict) -> str:
    loc = error["loc"][1:] if error["loc"][:1] and error["loc"][0] in STAGES else error["loc"]
    where = ".".join(str(part) for part in loc)
    if error["type"] == "extra_forbidden":
        return f"unknown key {where!r} (misspelt?)"
    if error["type"] in ("union_tag_not_found", "union_tag_invalid"):
        return f"the key stage must be one of {', '.join(STAGES)}"
    if error["type"] == "missing":
        return f"missing key {where!r}"
    return f"{where or 'recipe'}: {error['msg']}"
