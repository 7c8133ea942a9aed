"""`mmvl train RECIPE`: read the recipe, build the model, the data and the engine, and run the stage to its end."""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import torch
from rich.console import Console
from torch import nn

from mmvl.checkpoint import write_json
from mmvl.export import export
from mmvl.json_files import read_json
from mmvl.model import VLModel
from mmvl.training import engine_state
from mmvl.training.batch import Batch
from mmvl.training.build import build_model, load_tokenizer
from mmvl.training.checkpoints import Checkpoint, Writer, complete
from mmvl.training.engine import make_engine, set_accumulation, sums_in_fp32
from mmvl.training.guard import BadLoss, LossGuard, save_batches, stopped
from mmvl.training.ledger import Ledger
from mmvl.training.loader import Loader, source_names
from mmvl.training.objective import Objective
from mmvl.training.parallel import Parallel
from mmvl.training.profile import StepProfile
from mmvl.training.ranks import Ranks
from mmvl.training.recipe import ContrastiveRecipe, PreferenceRecipe, TokenizerRecipe, TrainRecipe, load_recipe
from mmvl.training.report import METRICS, Metrics, Rates, draw_loss, progress_line
from mmvl.training.schedule import lr_factor, progress
from mmvl.training.window import Window

CHECKPOINTS = "checkpoints"
COUNTED = ("text_tokens", "image_tokens", "samples")  # of a batch, by source: what the ledger adds up

__all__ = ["Stage", "build_model", "load_tokenizer", "train"]


def train(recipe_path: str | Path, overrides: list[str] | None = None, console: Console | None = None) -> Path:
    """Run one stage and return its directory. A stage that was interrupted goes on where its last checkpoint stands.

    The directory holds `checkpoints/`, `metrics.jsonl` and `recipe.json`, and from the stage's end on `model/` (Hugging
    Face layout), `ledger.json` and `loss.png`.

    Raises:
        ValueError, FileNotFoundError: the recipe, its data or its model cannot be used; one line that says why.
        BadLoss: the loss was not finite, or jumped; the line says where the batch was kept.
        OSError: the last checkpoint or the model could not be written.
    """
    recipe = load_recipe(recipe_path, overrides)
    console = console or Console(stderr=True)
    if isinstance(recipe, TokenizerRecipe):
        from mmvl.training.tokenizer import train_tokenizer

        out = train_tokenizer(recipe)
        console.print(f"tokenizer of {recipe.vocab_size} tokens in {out}")
        return out
    if isinstance(recipe, ContrastiveRecipe):
        from mmvl.training.contrastive import ContrastiveStage

        return ContrastiveStage(recipe, console).run()
    if isinstance(recipe, PreferenceRecipe):
        from mmvl.training.preference import PreferenceStage

        return PreferenceStage(recipe, console).run()
    return Stage(recipe, console).run()


