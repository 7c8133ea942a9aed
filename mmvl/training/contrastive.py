"""The contrastive stage: the vision tower learns from pictures and their captions, by open_clip's CoCa losses.

Every rank holds the model (torch's DistributedDataParallel) and its share of the step's pairs; open_clip's loss gathers
the features of all ranks. Which pairs a step sees is a pure function of the recipe and the step, so that a stage
resumes exactly, also on another number of ranks. What it leaves is `model/`: config.json and the tower under its
released names, which the key `vision_from` of a later stage reads.
"""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from mmvl.checkpoint import WEIGHTS, write_json
from mmvl.config import VLConfig
from mmvl.processor import Processor
from mmvl.training import replicated_state
from mmvl.training.build import VISION, load_tokenizer, read_model_config, vision_state
from mmvl.training.checkpoints import Checkpoint, Writer
from mmvl.training.engine import GuardedAdamW
from mmvl.training.guard import BadLoss, LossGuard, stopped
from mmvl.training.loader import stop_workers, with_the_trainer
from mmvl.training.pairs import Numbers, PairBatch, Pairs
from mmvl.training.ranks import Ranks
from mmvl.training.recipe import ContrastiveRecipe
from mmvl.training.report import METRICS, Metrics, draw_loss, progress_line
from mmvl.training.schedule import lr_factor
from mmvl.vision import names as vision_names
from mmvl.vision.config import TilingConfig, VisionConfig
from mmvl.vision.contrastive import CaptionIds, CoCa

CHECKPOINTS = "checkpoints"


def vision_config(recipe: ContrastiveRecipe) -> VisionConfig:
    """The tower of the recipe's model, for pictures of the recipe's size."""
    config = VLConfig.from_dict(read_model_config(recipe.model_config_file))
    return replace(config.vision, image_size=recipe.image_size)


def caption_processor(recipe: ContrastiveRecipe) -> tuple[Processor, CaptionIds]:
    """What turns captions into tokens, and the ids around those.

    Raises:
        FileNotFoundError, ValueError: no tokenizer, or one without <end_of_document>.
    """
    config = VLConfig.from_dict(read_model_config(recipe.model_config_file))
    tiling = TilingConfig(config.vision.image_size, config.vision.patch_size, config.image_grid_pinpoints)
    processor = Processor(load_tokenizer(recipe.tokenizer), tiling)
    pad = processor.end_of_document_id
    if pad is None:
        raise ValueError("captions are padded with <end_of_document>, which the tokenizer lacks")
    return processor, CaptionIds(processor.valid_vocab_size, pad, processor.bos_id, processor.eos_id)


def build_coca(recipe: ContrastiveRecipe, vision: VisionConfig, ids: CaptionIds) -> CoCa:
    """The model of the stage, on torch's current default device."""
    spec = recipe.contrastive
    return CoCa(
        vision,
        ids,
        embed_dim=spec.embed_dim,
        queries=spec.pooler_queries,
        pooler_heads=spec.pooler_heads,
        width=spec.text.width,
        heads=spec.text.heads,
        layers=spec.text.layers,
        decoder_layers=spec.text.decoder_layers,
        context=spec.text.context,
    )


