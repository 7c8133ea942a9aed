"""Pictures with their captions for the contrastive stage: which pair is number g, and batches of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from mmvl.data.order import Permutation, derive
from mmvl.data.remote import fetch_shards
from mmvl.data.shards import Sample, ShardSource
from mmvl.processor import Processor
from mmvl.training.recipe import ContrastiveRecipe
from mmvl.vision.contrastive import CoCa
from mmvl.vision.images import open_image

BLOCK = 1000  # pairs after which the sources' shares are met exactly
BAD_IN_ROW = 20
PAIRS = "pairs"


@dataclass(frozen=True)
class Pair:
    """A picture (3, T, T) uint8, its caption (L,) int64, index of the source, why samples were skipped on the way."""

    tile_3TT: Tensor
    caption_L: Tensor
    source: int
    skipped: tuple[str, ...]


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
    new random order each time round. A sample that cannot be used gives way to another one, is counted and named.
    `problems` lists damage found when opening shards.
    """

    def __init__(self, recipe: ContrastiveRecipe, processor: Processor, model: CoCa):
        for spec in recipe.data.sources:
            if spec.url:
                fetch_shards(spec.url, spec.path)
        self.sources = [ShardSource.from_dir(s.path) for s in recipe.data.sources]
        self.problems = [problem for source in self.sources for problem in source.problems]
        self.names = [s.path.name for s in recipe.data.sources]
        self.seed, self.edge, self.processor = recipe.seed, recipe.image_size, processor
        self.ids, self.context, self.caption_ids = model.ids, model.context, model.caption_ids
        weights = [s.weight for s in recipe.data.sources]
        self.table = _block([w / sum(weights) for w in weights])
        self.counts = Counter(source for source, _ in self.table)

    def __len__(self) -> int:
        return 2**62

    def __getitems__(self, numbers: list[int]) -> list[Pair] | ValueError:
        """The pairs of a batch, or why there are none: torch would wrap an error of a worker in its traceback."""
        try:
            return [self[g] for g in numbers]
        except ValueError as error:
            return error

    def __getitem__(self, g: int) -> Pair:
        block, place = divmod(g, BLOCK)
        source, number = self.table[place]
        shards, name = self.sources[source], self.names[source]
        epoch, position = divmod(block * self.counts[source] + number, len(shards))
        order, reasons = Permutation(len(shards), self.seed, name, epoch), []
        for attempt in range(BAD_IN_ROW):
            # A replacement is drawn from the whole source, so that the neighbours of bad samples are not seen twice.
            at = position if not attempt else derive("instead", self.seed, name, g, attempt) % len(shards)
            try:
                sample = shards[order[at]]
                picture, caption = picture_and_caption(sample)
                tile_3TT = self._tile(picture, sample.key)
                return Pair(tile_3TT, self.caption_ids(self.processor.encode_text(caption)), source, tuple(reasons))
            except (ValueError, OSError) as error:
                reasons.append(str(error))
        raise ValueError(f"source '{name}': {BAD_IN_ROW} unusable samples in a row, the last: {reasons[-1]}")

    def _tile(self, picture: bytes, key: str) -> Tensor:
        try:
            image = open_image(picture).resize((self.edge, self.edge), 3)  # squashed, bicubic: as thumbnails are
        except (ValueError, OSError) as error:
            raise ValueError(f"sample {key}: {error}") from error
        tile = torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8)
        return tile.view(self.edge, self.edge, 3).permute(2, 0, 1).contiguous()


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
    skipped: list[tuple[str, ...]]

    @classmethod
    def collate(cls, pairs: list[Pair] | ValueError) -> PairBatch | ValueError:
        """The batch of these pairs; an error passes through."""
        if isinstance(pairs, ValueError):
            return pairs
        return cls(
            torch.stack([p.tile_3TT for p in pairs]),
            torch.stack([p.caption_L for p in pairs]),
            [p.source for p in pairs],
            [p.skipped for p in pairs],
        )

    def save(self, directory: Path, rank: int, step: int, problem: str) -> None:
        """Keep a rank's pairs of a step that stopped the run, for `replay`."""
        directory.mkdir(parents=True, exist_ok=True)
        kept = {"step": step, "problem": problem, "tiles": self.tiles_N3TT.cpu(), "captions": self.captions_NL.cpu()}
        torch.save(kept | {"sources": self.sources}, directory / f"{PAIRS}-{rank:05d}.pt")


def load_pairs(directory: Path) -> tuple[int, str, list[PairBatch]]:
    """Step, problem and the batches of all ranks that `PairBatch.save` left.

    Raises:
        FileNotFoundError, ValueError: nothing was saved there, or it is damaged.
    """
    files = sorted(directory.glob(f"{PAIRS}-*.pt"))
    if not files:
        raise FileNotFoundError(f"no saved batches in {directory}; give the bad-step-... directory of a stopped run")
    batches = []
    for file in files:
        try:
            kept = torch.load(file, weights_only=True)
            step, problem, sources = kept["step"], kept["problem"], kept["sources"]
            batches.append(PairBatch(kept["tiles"], kept["captions"], sources, [()] * len(sources)))
        except Exception as e:  # torch.load raises whatever the damage leads to
            raise ValueError(f"{file} is no saved batch ({e})") from e
    return step, problem, batches


class Numbers:
    """Batches of pair numbers for one rank, from a step on."""

    def __init__(self, first_step: int, pairs_a_step: int, rank: int, world: int):
        self.first, self.pairs, self.rank, self.world = first_step, pairs_a_step, rank, world

    def __iter__(self) -> Iterator[list[int]]:
        share, step = self.pairs // self.world, self.first
        while True:
            start = step * self.pairs + self.rank * share
            yield list(range(start, start + share))
            step += 1
