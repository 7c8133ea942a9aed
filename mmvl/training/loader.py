"""Shards -> samples -> mixture by token deficit -> packed batches, in worker processes ahead of the device.

The stream of batches is a pure function of the recipe: it is made of a fixed number of virtual workers, each with its
own part of every source, its own mixture and its own packer, and takes one batch from each in turn. Ranks take the
turns in turn, a rank's worker processes likewise, so that the numbers of both change nothing about the order; and the
state of a virtual worker is a few counters.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import dataclass

from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from mmvl.data.mixture import Mixture
from mmvl.data.packing import Packer
from mmvl.data.shards import Sample, ShardSource
from mmvl.processor import Processor, Prompt
from mmvl.training.batch import Batch, Example
from mmvl.training.recipe import DataSpec


def encode_sample(sample: Sample, processor: Processor) -> Prompt:
    """A sample of the shards -> token ids, tiled images and the mask of what is learned.

    Text is learned whole and ends in `<end_of_document>`; of a conversation, what the assistant says.
    """
    if sample.json["kind"] == "text":
        if processor.end_of_document_id is None:
            raise ValueError("learning from plain text needs a tokenizer with <end_of_document>")
        ids = processor.encode_text(sample.json["text"]) + [processor.end_of_document_id]
        return Prompt(token_ids=ids, images=[], loss_mask=[True] * len(ids))
    messages = [
        {
            "role": message["role"],
            "content": [
                {"type": "image", "image": sample.members[part["file"]]} if part["type"] == "image" else part
                for part in message["content"]
            ],
        }
        for message in sample.json["messages"]
    ]
    return processor.encode(messages, add_generation_prompt=False)


@dataclass(frozen=True)
class Encode:
    """Sample -> Example; refuses what is longer than the recipe allows (the mixture counts it as skipped)."""

    processor: Processor
    max_tokens: int

    def __call__(self, sourced: tuple[int, Sample]) -> Example:
        source, sample = sourced
        prompt = encode_sample(sample, self.processor)
        if len(prompt.token_ids) > self.max_tokens:
            raise ValueError(
                f"sample {sample.key} has {len(prompt.token_ids)} tokens, max_sample_tokens is {self.max_tokens}"
            )
        return Example(prompt, source)


class _Numbered:
    """A source whose samples carry the source's index in the recipe."""

    def __init__(self, number: int, shards: ShardSource):
        self.number, self.shards = number, shards

    def __len__(self) -> int:
        return len(self.shards)

    def __getitem__(self, i: int) -> tuple[int, Sample]:
        return self.number, self.shards[i]


def source_names(data: DataSpec) -> list[str]:
    """The name of each source of a recipe: the last part of its path.

    Raises:
        ValueError: two sources share a name.
    """
    names = [s.path.name for s in data.sources]
    if len(set(names)) != len(names):
        raise ValueError(f"data.sources: two sources are called alike ({', '.join(sorted(names))}); rename a directory")
    return names


