"""`mmvl train RECIPE`: read the recipe, build the model, the data and the engine, and run the stage to its end."""

from __future__ import annotations

import shutil
import signal
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.console import Console

from mmvl.checkpoint import load_model, read_json, save_model, write_json
from mmvl.config import VLConfig
from mmvl.model import VLModel
from mmvl.processor import Processor
from mmvl.training.engine import make_engine
from mmvl.training.ledger import Ledger
from mmvl.training.loader import Loader, source_names
from mmvl.training.objective import Objective
from mmvl.training.ranks import Ranks
from mmvl.training.recipe import TokenizerRecipe, TrainRecipe, load_recipe
from mmvl.training.report import METRICS, Metrics, draw_loss
from mmvl.training.schedule import lr_factor, progress

CHECKPOINTS = "checkpoints"


def train(recipe_path: str | Path, overrides: list[str] | None = None, console: Console | None = None) -> Path:
    """Run one stage and return its directory. A stage that was interrupted goes on where its last checkpoint stands.

    The directory holds `model/` (Hugging Face layout), `metrics.jsonl`, `loss.png`, `ledger.json`, `recipe.json` and
    `checkpoints/`.

    Raises:
        ValueError, FileNotFoundError: the recipe, its data or its model cannot be used; one line that says why.
    """
    recipe = load_recipe(recipe_path, overrides)
    console = console or Console(stderr=True)
    if isinstance(recipe, TokenizerRecipe):
        from mmvl.training.tokenizer import train_tokenizer

        out = train_tokenizer(recipe)
        console.print(f"tokenizer of {recipe.vocab_size} tokens in {out}")
        return out
    return Stage(recipe, console).run()


def load_tokenizer(directory: Path):
    """The `tokenizer.json` of a tokenizer stage.

    Raises:
        FileNotFoundError
    """
    from tokenizers import Tokenizer

    path = directory / "tokenizer.json"
    if not path.is_file():
        raise FileNotFoundError(f"no tokenizer.json in {directory}; run the tokenizer recipe first")
    return Tokenizer.from_file(str(path))


def build_model(recipe: TrainRecipe) -> tuple[VLModel, Processor]:
    """The model (fp32, on the CPU) and its processor: random weights from a config, or those of another stage."""
    if recipe.init_from is not None:
        model = load_model(recipe.init_from, dtype=torch.float32)
        if not isinstance(model, VLModel):
            raise ValueError(f"{recipe.init_from} is a text-only model; training needs the vision half as well")
        processor = Processor.from_pretrained(recipe.init_from)
    else:
        if not recipe.model_config_file.is_file():
            raise FileNotFoundError(
                f"no {recipe.model_config_file}; the paths in a recipe count from the directory that you are in"
            )
        config = read_json(recipe.model_config_file)
        model = VLModel(VLConfig.from_dict(config))
        model.init_weights(recipe.seed)
        processor = Processor(load_tokenizer(recipe.tokenizer), model.tiling)
    text = model.config.text
    if processor.valid_vocab_size > text.vocab_size:
        raise ValueError(f"the tokenizer has {processor.valid_vocab_size} tokens, the model only {text.vocab_size}")
    if processor.image_id != model.config.image_token_index:
        raise ValueError(
            f"the tokenizer's <image> is {processor.image_id}, config.json says {model.config.image_token_index}"
        )
    for name, p in model.named_parameters():
        part = name.split(".")[0]
        p.requires_grad_(("multi_modal_projector" if part == "image_newline" else part) in recipe.trainable)
    return model.train(), processor


