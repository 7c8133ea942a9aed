"""One model over several ranks: rank 0 schedules and talks to the world, the others do what it says, step by step.

Started by torchrun. Orders go from rank 0 to the others as short messages, over a Unix socket on one machine and TCP
between several; `spread.py` says which. Tensors travel by torch.distributed.

A rank that dies closes its socket, which rank 0 or the others notice at once, also inside a collective: they end with
one line that says so and exit code 1, and so does every other rank. So they do when torchrun itself dies, which could
not end them any more.
"""

from __future__ import annotations

import atexit
import os
import queue
import secrets
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist

from mmvl.checkpoint import load_model
from mmvl.engine.spread import Follower, SpreadDecoder
from mmvl.model import VLModel
from mmvl.text_backbone.decoder import Decoder

TIMEOUT = timedelta(minutes=5)  # of a collective that a rank which still lives does not come to
NOTICE = 1.0  # seconds after a failure for the news that another rank died, which is then its cause and ends this one
LOOK = 1.0  # seconds between two looks at whether torchrun still lives
_team: Team | None = None


def join() -> Team | None:
    """This process's place among those that torchrun started; None where it is alone. The first call connects them."""
    global _team
    if _team is None and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        rank, parent = int(os.environ["RANK"]), os.getppid()  # before what torchrun has to be there for
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        if not dist.is_initialized():
            # what ranks tell each other at the start, and a model on the CPU, go through gloo in any case
            dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=TIMEOUT)
        _team = Team(rank, dist.get_world_size())
        if "TORCHELASTIC_RUN_ID" in os.environ:
            threading.Thread(target=_team.end_with, args=(parent,), name="torchrun", daemon=True).start()
        if rank == 0:
            atexit.register(_team.leave)
    return _team


def load(directory: Path, device: torch.device, dtype: torch.dtype | None, **settings):
    """`load_model`, or under torchrun each rank's part of it, from which ranks after the first never return."""
    return spread(partial(load_model, str(Path(directory).absolute()), dtype=dtype, **settings), device)


def spread(make: Callable[..., VLModel | Decoder], device: torch.device):
    """`make(device=device)`, or under torchrun `Team.load`, from which ranks after the first never return."""
    team = join()
    return make(device=device) if team is None else team.load(make, device)


def gather() -> None:
    """`join`; ranks after the first come back only to end."""
    team = join()
    if team is not None and team.rank:
        team.follow()


class Team:
    """The ranks of one job, seen from one of them. Rank 0 calls `load`; the others `follow`."""

    def __init__(self, rank: int, size: int):
        self.rank, self.size = rank, size
        self._leaving, self._loaded = False, 0
        self._lock = threading.Lock()
        self._messages: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._peers = self._connect()
        for peer, connection in self._peers.items():
            threading.Thread(target=self._listen, args=(peer, connection), name=f"rank {peer}", daemon=True).start()

    # Rank 0.

    def load(self, make: Callable[..., VLModel | Decoder], device: torch.device):
        """The model that `make(device=, rank=, ranks=)` gives on each rank its part of: what it gives here, with a
        `SpreadDecoder` for its decoder. `make` can be pickled: a function of a module, or a partial of one.

        On the other ranks this follows rank 0, and never returns. Raises what `make` raises.
        """
        if self.rank:
            self.follow()
        self._loaded += 1
        self.send(("load", self._loaded, make, device.type))
        model = make(device=device, rank=0, ranks=self.size)
        for _ in self._peers:
            assert self._messages.get() == "ready"
        if isinstance(model, VLModel):
            model.language_model = SpreadDecoder(model.language_model, self._loaded, self)
            return model
        return SpreadDecoder(model, self._loaded, self)

    def send(self, *orders: tuple) -> None:
        """To all other ranks, to be carried out in this order."""
        with self._lock:
            for peer, connection in self._peers.items():
                try:
                    connection.send(orders)
                except OSError:
                    self._lost(peer)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Around what all ranks do together: if it fails here the others wait for ever, so it ends all."""
        try:
            yield
        except Exception as error:
            time.sleep(NOTICE)
            self._end(f"rank {self.rank} failed: {_line(error)}")

    def leave(self) -> None:
        """Let the other ranks go, who end with exit code 0."""
        if not self._leaving:
            self._leaving = True
            self.send(("end",))
            if dist.is_initialized():
                dist.destroy_process_group()

    # The others.

    def follow(self) -> NoReturn:
        """Do what rank 0 says until it ends. Signals to the whole job are its to answer: it may have work to finish."""
        if threading.current_thread() is threading.main_thread():
            for one in (signal.SIGINT, signal.SIGTERM):
                signal.signal(one, signal.SIG_IGN)
        follower = Follower(self.rank, self.size)
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
            time.sleep(NOTICE)
            self._peers[0].send(("failed", _line(error)))
            self._end(f"rank {self.rank} failed: {_line(error)}")

    # Both.

    def end_with(self, parent: int) -> NoReturn:
        """Wait for the end of the process that started this one. A look at times, not Linux's PR_SET_PDEATHSIG: that is
        sent when the thread that started it ends, which need not be torchrun's main thread."""
        while os.getppid() == parent:
            time.sleep(LOOK)
        self._end("torchrun is gone (killed or crashed)")

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


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]


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
