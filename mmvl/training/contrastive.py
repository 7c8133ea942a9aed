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
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset

from mmvl.checkpoint import WEIGHTS, write_json
from mmvl.config import VLConfig
from mmvl.data.order import Permutation, derive
from mmvl.data.shards import Sample, ShardSource
from mmvl.processor import Processor
from mmvl.training.build import VISION, load_tokenizer, read_model_config, vision_state
from mmvl.training.flops import vision_flops
from mmvl.training.ranks import Ranks
from mmvl.training.recipe import ContrastiveRecipe
from mmvl.training.report import METRICS, Metrics, draw_loss, progress_line
from mmvl.training.schedule import lr_factor
from mmvl.vision import names as vision_names
from mmvl.vision.config import VisionConfig
from mmvl.vision.contrastive import CaptionIds, CoCa
from mmvl.vision.images import open_image

CHECKPOINT = "checkpoint.pt"
BLOCK = 1000  # pairs after which the sources' shares are met exactly
BAD_IN_ROW = 20


def vision_config(recipe: ContrastiveRecipe) -> VisionConfig:
    """The tower of the recipe's model, for pictures of the recipe's size."""
    config = VLConfig.from_dict(read_model_config(recipe.model_config_file))
    return replace(config.vision, image_size=recipe.image_size)


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


@dataclass(frozen=True)
class Pair:
    """A picture (3, T, T) uint8 and its caption (L,) int64, index of the source, samples skipped on the way."""

    tile_3TT: Tensor
    caption_L: Tensor
    source: int
    skipped: int


def picture_and_caption(sample: Sample) -> tuple[bytes, str]:
    """The first picture of a sample and what the assistant first says about it.

    Raises:
        ValueError: the sample has no picture, or no assistant speaks.
    """
    messages = sample.json.get("messages", ())
    files = [p["file"] for m in messages for p in m["content"] if p["type"] == "image"]
    texts = [
        " ".join(p["text"] for p in m["content"] if p["type"] == "text") for m in messages if m["role"] == "assistant"
    ]
    if not files or not texts or not texts[0].strip():
        raise ValueError(f"sample {sample.key} is no pair of a picture and a caption")
    return sample.members[files[0]], texts[0]


class Pairs(Dataset):
    """`pairs[g]` is pair number g of the stage: a pure function of shards, weights and seed.

    Within each block of 1,000 pairs every source has its share to the pair, evenly spread; a source is visited in a
    new random order each time round. A sample that cannot be used gives way to another one, and is counted.
    """

    def __init__(self, recipe: ContrastiveRecipe, processor: Processor, model: CoCa):
        self.sources = [ShardSource.from_dir(s.path) for s in recipe.data.sources]
        self.names = [s.path.name for s in recipe.data.sources]
        self.seed, self.edge, self.processor = recipe.seed, recipe.image_size, processor
        self.ids, self.context, self.caption_ids = model.ids, model.context, model.caption_ids
        weights = [s.weight for s in recipe.data.sources]
        self.table = _block([w / sum(weights) for w in weights])
        self.counts = Counter(source for source, _ in self.table)

    def __len__(self) -> int:
        return 2**62

    def __getitem__(self, g: int) -> Pair:
        block, place = divmod(g, BLOCK)
        source, number = self.table[place]
        shards, name = self.sources[source], self.names[source]
        epoch, position = divmod(block * self.counts[source] + number, len(shards))
        order, reason = Permutation(len(shards), self.seed, name, epoch), ""
        for attempt in range(BAD_IN_ROW):
            # A replacement is drawn from the whole source, so that the neighbours of bad samples are not seen twice.
            at = position if not attempt else derive("instead", self.seed, name, g, attempt) % len(shards)
            try:
                picture, caption = picture_and_caption(shards[order[at]])
                image = open_image(picture).resize((self.edge, self.edge), 3)  # squashed, bicubic: as thumbnails are
                tile = torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8)
                tile_3TT = tile.view(self.edge, self.edge, 3).permute(2, 0, 1).contiguous()
                return Pair(tile_3TT, self.caption_ids(self.processor.encode_text(caption)), source, attempt)
            except (ValueError, OSError) as error:
                reason = str(error)
        raise ValueError(f"source '{name}': {BAD_IN_ROW} unusable samples in a row, the last: {reason}")


