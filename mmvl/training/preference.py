"""The preference stage: direct preference optimisation (DPO, arXiv 2305.18290) on pairs of a better and a worse answer.

The reference is the model that the stage starts from. Its log-probabilities are computed once, before the first step,
and kept in `reference.json`, so that only one model is ever held. A share of the pairs is held out; the stage ends when
the loss on them no longer falls (`held-out.jsonl`), or after the given number of epochs, or with its budget.

Legend: L targets, S documents (chosen and rejected in turn), P pairs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from mmvl.checkpoint import read_json
from mmvl.data.order import derive
from mmvl.data.shards import ShardSource
from mmvl.model import VLModel
from mmvl.text_backbone.decoder import DecoderOutput
from mmvl.training.batch import Batch, Example
from mmvl.training.loader import Encode, Loader
from mmvl.training.objective import Objective, _busiest, cross_entropy
from mmvl.training.parallel import RowBatch
from mmvl.training.report import read_metrics
from mmvl.training.train import Stage

REFERENCE, HELD_OUT = "reference.json", "held-out.jsonl"


def dpo_loss(chosen_P: Tensor, rejected_P: Tensor, reference_P2: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """Loss of each pair, and its margin (above 0: the policy prefers the chosen answer more than the reference does).

    Args:
        chosen_P, rejected_P: log-probabilities of the whole answers under the policy, fp32.
        reference_P2: the same under the reference, chosen then rejected.
        beta: how strongly the policy is held to the reference.

    Source: equation 7 of arXiv 2305.18290, -log sigmoid(beta (log-ratio of chosen - log-ratio of rejected)).
    """
    margin_P = beta * ((chosen_P - reference_P2[:, 0]) - (rejected_P - reference_P2[:, 1]))
    return -F.logsigmoid(margin_P), margin_P.detach()


@dataclass(frozen=True)
class Kept:
    """Which pairs are learned from, by their key: all but a share that is held out, the same in every process."""

    held_out: float
    seed: int

    def __call__(self, key: str) -> bool:
        return derive("held out", self.seed, key) >= self.held_out * 2**64


class PreferenceObjective(Objective):
    """Batch of pairs -> (loss, figures). The loss is the mean over the pairs of all ranks, plus the balance loss.

    A pair's loss is DPO's plus `sft_weight` times the mean cross-entropy of the chosen answer's tokens. The figures are
    by source: sum of the losses, pairs whose margin is above zero, pairs.
    """

    def __init__(self, model: VLModel, balance: float, num_sources: int, beta: float, sft_weight: float):
        super().__init__(model, balance, num_sources)
        self.beta, self.sft_weight = beta, sft_weight
        self.reference: dict[str, tuple[float, float]] = {}

    def answers(self, batch: Batch) -> Answers:
        """What the model makes of the answer of each document of the row; of a part of it, its ranks add up."""
        out = self.model.language_model(self.embed(batch), batch.packed)
        hidden_LD = out.hidden_TD.index_select(0, batch.target_positions_L)
        loss_L, _ = cross_entropy(self.model.language_model, hidden_LD, batch.targets_L)
        found_3L = torch.stack([-loss_L.float(), torch.ones_like(loss_L), batch.source_L.float()])
        row = batch.row if isinstance(batch, RowBatch) else None
        documents = len(batch.lengths if row is None else row.lengths)
        sums_3S = torch.zeros(3, documents, device=loss_L.device).index_add(1, batch.document_L, found_3L)
        if row is not None:
            sums_3S = _SumOfParts.apply(sums_3S, row)
        log_p_S, tokens_S, sources_S = sums_3S
        return Answers(log_p_S, tokens_S.detach(), (sources_S / tokens_S).detach().round().long(), out)

    def forward(self, batch: Batch, pairs: int | None = None, world: int = 1) -> tuple[Tensor, dict[str, Tensor]]:
        """`pairs` of the `world` ranks together; None: this rank is alone.

        Ranks that share a row all have its whole loss; the figures are the first one's.
        """
        log_p_S, tokens_S, source_S, out = self.answers(batch)
        reference_P2 = torch.tensor([self.reference[key] for key in batch.keys], device=log_p_S.device)
        loss_P, margin_P = dpo_loss(log_p_S[0::2], log_p_S[1::2], reference_P2, self.beta)
        loss_P = loss_P - self.sft_weight * log_p_S[0::2] / tokens_S[0::2]
        loss = loss_P.sum() * (world / (pairs or len(loss_P))) + self.balance * out.balance_loss
        with torch.no_grad():
            sums = torch.zeros(3, self.num_sources, device=loss.device)
            if counts(batch):
                found_3P = torch.stack([loss_P, (margin_P > 0).float(), torch.ones_like(loss_P)])
                sums.index_add_(1, source_S[0::2], found_3P)
        figures = {
            "balance": out.balance_loss.detach(),
            "by_source": sums,
            "busiest_expert": _busiest(out.expert_counts_LE),
        }
        return loss, figures


class Answers(NamedTuple):
    """Of each document's answer: log-probability (fp32), tokens, index of its source, (S,); the decoder's output."""

    log_p_S: Tensor
    tokens_S: Tensor
    source_S: Tensor
    out: DecoderOutput


def counts(batch: Batch) -> bool:
    """Whether what is counted by pairs counts here: once for ranks that share a row."""
    return not isinstance(batch, RowBatch) or batch.row.rank == 0


class _SumOfParts(torch.autograd.Function):
    """The sum over the ranks that share a row. All of them have the same loss then, so a part's gradient is its own."""

    @staticmethod
    def forward(ctx, x, row):
        total = x.clone()
        dist.all_reduce(total, group=row.group)
        return total

    @staticmethod
    def backward(ctx, grad):
        return grad, None


