"""One model over several ranks: rank 0 schedules and talks to the world, the others do what it says, step by step.

Started by torchrun. What rank 0 does to its cache, and every call of its decoder, goes to the other ranks as a short
message (a Unix socket on one machine, TCP between several); they do the same to theirs. Tensors travel by
torch.distributed: the embeddings of a step are broadcast, the rest is in text_backbone/tensor_parallel.py.

A rank that dies closes its socket, which all others notice at once, also inside a collective: they end with one line
that says so and exit code 1.

Legend: T tokens of a step, D model width.
"""

from __future__ import annotations

import atexit
import os
import queue
import secrets
import socket
import sys
import tempfile
import threading
from collections import OrderedDict
from datetime import timedelta
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mmvl.checkpoint import load_model
from mmvl.model import VLModel
from mmvl.text_backbone.cache import HybridCache
from mmvl.text_backbone.decoder import Decoder, DecoderOutput
from mmvl.text_backbone.packed import Packed

TIMEOUT = timedelta(minutes=5)  # of a collective that a rank which still lives does not come to
KEPT_PACKS = 64  # batches that a follower can still be asked about
_team: Team | None = None


def join() -> Team | None:
    """This process's place among those that torchrun started; None where it is alone. The first call connects them."""
    global _team
    if _team is None and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        rank = int(os.environ["RANK"])
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        if not dist.is_initialized():
            dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=TIMEOUT)
        _team = Team(rank, dist.get_world_size())
        if rank == 0:
            atexit.register(_team.leave)
    return _team


def gather() -> None:
    """`join`; ranks after the first come back only to end."""
    team = join()
    if team is not None and team.rank:
        team.follow()


class Team:
    """The ranks of one job, seen from one of them. Rank 0 calls `load`; the others `follow`."""

    def __init__(self, rank: int, size: int):
        self.rank, self.size = rank, size
        self._leaving = False
        self._lock = threading.Lock()
        self._messages: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._peers = self._connect()
        for peer, connection in self._peers.items():
            threading.Thread(target=self._listen, args=(peer, connection), name=f"rank {peer}", daemon=True).start()

    # Rank 0.

    def load(self, directory: Path, device: torch.device, dtype: torch.dtype | None, quantize: str | None = None):
        """The model in `directory`, spread over the ranks: a `VLModel` whose decoder is a `SpreadDecoder`.

        On the other ranks this follows rank 0, and never returns.

        Raises:
            FileNotFoundError, ValueError: as `load_model`.
        """
        if self.rank:
            self.follow()
        how = {"dtype": dtype, "quantize": quantize}
        self.send(("load", str(Path(directory).absolute()), device.type, how))
        model = load_model(directory, device, **how, ranks=self.size)
        for _ in self._peers:
            assert self._messages.get() == "ready"
        if isinstance(model, VLModel):
            model.language_model = SpreadDecoder(model.language_model, self)
            return model
        return SpreadDecoder(model, self)

    def send(self, *orders: tuple) -> None:
        """To all other ranks, to be carried out in this order."""
        with self._lock:
            for peer, connection in self._peers.items():
                try:
                    connection.send(orders)
                except OSError:
                    self._lost(peer)

    def leave(self) -> None:
        """Let the other ranks go, who end with exit code 0."""
        if not self._leaving:
            self._leaving = True
            self.send(("end",))
            if dist.is_initialized():
                dist.destroy_process_group()

    # The others.

    def follow(self) -> NoReturn:
        """Do what rank 0 says until it ends."""
        follower = Follower(self)
        try:
            while True:
                for order in self._messages.get():
                    if order[0] == "end":
                        self._leaving = True
                        dist.destroy_process_group()
                        sys.exit(0)
                    if getattr(follower, order[0])(*order[1:]) is not None:
                        self._peers[0].send("ready")
        except Exception as error:
            text = f"{type(error).__name__}: {' '.join(str(error).split())}"
            self._peers[0].send(("failed", text[:500]))
            self._end(f"rank {self.rank} failed: {text}")

    # Both.

    def _connect(self) -> dict[int, Connection]:
        one_machine = os.environ.get("LOCAL_WORLD_SIZE") == str(self.size)
        told: list[Any] = [None]
        if self.rank == 0:
            key = secrets.token_bytes(32)
            folder = tempfile.TemporaryDirectory(prefix="mmvl-")
            address = str(Path(folder.name) / "ranks") if one_machine else ("0.0.0.0", 0)
            listener = Listener(address, "AF_UNIX" if one_machine else "AF_INET", backlog=self.size, authkey=key)
            told = [(address if one_machine else (os.environ["MASTER_ADDR"], listener.address[1]), key)]
        dist.broadcast_object_list(told, src=0)
        address, key = told[0]
        if self.rank:
            connection = _at_once(Client(address, authkey=key), one_machine)
            connection.send(self.rank)
            return {0: connection}
        peers = {}
        while len(peers) < self.size - 1:
            connection = _at_once(listener.accept(), one_machine)
            peers[connection.recv()] = connection
        listener.close()
        folder.cleanup()
        return peers

    def _listen(self, peer: int, connection: Connection) -> None:
        while True:
            try:
                message = connection.recv()
            except (EOFError, OSError):
                if not self._leaving:
                    self._lost(peer)
                return
            if isinstance(message, tuple) and message[0] == "failed":
                self._end(f"rank {peer} failed: {message[1]}")
            self._messages.put(message)
            if isinstance(message, tuple) and message[-1] == ("end",):
                return

    def _lost(self, peer: int) -> NoReturn:
        self._end(f"rank {peer} is gone (killed, crashed or out of memory)")

    def _end(self, why: str) -> NoReturn:
        print(f"mmvl: {why}; rank {self.rank} ends as well, no answer can be finished without it", file=sys.stderr)
        sys.stderr.flush()
        os._exit(1)  # the main thread may be in a collective that will never end


