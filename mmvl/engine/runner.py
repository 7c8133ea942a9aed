"""A thread around the engine, so that many callers may submit, listen and abort at the same time.

The thread lives while there is work and ends with it, so an idle model holds no thread and a program ends by itself.
"""

import threading
from collections import deque
from collections.abc import Callable

from mmvl.engine.engine import Engine, Update
from mmvl.engine.request import Request
from mmvl.engine.sampling_params import SamplingParams
from mmvl.processor import Prompt


class Runner:
    """Every method may be called from any thread. `listener` is called once an update, on the engine's thread."""

    def __init__(self, engine: Engine):
        self._engine = engine
        self._listeners: dict[Request, Callable[[Update], None]] = {}
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        # The engine's thread passes it between steps. Without it that thread would take the lock again before a
        # waiting caller wakes up, for as long as there is work.
        self._turnstile = threading.Lock()
        self._dropped: deque[Request] = deque()

    def submit(self, prompt: Prompt, params: SamplingParams, listener: Callable[[Update], None]) -> Request:
        """Queue a prompt. Raises what `Engine.submit` raises."""
        with self._turnstile, self._lock:
            request = self._engine.submit(prompt, params)
            self._listeners[request] = listener
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="mmvl-engine")
                self._thread.start()
            return request

    def abort(self, request: Request) -> None:
        """End a request; its slot is free on return, after at most the step that is running."""
        with self._turnstile, self._lock:
            self._engine.abort(request)
            self._tell(Update(request, "", finished=True))

    def drop(self, request: Request) -> None:
        """End a request before the next step, without waiting: safe in a finalizer, which may run on any thread."""
        self._dropped.append(request)

    def _run(self) -> None:
        while True:
            with self._turnstile:
                self._lock.acquire()
            try:
                while self._dropped:
                    self._engine.abort(self._dropped[0])
                    self._tell(Update(self._dropped.popleft(), "", finished=True))
                if not self._engine.has_work:
                    self._thread = None
                    return
                try:
                    updates = self._engine.step()
                except Exception as error:  # told to every caller: a broken step has no one owner
                    updates = self._give_up(error)
                for update in updates:
                    self._tell(update)
            finally:
                self._lock.release()

    def _give_up(self, error: Exception) -> list[Update]:
        requests = [*self._engine.running, *self._engine.waiting]
        for request in requests:
            self._engine.abort(request)
        return [Update(request, "", finished=True, error=error) for request in requests]

    def _tell(self, update: Update) -> None:
        listener = self._listeners.get(update.request)
        if listener is not None:
            if update.finished:
                del self._listeners[update.request]
            listener(update)
