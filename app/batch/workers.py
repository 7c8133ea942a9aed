"""Several engines, each in a process of its own (one a GPU), fed by this one as they have room.

Items go to whoever can take more; results come back over the same pipe. A process that dies is started anew, and what
it was at is tried again, one item at a time, so that only the item that kills its process twice is a failure. One whose
engine is broken (`mmvl/engine/broken.py`) ends itself.
"""

import multiprocessing
import os
import queue
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait

from mmvl.app.batch.answers import Keep
from mmvl.app.batch.items import Item
from mmvl.app.batch.results import failure

Open = Callable[[], object]
"""Opens an answerer (see `run.Answerer`) with a `capacity`; picklable."""

_READY, _RESULT, _FAILED = "ready", "result", "failed"


class Processes:
    """An answerer over one process for each of `opens`. Raises what opening raises in them."""

    def __init__(self, opens: Sequence[Open]):
        self._context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
        self._workers: list[_Worker] = []
        try:
            for open in opens:
                self._workers.append(_Worker(self._context, open))
            for worker in self._workers:
                worker.wait_until_ready()
        except BaseException:
            self.close()
            raise

    def answer(self, items: Iterator[Item], keep: Keep) -> None:
        suspects: deque[Item] = deque()
        more = True
        while more or suspects or any(worker.items for worker in self._workers):
            for worker in self._workers:
                if suspects and not worker.items:
                    worker.suspect = True
                    worker.give(suspects.popleft())
                    worker.flush()
                while more and not worker.suspect and worker.has_room:
                    item = next(items, None)
                    if item is not None:
                        worker.give(item)
                        continue
                    more = False
                    for each in self._workers:
                        each.flush()
            busy = {worker.connection: worker for worker in self._workers if worker.items}
            for connection in wait(busy):
                worker = busy[connection]
                try:
                    kind, *told = connection.recv()
                except (EOFError, OSError):
                    self._bury(worker, suspects, keep)
                    continue
                if kind == _FAILED:
                    raise told[0]
                worker.suspect = False
                keep(worker.items.pop(told[0]), told[1])

    def close(self) -> None:
        for worker in self._workers:
            worker.stop()

    def _bury(self, worker: "_Worker", suspects: deque, keep: Keep) -> None:
        """Start a dead worker anew; keep what it was alone with as a failure, all else has another try."""
        lost, code = list(worker.items.values()), worker.stop()
        if worker.suspect:
            reason = f"the process that answered it died, twice ({_cause(code)})"
            for item in lost:
                keep(item, failure(item, reason))
        else:
            suspects.extend(lost)
        self._workers[self._workers.index(worker)] = fresh = _Worker(self._context, worker.open)
        fresh.wait_until_ready()


class _Worker:
    """One process as seen from here. items: what it was given and has not answered, by id."""

    def __init__(self, context, open: Open):
        self.open, self.suspect = open, False
        self.items: dict[str, Item] = {}
        self.connection, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, open), daemon=True)
        self._process.start()
        theirs.close()

    def wait_until_ready(self) -> None:
        """Raises what opening raised, and ChildProcessError if the process died over it."""
        try:
            kind, told = self.connection.recv()
        except (EOFError, OSError):
            raise ChildProcessError(f"a process died while it opened the model ({_cause(self.stop())})") from None
        if kind == _FAILED:
            raise told
        self._capacity = told

    @property
    def has_room(self) -> bool:
        # A few more than it takes at once, so that it never waits for us.
        return len(self.items) < self._capacity + 8

    def give(self, item: Item) -> None:
        self.items[item.id] = item
        self._send(item)

    def flush(self) -> None:
        """Have it answer what it was given without waiting for more."""
        self._send(None)

    def _send(self, item: Item | None) -> None:
        try:
            self.connection.send(item)
        except OSError:
            pass  # it died: reading from it tells

    def stop(self) -> int | None:
        """End it now. Returns its exit code."""
        self.connection.close()
        self._process.join(0.5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        return self._process.exitcode


def _work(connection: Connection, open: Open) -> None:
    """What runs in the other process, until the pipe's other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one that feeds us
    try:
        answerer = open()
        connection.send((_READY, answerer.capacity))
    except Exception as error:
        connection.send((_FAILED, _portable(error)))
        return
    items: queue.SimpleQueue[Item | None] = queue.SimpleQueue()
    # A thread of its own empties the pipe at any time, so that neither side ever waits for the other to read.
    threading.Thread(target=_receive, args=(connection, items), daemon=True).start()
    try:
        while True:
            answerer.answer(iter(items.get, None), lambda item, result: connection.send((_RESULT, item.id, result)))
    except Exception as error:
        end_if_broken(error)
        connection.send((_FAILED, _portable(error)))


def end_if_broken(error: Exception) -> None:
    """End this process, which somebody starts anew, if nothing more can be answered in it."""
    from mmvl.engine.broken import EngineBroken  # it brings torch; who could raise it has imported it

    if isinstance(error, EngineBroken):
        print(f"mmvl: {error}", file=sys.stderr, flush=True)
        os._exit(1)


def _receive(connection: Connection, items: queue.SimpleQueue) -> None:
    while True:
        try:
            items.put(connection.recv())
        except (EOFError, OSError):
            os._exit(0)  # whoever fed us has ended, maybe by kill -9: nothing is left to do


def _portable(error: Exception) -> Exception:
    """The error as it can be sent: a user's mistake as it is, anything else by its name."""
    if type(error) in (ValueError, OSError, FileNotFoundError, PermissionError):
        return error
    return RuntimeError(f"{type(error).__name__}: {error}")


def _cause(code: int | None) -> str:
    return f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
