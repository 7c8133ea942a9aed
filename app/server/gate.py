"""How much the server takes on at once, and when it takes on nothing more.

`Gate` counts requests and says no (429) above the limit and (503) while the server drains. `Budget` bounds the bytes of
bodies and the tiles of pictures that requests hold.
"""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from mmvl.app.server.errors import CLIENT_LEFT, ApiError


class Gate:
    """Lets at most `limit` requests in at one time. Belongs to one event loop."""

    _MEMORY = 0.9  # of the mean duration: the last ten requests or so count

    def __init__(self, limit: int):
        self._limit = limit
        self.inside = 0
        self.draining = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._mean_seconds = 1.0

    def check(self) -> None:
        """Raises ApiError if no request can be taken now."""
        if self.draining:
            raise ApiError(503, "The server is shutting down.", code="shutting_down", retry_after=2)
        if self.inside >= self._limit:
            raise ApiError(
                429,
                f"The server is at its limit of {self._limit} requests; try again in a moment.",
                code="queue_full",
                retry_after=min(self._mean_seconds, 30),
            )

    @contextmanager
    def enter(self) -> Iterator[None]:
        """For as long as a request is worked on. Raises what `check` raises."""
        self.check()
        start = asyncio.get_running_loop().time()
        self.inside += 1
        self._idle.clear()
        try:
            yield
        finally:
            self.inside -= 1
            if not self.inside:
                self._idle.set()
            seconds = asyncio.get_running_loop().time() - start
            self._mean_seconds = self._MEMORY * self._mean_seconds + (1 - self._MEMORY) * seconds

    async def drained(self, seconds: float) -> bool:
        """Takes nothing new from now on; whether all that was inside ended within `seconds`."""
        self.draining = True
        try:
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True


class Budget:
    """At most `limit` of something, held by leases. May be used from any thread."""

    def __init__(self, limit: int, of: str):
        self._limit, self._of = limit, of
        self._lock = threading.Lock()
        self.used = 0

    def lease(self) -> "Lease":
        return Lease(self)

    def take(self, lease: "Lease", amount: int) -> None:
        with self._lock:
            if lease.over:
                raise ApiError(CLIENT_LEFT, "The request is over.", code="client_left")
            if self.used + amount > self._limit:
                raise ApiError(
                    429,
                    f"The server holds as many {self._of} as it can; try again in a moment.",
                    code="queue_full",
                    retry_after=2,
                )
            self.used += amount
            lease.held += amount

    def give_back(self, lease: "Lease") -> None:
        with self._lock:
            self.used -= lease.held
            lease.held, lease.over = 0, True


class Lease:
    """What one request holds of a budget."""

    def __init__(self, budget: Budget):
        self._budget, self.held, self.over = budget, 0, False

    def take(self, amount: int) -> None:
        """Raises ApiError: 429 if that is more than is left; 499 after `release`, which a thread may outlive."""
        self._budget.take(self, amount)

    def release(self) -> None:
        """Gives everything back, for good."""
        self._budget.give_back(self)
