"""A decoder and its cache on several ranks: what rank 0 does to its own, the others do to theirs.

Every call of a `SpreadDecoder`, and every call that changes its cache, is an order that a `Follower` carries out on
each other rank. The embeddings of a step are broadcast; what the ranks add up is in text_backbone/tensor_parallel.py.

Legend: T tokens of a step, S sequences, D model width.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mmvl.engine.graphs import Kind, StepGraphs
from mmvl.text_backbone.cache import HybridCache
from mmvl.text_backbone.decoder import Decoder, DecoderOutput
from mmvl.text_backbone.packed import Packed

KEPT_PACKS = 64  # batches that a follower can still be asked about
CacheNumber = tuple[int, int]  # of the decoder, and of the cache among those that it made


class Orders(Protocol):
    """How rank 0 reaches the others."""

    def send(self, *orders: tuple) -> None:
        """To every other rank: tuples of the name of a `Follower`'s method and its arguments."""

    def together(self) -> AbstractContextManager:
        """Around what all ranks do together: if it fails here, they cannot go on."""


class SpreadDecoder(nn.Module):
    """Rank 0's part of a decoder, with the surface of a whole one: what it is asked, all ranks do."""

    def __init__(self, decoder: Decoder, number: int, team: Orders):
        super().__init__()
        self.decoder, self._number, self._team = decoder, number, team
        self._caches = 0

    @property
    def config(self):
        return self.decoder.config

    @property
    def cache_config(self):
        return self.decoder.cache_config

    @property
    def model(self) -> nn.Module:
        return self.decoder.model

    def embed(self, ids_T: Tensor) -> Tensor:
        return self.decoder.embed(ids_T)

    def logits(self, hidden_TD: Tensor) -> Tensor:
        return self.decoder.logits(hidden_TD)

    @property
    def ranks(self) -> int:
        return self.decoder.ranks

    def limit_workspace(self, num_bytes: int) -> None:
        self._team.send(("limit_workspace", self._number, num_bytes))
        self.decoder.limit_workspace(num_bytes)

    def new_cache(self, **settings) -> MirroredCache:
        """A cache on every rank, each for its own heads."""
        self._caches += 1
        number = self._number, self._caches
        self._team.send(("new_cache", number, {k: v for k, v in settings.items() if k != "device"}))
        return MirroredCache(self.decoder.new_cache(**settings), number, self._team)

    def forward(self, x_TD: Tensor, packed: Packed, cache: MirroredCache) -> DecoderOutput:
        """As `Decoder.forward`, always with a cache."""
        cache.flush(("forward", cache.number, cache.number_of(packed), tuple(x_TD.shape), x_TD.dtype))
        with self._team.together():
            return self.decoder(_broadcast(x_TD), packed, cache.raw)

    def new_graphs(self, cache: MirroredCache, *settings) -> SpreadGraphs:
        """Graphs on every rank; `settings` are those of `StepGraphs` after the cache."""
        cache.flush(("new_graphs", cache.number, settings))
        return SpreadGraphs(StepGraphs(self.decoder, cache.raw, *settings), cache)


class SpreadGraphs:
    """`StepGraphs` of all ranks, captured and replayed together, the sums over the ranks in them."""

    def __init__(self, graphs: StepGraphs, cache: MirroredCache):
        self._graphs, self._cache = graphs, cache

    def shapes(self) -> Iterator[tuple[Kind, int, int]]:
        return self._graphs.shapes()

    def prepare(self, slots: Sequence[int]) -> Tensor | None:
        return self._all("prepare", tuple(slots))

    def takes(self, slots: Sequence[int], counts: Sequence[int], draft: bool) -> bool:
        return self._all("takes", tuple(slots), tuple(counts), draft)

    def accept(self, slots: Sequence[int], counts: Sequence[int]) -> None:
        self._all("accept", tuple(slots), tuple(counts))

    def capture(self, kind: Kind, tokens: int, rows: int, context: int) -> bool:
        return self._all("capture", kind, tokens, rows, context)

    def run(self, slots: Sequence[int], x_SD: Tensor) -> Tensor:
        return self._all("run", tuple(slots), x_TD=x_SD)

    def run_ragged(self, slots: Sequence[int], counts: Sequence[int], x_TD: Tensor) -> Tensor:
        return self._all("run_ragged", tuple(slots), tuple(counts), x_TD=x_TD)

    def _all(self, name: str, *args, x_TD: Tensor | None = None):
        """`name` of the graphs of every rank; `x_TD` is their last argument."""
        shape = None if x_TD is None else (tuple(x_TD.shape), x_TD.dtype)
        self._cache.flush(("graphs", self._cache.number, name, args, shape))
        with self._cache.team.together():
            return getattr(self._graphs, name)(*args, *(() if x_TD is None else (_broadcast(x_TD),)))


