"""A thread around the engine, so that many callers may submit, listen and abort at the same time.

The thread lives while there is work and ends with it, so an idle model holds no thread and a program ends by itself.
Callers never touch the engine: what they want lies in an inbox, which the thread empties between two steps.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable

from mmvl.engine.engine import Engine
from mmvl.engine.request import Request, Update
from mmvl.engine.sampling_params import SamplingParams
from mmvl.processor import Prompt

log = logging.getLogger(__name__)
Listener = Callable[[Update], None]
MOST_IMAGE_BYTES = 1 << 30  # of decoded images that requests hold, after which no more should be opened


class Runner:
    """Every method may be called from any thread. `listener` is called once an update, on the engine's thread."""

    def __init__(self, engine: Engine):
        self._engine = engine
        self._listeners: dict[Request, Listener] = {}
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()  # held for moments only, never during a step
        self._submitted: deque[tuple[Request, Listener]] = deque()
        self._dropped: deque[tuple[Request, threading.Event | None]] = deque()
        self._image_bytes, self._room = 0, threading.Condition()

    @property
    def has_room(self) -> bool:
        """Whether the images of those who run and wait leave memory for another request's to be decoded."""
        return self._image_bytes < MOST_IMAGE_BYTES

    def wait_for_room(self) -> None:
        """Until they do. Not on the engine's thread, which makes it."""
        with self._room:
            self._room.wait_for(lambda: self.has_room)

    def submit(self, prompt: Prompt, params: SamplingParams, listener: Listener, priority: int = 0) -> Request:
        """Queue a prompt, without waiting for a step. Raises what `Engine.prepare` raises."""
        request = self._engine.prepare(prompt, params, priority)
        with self._room:
            self._image_bytes += request.image_bytes
        with self._lock:
            self._submitted.append((request, listener))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="mmvl-engine")
                self._thread.start()
        return request

    def abort(self, request: Request) -> None:
        """End a request; its slot is free on return, after at most the step that is running."""
        done = threading.Event()
        with self._lock:
            self._dropped.append((request, done))
            idle = self._thread is None
            if idle:
                self._empty_inbox()
        if not idle and threading.current_thread() is not self._thread:
            done.wait()

    def drop(self, request: Request) -> None:
        """End a request before the next step, without waiting or locking: safe in a finalizer and in an event loop."""
        self._dropped.append((request, None))

    def _run(self) -> None:
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

    def _empty_inbox(self) -> None:
        while self._submitted:
            request, self._listeners[request] = self._submitted[0][0], self._submitted[0][1]
            self._engine.add(request)
            self._submitted.popleft()
        while self._dropped:
            request, done = self._dropped.popleft()
            self._engine.abort(request)
            self._tell(Update(request, "", finished=True))
            if done is not None:
                done.set()

    def _tell(self, update: Update) -> None:
        listener = self._listeners.get(update.request)
        if listener is not None:
            if update.finished:
                del self._listeners[update.request]
                with self._room:
                    self._image_bytes -= update.request.image_bytes
                    self._room.notify_all()
            try:
                listener(update)
            except Exception:  # its caller is gone, an event loop that was closed, say; the others are not
                log.exception("a listener failed; its request is dropped")
                self._listeners.pop(update.request, None)
                self.drop(update.request)
