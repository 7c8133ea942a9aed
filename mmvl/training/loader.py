"""Shards -> samples -> mixture by token deficit -> packed batches, in worker processes ahead of the device.

The stream of batches is a pure function of the recipe: it is made of a fixed number of virtual workers, each with its
own part of every source, its own mixture and its own packer, and takes one batch from each in turn. Ranks take the
turns in turn, a rank's worker processes likewise, so that the numbers of both change nothing about the order; and the
state of a virtual worker is a few counters.
"""

from __future__ import annotations

import itertools
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NoReturn

from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from mmvl.data.mixture import LeftOut, Mixture
from mmvl.data.packing import Packer
from mmvl.data.remote import fetch_shards
from mmvl.data.shards import Sample, ShardSource, parts_of
from mmvl.processor import Processor, Prompt
from mmvl.training.batch import Batch, Example
from mmvl.training.recipe import DataSpec


def encode_sample(sample: Sample, processor: Processor) -> Prompt:
    """A sample of the shards -> token ids, tiled images and the mask of what is learned.

    Text and interleaved documents are learned whole, image tokens excepted, and end in `<end_of_document>`; of a
    conversation (captions and questions are ones), what the assistant says.

    Raises:
        ValueError: a preference pair (`encode_pair` takes these), an image that cannot be read, a tokenizer without
            `<end_of_document>`.
    """
    record = sample.json
    if record["kind"] == "preference":
        raise ValueError(f"sample {sample.key} is a preference pair, which only a preference stage learns from")
    if record["kind"] in ("text", "interleaved"):
        return _document(sample, processor)
    messages = [{"role": m["role"], "content": _opened(m["content"], sample, processor)} for m in record["messages"]]
    return processor.encode(messages, add_generation_prompt=False)


def encode_pair(sample: Sample, processor: Processor) -> tuple[Prompt, Prompt]:
    """A preference sample -> the prompt with the chosen answer, and with the rejected one.

    Learned is the last answer alone, its end included. Images of the prompt are tiled once.

    Raises:
        ValueError: a sample of another kind, an image that cannot be read.
    """
    record = sample.json
    if record["kind"] != "preference":
        raise ValueError(f"sample {sample.key} is of kind {record['kind']}; a preference stage learns from pairs")
    shared = [{"role": m["role"], "content": _opened(m["content"], sample, processor)} for m in record["messages"]]
    pair = []
    for name in ("chosen", "rejected"):
        answer = {"role": "assistant", "content": _opened(record[name], sample, processor)}
        prompt = processor.encode([*shared, answer], add_generation_prompt=False)
        turn = len(prompt.token_ids) - prompt.token_ids[::-1].index(processor.bos_id)  # where the last turn begins
        prompt.loss_mask[:turn] = [False] * turn
        pair.append(prompt)
    return pair[0], pair[1]


def _document(sample: Sample, processor: Processor) -> Prompt:
    if processor.end_of_document_id is None:
        raise ValueError("learning from plain text needs a tokenizer with <end_of_document>")
    prompt = Prompt()
    for part in _opened(parts_of(sample.json), sample, processor):
        if part["type"] == "image":
            prompt.images.append(part["image"])
            prompt.append([processor.image_id] * part["image"].num_tokens, False)
        else:
            prompt.append(processor.encode_text(part["text"]), True)
    prompt.append([processor.end_of_document_id], True)
    return prompt


def _opened(parts: list[dict], sample: Sample, processor: Processor) -> list[dict]:
    """The parts, images tiled."""
    return [
        {"type": "image", "image": processor.tile([sample.members[p["file"]]])[0]} if p["type"] == "image" else p
        for p in parts
    ]


@dataclass(frozen=True)
class Encode:
    """Sample -> Example; refuses what is longer than the recipe allows (the mixture counts it as skipped).

    pairs: the samples are preference pairs. keep: of the samples' keys ("source/key"); others are left out.
    """

    processor: Processor
    max_tokens: int
    names: Sequence[str]
    pairs: bool = False
    keep: Callable[[str], bool] | None = None

    def __call__(self, sourced: tuple[int, Sample]) -> Example:
        source, sample = sourced
        key = f"{self.names[source]}/{sample.key}"
        if self.keep is not None and not self.keep(key):
            raise LeftOut(key)
        try:
            if self.pairs:
                example = Example(*self._pair(sample, source), key)
            else:
                example = Example(encode_sample(sample, self.processor), source, None, key)
        except ValueError as error:
            raise ValueError(f"sample {sample.key}: {error}") from error
        if example.num_tokens > self.max_tokens:
            raise ValueError(
                f"sample {sample.key} has {example.num_tokens} tokens, max_sample_tokens is {self.max_tokens}"
            )
        return example

    def _pair(self, sample: Sample, source: int) -> tuple[Prompt, int, Prompt]:
        chosen, rejected = encode_pair(sample, self.processor)
        return chosen, source, rejected


