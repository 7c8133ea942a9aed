"""A decoder and its cache on several ranks: what rank 0 does to its own, the others do to theirs.

Every call of a `SpreadDecoder`, and every call that changes its cache, is an order that a `Follower` carries out on
each other rank. The embeddings of a step are broadcast; what the ranks add up is in text_backbone/tensor_parallel.py.

Legend: T tokens of a step, S sequences, D model width.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mmvl.engine.graphs import DecodeGraphs
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
        """Graphs on every rank; `settings` are those of `DecodeGraphs` after the cache."""
        cache.flush(("new_graphs", cache.number, settings))
        return SpreadGraphs(DecodeGraphs(self.decoder, cache.raw, *settings), cache)


class SpreadGraphs:
    """`DecodeGraphs` of all ranks, captured and replayed together, the sums over the ranks in them."""

    def __init__(self, graphs: DecodeGraphs, cache: MirroredCache):
        self._graphs, self._cache = graphs, cache

    def fits(self, slots: Sequence[int]) -> bool:
        self._cache.flush(("graph_fits", self._cache.number, tuple(slots)))
        with self._cache.team.together():
            return self._graphs.fits(slots)

    @property
    def ladder(self) -> list[int]:
        return self._graphs.ladder

    def capture(self, rows: int, tokens: int) -> bool:
        self._cache.flush(("graph_capture", self._cache.number, rows, tokens))
        with self._cache.team.together():
            return self._graphs.capture(rows, tokens)

    def run(self, slots: Sequence[int], x_SD: Tensor) -> Tensor:
        self._cache.flush(("graph_run", self._cache.number, tuple(slots), tuple(x_SD.shape), x_SD.dtype))
        with self._cache.team.together():
            return self._graphs.run(slots, _broadcast(x_SD))


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
        self._graphs: dict[CacheNumber, DecodeGraphs] = {}
        self._packs: dict[CacheNumber, OrderedDict[int, Packed]] = {}
        self._count: dict[CacheNumber, int] = {}

    def load(self, number: int, make: Callable[..., Decoder], device_type: str) -> str:
        self._device = torch.device(device_type, torch.cuda.current_device() if device_type == "cuda" else None)
        self._decoders[number] = make(device=self._device, rank=self._rank, ranks=self._ranks)
        return "ready"

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
        self._graphs[number] = DecodeGraphs(self._decoders[number[0]], self._caches[number], *settings)

    @torch.inference_mode()
    def graph_fits(self, number: CacheNumber, slots: tuple[int, ...]) -> None:
        self._graphs[number].fits(slots)

    @torch.inference_mode()
    def graph_capture(self, number: CacheNumber, rows: int, tokens: int) -> None:
        self._graphs[number].capture(rows, tokens)

    @torch.inference_mode()
    def graph_run(self, number: CacheNumber, slots: tuple[int, ...], shape: tuple, dtype: torch.dtype) -> None:
        self._graphs[number].run(slots, self._receive(shape, dtype))

    def _receive(self, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
        x_TD = torch.empty(shape, dtype=dtype, device=self._device)
        dist.broadcast(x_TD, src=0)
        return x_TD