@dataclass
class _Window:
    """Figures summed on the device since the last log line, so that logging costs one sync."""

    balance: list = field(default_factory=list)
    busiest_expert: list = field(default_factory=list)
    by_source: list = field(default_factory=list)
    wait: float = 0.0
    tokens: int = 0
    began: float = field(default_factory=time.monotonic)

    def add(self, figures: dict, tokens: int) -> None:
        self.tokens += tokens
        for name, value in figures.items():
            getattr(self, name).append(value)

    def record(self, names: list[str], ranks: Ranks) -> dict:
        """Means over the window's targets of all ranks; balance, experts and waiting are the first rank's."""
        count = len(names)
        flat = ranks.sum(torch.stack(self.by_source).sum(0).flatten().tolist())
        sums = [flat[i * count : (i + 1) * count] for i in range(3)]
        seconds = time.monotonic() - self.began
        return {
            "loss": sum(sums[0]) / sum(sums[2]),
            "balance": torch.stack(self.balance).mean().item(),
            "busiest_expert": torch.stack(self.busiest_expert).max().item(),
            "by_source": {
                name: {"loss": sums[0][i] / sums[2][i], "accuracy": sums[1][i] / sums[2][i]}
                for i, name in enumerate(names)
                if sums[2][i]
            },
            "tokens_per_second": self.tokens / seconds,
            "waited_for_data": self.wait / seconds,
        }


