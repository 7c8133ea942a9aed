"""How many tokens a step may have: as many as the memory allows for prompts alone, fewer beside somebody's answer.

The experts' weights are read once a step, so long chunks are the faster way through a prompt. But whoever is being
answered gets one token a step, and waits as long as the step takes.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

SECONDS = 0.1  # that a step beside answers may take: ten tokens a second, faster than anyone reads
SLOW, QUICK = 1.3, 0.55  # of these: halved from there on, doubled up to there
MOST_RUNNING = 4096  # as good as no limit
PATIENCE, MOST_PATIENCE = 256, 65_536  # steps without a fault, after which twice as much is tried again


class Pace:
    """The size of steps, learnt from how long they take and from whether they fit into the memory.

    most: tokens of a step of prompts alone. least, first: the fewest tokens of prompts beside answers, and how many are
        tried first.
    max_running: most requests at the same time; None as long as the memory never was too small for all.
    """

    def __init__(self, most: int, *, least: int = 64, first: int = 2048):
        self.most, self.max_running = most, None
        self._asked, self._least = most, min(least, most)
        self._beside, self._told = min(first, most), 0
        self._patience, self._steps = PATIENCE, 0

    def tokens(self, answers: int) -> int:
        """Of prompts in the next step, beside the next tokens of so many answers; at least one."""
        room = max(self.most - answers, 1)
        return min(self._beside, room) if answers else room

    @contextmanager
    def limited(self, most: int) -> Iterator[None]:
        """Inside, steps are at most so long."""
        before, self.most = self.most, min(most, self.most)
        try:
            yield
        finally:
            self.most = before

    def took(self, tokens: int, answers: int, seconds: float) -> None:
        """A step of `tokens` tokens of prompts, and one each of `answers` answers, took so long.

        Two of the same kind in a row change the size: one alone may have compiled something, or encoded images.
        """
        self._recover()
        if not answers or tokens < 0.75 * self._beside:
            return
        told = (seconds > SLOW * SECONDS) - (seconds < QUICK * SECONDS)
        if told and told == self._told:
            self._beside = max(self._beside // 2, self._least) if told > 0 else min(self._beside * 2, self._asked)
            self._told = 0
        else:
            self._told = told

    def too_large(self, counts: Sequence[int], least: int) -> None:
        """The memory was too small for a step of requests with so many tokens each; `least`: not below."""
        self.most = max(self.most // 2, least)
        if max(counts) == 1:  # no chunk was too long: they are too many
            self.max_running = max(len(counts) // 2, 1)
        self._steps, self._patience = 0, min(2 * self._patience, MOST_PATIENCE)

    def _recover(self) -> None:
        """What was in the way may be gone. Each fault doubles the time until the next attempt."""
        self._steps += 1
        if self._steps < self._patience or (self.most == self._asked and self.max_running is None):
            return
        self._steps = 0
        self.most = min(2 * self.most, self._asked)
        if self.max_running is not None:
            self.max_running *= 2
            if self.max_running > MOST_RUNNING:
                self.max_running = None
