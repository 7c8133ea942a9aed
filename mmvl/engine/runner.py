"""A thread around the engine, so that many callers may submit, listen and abort at the same time.

The thread lives while there is work and ends with it, so an idle model holds no thread and a program ends by itself.
Callers never touch the engine: what they want lies in an inbox, which the thread empties between two steps.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable

from mmvl.engine.broken import EngineBroken
from mmvl.engine.engine import Engine
from mmvl.engine.image_budget import ImageBudget, Lease
from mmvl.engine.request import Request, Update
from mmvl.engine.sampling_params import SamplingParams
from mmvl.processor import Prompt

log = logging.getLogger(__name__)
Listener = Callable[[Update], None]


class Runner:
    """Every method may be called from any thread. `listener` is called once an update, on the engine's thread.

    images: what the decoded images of those who run and wait take of the memory.
    """

    def __init__(self, engine: Engine):
        self._engine, self.images = engine, ImageBudget()
        self._leases: dict[Request, Lease] = {}
        self._listeners: dict[Request, Listener] = {}
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()  # held for moments only, never during a step
        self._submitted: deque[tuple[Request, Listener, Lease]] = deque()
        self._dropped: deque[tuple[Request, threading.Event | None]] = deque()

    def submit(
        self,
        prompt: Prompt,
        params: SamplingParams,
        listener: Listener,
        priority: int = 0,
        lease: Lease | None = None,
    ) -> Request:
        """Queue a prompt, without waiting for a step.

        Raises what `Engine.prepare` raises, and EngineBroken at once if nothing more can be answered.

        lease: of its images' memory; given back when the request has ended, or is refused. None: it is taken here.
        """
        with lease or self.images.take(prompt.image_bytes) as lease:
            request = self._engine.prepare(prompt, params, priority)
            with self._lock:
                if (broken := self._engine.broken) is not None:
                    raise EngineBroken(*broken.args) from broken.__cause__
                if self._thread is None:
                    thread = threading.Thread(target=self._run, name="mmvl-engine")
                    thread.start()
                    self._thread = thread
                self._submitted.append((request, listener, lease))
        return request

    def abort(self, request: Request) -> None:
        """End a request; its slot is free on return, after at most the step that is running."""
        done = threading.Event()
        with self._lock:
            idle = self._thread is None
            if idle and self._engine.broken is not None:
                return  # everyone has ended
            self._dropped.append((request, done))
            if idle:
                self._empty_inbox()
        if not idle and threading.current_thread() is not self._thread:
            done.wait()

    def drop(self, request: Request) -> None:
        """End a request before the next step, without waiting or locking: safe in a finalizer and in an event loop."""
        self._dropped.append((request, None))

    def _run(self) -> None:
        try:
            self._work()
        except BaseException as error:  # without this every caller would wait for ever
            log.exception("the engine's thread ends; every request is told")
            self._break_off(error)

    def _work(self) -> None:
        while True:
            with self._lock:
                self._empty_inbox()
                if not self._engine.has_work:
                    self._thread = None
                    return
            try:
                updates = self._engine.step()
            except Exception as error:  # told to every caller: a broken step has no one owner
                updates = self._engine.give_up(error)
            for update in updates:
                self._tell(update)

    def _break_off(self, error: BaseException) -> None:
        """End all requests without the engine: what failed is how it takes in, ends or gives up requests, so that its
        books cannot be trusted any more, and nothing new is taken."""
        with self._lock:
            broken = self._engine.broken = self._engine.broken or EngineBroken.by(error)
            for request, listener, lease in self._submitted:
                self._listeners[request], self._leases[request] = listener, lease
            self._submitted.clear()
            leases, self._leases = self._leases, {}
            listeners, self._listeners = self._listeners, {}
            for request, lease in leases.items():
                request.error, request.finish_reason, request.finished = broken, "error", time.perf_counter()
                lease.release()
            dropped, self._dropped = self._dropped, deque()
            self._thread = None
        for request, listener in listeners.items():
            self._call(listener, Update(request, "", True, broken))
        for _, done in dropped:
            if done is not None:
                done.set()

    def _empty_inbox(self) -> None:
        while self._submitted:
            request, listener, lease = self._submitted[0]  # it stays there until it is the engine's
            self._listeners[request], self._leases[request] = listener, lease
            self._engine.add(request)
            self._submitted.popleft()
        while self._dropped:
            request, done = self._dropped[0]
            self._engine.abort(request)
            self._tell(Update(request, "", finished=True))
            self._dropped.popleft()
            if done is not None:
                done.set()

    def _tell(self, update: Update) -> None:
        listener = self._listeners.get(update.request)
        if update.finished and (lease := self._leases.pop(update.request, None)) is not None:
            lease.release()
        if listener is not None:
            if update.finished:
                del self._listeners[update.request]
            if not self._call(listener, update):
                self._listeners.pop(update.request, None)
                self.drop(update.request)

    def _call(self, listener: Listener, update: Update) -> bool:
        """False if it fails: its caller is gone, an event loop that was closed, say; the others are not."""
        try:
            listener(update)
        except Exception:
            log.exception("a listener failed; its request is dropped")
            return False
        return True