def _at_once(connection: Connection, one_machine: bool) -> Connection:
    """Between machines: small messages are not held back, and a machine that vanishes is noticed in half a minute."""
    if not one_machine:
        with socket.socket(fileno=os.dup(connection.fileno())) as s:
            s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            s.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 4)):
                if hasattr(socket, option):
                    s.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
    return connection


class SpreadDecoder(nn.Module):
    """Rank 0's part of a decoder, with the surface of a whole one: what it is asked, all ranks do."""

    def __init__(self, decoder: Decoder, team: Team):
        super().__init__()
        self.decoder = decoder
        self._team = team
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
        self._team.send(("new_cache", self._caches, {k: v for k, v in settings.items() if k != "device"}))
        return MirroredCache(self.decoder.new_cache(**settings), self._caches, self._team)

    def forward(self, x_TD: Tensor, packed: Packed, cache: MirroredCache) -> DecoderOutput:
        """As `Decoder.forward`, always with a cache."""
        cache.flush(("forward", cache.number, cache.number_of(packed), tuple(x_TD.shape), x_TD.dtype))
        x_TD = x_TD.contiguous()
        dist.broadcast(x_TD, src=0)
        return self.decoder(x_TD, packed, cache.raw)


class MirroredCache:
    """Rank 0's cache. Calls that change it are repeated on the other ranks, in order, before their next forward pass.

    A call that raises here has changed nothing and is not repeated.
    """

    def __init__(self, raw: HybridCache, number: int, team: Team):
        self.raw, self.number = raw, number
        self._team = team
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
        self._team.send(*self._orders, *orders)
        self._orders.clear()

    def _reference(self, value):
        assert not isinstance(value, Tensor), "the other ranks cannot repeat a call with a tensor"
        return _Pack(self.number_of(value)) if isinstance(value, Packed) else value


class _Pack(int):
    """Stands for the batch of this number in a message."""


class Follower:
    """What a rank other than the first holds, and one method an order. One that returns something is answered."""

    def __init__(self, team: Team):
        self._team = team
        self._caches: dict[int, HybridCache] = {}
        self._packs: dict[int, OrderedDict[int, Packed]] = {}
        self._count: dict[int, int] = {}

    def load(self, directory: str, device_type: str, how: dict) -> str:
        self._device = torch.device(device_type, torch.cuda.current_device()) if device_type == "cuda" else "cpu"
        self._decoder = load_model(directory, self._device, **how, rank=self._team.rank, ranks=self._team.size)
        return "ready"

    def new_cache(self, number: int, settings: dict) -> None:
        self._caches[number] = self._decoder.new_cache(**settings, device=self._device)
        self._packs[number], self._count[number] = OrderedDict(), 0

    @torch.inference_mode()
    def call(self, number: int, name: str, args: list, kwargs: dict) -> None:
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
    def forward(self, number: int, packed: int, shape: tuple[int, int], dtype: torch.dtype) -> None:
        x_TD = torch.empty(shape, dtype=dtype, device=self._device)
        dist.broadcast(x_TD, src=0)
        self._decoder(x_TD, self._packs[number][packed], self._caches[number])