class PreferenceStage(Stage):
    """The stage of a `PreferenceRecipe`: `Stage` with pairs, a reference, and an early stop."""

    def make_objective(self, model: VLModel) -> PreferenceObjective:
        spec = self.recipe.preference
        self.objective = PreferenceObjective(
            model, self.recipe.balance_loss, len(self.names), spec.beta, spec.sft_weight
        )
        return self.objective

    def make_loader(self, state: dict | None) -> Loader:
        spec, recipe = self.recipe.preference, self.recipe
        keep = Kept(spec.held_out, recipe.seed)
        loader = super().make_loader(state, pairs=True, keep=keep)
        encode = Encode(self.processor, recipe.data.max_sample_tokens, self.names, pairs=True)
        self.objective.reference = self._reference(encode)
        held_out = [key for key in self.objective.reference if not keep(key)]
        self.learned = len(self.objective.reference) - len(held_out)
        if not held_out or not self.learned:
            raise ValueError(
                f"{len(held_out)} of {len(self.objective.reference)} pairs are held out, {self.learned} are learned "
                "from; both must be above 0: give more pairs or another preference.held_out"
            )
        held_out = set(held_out)
        self._held_out = list(self._batches_of(e for e in self._examples(encode) if e.key in held_out))
        self.history = self._read_history()
        return loader

    def units(self, batch: Batch) -> int:
        """The loss is a mean over pairs."""
        return len(batch.keys) if counts(batch) else 0

    def after_step(self) -> str | None:
        if self.step % self.recipe.preference.check_every_steps == 0:
            self._check()
        return self._ended()

    def _loop(self, stop: list[int], batches: Iterator[Batch]) -> None:
        if not self.history:
            self._check()  # before the first step: what the others are measured against
        if reason := self._ended():  # the stage had come to its end before this process began
            self.console.print(f"{self.recipe.name} has ended: {reason}", highlight=False, soft_wrap=True)
            return
        super()._loop(stop, batches)

    def _ended(self) -> str | None:
        spec = self.recipe.preference
        epochs = sum(self.ledger.samples) / self.learned
        if epochs >= spec.max_epochs:
            return f"{epochs:.2f} epochs of {self.learned} pairs"
        losses = [check["loss"] for check in self.history]
        since = len(losses) - 1 - losses.index(min(losses)) if losses else 0
        if since >= spec.patience:
            return f"the loss on held-out pairs has not fallen below {min(losses):.4f} for {since} checks"
        return None

    def _check(self) -> None:
        """Measure the held-out pairs; every rank takes its part of them."""
        with torch.no_grad():
            sums = torch.zeros(3, len(self.names), device=self.device)
            for batch, real in self._mine(self._held_out):
                _, figures = self.engine.module(batch.to(self.device))
                sums += figures["by_source"] * real
        loss, preferred, pairs = self.ranks.sum(sums.sum(1).tolist())
        check = {"step": self.step, "loss": loss / pairs, "accuracy": preferred / pairs, "pairs": int(pairs)}
        self.history.append(check)
        if self.ranks.first:
            with (self.out / HELD_OUT).open("a", encoding="utf-8") as f:
                f.write(json.dumps(check) + "\n")
        words = f"loss {check['loss']:.4f}, {check['accuracy']:.1%} of {int(pairs)} pairs preferred"
        self.console.print(f"held out at step {self.step}: {words}", highlight=False)

    def _read_history(self) -> list[dict]:
        """The checks up to this step; later ones belong to a run that died."""
        path, history = self.out / HELD_OUT, []
        if path.is_file():
            history = [check for check in read_metrics(path) if self.step and check["step"] <= self.step]
        self.ranks.wait()
        if self.ranks.first:
            _write(path, "".join(json.dumps(check) + "\n" for check in history))
        return history

    def _reference(self, encode: Encode) -> dict[str, tuple[float, float]]:
        """Log-probabilities of both answers of every pair under the model that the stage starts from, by key.

        Raises:
            ValueError: the stage is under way and the file is gone, or it was made for other pairs or another model.
        """
        path, recipe = self.out / REFERENCE, self.recipe
        made_for = {
            "init_from": str(recipe.init_from),
            "sources": {s.path.name: len(ShardSource.from_dir(s.path)) for s in recipe.data.sources},
            "max_sample_tokens": recipe.data.max_sample_tokens,
        }
        there = path.is_file()
        self.ranks.wait()
        if there:
            cached = read_json(path)
            if cached["made_for"] != made_for:
                raise ValueError(
                    f"{path} was made for {cached['made_for']}, the recipe says {made_for}; remove {self.out}"
                )
            return {key: tuple(pair) for key, pair in cached["log_probabilities"].items()}
        if self.step:
            raise ValueError(f"{path} is gone, and the model has moved on from it; remove {self.out} and start again")
        self.console.print(f"{recipe.name}: log-probabilities of the reference", highlight=False)
        found: dict[str, tuple[float, float]] = {}
        with torch.no_grad():
            for batch, real in self._mine(list(self._batches_of(self._examples(encode)))):
                log_p_S = self.objective.answers(batch.to(self.device)).log_p_S
                if real and counts(batch):
                    found |= dict(zip(batch.keys, log_p_S.view(-1, 2).tolist(), strict=True))
        reference = {key: tuple(pair) for part in self.ranks.gather(found) for key, pair in part.items()}
        if wrong := [key for key, pair in reference.items() if not all(map(math.isfinite, pair))]:
            raise ValueError(f"the reference gives {len(wrong)} pairs no finite probability, the first is {wrong[0]}")
        if self.ranks.first:
            _write(path, json.dumps({"made_for": made_for, "log_probabilities": reference}))
        self.ranks.wait()
        return reference

    def _examples(self, encode: Encode) -> Iterator[Example]:
        """Every pair that can be used, once, in the shards' order; what cannot be used the loader counts."""
        for number, spec in enumerate(self.recipe.data.sources):
            shards = ShardSource.from_dir(spec.path)
            for i in range(len(shards)):
                try:
                    yield encode((number, shards[i]))
                except ValueError:
                    continue

    def _batches_of(self, examples: Iterable[Example]) -> Iterator[Batch]:
        """Pairs in batches within the recipe's budget of tokens and tiles."""
        data, held, tokens, tiles = self.recipe.data, [], 0, 0

        def pack():
            return Batch.collate(held, len(self.names), self.processor.image_id)

        for example in examples:
            tokens, tiles = tokens + example.num_tokens, tiles + example.num_tiles
            if held and (tokens > data.batch_tokens or data.batch_tiles and tiles > data.batch_tiles):
                yield pack()
                held, tokens, tiles = [], example.num_tokens, example.num_tiles
            held.append(example)
        if held:
            yield pack()

    def _mine(self, batches: list[Batch]) -> Iterator[tuple[Batch, bool]]:
        """This rank's batches or parts of them, with True; then others that count for nothing, so that all ranks run
        equally many: ranks that share experts meet in every forward pass.
        """
        rank, world = self.parallel.data_rank, self.parallel.data_world
        for start in range(0, len(batches), world):
            number = start + rank
            real = number < len(batches)
            yield self.parallel.part(batches[number if real else start], self.model.tiling), real


def _write(path: Path, text: str) -> None:
    """All of the file, or as it was."""
    beside = path.with_name(path.name + ".part")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)
