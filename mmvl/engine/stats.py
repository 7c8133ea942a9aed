"""What an engine has done and is doing, as numbers to show or to scrape."""

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType


@dataclass(frozen=True)
class Stats:
    """One look at an engine. Totals count from its start; `last_step_time` is `time.monotonic()` after its last step.

    prefix_hit_tokens of prefix_query_tokens prompt tokens were found in the prefix cache. KV pages and state slots that
    hold only cached prefixes, which anything that needs room may take, count as free; `kv_pages_most` and
    `state_slots_most` are the most that requests have held at the same time.
    """

    running: int
    waiting: int
    kv_pages_used: int
    kv_pages: int
    state_slots_used: int
    state_slots: int
    prefix_hit_tokens: int
    prefix_query_tokens: int
    prompt_tokens_total: int
    generation_tokens_total: int
    draft_tokens_total: int
    draft_tokens_accepted: int
    preemptions_total: int
    kv_pages_most: int
    state_slots_most: int
    finished_total: Mapping[str, int]
    last_step_time: float


@dataclass
class Counters:
    """The totals, as the engine counts them."""

    prefix_hit_tokens: int = 0
    prefix_query_tokens: int = 0
    prompt_tokens_total: int = 0
    generation_tokens_total: int = 0
    draft_tokens_total: int = 0
    draft_tokens_accepted: int = 0
    preemptions_total: int = 0
    kv_pages_most: int = 0
    state_slots_most: int = 0
    finished_total: Counter = field(default_factory=Counter)
    last_step_time: float = field(default_factory=time.monotonic)

    def held(self, pages: int, slots: int) -> None:
        """Requests hold so many now."""
        self.kv_pages_most = max(self.kv_pages_most, pages)
        self.state_slots_most = max(self.state_slots_most, slots)

    def reset(self) -> None:
        """Count from now on."""
        vars(self).update(vars(Counters()))

    def look(self, **now: int) -> Stats:
        """These totals with what holds `now`."""
        totals = vars(self) | {"finished_total": MappingProxyType(dict(self.finished_total))}
        return Stats(**now, **totals)
