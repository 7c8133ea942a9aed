"""One request on its way through the engine: what was asked, what is cached, what has been said."""

import itertools
import time
from bisect import bisect_left
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from torch import Tensor

from mmvl.engine.sampler import SamplerState
from mmvl.engine.sampling_params import SamplingParams
from mmvl.engine.text_stream import TextStream
from mmvl.processor import Prompt

FinishReason = Literal["stop", "length", "abort", "error"]
_numbers = itertools.count()


@dataclass(eq=False)
class Request:
    """A prompt with its sampling settings. Made by `Engine.submit`; the engine alone changes it.

    finish_reason: None while it runs; "stop" (end of the turn, a stop token or a stop string), "length" (max_tokens, or
        the end of the context), "abort", or "error", whose reason is `error`.
    text: the answer so far, without what is held back.
    priority: lower runs earlier; among equals, who came first.
    """

    prompt: Prompt
    params: SamplingParams
    max_tokens: int  # of the params, clipped to the context
    image_token_id: int
    text_stream: TextStream
    end_ids: frozenset[int] = frozenset()
    priority: int = 0
    number: int = field(default_factory=lambda: next(_numbers))
    finish_reason: FinishReason | None = None
    error: Exception | None = None
    text: str = ""
    output_ids: list[int] = field(default_factory=list)

    # Held while it runs: its cache slot, how much of the prompt is in the cache, its image tokens (I, D).
    slot: int | None = None
    num_cached: int = 0
    image_ID: Tensor | None = None
    cached_tokens: int = 0  # of the prompt, that were in the prefix cache

    # time.perf_counter() when it came, at admission, at the first token and at the end.
    submitted: float = field(default_factory=time.perf_counter)
    started: float | None = None
    first_token: float | None = None
    finished: float | None = None

    def __post_init__(self):
        self.sampler_state = SamplerState(self.params, self.prompt.token_ids, self.end_ids)
        self.image_positions = [i for i, token in enumerate(self.prompt.token_ids) if token == self.image_token_id]

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
    def cache_tokens(self) -> int:
        """Most tokens it can ever have in the cache: its last token is never fed back."""
        return self.prompt_tokens + self.max_tokens - 1

    @property
    def prefilled(self) -> bool:
        return self.num_cached >= self.prompt_tokens

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

    def next_ids(self, budget: int) -> list[int]:
        """The tokens to feed next: a chunk of the prompt, at most `budget` long, or the last token sampled."""
        if self.prefilled:
            return self.output_ids[-1:]
        return self.prompt.token_ids[self.num_cached : self.num_cached + budget]

    def image_rows(self, length: int) -> tuple[range, list[int]]:
        """Of the next `length` tokens: which rows of `image_ID` they need, and where in the chunk these go."""
        start, stop = self.num_cached, self.num_cached + length
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
