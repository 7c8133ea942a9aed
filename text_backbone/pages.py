"""The books of a pool of pages: which are free, which sequences use, which only checkpoints keep. No tensors here."""

from collections import Counter
from collections.abc import Iterable, Sequence


class PageBook:
    """Pages 0 .. num_pages - 1. A page may be used by several sequences and kept by several checkpoints at once.

    It is free again when none of them is left. The same calls in the same order give the same pages.
    """

    def __init__(self, num_pages: int):
        self.num_pages = num_pages
        self._free = list(range(num_pages - 1, -1, -1))
        self._users = [0] * num_pages
        self._keepers = [0] * num_pages
        self._used = 0

    @property
    def free(self) -> int:
        """How many pages nobody has."""
        return len(self._free)

    @property
    def used(self) -> int:
        """How many pages sequences use; the others are free, or kept by checkpoints alone."""
        return self._used

    def used_after(self, left: Iterable[Sequence[int]], held: Sequence[int] = ()) -> int:
        """How many pages would be in use if these users left theirs, and if `held` had to stay as well."""
        leaving = Counter(page for pages in left for page in pages)
        freed = sum(self._users[page] == count for page, count in leaving.items())
        return self._used - freed + sum(self._users[page] == leaving[page] for page in held)

    def take(self, count: int) -> list[int]:
        """Free pages for a sequence."""
        assert count <= len(self._free), (count, len(self._free))
        pages = [self._free.pop() for _ in range(count)]
        self.use(pages)
        return pages

    def use(self, pages: Sequence[int]) -> None:
        """One more sequence uses these pages."""
        for page in pages:
            self._users[page] += 1
            self._used += self._users[page] == 1

    def leave(self, pages: Sequence[int]) -> None:
        """A sequence does not need these pages any more."""
        for page in reversed(pages):
            self._users[page] -= 1
            self._used -= self._users[page] == 0
            self._free_if_alone(page)

    def keep(self, pages: Sequence[int]) -> None:
        """One more checkpoint keeps these pages."""
        for page in pages:
            self._keepers[page] += 1

    def let_go(self, pages: Sequence[int]) -> None:
        """A checkpoint does not need these pages any more."""
        for page in reversed(pages):
            self._keepers[page] -= 1
            self._free_if_alone(page)

    def _free_if_alone(self, page: int) -> None:
        if not self._users[page] and not self._keepers[page]:
            self._free.append(page)
