"""One request on its way through the engine: what was asked, how far it is, what has been said."""

import itertools
import time
from bisect import bisect_left
from dataclasses import dataclass, field
from numbers import Integral
from typing import Literal, NamedTuple

from torch import Tensor

from mmvl.engine.draft import PromptLookup
from mmvl.engine.prefix_keys import PrefixKeys
from mmvl.engine.sampler import SamplerState
from mmvl.engine.sampling_params import SamplingParams
from mmvl.engine.text_stream import TextStream
from mmvl.processor import Prompt

FinishReason = Literal["stop", "length", "abort", "error"]
_numbers = itertools.count()


def check_priority(priority: object) -> None:
    """Raises ValueError for what cannot be compared with the priorities of other requests."""
    if not isinstance(priority, Integral) or isinstance(priority, bool):
        raise ValueError(f"priority must be a whole number (lower ones run earlier), got {priority!r}")


@dataclass(eq=False)
class Request:
    """A prompt with its sampling settings. Made by `Engine.prepare`; the engine alone changes it.

    finish_reason: None while it runs; "stop" (end of the turn, a stop token or a stop string), "length" (max_tokens, or
        the end of the context), "abort", or "error", whose reason is `error`.
    text: the answer so far, without what is held back.
    priority: lower runs earlier; among equals, who came first.
    cached_tokens: of the prompt, that were found in the prefix cache.
    """

    prompt: Prompt
    params: SamplingParams
    max_tokens: int  # of the params, clipped to the context
    image_token_id: int
    text_stream: TextStream
    keys: PrefixKeys
    end_ids: frozenset[int] = frozenset()
    priority: int = 0
    lookup: PromptLookup | None = None  # makes drafts
    number: int = field(default_factory=lambda: next(_numbers))
    finish_reason: FinishReason | None = None
    error: Exception | None = None
    text: str = ""
    output_ids: list[int] = field(default_factory=list)
    cached_tokens: int = 0

    # The scheduler's: cache slot, tokens in the cache, sampled tokens that the host has not seen yet, where chunks of
    # the prompt must end because a checkpoint is due, the last checkpoint's place in it.
    slot: int | None = None
    num_cached: int = 0
    in_flight: int = 0
    cuts: list[int] = field(default_factory=list)
    last_checkpoint: int = 0
    mask_V: Tensor | None = None  # which ids may come next, if the answer is constrained
    swapped: bool = False  # it waits, and its cache is in the host's memory
    suspect: bool = False  # it took part in a step that ran out of memory, and runs alone until it is cleared

    # time.perf_counter() when it came, at admission, at the first token and at the end.
    submitted: float = field(default_factory=time.perf_counter)
    started: float | None = None
    first_token: float | None = None
    finished: float | None = None

    def __post_init__(self):
        self.sampler_state = SamplerState(self.params, self.prompt.token_ids, self.end_ids)
        self.image_positions = [i for i, token in enumerate(self.prompt.token_ids) if token == self.image_token_id]
        self.image_ends = list(itertools.accumulate(image.num_tokens for image in self.prompt.images))

    @property
    def rank(self) -> tuple[int, int]:
        """Who is served first: the smallest."""
        return self.priority, self.number

    @property
    def prompt_tokens(self) -> int:
        return len(self.prompt.token_ids)

    @property
    def image_tokens(self) -> int:
        return len(self.image_positions)

    @property
    def completion_tokens(self) -> int:
        """Tokens of the answer, the end token included."""
        return len(self.output_ids)

    @property
    def num_tokens(self) -> int:
        """Tokens of prompt and answer, those that the host has not seen yet included."""
        return len(self.prompt.token_ids) + len(self.output_ids) + self.in_flight

    @property
    def num_missing(self) -> int:
        """How many of them are not in the cache; 1 when it decodes."""
        return self.num_tokens - self.num_cached

    @property
    def decodes(self) -> bool:
        tokens = self.num_tokens
        return tokens - self.num_cached == 1 and tokens > len(self.prompt.token_ids)

    @property
    def waits_for_host(self) -> bool:
        """Whether the host has to see the tokens so far before the next one can be sampled."""
        return self.in_flight > 0 and (self.params.logit_mask is not None)

    @property
    def complete(self) -> bool:
        """Whether it will end by its length once the host has seen what is in flight."""
        return len(self.output_ids) + self.in_flight >= self.max_tokens

    @property
    def queued_seconds(self) -> float:
        """From when it came to its admission."""
        return (self.started or self.finished or time.perf_counter()) - self.submitted

    @property
    def prefill_seconds(self) -> float:
        """From admission to the first token: image encoder and prompt, without the wait for a slot."""
        return (self.first_token or self.finished or self.started or 0.0) - (self.started or 0.0)

    @property
    def decode_seconds(self) -> float:
        """From the first token to the last."""
        if self.first_token is None:
            return 0.0
        return (self.finished or time.perf_counter()) - self.first_token

    def ids(self, start: int, stop: int) -> list[int]:
        """Tokens of prompt and answer that the host has seen."""
        prompt = self.prompt.token_ids
        if stop <= len(prompt):
            return prompt[start:stop]
        return prompt[start:] + self.output_ids[max(start - len(prompt), 0) : stop - len(prompt)]

    def image_rows(self, start: int, stop: int) -> tuple[range, list[int]]:
        """Of tokens `start` to `stop`: which of its image tokens they are, and where in the chunk these go."""
        if not self.image_positions or start > self.image_positions[-1]:
            return range(0), []
        first, last = bisect_left(self.image_positions, start), bisect_left(self.image_positions, stop)
        return range(first, last), [position - start for position in self.image_positions[first:last]]


class TokenLogprob(NamedTuple):
    """Natural log probability of a token, and (id, log probability) of the likeliest, best first."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Update:
    """What a step did for one request: new text (maybe empty) and the tokens that came, the end token among them.

    logprobs: one a token, if the request asked; else None. error: why it ended, if it failed.
    """

    request: Request
    delta: str
    finished: bool
    error: Exception | None = None
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] | None = None