def _broadcast(x_TD: Tensor) -> Tensor:
    x_TD = x_TD.contiguous()
    dist.broadcast(x_TD, src=0)
    return x_TD


class MirroredCache:
    """Rank 0's cache. Calls that change it are repeated on the other ranks, in order, before their next forward pass.

    A call that raises here has changed nothing and is not repeated.
    """

    def __init__(self, raw: HybridCache, number: CacheNumber, team: Orders):
        self.raw, self.number, self.team = raw, number, team
        self._orders: list[tuple] = []
        self._packs = 0
        self._number_of: OrderedDict[int, tuple[int, Packed]] = OrderedDict()  # the batch is kept so that its id is

    def __getattr__(self, name: str):
        found = getattr(self.raw, name)
        if not callable(found) or name.startswith("_") or name in HybridCache.READS:
            return found

        def call(*args, **kwargs):
            result = found(*args, **kwargs)
            sent = [self._reference(a) for a in args], {k: self._reference(v) for k, v in kwargs.items()}
            if isinstance(result, Packed):
                self._packs += 1
                self._number_of[id(result)] = self._packs, result
                if len(self._number_of) > KEPT_PACKS:
                    self._number_of.popitem(last=False)
            self._orders.append(("call", self.number, name, *sent))
            return result

        return call

    def number_of(self, packed: Packed) -> int:
        return self._number_of[id(packed)][0]

    def flush(self, *orders: tuple) -> None:
        """Send what has been done so far, and `orders` after it."""
        self.team.send(*self._orders, *orders)
        self._orders.clear()

    def _reference(self, value):
        assert not isinstance(value, Tensor), "the other ranks cannot repeat a call with a tensor"
        return _Pack(self.number_of(value)) if isinstance(value, Packed) else value


class _Pack(int):
    """Stands for the batch of this number in a message."""


class Follower:
    """What a rank other than the first holds, and one method an order. One that returns something is answered."""

    def __init__(self, rank: int, ranks: int):
        self._rank, self._ranks = rank, ranks
        self._decoders: dict[int, Decoder] = {}
        self._caches: dict[CacheNumber, HybridCache] = {}
        self._graphs: dict[CacheNumber, StepGraphs] = {}
        self._packs: dict[CacheNumber, OrderedDict[int, Packed]] = {}
        self._count: dict[CacheNumber, int] = {}

    def load(self, number: int, make: Callable[..., Decoder], device_type: str) -> str:
        self._device = torch.device(device_type, torch.cuda.current_device() if device_type == "cuda" else None)
        self._decoders[number] = make(device=self._device, rank=self._rank, ranks=self._ranks)
        return "ready"

    def limit_workspace(self, number: int, num_bytes: int) -> None:
        self._decoders[number].limit_workspace(num_bytes)

    def new_cache(self, number: CacheNumber, settings: dict) -> None:
        self._caches[number] = self._decoders[number[0]].new_cache(**settings, device=self._device)
        self._packs[number], self._count[number] = OrderedDict(), 0

    @torch.inference_mode()
    def call(self, number: CacheNumber, name: str, args: list, kwargs: dict) -> None:
        packs = self._packs[number]
        args = [packs[a] if isinstance(a, _Pack) else a for a in args]
        kwargs = {k: packs[v] if isinstance(v, _Pack) else v for k, v in kwargs.items()}
        result = getattr(self._caches[number], name)(*args, **kwargs)
        if isinstance(result, Packed):
            self._count[number] += 1
            packs[self._count[number]] = result
            if len(packs) > KEPT_PACKS:
                packs.popitem(last=False)

    @torch.inference_mode()
    def forward(self, number: CacheNumber, packed: int, shape: tuple[int, int], dtype: torch.dtype) -> None:
        decoder = self._decoders[number[0]]
        decoder(self._receive(shape, dtype), self._packs[number][packed], self._caches[number])

    def new_graphs(self, number: CacheNumber, settings: tuple) -> None:
        self._graphs[number] = StepGraphs(self._decoders[number[0]], self._caches[number], *settings)

    @torch.inference_mode()
    def graphs(self, number: CacheNumber, name: str, args: tuple, shape: tuple | None) -> None:
        """A call of them; with the embeddings, of this shape and dtype, if they are an argument."""
        embeddings = () if shape is None else (self._receive(*shape),)
        getattr(self._graphs[number], name)(*args, *embeddings)

    def _receive(self, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
        x_TD = torch.empty(shape, dtype=dtype, device=self._device)
        dist.broadcast(x_TD, src=0)
        return x_TD
