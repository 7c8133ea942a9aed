"""The loader beside plain webdataset and PIL: samples/s on the same shards, with as many processes.

Contestants take turns, a few rounds each; a round begins when its first batch has come, so that starting processes does
not count. Three of them:
- ours: shuffled random access, mixture, packing, exact state for every batch;
- webdataset + PIL: shards streamed in order, JSON parsed, images opened by Pillow as RGB, then our own tiling and
  tokens, and batches of the same size filled in order;
- webdataset + PIL, decoding only: JSON parsed and images decoded to RGB, nothing made of them: a bound for the above.
"""

import io
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import torch
import webdataset
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset

from mmvl.benchmark.run import provenance
from mmvl.data.shards import Sample, ShardSource
from mmvl.processor import Processor
from mmvl.training.batch import Batch, Example
from mmvl.training.loader import Loader, encode_sample
from mmvl.training.recipe import DataSpec, SourceSpec

OURS, PEER, DECODE = "mmvl loader", "webdataset + PIL", "webdataset + PIL, decoding only"


def run(
    folder: str | Path,
    processor: Processor,
    *,
    workers: int = 2,
    seconds: float = 5.0,
    rounds: int = 3,
    batch_tokens: int = 16384,
    progress: Callable[[str], None] = lambda text: None,
) -> dict:
    """Measure the shards of a folder; {"contestants": [{"name", "samples_per_second", "low", "high"}], ...}.

    `times_as_fast`: our rate over webdataset + PIL's in the same round, the median of the rounds, so that what else the
    machine does meanwhile counts for both.

    workers: processes that read and encode. Raises FileNotFoundError without shards, ValueError where there are fewer
    shards than processes (webdataset shares out whole shards).
    """
    source = ShardSource.from_dir(folder)
    if len(source.shards) < max(1, workers):
        raise ValueError(f"{folder}: {len(source.shards)} shards for {workers} processes; webdataset needs one each")
    data = DataSpec(
        sources=[SourceSpec(path=Path(folder), weight=1.0)],
        batch_tokens=batch_tokens,
        batch_tiles=0,
        max_sample_tokens=batch_tokens,
        workers=workers,
        virtual_workers=max(1, workers),
    )
    contestants = {
        OURS: lambda: (sum(batch.samples) for batch in Loader(data, processor, seed=0)),
        PEER: lambda: _streamed(source.shards, workers, lambda samples: _packed(samples, processor, batch_tokens)),
        DECODE: lambda: _streamed(source.shards, workers, _decoded),
    }
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds):
        for name, start in contestants.items():
            progress(f"round {number + 1} of {rounds}: {name}")
            rates[name].append(_rate(start(), seconds))
    return {
        **provenance(torch.device("cpu")),
        "webdataset": version("webdataset"),
        "pillow": version("pillow"),
        "shards": len(source.shards),
        "samples": len(source),
        "workers": workers,
        "cores": len(os.sched_getaffinity(0)),
        "seconds": seconds,
        "rounds": rounds,
        "batch_tokens": batch_tokens,
        "times_as_fast": statistics.median(a / b for a, b in zip(rates[OURS], rates[PEER], strict=True)),
        "contestants": [
            {"name": name, "samples_per_second": statistics.median(r), "low": min(r), "high": max(r)}
            for name, r in rates.items()
        ],
    }


def _rate(counts: Iterator[int], seconds: float) -> float:
    """Samples a second over at least `seconds`, from the moment after the first batch."""
    next(counts)
    began, samples = time.perf_counter(), 0
    while (passed := time.perf_counter() - began) < seconds:
        samples += next(counts)
    return samples / passed


def _streamed(shards: list[str], workers: int, batches: Callable[[Iterator[Sample]], Iterator]) -> Iterator[int]:
    loader = DataLoader(
        _Endless(shards, batches),
        batch_size=None,
        num_workers=workers,
        prefetch_factor=2 if workers else None,
        multiprocessing_context="fork" if workers else None,
    )
    for batch in loader:
        yield sum(batch.samples) if isinstance(batch, Batch) else batch


class _Endless(IterableDataset):
    """Batches of shards read again and again; rows stay open from one pass to the next."""

    def __init__(self, shards: list[str], batches: Callable[[Iterator[Sample]], Iterator]):
        self.shards, self.batches = shards, batches

    def __iter__(self):
        return self.batches(self._samples())

    def _samples(self) -> Iterator[Sample]:
        dataset = webdataset.WebDataset(self.shards, shardshuffle=False, empty_check=False)
        while True:
            yield from map(_sample, dataset)


def _sample(found: dict) -> Sample:
    members = {name: data for name, data in found.items() if not name.startswith("_") and name != "json"}
    return Sample(found["__key__"], json.loads(found["json"]), members)


def _packed(samples: Iterator[Sample], processor: Processor, batch_tokens: int) -> Iterator[Batch]:
    row, tokens = [], 0
    for sample in samples:
        images = {name: _rgb(data) for name, data in sample.members.items()}
        example = Example(encode_sample(Sample(sample.key, sample.json, images), processor), 0)
        if row and tokens + example.num_tokens > batch_tokens:
            yield Batch.collate(row, 1, processor.image_id)
            row, tokens = [], 0
        row.append(example)
        tokens += example.num_tokens


def _decoded(samples: Iterator[Sample]) -> Iterator[int]:
    done = 0
    for sample in samples:
        for data in sample.members.values():
            _rgb(data)
        done += 1
        if done % 100 == 0:
            yield 100


def _rgb(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data)).convert("RGB")