class Stage:
    """One training stage: its state (step, seconds, ledger) and the loop over it.

    Under torchrun the processes share batches, rows and experts as the recipe's `parallel` says; ZeRO splits the
    optimizer among them.
    Another kind of stage overrides `make_objective`, `make_loader`, `units` and `after_step`.
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
        self.parallel = Parallel(self.ranks, recipe.parallel)
        self.writer = Writer(self.out / CHECKPOINTS, self.ranks, recipe.keep_checkpoints, self._warn)
        checkpoint = self.writer.latest()
        self.model, self.processor = build_model(recipe, self.parallel, self.device, filled=checkpoint is None)
        if recipe.init_from is not None and "quantization_config" in read_json(recipe.init_from / "config.json"):
            self._warn(f"{recipe.init_from} holds quantised weights: training goes on from them as they were rounded")
        self.names = source_names(recipe.data)
        self.sizes = recipe.data.batches_of(self.parallel.data_world)
        if recipe.precision == "bf16" and not sums_in_fp32(recipe) and max(size for _, size in self.sizes) > 1:
            self._warn("zero_stage 1 adds up the gradients of a step's batches in bf16; zero_stage 2 does it in fp32")
        self.engine = make_engine(self.make_objective(self.model), recipe, self.parallel)
        self.metrics, self.rates = Metrics(self.out), Rates(self.model.config, recipe, self.ranks)
        self.step, self.seconds, self.ledger, loader_state = 0, 0.0, Ledger(self.names), None
        self.guard, self.window = LossGuard(recipe.spike), Window()
        self.profile = StepProfile(recipe.profile_at_step if self.ranks.first else None, self.out, self.device)
        self.skipped_before = 0  # updates left out before a resume
        self.saved: int | None = None  # the step of the newest checkpoint
        self._unjudged: tuple[int, float, torch.Tensor, list[Batch]] | None = None  # the last step, its loss not seen
        if checkpoint is not None:
            loader_state = self._resume(checkpoint)
        elif self.ranks.first:
            (self.out / METRICS).unlink(missing_ok=True)
        self.loader = self.make_loader(loader_state)
        for problem in self.loader.problems:
            self._warn(f"data: {problem}")
        if self.ranks.first:
            write_json(self.out / "recipe.json", recipe.model_dump(mode="json"))

    def make_objective(self, model: VLModel) -> nn.Module:
        """What the engine wraps: `model` under that name, called as `Objective` is."""
        return Objective(model, self.recipe.balance_loss, len(self.names))

    def make_loader(self, state: dict | None, **settings) -> Loader:
        """This rank's batches, from `state` on."""
        return Loader(
            self.recipe.data,
            self.processor,
            self.recipe.seed,
            state,
            rank=self.parallel.data_rank,
            world=self.parallel.data_world,
            pin=self.device.type == "cuda",
            **settings,
        )

    def units(self, batch: Batch) -> int:
        """What the loss is a mean over: this many of it are in a batch."""
        return len(batch.targets_L)

    def after_step(self) -> str | None:
        """Called after every step; a reason to end the stage, the same on all ranks, or None."""
        return None

    def _warn(self, line: str) -> None:
        self.console.print(line, style="yellow", highlight=False, soft_wrap=True)

    def _resume(self, directory: Path) -> dict:
        with Checkpoint(directory) as checkpoint:
            engine_state.put(self.engine, checkpoint)
            if checkpoint.world == self.ranks.world:
                engine_state.set_random_states(checkpoint.extra(self.ranks.rank), self.device)
            state = checkpoint.state
        self.step, self.seconds, self.saved = state["step"], state["seconds"], state["step"]
        self.ledger = Ledger.from_dict(state["ledger"], self.names)
        self.guard, self.skipped_before = LossGuard(self.recipe.spike, state["losses"]), state["skipped_updates"]
        self.window = Window.resumed(state["window"], self.ranks.rank, self.ranks.world, self.device)
        if self.ranks.first:
            self.metrics.truncate(self.step)
        self.console.print(f"resumed {self.recipe.name} at step {self.step}, {self.ledger.tokens:,} tokens")
        return state["loader"]

    def save(self) -> None:
        """Begin a checkpoint that resumes exactly; training goes on while it is written."""
        self._judge_last()
        self.writer.finish()
        if self.saved == self.step:
            return
        skipped, readers = Counter(), self.parallel.data_ranks
        all_skipped, loaders = self.ranks.gather(self.loader.skipped), self.ranks.gather(self.loader.state)
        for r in readers:
            skipped.update(all_skipped[r])
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "ledger": self.ledger.to_dict(),
            "skipped": dict(skipped),
            "skipped_updates": self._skipped_updates(),
            "loader": Loader.joined([loaders[r] for r in readers]),
            "losses": list(self.guard.losses),
            "window": self.ranks.gather(self.window.state()),
            "dtype": "bfloat16" if self.recipe.precision == "bf16" else "float32",
        }
        pieces = engine_state.take(self.engine, self.ranks.rank, self.ranks.world)
        extra = engine_state.random_states(self.device)
        self.writer.begin(self.step, pieces, extra, state, self._write_settings)
        self.saved = self.step

    def _write_settings(self, directory: Path) -> None:
        """What a model directory has beside its weights."""
        directory.mkdir(exist_ok=True)
        self.processor.save(directory)
        write_json(directory / "config.json", self.model.config.to_dict())

    def _finish(self) -> None:
        """The last checkpoint, and the model for others to load."""
        self.save()
        if not self.writer.finish():
            raise OSError(f"the last checkpoint of {self.recipe.name} could not be written; make room and start again")
        checkpoint = complete(self.out / CHECKPOINTS)[-1]
        export(checkpoint, self.out / "model", rank=self.ranks.rank, world=self.ranks.world, wait=self.ranks.wait)
        if self.ranks.first:
            with Checkpoint(checkpoint) as saved:
                write_json(self.out / "ledger.json", saved.state["ledger"] | {"skipped": saved.state["skipped"]})
            if (self.out / METRICS).exists():
                draw_loss({self.recipe.name: self.out / METRICS}, self.out / "loss.png")
        self.ranks.wait()

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
            with closing(iter(self.loader)) as batches:
                self._loop(stop, batches)
            self._finish()
        except BadLoss:
            self.writer.finish()  # one that was begun before is whole and good
            raise
        finally:
            self.profile.end()
            for s, handler in before.items():
                signal.signal(s, handler)
        self.console.print(
            f"{self.recipe.name}: {'interrupted' if stop else 'done'} at step {self.step}, "
            f"{self.ledger.tokens:,} tokens, {self.seconds / 60:.1f} min; model in {self.out / 'model'}"
        )
        if stop:
            raise KeyboardInterrupt
        return self.out

    def _loop(self, stop: list[int], batches: Iterator[Batch]) -> None:
        recipe, ranks, count = self.recipe, self.ranks, len(self.names)
        start, saved = time.monotonic() - self.seconds, time.monotonic()
        while (spent := progress(self.ledger.tokens, self.seconds, recipe.budget)) < 1.0:
            lr = self._set_lr(spent)
            self.profile.before(self.step)
            waiting = time.monotonic()
            accumulate = [size for tokens, size in self.sizes if self.ledger.tokens >= tokens][-1]
            set_accumulation(self.engine, accumulate)
            rows = [next(batches) for _ in range(accumulate)]
            for row in rows:
                self.rates.add(row, 1 / self.parallel.sequence_size)
            taken = [self.parallel.part(row, self.model.tiling) for row in rows]
            self.window.wait += time.monotonic() - waiting
            # One exchange a step: what the ledger counts, the targets, the loss of the step before, who has written its
            # part of a checkpoint, the first rank's word on time and saving: so all ranks act at the same step.
            now = time.monotonic()
            due = now - saved > 60 * recipe.save_every_minutes
            words = [now - start, due] if ranks.first else [0, 0]
            kinds = [[sum(n) for n in zip(*(getattr(b, kind) for b in taken), strict=True)] for kind in COUNTED]
            targets = sum(self.units(b) for b in taken)
            mine = [self._last_loss(), self.writer.done, len(stop), targets, *(n for kind in kinds for n in kind)]
            seconds, save, loss_sum, written, stopping, targets, *counts = ranks.sum([*words, *mine])
            self._judge(loss_sum)
            if written == ranks.world:
                self.writer.finish()
            sums = []
            for batch in taken:
                loss, figures = self.engine(batch.to(self.device), int(targets), ranks.world * accumulate)
                self.engine.backward(loss)
                self.engine.step()
                self.window.add(figures)
                sums.append(figures["by_source"][0].sum())
            if line := self.profile.after(self.step):
                self.console.print(line, highlight=False, soft_wrap=True)
            self.step += 1
            self.seconds = seconds
            self._unjudged = (self.step, targets, torch.stack(sums).sum(), rows)
            counts = [int(n) for n in counts]
            self.ledger.add(counts[:count], counts[count : 2 * count], counts[2 * count :])
            self.window.tokens += sum(counts[: 2 * count])
            if self.step % recipe.log_every_steps == 0:
                self._log(lr, spent)
            if reason := self.after_step():
                self.console.print(f"{recipe.name} ends early: {reason}", highlight=False, soft_wrap=True)
                return
            if stopping:
                stop.append(signal.SIGTERM)
                return
            if save or (recipe.save_every_steps and self.step % recipe.save_every_steps == 0):
                self.save()
                saved = time.monotonic()

    def _last_loss(self) -> float:
        """This rank's part of the last step's loss, summed over its targets; waits for that step's forward only."""
        return 0.0 if self._unjudged is None else float(self._unjudged[2])

    def _judge(self, loss_sum: float) -> None:
        """Stop if the loss of the last step, summed over all ranks, is bad; all ranks call it with the same number."""
        if self._unjudged is None:
            return
        step, targets, _, batches = self._unjudged
        self._unjudged = None
        if (problem := self.guard.judge(loss_sum / max(targets, 1))) is None:
            return
        directory = self.out / f"bad-step-{step:09d}"
        if self.parallel.sequence_rank == 0:
            save_batches(directory, self.parallel.data_rank, step, problem, batches)
        self.ranks.wait()
        raise BadLoss(stopped(self.recipe.name, problem, step, directory))

    def _judge_last(self) -> None:
        self._judge(self.ranks.sum([self._last_loss()])[0])

    def _skipped_updates(self) -> int:
        """Updates of a parameter group that were left out because its gradients were not finite."""
        return self.skipped_before + int(self.engine.basic_optimizer.skipped or 0)

    def _log(self, lr: float, spent: float) -> None:
        self._judge_last()
        norm = self.engine.get_global_grad_norm()
        record = {
            "step": self.step,
            "tokens": self.ledger.tokens,
            "seconds": round(self.seconds, 2),
            "lr": lr,
            "grad_norm": None if norm is None else float(norm),
            "skipped_updates": self._skipped_updates(),
        } | self.window.record(self.names, self.ranks)
        record["padding"] = 1 - self.loader.fill
        for line in self.loader.take_news():
            self._warn(line)
        record |= self.rates.of(self.ranks, time.monotonic() - self.window.began, spent, self.seconds)
        self.window = Window()
        if self.ranks.first:
            self.metrics.write(record)
            self.console.print(progress_line(record, spent), highlight=False, soft_wrap=True)
