"""What the requests hold of the hybrid cache: the scheduler's view of memory (`scheduler.Memory`).

Cached prefixes live in the same pages and give way to whoever needs room.
"""

import time
from collections.abc import Sequence

from mmvl.engine.memory import suppress_out_of_memory
from mmvl.engine.prefix import Prefix, PrefixCache
from mmvl.engine.request import Request
from mmvl.engine.stats import Counters
from mmvl.text_backbone.cache import HybridCache


class Pools:
    """Slots and pages of a cache, handed to requests. `swap_bytes`: host memory for those that have to wait."""

    def __init__(self, cache: HybridCache, prefixes: PrefixCache, num_pages: int, swap_bytes: int, counters: Counters):
        self.cache, self.prefixes, self.num_pages = cache, prefixes, num_pages
        self._swap_bytes, self._counters = swap_bytes, counters
        self._running = 0

    def would_admit(self, request: Request, without: Sequence[Request] = ()) -> bool:
        """Whether `admit` would, once these were preempted. Changes nothing but which prefixes were used last."""
        return self._has_slot(without) and self._fits(request, self._hit(request), without)

    def admit(self, request: Request) -> bool:
        """Slot and pages for all tokens that it has, some of them perhaps found in the prefix cache. Or False."""
        if not self._has_slot():  # first: while all places are taken this is asked in every step
            return False
        hit = self._hit(request)
        if not self._fits(request, hit):
            return False
        self._evict_until(self._new_pages(request, hit) + self._running, hit)
        if request.swapped:
            with suppress_out_of_memory():
                request.slot = self.cache.swap_in(request.number)
            if request.slot is None:
                self.release(request)  # it is computed again when it comes next
                request.num_cached = 0
                return False
            request.swapped = False
            self._swap_bytes += self.cache.swapped_bytes(request.num_cached)
        else:
            request.slot = self.cache.allocate() if hit is None else self.cache.resume(hit.checkpoint)
            request.num_cached = request.last_checkpoint = self.cache.length(request.slot)
            self._plan(request)
        self.cache.reserve(request.slot, request.num_missing)
        self._running += 1
        self._counters.held(self.cache.used_pages, self._running)
        return True

    def _plan(self, request: Request) -> None:
        """Where its prompt is to be cut; and what the hit was worth, if it has not been here before."""
        image_end = request.image_positions[-1] + 1 if request.image_positions else 0
        request.cuts = self.prefixes.cuts(request.keys, request.num_cached, request.prompt_tokens, image_end)
        if request.started is None:
            request.started = time.perf_counter()
            request.cached_tokens = request.num_cached
            self._counters.prompt_tokens_total += request.prompt_tokens
            self._counters.prefix_query_tokens += request.prompt_tokens
            self._counters.prefix_hit_tokens += request.num_cached

    def grow(self, request: Request, count: int) -> bool:
        """Pages for `count` more tokens; cached prefixes give way. Or False."""
        needed = self.cache.pages_needed(request.slot, count)
        if needed > self.num_pages - self.cache.used_pages:
            return False
        if needed:
            self._evict_until(needed)
            self.cache.reserve(request.slot, count)
            self._counters.held(self.cache.used_pages, self._running)
        return True

    def checkpoint(self, request: Request) -> None:
        """Keep its cache as it now is for those that begin alike, if it is far enough from the last one kept."""
        length = self.cache.length(request.slot)
        if length - request.last_checkpoint >= self.prefixes.gap:
            self._know(request, length)
            with suppress_out_of_memory():  # without it who begins alike has to compute more
                self.prefixes.keep(request.keys, request.slot, length)
                request.last_checkpoint = length

    def preempt(self, request: Request) -> None:
        """Take its slot and pages: to the host's memory if there is room, else it will be computed again."""
        size = self.cache.swapped_bytes(request.num_cached)
        if size <= self._swap_bytes and request.num_cached and not request.suspect and self._swap_out(request):
            self._swap_bytes -= size
            request.swapped, request.slot = True, None
            self._running -= 1
        else:
            self.release(request)
            request.num_cached = 0

    def _swap_out(self, request: Request) -> bool:
        """False where there is no memory even to move it."""
        with suppress_out_of_memory():
            self.cache.swap_out(request.slot, request.number)
            return True
        return False

    def release(self, request: Request) -> None:
        """Take back all that it holds, wherever that is."""
        if request.slot is not None:
            self.cache.free(request.slot)
            request.slot = None
            self._running -= 1
        elif request.swapped:
            self.cache.forget_swapped(request.number)
            request.swapped = False
            self._swap_bytes += self.cache.swapped_bytes(request.num_cached)

    def _know(self, request: Request, length: int) -> None:
        """See to it that the keys reach so far into the answer."""
        if length > len(request.keys):
            request.keys.extend(request.ids(len(request.keys), length))

    def _hit(self, request: Request) -> Prefix | None:
        """What the prefix cache has of a request that is to be computed."""
        if request.swapped:
            return None
        self._know(request, request.num_tokens)
        limit = request.num_tokens - 1  # the last one has to be computed: its successor is sampled from it
        return self.prefixes.match(request.keys, limit)

    def _new_pages(self, request: Request, hit: Prefix | None) -> int:
        shared = 0 if hit is None else hit.length // self.cache.page_size
        return -(-request.num_tokens // self.cache.page_size) - shared

    def _has_slot(self, without: Sequence[Request] = ()) -> bool:
        return self.cache.free_slots + len(without) > 0

    def _fits(self, request: Request, hit: Prefix | None, without: Sequence[Request] = ()) -> bool:
        """Whether there are pages, one more for each who runs: their answers grow."""
        used = self.cache.used_pages_after([r.slot for r in without], None if hit is None else hit.checkpoint)
        pages = self._new_pages(request, hit) + self._running - len(without)
        return pages <= self.num_pages - used

    def _evict_until(self, pages: int, keeping: Prefix | None = None) -> None:
        """Drop cached prefixes until so many pages are free, which has been seen to be possible."""
        while self.cache.free_pages < pages:
            evicted = self.prefixes.evict(keeping)
            assert evicted, "pages that neither a sequence nor a prefix has"