class Stage:
    """One training stage: its state (step, seconds, ledger) and the loop over it.

    Under torchrun every process holds the model and takes its share of the batches; ZeRO splits the optimizer.
    """

    def __init__(self, recipe: TrainRecipe, console: Console):
        self.ranks = Ranks()
        if not self.ranks.first:
            console = Console(quiet=True)
        self.recipe, self.console, self.out, self.device = recipe, console, recipe.out, self.ranks.device
        if recipe.precision == "bf16" and self.device.type == "cpu":
            console.print("bf16 on the CPU is slow and coarse; set precision=fp32 there", style="yellow")
        torch.manual_seed(recipe.seed)
        torch.set_float32_matmul_precision("high")
        model, self.processor = build_model(recipe)
        self.model = model.to(self.device)
        self.names = source_names(recipe.data)
        self.engine = make_engine(Objective(self.model, recipe.balance_loss, len(self.names)), recipe)
        self.metrics = Metrics(self.out)
        self.step, self.seconds, self.ledger, loader_state = 0, 0.0, Ledger(self.names), None
        if (self.out / CHECKPOINTS / "latest").is_file():  # DeepSpeed writes it last: the tag of a whole checkpoint
            loader_state = self._resume()
        elif self.ranks.first:
            (self.out / METRICS).unlink(missing_ok=True)
        self.loader = Loader(
            recipe.data,
            self.processor,
            recipe.seed,
            loader_state,
            rank=self.ranks.rank,
            world=self.ranks.world,
            pin=self.device.type == "cuda",
        )
        for problem in self.loader.problems:
            console.print(f"data: {problem}", style="yellow")
        if self.ranks.first:
            write_json(self.out / "recipe.json", recipe.model_dump(mode="json"))

    def _resume(self) -> dict:
        _, state = self.engine.load_checkpoint(str(self.out / CHECKPOINTS))
        self.step, self.seconds = state["step"], state["seconds"]
        self.ledger = Ledger.from_dict(state["ledger"], self.names)
        if self.ranks.first:
            self.metrics.truncate(self.step)
        self.console.print(f"resumed {self.recipe.name} at step {self.step}, {self.ledger.tokens:,} tokens")
        return state["loader"]

    def save(self) -> None:
        """A checkpoint that resumes exactly, and the model for others to load."""
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "ledger": self.ledger.to_dict(),
            "loader": Loader.joined(self.ranks.gather(self.loader.state)),
        }
        skipped = Counter()
        for of_rank in self.ranks.gather(self.loader.skipped):
            skipped.update(of_rank)
        tag = f"step-{self.step:09d}"
        self.engine.save_checkpoint(str(self.out / CHECKPOINTS), tag=tag, client_state=state)
        if self.ranks.first:
            self._save_model(dict(skipped))
            for old in (self.out / CHECKPOINTS).glob("step-*"):  # only now: a kill on the way leaves a whole one
                if old.name != tag:
                    shutil.rmtree(old)
        self.ranks.wait()

    def _save_model(self, skipped: dict[str, int]) -> None:
        dtype = torch.bfloat16 if self.recipe.precision == "bf16" else torch.float32
        save_model(self.model, self.out / "model", dtype=dtype)
        self.processor.save(self.out / "model")
        write_json(self.out / "ledger.json", self.ledger.to_dict() | {"skipped": skipped})
        if (self.out / METRICS).exists():
            draw_loss({self.recipe.name: self.out / METRICS}, self.out / "loss.png")

    def _set_lr(self, spent: float) -> float:
        spec = self.recipe.optimizer
        factor = lr_factor(self.step, spent, spec)
        for group in self.engine.optimizer.param_groups:
            group["lr"] = spec.lr * group.get("lr_scale", 1.0) * factor
        return spec.lr * factor

    def run(self) -> Path:
        """Train until the budget is spent; a SIGTERM or Ctrl-C saves first."""
        stop: list[int] = []
        before = {s: signal.signal(s, lambda number, _: stop.append(number)) for s in (signal.SIGTERM, signal.SIGINT)}
        try:
            self._loop(stop)
        finally:
            for s, handler in before.items():
                signal.signal(s, handler)
        self.save()
        self.console.print(
            f"{self.recipe.name}: {'interrupted' if stop else 'done'} at step {self.step}, "
            f"{self.ledger.tokens:,} tokens, {self.seconds / 60:.1f} min; model in {self.out / 'model'}"
        )
        if stop:
            raise KeyboardInterrupt
        return self.out

    def _loop(self, stop: list[int]) -> None:
        recipe, ranks, count = self.recipe, self.ranks, len(self.names)
        start, saved, window = time.monotonic() - self.seconds, time.monotonic(), _Window()
        batches = iter(self.loader)
        while (spent := progress(self.ledger.tokens, self.seconds, recipe.budget)) < 1.0:
            lr = self._set_lr(spent)
            waiting = time.monotonic()
            batch = next(batches)
            window.wait += time.monotonic() - waiting
            # One exchange a step: what the ledger counts, the targets, and the first rank's word on time and saving, so
            # that all ranks stop and save at the same step.
            now = time.monotonic()
            mine = [len(batch.targets_L), len(stop), *batch.text_tokens, *batch.image_tokens, *batch.samples]
            words = [now - start, now - saved > 60 * recipe.save_every_minutes] if ranks.first else [0, 0]
            seconds, save, targets, stopping, *counts = ranks.sum([*words, *mine])
            loss, figures = self.engine(batch.to(self.device), int(targets), ranks.world)
            self.engine.backward(loss)
            self.engine.step()
            self.step += 1
            self.seconds = seconds
            counts = [int(n) for n in counts]
            self.ledger.add(counts[:count], counts[count : 2 * count], counts[2 * count :])
            window.add(figures, sum(counts[: 2 * count]))
            if self.step % recipe.log_every_steps == 0:
                self._log(window.record(self.names, ranks), lr, spent)
                window = _Window()
            if stopping:
                stop.append(signal.SIGTERM)
                return
            if save:
                self.save()
                saved = time.monotonic()

    def _log(self, record: dict, lr: float, spent: float) -> None:
        norm = self.engine.get_global_grad_norm()
        record = {
            "step": self.step,
            "tokens": self.ledger.tokens,
            "seconds": round(self.seconds, 2),
            "lr": lr,
            "grad_norm": None if norm is None else float(norm),
            "skipped_updates": int(self.engine.basic_optimizer.skipped or 0),  # gradients were not finite
        } | record
        if not record["loss"] < float("inf"):
            raise ValueError(f"the loss is {record['loss']} at step {self.step}; lower optimizer.lr and start again")
        if not self.ranks.first:
            return
        self.metrics.write(record)
        sources = "  ".join(f"{n} {v['loss']:.3f}/{v['accuracy']:.0%}" for n, v in record["by_source"].items())
        self.console.print(
            f"{spent:6.1%} step {self.step} loss {record['loss']:.4f} lr {lr:.2e} "
            f"{record['tokens_per_second']:,.0f} tok/s wait {record['waited_for_data']:.0%}  {sources}",
            highlight=False,
            soft_wrap=True,
        )
