"""Whether the engine moves: a server that answers pings while its engine hangs is not healthy."""

import asyncio
import time
from collections.abc import Callable

from mmvl.engine.stats import Stats

_EVERY_SECONDS = 0.5


class Progress:
    """Looks at an engine's numbers now and then; `stalled` if there was work but no step for `limit` seconds."""

    def __init__(self, stats: Callable[[], Stats], limit: float):
        self._stats, self._limit = stats, limit
        self._last_step = None
        self._moved = time.monotonic()

    @property
    def stalled(self) -> bool:
        self.look()
        return time.monotonic() - self._moved > self._limit

    def look(self) -> None:
        stats = self._stats()
        idle = not stats.running and not stats.waiting
        if idle or stats.last_step_time != self._last_step:
            self._last_step, self._moved = stats.last_step_time, time.monotonic()

    async def watch(self) -> None:
        """Looks for ever: without it, work that began after a long rest would look like a long stall."""
        while True:
            self.look()
            await asyncio.sleep(_EVERY_SECONDS)
