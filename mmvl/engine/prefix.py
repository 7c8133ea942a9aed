"""The prefix cache: what requests have computed, for those that begin alike. A hit is a checkpoint of the hybrid cache.

Keys and values of softmax layers are there for every token, but a lightning layer's state only where it was copied. So
a prefix can be used exactly up to a checkpoint: the copy of the states after so many tokens, with a hold on the pages
of these tokens, which are shared with whoever uses them. A page without a state behind it would serve nobody, so pages
live as long as the checkpoints and requests that have them. Checkpoints are made
- at the end of a prompt and of an answer, where the next turn of a conversation goes on;
- behind the last image of a prompt, where another question about it would begin;
- where a prompt leaves the path of an earlier one (seen by the page), the next one may leave it there as well;
- every so many tokens of a long prompt.
The least recently used go first when there is no place for a new one, or when requests need the pages.
"""

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from mmvl.engine.prefix_keys import PrefixKeys
from mmvl.text_backbone.cache import HybridCache

_SEEN = 65_536  # pages of prompts that are remembered


@dataclass(frozen=True, eq=False)
class Prefix:
    """A checkpoint: its key, the hash of its whole pages, its length in tokens, its number in the cache."""

    key: bytes
    pages: bytes
    length: int
    checkpoint: int


class PrefixCache:
    """Index of the checkpoints in a cache. `gap`: least tokens between two on one path; `interval`: most tokens."""

    def __init__(self, cache: HybridCache, *, gap: int, interval: int):
        self._cache, self.gap, self.interval = cache, gap, interval
        self._prefixes: OrderedDict[bytes, Prefix] = OrderedDict()  # the least recently used first
        self._by_pages: dict[bytes, list[Prefix]] = {}
        self._seen: OrderedDict[bytes, None] = OrderedDict()
        self.enabled = cache.free_checkpoints > 0

    @contextmanager
    def off(self) -> Iterator[None]:
        """Inside, nothing is kept."""
        before, self.enabled = self.enabled, False
        try:
            yield
        finally:
            self.enabled = before

    def __len__(self) -> int:
        return len(self._prefixes)

    def match(self, keys: PrefixKeys, limit: int) -> Prefix | None:
        """The longest checkpoint of at most `limit` tokens that the sequence begins with."""
        if not self._prefixes:
            return None
        for pages in reversed(keys.pages(limit)):
            for prefix in self._by_pages.get(pages, ()):  # the longest first
                if prefix.length <= limit and keys.at(prefix.length) == prefix.key:
                    self._prefixes.move_to_end(prefix.key)
                    return prefix
        return None

    def cuts(self, keys: PrefixKeys, start: int, stop: int, image_end: int) -> list[int]:
        """Where, between `start` (behind a hit) and `stop` (the prompt's end), checkpoints are worth it; sorted.

        `image_end` is where the prompt's last image ends (0 without any).
        """
        if not self.enabled:
            return []
        pages = keys.pages(stop)
        branch = next((n for n in range(len(pages) - 1, 0, -1) if pages[n] in self._seen), 0) * keys.page_size
        for page in pages:
            self._seen[page] = None
            self._seen.move_to_end(page)
        while len(self._seen) > _SEEN:
            self._seen.popitem(last=False)
        found, last = [], start
        wanted = {image_end, branch, *range(self.interval, stop, self.interval)}
        for cut in sorted(cut for cut in wanted if start < cut < stop):
            if cut - last >= self.gap:
                found.append(cut)
                last = cut
        return found

    def keep(self, keys: PrefixKeys, slot: int, length: int) -> None:
        """Make a checkpoint of the sequence in `slot`, `length` tokens of `keys` long, unless there is one."""
        if not self.enabled:
            return
        key = keys.at(length)
        if key in self._prefixes:
            self._prefixes.move_to_end(key)
            return
        if not self._cache.free_checkpoints:
            self.evict()
        prefix = Prefix(key, keys.pages(length)[-1], length, self._cache.checkpoint(slot))
        self._prefixes[key] = prefix
        beside = self._by_pages.setdefault(prefix.pages, [])
        beside.append(prefix)
        beside.sort(key=lambda p: -p.length)

    def evict(self, keeping: Prefix | None = None) -> bool:
        """Drop the least recently used checkpoint, but not `keeping`; False if there is none."""
        prefix = next((p for p in self._prefixes.values() if p is not keeping), None)
        if prefix is None:
            return False
        del self._prefixes[prefix.key]
        beside = self._by_pages[prefix.pages]
        beside.remove(prefix)
        if not beside:
            del self._by_pages[prefix.pages]
        self._cache.forget(prefix.checkpoint)
        return True

    def clear(self) -> None:
        """Drop all."""
        while self.evict():
            pass
