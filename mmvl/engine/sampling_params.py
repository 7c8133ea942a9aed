"""How one request wants its tokens chosen and when it wants to stop: a checked, immutable record."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Protocol

from torch import Tensor

MAX_LOGPROBS = 20


class LogitMask(Protocol):
    """What constrains an answer (to a grammar, say). One object serves one request."""

    def next_mask(self, token_ids: Sequence[int]) -> Tensor | None:
        """Boolean (V,) on the CPU, V at least the tokenizer's: which ids may follow the answer so far; None: any."""


@dataclass(frozen=True)
class SamplingParams:
    """Settings of one request; wrong values raise `ValueError` in one line.

    max_tokens: most tokens to generate; clipped to what is left of the context after the prompt.
    temperature: 0 is greedy (the default); else logits are divided by it.
    top_k: only the k most likely tokens are drawn from; 0 is off.
    top_p: only the smallest set of tokens whose probability reaches p; 1 is off.
    min_p: only tokens at least min_p times as likely as the likeliest; 0 is off.
    repetition_penalty: logits of tokens in the prompt or the answer are divided (if positive) or multiplied
        (if negative) by it, as in CTRL (arXiv 1909.05858, section 4.1); 1 is off.
    presence_penalty, frequency_penalty: what is subtracted from the logits of tokens in the answer, once, and for every
        time that they occur in it; 0 is off.
    seed: of the request's own random numbers; None draws a fresh one. A request with a seed draws the same
        tokens alone or beside others.
    stop: strings that end the answer; the string itself is not part of the answer. A single string is a list of one.
    stop_token_ids: ids that end the answer, as the model's own end token does; they are no part of its text.
    ignore_eos: the model's own end token does not end the answer.
    min_tokens: the end token and `stop_token_ids` cannot come before so many tokens.
    logprobs: with every token its log probability and those of the so many likeliest (0 to 20) ones; None is off. They
        are the model's own, before penalties, masks and temperature.
    logit_mask: constrains the answer, token by token (see `LogitMask`); None is off.
    """

    max_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    min_tokens: int = 0
    logprobs: int | None = None
    logit_mask: LogitMask | None = None

    def __post_init__(self):
        for name in ("stop", "stop_token_ids"):  # a single one is a list of one
            several = getattr(self, name) or ()
            several = tuple(several) if isinstance(several, list | tuple | set) else (several,)
            object.__setattr__(self, name, several)
        checks = {
            "max_tokens": (_is_int(self.max_tokens) and self.max_tokens >= 1, "a whole number, at least 1"),
            "temperature": (_is_real(self.temperature) and 0 <= self.temperature < float("inf"), "0 or more"),
            "top_p": (_is_real(self.top_p) and 0 < self.top_p <= 1, "above 0 and at most 1"),
            "top_k": (_is_int(self.top_k) and self.top_k >= 0, "a whole number, 0 (off) or more"),
            "min_p": (_is_real(self.min_p) and 0 <= self.min_p <= 1, "between 0 (off) and 1"),
            "repetition_penalty": (
                _is_real(self.repetition_penalty) and 0 < self.repetition_penalty < float("inf"),
                "above 0 (1 is off)",
            ),
            "seed": (
                self.seed is None or (_is_int(self.seed) and 0 <= self.seed < 2**63),
                "a whole number from 0 to 2**63 - 1, or None",
            ),
            "stop": (all(isinstance(text, str) and text for text in self.stop), "a list of strings that are not empty"),
            "presence_penalty": (_is_finite(self.presence_penalty), "a finite number (0 is off)"),
            "frequency_penalty": (_is_finite(self.frequency_penalty), "a finite number (0 is off)"),
            "stop_token_ids": (all(_is_int(i) and i >= 0 for i in self.stop_token_ids), "a list of token ids"),
            "ignore_eos": (isinstance(self.ignore_eos, bool), "true or false"),
            "min_tokens": (_is_int(self.min_tokens) and self.min_tokens >= 0, "a whole number, 0 (off) or more"),
            "logprobs": (
                self.logprobs is None or (_is_int(self.logprobs) and 0 <= self.logprobs <= MAX_LOGPROBS),
                f"a whole number from 0 to {MAX_LOGPROBS}, or None",
            ),
            "logit_mask": (
                self.logit_mask is None or hasattr(self.logit_mask, "next_mask"),
                "an object with a method next_mask, or None",
            ),
        }
        for name, (good, expected) in checks.items():
            if not good:
                raise ValueError(f"{name} must be {expected}, got {getattr(self, name)!r}")

    @property
    def penalised(self) -> bool:
        """Whether the tokens so far change the logits."""
        return bool(self.repetition_penalty != 1.0 or self.presence_penalty or self.frequency_penalty)

    @classmethod
    def from_kwargs(cls, **settings) -> "SamplingParams":
        """Build from keyword arguments; an unknown name is a `ValueError` that lists the known ones."""
        known = [field.name for field in fields(cls)]
        for name in settings:
            if name not in known:
                raise ValueError(f"unknown sampling setting {name!r}; known are: {', '.join(known)}")
        return cls(**settings)


def _is_int(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_finite(value) -> bool:
    return _is_real(value) and abs(value) < float("inf")


def _is_real(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