class _Numbered:
    """A source whose samples carry the source's index in the recipe, and which notes where it is being read."""

    def __init__(self, number: int, shards: ShardSource):
        self.number, self.shards = number, shards
        self.at: Callable[[int, int], None] = lambda source, sample: None

    def __len__(self) -> int:
        return len(self.shards)

    def __getitem__(self, i: int) -> tuple[int, Sample]:
        self.at(self.number, i)
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


def with_the_trainer(worker: int) -> None:
    """What a worker process begins with: Ctrl-C and most job schedulers signal every process; the trainer saves first,
    and its workers end with it. Also with one that was killed: torch's own watch waits for ever where that, or another
    worker, died while it held the lock of their queue.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(trainer: int) -> NoReturn:
    while os.getppid() == trainer:
        time.sleep(1)
    os._exit(1)


class PackedBatches(IterableDataset):
    """Endless ((batch, state of its virtual worker after it, samples skipped so far by source, why), virtual worker).

    Data that cannot be used end it: then (the ValueError or OSError, virtual worker) comes last.

    `turns` are the virtual workers of this rank, in order. A loader takes from its worker processes in turn, so with
    process w of n owning every n-th of them the batches come in that order, however many processes there are.
    """

    def __init__(
        self,
        data: DataSpec,
        processor: Processor,
        seed: int,
        states: list[dict | None],
        turns: list[int],
        pairs: bool = False,
        keep: Callable[[str], bool] | None = None,
    ):
        self.data, self.processor, self.seed, self.states, self.turns = data, processor, seed, states, turns
        self.names = source_names(data)
        self.encode = Encode(processor, data.max_sample_tokens, self.names, pairs, keep)
        for spec in data.sources:
            if spec.url:
                fetch_shards(spec.url, spec.path)
        self.sources = {
            name: _Numbered(i, ShardSource.from_dir(spec.path))
            for i, (name, spec) in enumerate(zip(self.names, data.sources, strict=True))
        }
        self.problems = [p for s in self.sources.values() for p in s.shards.problems]
        self.weights = {name: spec.weight for name, spec in zip(self.names, data.sources, strict=True)}
        self.before = {
            name: spec.weight if spec.weight_before is None else spec.weight_before
            for name, spec in zip(self.names, data.sources, strict=True)
        }
        # Source and sample that each process is at, for the report of a stall; shared with the forked workers.
        self.at = multiprocessing.RawArray("q", 2 * max(1, data.workers))

    def _stream(self, virtual: int) -> Iterator[tuple[Batch, dict, dict, list[str]]]:
        mixture = Mixture(
            self.sources,
            self.weights,
            self.seed,
            encode=self.encode,
            part=(virtual, self.data.virtual_workers),
            weights_before=self.before if self.data.transition_tokens else None,
            # Virtual workers give batches in turn, so each sees its share of the stage's tokens.
            transition=self.data.transition_tokens / self.data.virtual_workers,
        )
        packer = Packer(self.data.batch_tokens, self.data.batch_tiles or None, self.data.open_rows)
        if state := self.states[virtual]:
            mixture.load_state_dict(state["mixture"])
            packer.load_state_dict(state["packer"], mixture.fetch)
        for draw in mixture:
            if (row := packer.add(draw)) is not None:
                batch = Batch.collate([d.item for d in row], len(self.sources), self.processor.image_id)
                problems, mixture.problems = mixture.problems, []
                state = {"mixture": mixture.state_dict(), "packer": packer.state_dict()}
                yield batch, state, dict(mixture.skipped + packer.too_long), problems

    def __iter__(self):
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        at = self.at

        def note(source: int, sample: int) -> None:
            at[2 * worker], at[2 * worker + 1] = source, sample

        for source in self.sources.values():
            source.at = note
        streams = [(self._stream(v), v) for v in self.turns[worker::workers]]
        while True:
            for stream, v in streams:
                try:
                    made = next(stream)
                except (ValueError, OSError) as error:  # the data's fault: torch would wrap it in a traceback
                    yield error, v
                    return
                yield made, v


def stop_workers(batches) -> None:
    """End the processes of a DataLoader's iterator now, whoever else still holds it (a traceback does)."""
    if hasattr(batches, "_shutdown_workers"):
        batches._shutdown_workers()


