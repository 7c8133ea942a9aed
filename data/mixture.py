"""Mixing sources by token deficit: the next sample comes from the source furthest behind its share of tokens.

Deterministic, exact in the limit, and resumable from counters alone: no random draws (those are never exact), no
replacement (every sample of a source is seen once before any is seen twice), no shuffle buffer to save.
Weights are shares of *tokens*, not of samples: one long document and fifty short questions count alike.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmvl.data.order import Permutation


class LeftOut(ValueError):
    """Raised by an encode for a sample that is meant to be left out: neither counted nor taken for damage."""


@dataclass(frozen=True)
class Draw:
    """One encoded sample as the mixture hands it out. `ref` = (source, visit number): enough to fetch it again."""

    ref: tuple[str, int]
    item: Any
    num_tokens: int
    num_tiles: int

    @property
    def source(self) -> str:
        return self.ref[0]


class Mixture:
    """Infinite iterator of `Draw` over several sources.

    sources: name -> anything with `len()` and `[index]` (a `ShardSource`, or a list).
    weights: name -> positive share of tokens; they need not sum to one.
    weights_before, transition: over the first `transition` tokens of this iterator the shares go linearly from
        weights_before to weights. A source may have weight 0 at one end: it fades in or out.
    encode: turns a sample into an item; its `num_tokens` and (if it has one) `num_tiles` are what is counted. An encode
        or a read that raises ValueError skips that sample, counted in `skipped[source]`, last reasons in `problems`.
    part: (index, count): this iterator visits every count-th sample of each source, from index on. Fix `count`
        (virtual workers) for a run; processes may then share the parts out in any way without changing the data.
    max_bad_in_row: that many unusable samples one after the other in a source stop the run with ValueError.
    """

    def __init__(
        self,
        sources: Mapping[str, Sequence],
        weights: Mapping[str, float],
        seed: int = 0,
        *,
        encode: Callable[[Any], Any] = lambda sample: sample,
        part: tuple[int, int] = (0, 1),
        max_bad_in_row: int = 100,
        weights_before: Mapping[str, float] | None = None,
        transition: float = 0,
    ):
        if set(sources) != set(weights):
            odd = sorted(set(sources) ^ set(weights))
            raise ValueError(f"mixture: every source needs a weight and every weight a source; unmatched: {odd}")
        if not sources:
            raise ValueError("mixture: no sources given")
        for name, weight in weights.items():
            if not weight > 0 and not (transition and weight == 0 and weights_before and weights_before[name] > 0):
                raise ValueError(f"mixture: weight of '{name}' is {weight}; leave a source out instead of giving it 0")
        index, count = part
        if not 0 <= index < count:
            raise ValueError(f"mixture: part {part} is not (index, count) with 0 <= index < count")
        self.sources, self.seed, self.encode, self.part = sources, seed, encode, part
        self.max_bad_in_row = max_bad_in_row
        total = sum(weights.values())
        # Sorted, so that a recipe with its sources in another order gives the same data.
        self.weights = {name: weights[name] / total for name in sorted(weights)}
        self.transition = transition
        before = dict(weights_before or weights)
        if set(before) != set(weights) or not sum(before.values()) > 0 or min(before.values()) < 0 or transition < 0:
            raise ValueError(f"mixture: weights_before must be a weight of 0 or more for every source, got {before}")
        self.before = {name: before[name] / sum(before.values()) for name in self.weights}
        self.visits = dict.fromkeys(self.weights, 0)
        self.tokens: Counter[str] = Counter()
        self.skipped: Counter[str] = Counter()
        self.problems: list[str] = []
        self._orders: dict[str, tuple[int, Permutation]] = {}

    def __iter__(self) -> Iterator[Draw]:
        while True:
            yield self.draw()

    def next_source(self) -> str:
        """Name of the source whose tokens so far are the smallest multiple of its weight; ties go by name."""
        weights = self.mean_weights() if self.transition else self.weights
        wanted = [name for name in weights if weights[name] > 0]
        return min(wanted, key=lambda name: self.tokens[name] / weights[name])

    def mean_weights(self) -> dict[str, float]:
        """The share that each source should have of all tokens so far: the mean of its share over them.

        With the share going from b to w over R tokens, the mean over the first t is b + (w - b) t / 2R for t <= R,
        and w - (w - b) R / 2t after that: so what was drawn follows the moving share, and is never made up for.
        """
        t, span = sum(self.tokens.values()), self.transition
        gone = t / (2 * span) if t <= span else 1 - span / (2 * t)
        return {name: self.before[name] + (w - self.before[name]) * gone for name, w in self.weights.items()}

    def draw(self) -> Draw:
        """The next sample of the neediest source."""
        name = self.next_source()
        reason, bad, left_out = "", 0, 0
        while bad < self.max_bad_in_row:
            ref = (name, self.visits[name])
            self.visits[name] += 1
            try:
                draw = self.fetch(ref)
            except LeftOut:
                left_out += 1
                if left_out > len(self.sources[name]):
                    raise ValueError(f"source '{name}': every sample is left out") from None
                continue
            except ValueError as error:
                bad += 1
                reason = str(error)
                self.skipped[name] += 1
                self.problems = [*self.problems[-9:], f"{name}: {reason}"]
                continue
            self.tokens[name] += draw.num_tokens
            return draw
        raise ValueError(f"source '{name}': {self.max_bad_in_row} unusable samples in a row, the last: {reason}")

    def fetch(self, ref: tuple[str, int]) -> Draw:
        """The sample behind a ref, read and encoded again without being counted (used to refill a packer)."""
        name, visit = ref
        item = self.encode(self.sources[name][self.index_of(name, visit)])
        num_tokens = int(item.num_tokens)
        if num_tokens < 1:
            raise ValueError("the encoded sample has no tokens")
        return Draw((name, visit), item, num_tokens, int(getattr(item, "num_tiles", 0)))

    def index_of(self, name: str, visit: int) -> int:
        """Index in the source of this part's visit number `visit`."""
        part, parts = self.part
        size = len(self.sources[name])
        epoch, position = divmod(part + visit * parts, size) if size else (0, 0)
        cached = self._orders.get(name)
        if cached is None or cached[0] != epoch:
            cached = self._orders[name] = (epoch, Permutation(size, self.seed, name, epoch))
        return cached[1][position]

    def state_dict(self) -> dict:
        """JSON-able. Holds the sizes too, so that resuming on changed data is refused, not silently different."""
        return {
            "seed": self.seed,
            "part": list(self.part),
            "sizes": {name: len(self.sources[name]) for name in self.weights},
            "visits": dict(self.visits),
            "tokens": dict(self.tokens),
            "skipped": dict(self.skipped),
        }

    def load_state_dict(self, state: Mapping) -> None:
        """Continue exactly where `state` was taken. ValueError if seed, part or data are not the same."""
        mine = self.state_dict()
        for field in ("seed", "part", "sizes"):
            if state[field] != mine[field]:
                raise ValueError(f"mixture: cannot resume, {field} was {state[field]} and now is {mine[field]}")
        self.visits = {name: int(state["visits"][name]) for name in self.weights}
        self.tokens = Counter(state["tokens"])
        self.skipped = Counter(state["skipped"])