def _block(shares: list[float]) -> list[tuple[int, int]]:
    """(source, number within the source) for each place of a block: the source furthest behind its share is next."""
    counts, table = [0] * len(shares), []
    for place in range(1, BLOCK + 1):
        source = max(range(len(shares)), key=lambda s: shares[s] * place - counts[s])
        table.append((source, counts[source]))
        counts[source] += 1
    return table


@dataclass
class PairBatch:
    """Pairs of one rank for one step."""

    tiles_N3TT: Tensor
    captions_NL: Tensor
    sources: list[int]
    skipped: list[int]

    @classmethod
    def collate(cls, pairs: list[Pair]) -> PairBatch:
        return cls(
            torch.stack([p.tile_3TT for p in pairs]),
            torch.stack([p.caption_L for p in pairs]),
            [p.source for p in pairs],
            [p.skipped for p in pairs],
        )


class _Numbers:
    """Batches of pair numbers for one rank, from a step on."""

    def __init__(self, first_step: int, pairs_a_step: int, rank: int, world: int):
        self.first, self.pairs, self.rank, self.world = first_step, pairs_a_step, rank, world

    def __iter__(self) -> Iterator[list[int]]:
        share, step = self.pairs // self.world, self.first
        while True:
            start = step * self.pairs + self.rank * share
            yield list(range(start, start + share))
            step += 1


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
        config = VLConfig.from_dict(read_model_config(recipe.model_config_file))
        self.config = replace(config, vision=vision_config(recipe))
        tokenizer = load_tokenizer(recipe.tokenizer)
        processor = Processor(tokenizer, _tiling(config))
        pad = processor.end_of_document_id
        if pad is None:
            raise ValueError("captions are padded with <end_of_document>, which the tokenizer lacks")
        ids = CaptionIds(processor.valid_vocab_size, pad, processor.bos_id, processor.eos_id)
        torch.manual_seed(recipe.seed)
        self.model = build_coca(recipe, self.config.vision, ids)
        self.model.vision_tower.vit.init_weights()
        if recipe.vision_from is not None:
            self.model.vision_tower.load_state_dict(vision_state(recipe.vision_from, self.config.vision))
        self.model.to(ranks.device).train()
        self.losses = _Losses(self.model, recipe, ranks)
        self.parallel = DistributedDataParallel(self.losses) if ranks.world > 1 else self.losses
        o = recipe.optimizer
        matrices = [p for p in self.model.parameters() if p.ndim >= 2]
        others = [p for p in self.model.parameters() if p.ndim < 2]
        groups = [{"params": matrices, "weight_decay": o.weight_decay}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=o.lr, betas=o.betas, eps=1e-6, fused=True)
        self.step, self.seconds, self.tokens, self.skipped = 0, 0.0, 0, Counter()
        self.metrics = Metrics(self.out)
        if (self.out / CHECKPOINT).is_file():
            self._resume()
        elif ranks.first:
            (self.out / METRICS).unlink(missing_ok=True)
        self.pairs = Pairs(recipe, processor, self.model)
        if ranks.first:
            write_json(self.out / "recipe.json", recipe.model_dump(mode="json"))

    def _resume(self) -> None:
        state = torch.load(self.out / CHECKPOINT, map_location=self.ranks.device, weights_only=True)
        if state["batch_pairs"] != self.recipe.data.batch_pairs:
            raise ValueError(f"the checkpoint was made with data.batch_pairs {state['batch_pairs']}; keep it")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds, self.tokens = state["step"], state["seconds"], state["tokens"]
        self.skipped = Counter(state["skipped"])
        if self.ranks.first:
            self.metrics.truncate(self.step)
        self.console.print(f"resumed {self.recipe.name} at step {self.step}")

    def save(self) -> None:
        """A checkpoint that resumes exactly; a kill meanwhile leaves the one before."""
        if self.ranks.first:
            state = {
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "step": self.step,
                "seconds": self.seconds,
                "tokens": self.tokens,
                "skipped": dict(self.skipped),
                "batch_pairs": self.recipe.data.batch_pairs,
            }
            beside = self.out / f"{CHECKPOINT}.part"
            torch.save(state, beside)
            beside.replace(self.out / CHECKPOINT)
        self.ranks.wait()

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
        directory.mkdir(parents=True, exist_ok=True)
        released = {n: t.contiguous() for n, t in vision_names.to_released(state).items()}
        save_file(released, directory / f"{WEIGHTS}.part", metadata={"format": "pt"})
        (directory / f"{WEIGHTS}.part").replace(directory / WEIGHTS)
        write_json(directory / "config.json", {"vision_config": self.config.vision.to_dict()})
        counts = {"pairs": self.step * self.recipe.data.batch_pairs, "skipped": dict(self.skipped)}
        write_json(self.out / "ledger.json", counts | {"tokens": self.tokens})
        if (self.out / METRICS).exists():
            draw_loss({self.recipe.name: self.out / METRICS}, self.out / "loss.png")

    def _batches(self) -> Iterator[PairBatch]:
        def leave_signals(_):
            for s in (signal.SIGTERM, signal.SIGINT):
                signal.signal(s, signal.SIG_IGN)

        data = self.recipe.data
        return iter(
            DataLoader(
                self.pairs,
                batch_sampler=_Numbers(self.step, data.batch_pairs, self.ranks.rank, self.ranks.world),
                collate_fn=PairBatch.collate,
                num_workers=data.workers,
                worker_init_fn=leave_signals,
                multiprocessing_context="fork" if data.workers else None,
            )
        )

    def _loop(self, stop: list[int]) -> None:
        recipe, ranks = self.recipe, self.ranks
        size, pad, patches = recipe.data.batch_pairs, self.model.ids.pad, self.config.vision.patches
        steps = -(-recipe.budget.pairs // size)
        start, saved, window, began = time.monotonic() - self.seconds, time.monotonic(), [], time.monotonic()
        batches = self._batches()
        while self.step < steps:
            batch = next(batches)
            targets = int((batch.captions_NL[:, 1:] != pad).sum())
            words = [time.monotonic() - start, time.monotonic() - saved > 60 * recipe.save_every_minutes]
            skipped = [0] * len(recipe.data.sources)
            for source, n in zip(batch.sources, batch.skipped, strict=True):
                skipped[source] += n
            mine = words if ranks.first else [0, 0]
            self.seconds, save, stopping, all_targets, *skips = ranks.sum([*mine, len(stop), targets, *skipped])
            self.skipped.update({n: int(k) for n, k in zip(self.pairs.names, skips, strict=True) if k})
            factor = lr_factor(self.step, self.step / steps, recipe.optimizer)
            for group in self.optimizer.param_groups:
                group["lr"] = recipe.optimizer.lr * factor
            window.append(self._update(batch, targets * ranks.world / all_targets))
            self.step += 1
            self.tokens += size * patches + int(all_targets)
            if self.step % recipe.log_every_steps == 0:
                pairs_per_second = len(window) * size / (time.monotonic() - began)
                self._log(window, factor * recipe.optimizer.lr, self.step / steps, pairs_per_second)
                window, began = [], time.monotonic()
            if stopping:
                stop.append(signal.SIGTERM)
                return
            if save:
                self.save()
                saved = time.monotonic()

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

    def _log(self, window: list[Tensor], lr: float, spent: float, pairs_per_second: float) -> None:
        means = self.ranks.sum(torch.stack(window).mean(0).tolist())
        loss, contrastive, caption, accuracy, norm = (m / self.ranks.world for m in means)
        if not loss < float("inf"):
            raise ValueError(f"the loss is {loss} at step {self.step}; lower optimizer.lr and start again")
        record = {
            "step": self.step,
            "pairs": self.step * self.recipe.data.batch_pairs,
            "tokens": self.tokens,
            "seconds": round(self.seconds, 2),
            "lr": lr,
            "grad_norm": norm,
            "loss": loss,
            "by_source": {"contrastive": {"loss": contrastive, "accuracy": accuracy}, "caption": {"loss": caption}},
            "pairs_per_second": pairs_per_second,
            "logit_scale": self.model.logit_scale.exp().item(),
            "eta_seconds": self.seconds * (1 - spent) / spent,
        }
        if self.ranks.first:
            self.metrics.write(record)
            self.console.print(progress_line(record, spent), highlight=False, soft_wrap=True)


def _tiling(config: VLConfig):
    from mmvl.vision.config import TilingConfig

    return TilingConfig(config.vision.image_size, config.vision.patch_size, config.image_grid_pinpoints)


def plan_lines(recipe: ContrastiveRecipe) -> list[str]:
    """What `--dry-run` says of a contrastive stage; see plan.py."""
    from mmvl.training.plan import GIB, RUNTIME, _billions, _duration, _size

    vision = vision_config(recipe)
    text = VLConfig.from_dict(read_model_config(recipe.model_config_file)).text
    with torch.device("meta"):
        model = build_coca(recipe, vision, CaptionIds(text.vocab_size, 0, 1, 2))
    count = sum(p.numel() for p in model.parameters())
    tower = sum(p.numel() for p in model.vision_tower.parameters())
    spec, gpus = recipe.contrastive, recipe.hardware.gpus if recipe.hardware else 1
    if recipe.data.batch_pairs % gpus:
        raise ValueError(f"data.batch_pairs ({recipe.data.batch_pairs}) must be a multiple of the {gpus} GPUs")
    pairs, steps = recipe.data.batch_pairs // gpus, -(-recipe.budget.pairs // recipe.data.batch_pairs)
    blocks = 12 * spec.text.width**2 * (spec.text.layers + 2 * spec.text.decoder_layers)
    captions = 2.0 * spec.text.context * (blocks + spec.text.width * text.vocab_size)
    pooled = 2.0 * 2 * (vision.patches + spec.pooler_queries) * spec.text.width * vision.hidden_size
    flops = 3 * recipe.data.batch_pairs * (vision_flops(vision, 1) + captions + pooled)
    width = 2 if recipe.precision == "bf16" else 4
    rows = vision.num_hidden_layers * (vision.patches + 1) * (9 * vision.hidden_size + 2 * vision.intermediate_size)
    rows += 17 * spec.text.width * spec.text.context * (spec.text.layers + 2 * spec.text.decoder_layers)
    memory = {
        "weights": 4 * count,
        "gradients": 4 * count,
        "optimizer": 8 * count,
        "activations": pairs * rows * width,
        "logits": 3 * pairs * spec.text.context * text.vocab_size * 4,
        "buffers": 4 * count + RUNTIME,  # the ranks' gradient buckets
    }
    lines = [
        f"{recipe.name}: {gpus:,} GPU{'s' * (gpus > 1)}, {pairs:,} pairs each",
        f"parameters    {_billions(count)} trained, {_billions(tower)} of them in the vision tower that is kept",
        f"pairs         {recipe.budget.pairs:,} in {steps:,} steps of {recipe.data.batch_pairs:,}",
        f"operations    {flops:.3g} FLOPs a step, {flops * steps:.3g} in all",
    ]
    if recipe.hardware:
        rate = gpus * recipe.hardware.peak_tflops * 1e12 * recipe.hardware.utilisation
        days = _duration(flops * steps / rate / 86400)
        lines.append(f"time          {days} at {recipe.hardware.utilisation:.0%} of the GPUs' peak")
    total = sum(memory.values())
    lines.append(f"memory a GPU  {_size(total)} ({', '.join(f'{part} {_size(n)}' for part, n in memory.items())})")
    if recipe.hardware:
        left = recipe.hardware.memory_gib * GIB - total
        lines.append(f"              {_size(abs(left))} {'to spare' if left >= 0 else 'TOO MUCH'}")
    return lines
