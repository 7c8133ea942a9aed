"""Recipes: YAML files that say everything about a training stage. Unknown keys are errors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator


class Strict(BaseModel):
    """A part of a recipe: frozen, and refusing keys that it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class SourceSpec(Strict):
    """One source of samples: a directory of WebDataset shards, and its share of the tokens."""

    path: Path
    weight: float = Field(gt=0)


class DataSpec(Strict):
    """What a training step sees."""

    sources: list[SourceSpec] = Field(min_length=1)
    batch_tokens: int = Field(gt=0)
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
        return self


class OptimizerSpec(Strict):
    """AdamW and its learning-rate schedule: linear warm-up, constant, then a cosine to `final_lr_ratio`."""

    lr: float = Field(gt=0)
    lr_scale: dict[Literal["language_model", "vision_tower", "multi_modal_projector"], float] = {}
    betas: tuple[float, float]
    weight_decay: float = Field(ge=0)
    clip: float = Field(gt=0)
    warmup_steps: int = Field(ge=0)
    decay_fraction: float = Field(ge=0, le=1)
    final_lr_ratio: float = Field(ge=0, le=1)


class Budget(Strict):
    """Where the stage ends: after `tokens` (text and image positions), or `minutes` of wall time if given and sooner.

    The learning rate follows whichever of the two is further along, so that a stage that ends early has still decayed.
    """

    tokens: int = Field(gt=0)
    minutes: float | None = Field(default=None, gt=0)


Module = Literal["language_model", "vision_tower", "multi_modal_projector"]


class TrainRecipe(Strict):
    """A training stage of the model."""

    stage: Literal["train"]
    name: str = Field(pattern=r"^[a-z0-9-]+$")
    out: Path
    model_config_file: Path | None = None
    init_from: Path | None = None
    tokenizer: Path | None = None
    trainable: list[Module] = Field(min_length=1)
    seed: int
    precision: Literal["bf16", "fp32"]
    zero_stage: Literal[0, 1, 2]
    balance_loss: float = Field(ge=0)
    data: DataSpec
    optimizer: OptimizerSpec
    budget: Budget
    log_every_steps: int = Field(gt=0)
    save_every_minutes: float = Field(gt=0)

    @model_validator(mode="after")
    def _one_origin(self):
        if (self.model_config_file is None) == (self.init_from is None):
            raise ValueError("give model_config_file (random weights) or init_from (weights of a stage), not both")
        if (self.model_config_file is None) != (self.tokenizer is None):
            raise ValueError("tokenizer (directory of a tokenizer stage) goes with model_config_file, and only with it")
        return self


class TokenizerRecipe(Strict):
    """The tokenizer stage: byte-level BPE over the texts of some shards."""

    stage: Literal["tokenizer"]
    name: str = Field(pattern=r"^[a-z0-9-]+$")
    out: Path
    vocab_size: int = Field(ge=300)
    max_bytes: int = Field(gt=0)
    sources: list[SourceSpec] = Field(min_length=1)


Recipe = Annotated[TrainRecipe | TokenizerRecipe, Field(discriminator="stage")]


def load_recipe(path: str | Path, overrides: list[str] | None = None) -> TrainRecipe | TokenizerRecipe:
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
        return TypeAdapter(Recipe).validate_python(d)
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
    where = ".".join(str(part) for part in error["loc"] if part not in ("train", "tokenizer") or len(error["loc"]) == 1)
    if error["type"] == "extra_forbidden":
        return f"unknown key {where!r} (misspelt?)"
    if error["type"] in ("union_tag_not_found", "union_tag_invalid"):
        return "the key stage must be train or tokenizer"
    if error["type"] == "missing":
        return f"missing key {where!r}"
    return f"{where or 'recipe'}: {error['msg']}"