def _leave_signals_to_the_trainer(worker: int) -> None:
    """Ctrl-C and most job schedulers signal every process; the trainer saves first, and its workers end with it."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


class PackedBatches(IterableDataset):
    """Endless ((batch, state of its virtual worker after it, samples skipped so far by source), virtual worker).

    `turns` are the virtual workers of this rank, in order. A loader takes from its worker processes in turn, so with
    process w of n owning every n-th of them the batches come in that order, however many processes there are.
    """

    def __init__(self, data: DataSpec, processor: Processor, seed: int, states: list[dict | None], turns: list[int]):
        self.data, self.processor, self.seed, self.states, self.turns = data, processor, seed, states, turns
        names = source_names(data)
        self.sources = {
            name: _Numbered(i, ShardSource.from_dir(spec.path))
            for i, (name, spec) in enumerate(zip(names, data.sources, strict=True))
        }
        self.problems = [p for s in self.sources.values() for p in s.shards.problems]
        self.weights = {name: spec.weight for name, spec in zip(names, data.sources, strict=True)}

    def _stream(self, virtual: int) -> Iterator[tuple[Batch, dict, dict]]:
        mixture = Mixture(
            self.sources,
            self.weights,
            self.seed,
            encode=Encode(self.processor, self.data.max_sample_tokens),
            part=(virtual, self.data.virtual_workers),
        )
        packer = Packer(self.data.batch_tokens, self.data.batch_tiles or None, open_rows=2)
        if state := self.states[virtual]:
            mixture.load_state_dict(state["mixture"])
            packer.load_state_dict(state["packer"], mixture.fetch)
        for draw in mixture:
            if (row := packer.add(draw)) is not None:
                batch = Batch.collate([d.item for d in row], len(self.sources), self.processor.image_id)
                skipped = mixture.skipped + packer.too_long
                yield batch, {"mixture": mixture.state_dict(), "packer": packer.state_dict()}, dict(skipped)

    def __iter__(self):
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        streams = [(self._stream(v), v) for v in self.turns[worker::workers]]
        while True:
            for stream, v in streams:
                yield next(stream), v


class Loader:
    """Batches with the state that resumes after each: `for batch in loader`, then `loader.state`.

    `skipped` counts samples that could not be used, by source; `problems` lists damage found when opening shards.
    """

    def __init__(
        self,
        data: DataSpec,
        processor: Processor,
        seed: int,
        state: dict | None = None,
        *,
        rank: int = 0,
        world: int = 1,
        pin: bool = False,
    ):
        """`state` is what `joined` made of the ranks' states, of as many ranks as there were; None to begin.

        Raises:
            ValueError, FileNotFoundError: shards missing or unreadable, a state of other data, or virtual workers that
                do not divide among ranks and their processes.
        """
        count = data.virtual_workers
        if count % (world * max(1, data.workers)):
            raise ValueError(
                f"data.virtual_workers ({count}) must be a multiple of {world} ranks times {data.workers} workers"
            )
        self._states: list[dict | None] = list(state["virtual_workers"]) if state else [None] * count
        self._next, self._world = state["next"] if state else 0, world
        if len(self._states) != count:
            raise ValueError(
                f"the checkpoint was made with {len(self._states)} virtual workers, the recipe says {count}; keep it"
            )
        turns = [(self._next + i) % count for i in range(count)][rank::world]
        self._mine = set(turns)
        self._dataset = PackedBatches(data, processor, seed, self._states, turns)
        self.problems = self._dataset.problems
        self._skipped: dict[int, dict[str, int]] = {}
        self._data = data
        self._loader = DataLoader(
            self._dataset,
            batch_size=None,
            num_workers=data.workers,
            prefetch_factor=2 if data.workers else None,
            pin_memory=pin,
            worker_init_fn=_leave_signals_to_the_trainer,
            multiprocessing_context="fork" if data.workers else None,
        )

    def __iter__(self) -> Iterator[Batch]:
        for (batch, state, skipped), virtual in self._loader:
            self._states[virtual] = state
            self._skipped[virtual] = skipped
            self._next = (self._next + self._world) % self._data.virtual_workers
            yield batch

    @property
    def state(self) -> dict:
        """JSON-able; taken after a batch, it resumes with the next one. It knows this rank's virtual workers only."""
        mine = [state if v in self._mine else None for v, state in enumerate(self._states)]
        return {"virtual_workers": mine, "next": self._next}

    @staticmethod
    def joined(states: list[dict]) -> dict:
        """One state of the states of all ranks, taken after the same step."""
        assert len({s["next"] for s in states}) == 1, "states of different steps"
        columns = zip(*(s["virtual_workers"] for s in states), strict=True)
        known = [next((state for state in column if state), None) for column in columns]
        return {"virtual_workers": known, "next": states[0]["next"]}

    @property
    def skipped(self) -> dict[str, int]:
        total: dict[str, int] = {}
        for by_source in self._skipped.values():
            for source, n in by_source.items():
                total[source] = total.get(source, 0) + n
        return total
