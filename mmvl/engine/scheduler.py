"""Who takes part in a step, with which tokens: admission, budgets, priorities, preemption. Pure Python, no tensors.

First one token for everyone who decodes, then chunks of prompts as far as the budget of the step goes, those that run
before those that wait. Memory is promised for a prompt and taken as an answer grows; when it runs out, cached prefixes
go first, then the request that is served last has to wait. Requests are served in the order of their priority, and of
their coming among equals, and nobody overtakes one who waits for room.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Protocol

from mmvl.engine.draft import Worth
from mmvl.engine.pace import Pace
from mmvl.engine.request import Request

_RANK = attrgetter("rank")


class Memory(Protocol):
    """What the scheduler asks of the pools (`pools.Pools`)."""

    def admit(self, request: Request) -> bool:
        """Slot and pages for all tokens that it has; its slot, num_cached and cuts are then set. Or False."""

    def would_admit(self, request: Request, without: Sequence[Request]) -> bool:
        """Whether it would be admitted once these were preempted. Takes and drops nothing."""

    def grow(self, request: Request, count: int) -> bool:
        """Pages for `count` more tokens. Or False."""

    def preempt(self, request: Request) -> None:
        """Take everything back; what is needed to go on is kept in the host's memory, or computed again."""


@dataclass(frozen=True)
class Work:
    """A request's part of a step: its next `count` tokens; of these the last `len(draft)` are guesses.

    samples: whether the next token is sampled after them (a chunk in the middle of a prompt samples none).
    checkpoint: whether the state after them is to be kept.
    """

    request: Request
    start: int
    count: int
    draft: tuple[int, ...] = ()
    samples: bool = True
    checkpoint: bool = False


class Scheduler:
    """Queue and batch of an engine. `schedule` decides; the engine runs what it says and tells who ended.

    pace: how many tokens a step has. max_draft_tokens: tokens of a step with guesses, over all requests; where it has
        no room for two guesses for each, nobody guesses: the step would take as much longer as it saves.
    """

    def __init__(self, memory: Memory, *, pace: Pace, max_draft_tokens: int):
        self.memory, self.pace, self.max_draft_tokens = memory, pace, max_draft_tokens
        self.worth = Worth()
        self.waiting: list[Request] = []
        self.running: list[Request] = []
        self.preemptions = 0

    def add(self, request: Request) -> None:
        """Queue a request."""
        insort(self.waiting, request, key=_RANK)

    def remove(self, request: Request) -> bool:
        """Forget a request that ends; whether it was here."""
        for queue in (self.running, self.waiting):
            if request in queue:
                queue.remove(request)
                return True
        return False

    @property
    def wants_all_seen(self) -> bool:
        """Whether the host should see what is in flight before the next step: for a draft, or to run one alone."""
        drafting = self.worth.it and 3 * len(self.running) <= self.max_draft_tokens
        hot = drafting and any(r.in_flight and r.lookup is not None and r.lookup.hot for r in self.running)
        return hot or self._suspect() is not None

    def schedule(self) -> list[Work]:
        """The next step; [] if nobody can go on (until what is in flight is seen, if anything is)."""
        suspect = self._suspect()
        if suspect is not None:
            return self._alone(suspect)
        self._make_way()
        works = [Work(r, r.num_cached, 1) for r in list(self.running) if self._decodes_now(r)]
        answers = sum(request.decodes for request in self.running)
        some_read = self.waiting or answers < len(self.running)
        chunks = self._chunks(self.pace.tokens(answers)) if some_read else []
        return works + chunks if chunks else self._with_drafts(works)

    def _decodes_now(self, request: Request) -> bool:
        """Whether it can have its next token in this step; takes the room for it."""
        if request.slot is None or not request.decodes or request.complete or request.waits_for_host:
            return False
        while not self.memory.grow(request, 1):
            victim = self.running[-1]
            self.preempt(victim)
            if victim is request:
                return False
        return True

    def _chunks(self, budget: int) -> list[Work]:
        """Prompts, in order, while the budget lasts."""
        chunks = []
        for request in self.running:
            if budget > 0 and not request.decodes and request.num_missing:
                chunks.append(self._chunk(request, budget))
                budget -= chunks[-1].count
        while budget > 0 and self.waiting and self._admit(self.waiting[0]):
            request = self.waiting.pop(0)
            if request.decodes:  # it comes back from the host, and needs one token as before
                chunks.append(Work(request, request.num_cached, 1))
            else:
                chunks.append(self._chunk(request, budget))
            budget -= chunks[-1].count
        return chunks

    def _chunk(self, request: Request, budget: int) -> Work:
        start = request.num_cached
        stop = min(start + budget, request.num_tokens, *(cut for cut in request.cuts if cut > start))
        return Work(
            request,
            start,
            stop - start,
            samples=stop == request.num_tokens,
            checkpoint=stop in request.cuts or stop == request.prompt_tokens,
        )

    def _admit(self, request: Request) -> bool:
        if request.in_flight or not self._has_place(0) or not self.memory.admit(request):
            return False
        insort(self.running, request, key=_RANK)
        return True

    def _has_place(self, leaving: int) -> bool:
        """Whether one more may run, if so many did not."""
        most = self.pace.max_running
        return most is None or len(self.running) - leaving < most

    def _make_way(self) -> None:
        """Who waits may push out those of a lower priority, as few as will do, the last first, if that lets it in."""
        while self.waiting and self.running and self.running[-1].priority > self.waiting[0].priority:
            victims = self._victims(self.waiting[0])
            if victims is None:
                return
            for victim in victims:
                self.preempt(victim)
            if not self._admit(self.waiting[0]):
                return
            self.waiting.pop(0)

    def _victims(self, request: Request) -> list[Request] | None:
        """Who has to go so that it fits; None: it would not fit without all those of a lower priority either."""
        last = self.running[::-1]

        def enough(count: int) -> bool:
            return self._has_place(count) and self.memory.would_admit(request, last[:count])

        lower = sum(other.priority > request.priority for other in last)
        if request.in_flight or not enough(lower):
            return None
        return last[: bisect_left(range(lower), True, key=enough)]  # who fits fits without more of them, too

    def preempt(self, request: Request) -> None:
        """Back to the queue, in its place; its memory is free."""
        self.memory.preempt(request)
        self.running.remove(request)
        self.preemptions += 1
        self.add(request)

    def _with_drafts(self, works: Sequence[Work]) -> list[Work]:
        """Guesses for those who have an idea, as far as there is room without taking any from others."""
        left = self.max_draft_tokens - len(works)
        if left < 2 * len(works) or not self.worth.it:
            return list(works)
        drafted = []
        for work in works:
            request = work.request
            draft: list[int] = []
            if request.lookup is not None and not request.in_flight:
                draft = request.lookup.propose(min(left, request.max_tokens - len(request.output_ids) - 1))
            if draft and self.memory.grow(request, 1 + len(draft)):
                work = Work(request, work.start, 1 + len(draft), tuple(draft))
                left -= len(draft)
            drafted.append(work)
        return drafted

    def _suspect(self) -> Request | None:
        return next((r for r in (*self.running, *self.waiting) if r.suspect), None)

    def _alone(self, request: Request) -> list[Work]:
        """A step of one who may be the reason why a step ran out of memory."""
        if request.slot is None:
            if request.in_flight or not self._admit(request):
                if self.running and not request.in_flight:
                    self.preempt(self.running[-1])
                    return self._alone(request)
                return []
            self.waiting.remove(request)
        if not request.decodes:
            return [self._chunk(request, self.pace.tokens(0))]
        return [Work(request, request.num_cached, 1)] if self._decodes_now(request) else []