class _Losses(nn.Module):
    """Model and losses in one forward pass, as DistributedDataParallel wants it."""

    def __init__(self, model: CoCa, recipe: ContrastiveRecipe, ranks: Ranks):
        super().__init__()
        from open_clip.loss import CoCaLoss

        self.model = model
        self.loss = CoCaLoss(
            caption_loss_weight=recipe.contrastive.caption_weight,
            clip_loss_weight=recipe.contrastive.clip_weight,
            pad_id=model.ids.pad,
            local_loss=True,  # each rank its own rows of the similarities
            gather_with_grad=True,
            rank=ranks.rank,
            world_size=ranks.world,
        )

    def forward(self, batch: PairBatch, caption_share: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """`caption_share`: this rank's caption tokens over the mean of all ranks', so that each token counts alike.

        Returns the loss, its two parts, and the share of pictures whose own caption is the most similar of the rank's.
        """
        out = self.model(batch.tiles_N3TT, batch.captions_NL)
        contrastive, caption = self.loss(**{k: v.float() if v.is_floating_point() else v for k, v in out.items()})
        caption = caption * caption_share
        with torch.no_grad():
            similar_NN = out["image_features"].float() @ out["text_features"].float().T
            found = (similar_NN.argmax(1) == torch.arange(len(similar_NN), device=similar_NN.device)).float().mean()
        return contrastive + caption, contrastive.detach(), caption.detach(), found


class ContrastiveStage:
    """The stage's state (step, seconds, counts) and the loop over it."""

    def __init__(self, recipe: ContrastiveRecipe, console: Console):
        self.ranks = ranks = Ranks()
        self.recipe, self.out = recipe, recipe.out
        self.console = console if ranks.first else Console(quiet=True)
        if recipe.data.batch_pairs % ranks.world:
            raise ValueError(f"data.batch_pairs ({recipe.data.batch_pairs}) must be a multiple of {ranks.world} ranks")
        self.vision = vision_config(recipe)
        processor, ids = caption_processor(recipe)
        torch.manual_seed(recipe.seed)
        self.model = build_coca(recipe, self.vision, ids)
        self.model.vision_tower.vit.init_weights()
        if recipe.vision_from is not None:
            self.model.vision_tower.load_state_dict(vision_state(recipe.vision_from, self.vision))
        self.model.to(ranks.device).train()
        self.losses = _Losses(self.model, recipe, ranks)
        self.parallel = DistributedDataParallel(self.losses) if ranks.world > 1 else self.losses
        o = recipe.optimizer
        matrices = [p for p in self.model.parameters() if p.ndim >= 2]
        others = [p for p in self.model.parameters() if p.ndim < 2]
        groups = [{"params": matrices, "weight_decay": o.weight_decay}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = GuardedAdamW(groups, lr=o.lr, betas=o.betas, eps=1e-6)
        self.step, self.seconds, self.tokens, self.skipped = 0, 0.0, 0, Counter()
        self.metrics, self.guard = Metrics(self.out), LossGuard(recipe.spike)
        self.writer = Writer(self.out / CHECKPOINTS, ranks, recipe.keep_checkpoints, self._warn)
        self.window: list[Tensor] = []  # the figures of the steps since the last log line
        self.skipped_before = 0  # updates left out before a resume
        self.saved: int | None = None  # the step of the newest checkpoint
        self._unjudged: tuple[int, Tensor, PairBatch] | None = None  # the last step, its loss not seen
        if checkpoint := self.writer.latest():
            self._resume(checkpoint)
        elif ranks.first:
            (self.out / METRICS).unlink(missing_ok=True)
        self.pairs = Pairs(recipe, processor, self.model)
        for problem in self.pairs.problems:
            self._warn(f"data: {problem}")
        if ranks.first:
            write_json(self.out / "recipe.json", recipe.model_dump(mode="json"))

    def _warn(self, line: str) -> None:
        self.console.print(line, style="yellow", highlight=False, soft_wrap=True)

    def _resume(self, directory: Path) -> None:
        with Checkpoint(directory) as checkpoint:
            state = checkpoint.state
            if state["batch_pairs"] != self.recipe.data.batch_pairs:
                raise ValueError(f"the checkpoint was made with data.batch_pairs {state['batch_pairs']}; keep it")
            replicated_state.put(self.model, self.optimizer, checkpoint)
        self.step, self.seconds, self.tokens = state["step"], state["seconds"], state["tokens"]
        self.skipped, self.saved = Counter(state["skipped"]), state["step"]
        self.guard, self.skipped_before = LossGuard(self.recipe.spike, state["losses"]), state["skipped_updates"]
        windows_WSF = torch.tensor(state["window"], device=self.ranks.device)
        same = len(windows_WSF) == self.ranks.world
        self.window = [*(windows_WSF[self.ranks.rank] if same else windows_WSF.mean(0))]
        if self.ranks.first:
            self.metrics.truncate(self.step)
        self.console.print(f"resumed {self.recipe.name} at step {self.step}")

    def save(self) -> None:
        """Begin a checkpoint that resumes exactly; training goes on while it is written."""
        self._judge(self.ranks.sum([self._last_loss()])[0])
        self.writer.finish()
        if self.saved == self.step:
            return
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "tokens": self.tokens,
            "skipped": dict(self.skipped),
            "batch_pairs": self.recipe.data.batch_pairs,
            "losses": list(self.guard.losses),
            "skipped_updates": self._skipped_updates(),
            "window": self.ranks.gather([figures.tolist() for figures in self.window]),
        }
        pieces = replicated_state.take(self.model, self.optimizer, self.ranks.rank, self.ranks.world)
        self.writer.begin(self.step, pieces, {}, state, self._write_config)
        self.saved = self.step

    def _write_config(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        write_json(directory / "config.json", {"vision_config": self.vision.to_dict()})

    def run(self) -> Path:
        """Train until the budget is spent; a SIGTERM or Ctrl-C saves first."""
        stop: list[int] = []
        before = {s: signal.signal(s, lambda number, _: stop.append(number)) for s in (signal.SIGTERM, signal.SIGINT)}
        try:
            with closing(self._batches()) as batches:
                self._loop(stop, batches)
            self.save()
        except BadLoss:
            self.writer.finish()  # one that was begun before is whole and good
            raise
        finally:
            for s, handler in before.items():
                signal.signal(s, handler)
        if not self.writer.finish():
            raise OSError(f"the last checkpoint of {self.recipe.name} could not be written; make room and start again")
        if self.ranks.first:
            self.export()
        self.ranks.wait()
        word = "interrupted" if stop else "done"
        self.console.print(f"{self.recipe.name}: {word} at step {self.step}; vision tower in {self.out / 'model'}")
        if stop:
            raise KeyboardInterrupt
        return self.out

    def export(self) -> None:
        """Write the tower under its released names, its config, and the loss curve."""
        state = {VISION + n: t.float().cpu() for n, t in self.model.vision_tower.state_dict().items()}
        directory = self.out / "model"
        self._write_config(directory)
        released = {n: t.contiguous() for n, t in vision_names.to_released(state).items()}
        save_file(released, directory / f"{WEIGHTS}.part", metadata={"format": "pt"})
        (directory / f"{WEIGHTS}.part").replace(directory / WEIGHTS)
        counts = {"pairs": self.step * self.recipe.data.batch_pairs, "skipped": dict(self.skipped)}
        write_json(self.out / "ledger.json", counts | {"tokens": self.tokens})
        if (self.out / METRICS).exists():
            draw_loss({self.recipe.name: self.out / METRICS}, self.out / "loss.png")

    def _batches(self) -> Iterator[PairBatch]:
        data = self.recipe.data
        loader = iter(
            DataLoader(
                self.pairs,
                batch_sampler=Numbers(self.step, data.batch_pairs, self.ranks.rank, self.ranks.world),
                collate_fn=PairBatch.collate,
                num_workers=data.workers,
                worker_init_fn=with_the_trainer,
                multiprocessing_context="fork" if data.workers else None,
            )
        )
        try:
            yield from loader
        finally:
            stop_workers(loader)

    def _loop(self, stop: list[int], batches: Iterator[PairBatch]) -> None:
        recipe, ranks = self.recipe, self.ranks
        size, pad, patches = recipe.data.batch_pairs, self.model.ids.pad, self.vision.patches
        steps, limit = -(-recipe.budget.pairs // size), 60 * (recipe.budget.minutes or float("inf"))
        start, saved, began = time.monotonic() - self.seconds, time.monotonic(), time.monotonic()
        here = self.step  # of the last log line, or where this process began
        while (spent := max(self.step / steps, self.seconds / limit)) < 1:
            batch = next(batches)
            if isinstance(batch, ValueError):
                raise batch
            targets = int((batch.captions_NL[:, 1:] != pad).sum())
            words = [time.monotonic() - start, time.monotonic() - saved > 60 * recipe.save_every_minutes]
            skipped = [0] * len(recipe.data.sources)
            for source, reasons in zip(batch.sources, batch.skipped, strict=True):
                skipped[source] += len(reasons)
                for reason in reasons:
                    self._warn(f"skipped: {reason}")
            mine = [*(words if ranks.first else [0, 0]), self._last_loss(), self.writer.done, len(stop)]
            seconds, save, loss_sum, written, stopping, all_targets, *skips = ranks.sum([*mine, targets, *skipped])
            self._judge(loss_sum)
            if written == ranks.world:
                self.writer.finish()
            self.seconds = seconds
            self.skipped.update({n: int(k) for n, k in zip(self.pairs.names, skips, strict=True) if k})
            factor = lr_factor(self.step, spent, recipe.optimizer)
            for group in self.optimizer.param_groups:
                group["lr"] = recipe.optimizer.lr * factor
            self.window.append(self._update(batch, targets * ranks.world / all_targets))
            self.step += 1
            self._unjudged = (self.step, self.window[-1][0], batch)
            self.tokens += size * patches + int(all_targets)
            if self.step % recipe.log_every_steps == 0:
                pairs_per_second = (self.step - here) * size / (time.monotonic() - began)
                done = min(1.0, max(self.step / steps, seconds / limit))
                self._log(factor * recipe.optimizer.lr, done, pairs_per_second)
                here, began = self.step, time.monotonic()
            if stopping:
                stop.append(signal.SIGTERM)
                return
            if save or (recipe.save_every_steps and self.step % recipe.save_every_steps == 0):
                self.save()
                saved = time.monotonic()

    def _last_loss(self) -> float:
        """The last step's loss on this rank's pairs; waits for that step."""
        return 0.0 if self._unjudged is None else float(self._unjudged[1])

    def _judge(self, loss_sum: float) -> None:
        """Stop if the loss of the last step, summed over all ranks, is bad; all ranks call it with the same number."""
        if self._unjudged is None:
            return
        step, _, batch = self._unjudged
        self._unjudged = None
        if (problem := self.guard.judge(loss_sum / self.ranks.world)) is None:
            return
        directory = self.out / f"bad-step-{step:09d}"
        batch.save(directory, self.ranks.rank, step, problem)
        self.ranks.wait()
        raise BadLoss(stopped(self.recipe.name, problem, step, directory))

    def _update(self, batch: PairBatch, caption_share: float) -> Tensor:
        """One optimizer step; (loss, contrastive, caption, accuracy, gradient norm) on the device."""
        device = self.ranks.device
        batch.tiles_N3TT, batch.captions_NL = batch.tiles_N3TT.to(device), batch.captions_NL.to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.recipe.precision == "bf16"):
            loss, *parts = self.parallel(batch, caption_share)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.optimizer.clip)
        self.optimizer.step()
        return torch.stack([loss.detach(), *parts, norm.detach()])

    def _skipped_updates(self) -> int:
        return self.skipped_before + int(self.optimizer.skipped or 0)

    def _log(self, lr: float, spent: float, pairs_per_second: float) -> None:
        self._judge(self.ranks.sum([self._last_loss()])[0])
        means = self.ranks.sum(torch.stack(self.window).mean(0).tolist())
        self.window = []
        loss, contrastive, caption, accuracy, norm = (m / self.ranks.world for m in means)
        record = {
            "step": self.step,
            "pairs": self.step * self.recipe.data.batch_pairs,
            "tokens": self.tokens,
            "seconds": round(self.seconds, 2),
            "lr": lr,
            "grad_norm": norm,
            "skipped_updates": self._skipped_updates(),
            "loss": loss,
            "by_source": {"contrastive": {"loss": contrastive, "accuracy": accuracy}, "caption": {"loss": caption}},
            "pairs_per_second": pairs_per_second,
            "logit_scale": self.model.logit_scale.exp().item(),
            "eta_seconds": self.seconds * (1 - spent) / spent,
        }
        if self.ranks.first:
            self.metrics.write(record)
            self.console.print(progress_line(record, spent), highlight=False, soft_wrap=True)