class Loader:
    """Batches with the state that resumes after each: `for batch in loader`, then `loader.state`.

    `skipped` counts samples that could not be used, by source; `problems` lists damage found when opening shards;
    `take_news()` gives what has come up since. `fill` is the share of the batches' token budget that was used.
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
        pairs: bool = False,
        keep: Callable[[str], bool] | None = None,
    ):
        """`state` is what `joined` made of the ranks' states, of as many ranks as there were; None to begin.

        `pairs`: the samples are preference pairs. `keep` says of a key ("source/key of the sample") whether its sample
        is used; others are left out without being counted.

        Raises:
            ValueError, FileNotFoundError: shards missing or unreadable, a state of other data, or virtual workers that
                do not divide among ranks and their processes. ValueError and OSError come while iterating too, of too
                many unusable samples in a row or a disk that fails.
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
        self._dataset = PackedBatches(data, processor, seed, self._states, turns, pairs, keep)
        self.problems = self._dataset.problems
        self._skipped: dict[int, dict[str, int]] = {}
        self._news: list[str] = []
        self._turns = turns
        self._data = data
        self._loader = DataLoader(
            self._dataset,
            batch_size=None,
            num_workers=data.workers,
            prefetch_factor=2 if data.workers else None,
            pin_memory=pin,
            worker_init_fn=with_the_trainer,
            multiprocessing_context="fork" if data.workers else None,
        )

    def __iter__(self) -> Iterator[Batch]:
        """Close it, or the processes stay: they leave signals to the trainer, also those of an ending interpreter."""
        batches = iter(self._loader)
        try:
            yield from self._read(batches)
        finally:
            stop_workers(batches)

    def _read(self, batches) -> Iterator[Batch]:
        for turn in itertools.cycle(range(len(self._turns))):
            watch = threading.Timer(self._data.stall_seconds, self._stalled, (turn, self._data.stall_seconds))
            watch.daemon = True
            watch.start()
            began = time.monotonic()
            try:
                made, virtual = next(batches)
            finally:
                watch.cancel()
            if isinstance(made, Exception):
                raise made
            batch, state, skipped, problems = made
            waited = time.monotonic() - began
            if waited > self._data.stall_seconds:
                self._tell(f"the batch came after {waited:.1f} s")
            self._states[virtual] = state
            self._skipped[virtual] = skipped
            self._news += [f"skipped: {problem}" for problem in problems]
            self._next = (self._next + self._world) % self._data.virtual_workers
            yield batch

    def _stalled(self, turn: int, seconds: float) -> None:
        """Runs beside the waiting, so that a loader that never wakes up is reported too."""
        process = turn % max(1, self._data.workers)
        source, sample = self._dataset.at[2 * process], self._dataset.at[2 * process + 1]
        self._tell(
            f"no batch for {seconds:g} s: process {process} (virtual worker {self._turns[turn]}) is at sample {sample} "
            f"of {self._dataset.names[source]}; more data.workers or faster storage may help"
        )

    def _tell(self, news: str) -> None:
        logging.getLogger(__name__).warning("loader stalls: %s", news)
        self._news.append(f"stall: {news}")

    def take_news(self) -> list[str]:
        """A line for every stall and for the samples skipped (the last ten a batch) since this was last called."""
        news, self._news = self._news, []
        return news

    @property
    def fill(self) -> float:
        """Share of the token budget that this rank's batches have used, 0 to 1 (1 before the first); the rest would
        be padding if batches were filled up to `batch_tokens`, which they are not."""
        packers = [state["packer"] for v, state in enumerate(self._states) if state and v in self._mine]
        rows = sum(p["rows_closed"] for p in packers)
        return sum(p["tokens_packed"] for p in packers) / (rows * self._data.batch_tokens) if rows else 1.0

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
