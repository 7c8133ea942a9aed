"""Who runs when: the scheduler over a memory that only counts. Tokens are made up; nothing is computed."""

from types import SimpleNamespace

from mmvl.engine.pace import Pace
from mmvl.engine.scheduler import Scheduler


class Memory:
    """`pages` pages of 4 tokens, `slots` slots."""

    def __init__(self, pages, slots=9):
        self.free, self.slots, self.held = pages, slots, {}

    def _pages(self, tokens):
        return -(-tokens // 4)

    def would_admit(self, request, without=()):
        free = self.free + sum(self.held[other.name] for other in without)
        return len(self.held) - len(without) < self.slots and self._pages(request.num_tokens) <= free

    def admit(self, request):
        need = self._pages(request.num_tokens)
        if not self.would_admit(request):
            return False
        self.free -= need
        self.held[request.name], request.slot, request.num_cached = need, 0, 0
        return True

    def grow(self, request, count):
        need = self._pages(request.num_cached + count) - self.held[request.name]
        if need > self.free:
            return False
        self.free -= max(need, 0)
        self.held[request.name] += max(need, 0)
        return True

    def preempt(self, request):
        self.free += self.held.pop(request.name)
        request.slot, request.num_cached = None, 0


class Request(SimpleNamespace):
    """What the scheduler looks at."""

    def __init__(self, name, prompt, priority=0, lookup=None, max_tokens=99):
        super().__init__(
            name=name, prompt_tokens=prompt, output_ids=[], in_flight=0, num_cached=0, slot=None, cuts=[],
            suspect=False, lookup=lookup, waits_for_host=False, max_tokens=max_tokens, rank=(priority, name),
            priority=priority,
        )  # fmt: skip

    num_tokens = property(lambda self: self.prompt_tokens + len(self.output_ids) + self.in_flight)
    num_missing = property(lambda self: self.num_tokens - self.num_cached)
    decodes = property(lambda self: self.num_missing == 1 and self.num_tokens > self.prompt_tokens)
    complete = property(lambda self: len(self.output_ids) + self.in_flight >= self.max_tokens)


def make(*requests, pages=100, slots=9, budget=8):
    scheduler = Scheduler(Memory(pages, slots), pace=Pace(budget), max_draft_tokens=6)
    for request in requests:
        scheduler.add(request)
    return scheduler


def step(scheduler):
    """Schedule, and do as if everything was computed. -> {name: tokens fed}."""
    works = scheduler.schedule()
    for work in works:
        assert work.start == work.request.num_cached
        work.request.num_cached += work.count - len(work.draft)
        if work.samples:
            work.request.output_ids.append(1)
    return {work.request.name: work.count for work in works}


def test_prompts_are_cut_to_the_budget_beside_those_who_decode():
    scheduler = make(Request("a", 3), Request("b", 12))
    assert step(scheduler) == {"a": 3, "b": 5}
    assert step(scheduler) == {"a": 1, "b": 7}
    assert step(scheduler) == {"a": 1, "b": 1}


def test_a_prompt_moves_even_beside_more_decoders_than_the_budget():
    scheduler = make(*(Request(f"a{n}", 1) for n in range(9)), slots=10)
    while len(scheduler.running) < 9:
        step(scheduler)
    scheduler.add(Request("b", 2))
    assert step(scheduler)["b"] == 1


def test_chunks_end_where_a_checkpoint_is_due():
    request = Request("a", 7)
    scheduler = make(request)
    scheduler.memory.admit(request)
    scheduler.memory.preempt(request)
    request.cuts = [5]
    works = scheduler.schedule()
    assert [(w.count, w.samples, w.checkpoint) for w in works] == [(5, False, True)]
    request.num_cached = 5
    assert [(w.count, w.samples, w.checkpoint) for w in scheduler.schedule()] == [(2, True, True)]


def test_who_is_served_last_waits_when_answers_outgrow_the_memory():
    a, b = Request("a", 4), Request("b", 4)
    scheduler = make(a, b, pages=4)
    for _ in range(12):
        step(scheduler)
        assert not (b.slot is not None and a.slot is None)
    assert scheduler.preemptions == 1 and b in scheduler.waiting and len(a.output_ids) > len(b.output_ids) >= 4
    scheduler.remove(a)
    scheduler.memory.preempt(a)
    said = len(b.output_ids)
    assert step(scheduler) == {"b": 8}  # what it had is computed again, by the budget
    while len(b.output_ids) == said:
        step(scheduler)
    assert len(b.output_ids) == said + 1


def test_a_higher_priority_goes_first_and_pushes_out():
    low, high = Request("a", 8, priority=1), Request("b", 8)
    scheduler = make(low, pages=3)
    assert step(scheduler) == {"a": 8}
    scheduler.add(high)
    assert step(scheduler) == {"b": 8} and scheduler.waiting == [low]
    assert make(Request("a", 2, priority=1), Request("b", 2), budget=2).schedule()[0].request.name == "b"


def test_who_would_not_fit_beside_its_equals_pushes_nobody_out():
    equal, low = Request("a", 8), Request("b", 4, priority=1)
    scheduler = make(equal, low, pages=5, budget=12)
    step(scheduler)
    scheduler.add(Request("c", 13))  # 4 pages, of which 3 are not a's
    assert step(scheduler) == {"a": 1, "b": 1} and scheduler.preemptions == 0
    scheduler.remove(equal)
    scheduler.memory.preempt(equal)
    assert step(scheduler) == {"c": 12} and scheduler.preemptions == 1  # now it is b that is in its way


def test_a_limit_of_those_who_run_is_a_reason_to_push_out():
    scheduler = make(Request("a", 4), Request("b", 4, priority=1), budget=12)
    step(scheduler)
    scheduler.pace.max_running = 2
    scheduler.add(Request("c", 5))
    assert step(scheduler) == {"a": 1, "c": 5}
    scheduler.add(Request("d", 5))
    assert step(scheduler) == {"a": 1, "c": 1} and scheduler.preemptions == 1


def test_as_few_as_will_do_are_pushed_out_the_last_first():
    low = [Request(f"a{n}", 3, priority=1 + n // 2) for n in range(4)]
    scheduler = make(*low, pages=8, budget=16)
    step(scheduler)
    scheduler.add(Request("b", 21))  # 6 pages, of which 4 are free
    step(scheduler)
    assert [request.name for request in scheduler.running] == ["b", "a0", "a1"] and scheduler.preemptions == 2


def test_nobody_overtakes_who_waits_for_room():
    scheduler = make(Request("a", 8), Request("b", 9), Request("c", 1), pages=3)
    step(scheduler)
    assert [request.name for request in scheduler.waiting] == ["b", "c"]
    step(scheduler)
    assert [request.name for request in scheduler.waiting] == ["b", "c"]


def test_drafts_share_a_budget_and_wait_for_prompts():
    lookup = SimpleNamespace(propose=lambda limit: [7] * min(limit, 3), hot=True)
    scheduler = make(Request("a", 1, lookup=lookup), Request("b", 1, lookup=lookup))
    step(scheduler)
    assert [work.draft for work in scheduler.schedule()] == [(7, 7, 7), (7,)]
    scheduler.max_draft_tokens = 5  # not enough for two guesses each
    assert all(not work.draft for work in scheduler.schedule())
    scheduler.max_draft_tokens = 6
    scheduler.add(Request("c", 1))
    assert all(not work.draft for work in scheduler.schedule())


def test_one_under_suspicion_runs_alone():
    a, b = Request("a", 2), Request("b", 2)
    scheduler = make(a, b)
    step(scheduler)
    for request in (a, b):
        request.suspect = True
        scheduler.preempt(request)
    assert step(scheduler) == {"a": 3}
    a.suspect = False
    assert step(scheduler) == {"b": 3}
