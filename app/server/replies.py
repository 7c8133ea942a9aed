"""What clients get: bodies and stream chunks of chat and text completions, usage, and log probabilities."""

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import mmvl
from mmvl.engine.request import TokenLogprob
from mmvl.engine.text_stream import TokenBytes

FINGERPRINT = f"mmvl-{mmvl.__version__}"


@dataclass
class Choice:
    """One answer as it grows. What OpenAI calls `index` is its place in a list of these."""

    text: str = ""
    finish_reason: str | None = None
    completion_tokens: int = 0
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)


@dataclass(frozen=True)
class Usage:
    """Tokens of a request. image_tokens and cached_tokens are part of prompt_tokens."""

    prompt_tokens: int
    completion_tokens: int
    image_tokens: int = 0
    cached_tokens: int = 0

    def body(self) -> dict:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {
                "cached_tokens": self.cached_tokens,
                "image_tokens": self.image_tokens,
                "text_tokens": self.prompt_tokens - self.image_tokens,
            },
        }


class Reply:
    """Shapes the answers to one request. chat: chat completions, else text completions.

    tokens: the bytes behind token ids, for log probabilities; without it these are left out.
    """

    def __init__(self, model: str, *, chat: bool, tokens: TokenBytes | None = None):
        self.chat, self._tokens = chat, tokens
        self._head = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": FINGERPRINT,
        }

    def whole(self, choices: Sequence[Choice], usage: Usage) -> dict:
        """The body of an answer that is not streamed."""
        shown = []
        for index, choice in enumerate(choices):
            said = (
                {"message": {"role": "assistant", "content": choice.text, "refusal": None}}
                if self.chat
                else {"text": choice.text}
            )
            logprobs = self._logprobs(choice.logprobs)
            shown.append({"index": index, **said, "logprobs": logprobs, "finish_reason": choice.finish_reason})
        kind = "chat.completion" if self.chat else "text_completion"
        return self._head | {"object": kind, "choices": shown, "usage": usage.body()}

    def opening(self, index: int) -> dict:
        """The chunk before the first words of a chat answer."""
        return self._chunk(index, {"delta": {"role": "assistant", "content": ""}}, None, None)

    def piece(self, index: int, delta: str, logprobs: Sequence[TokenLogprob], finish_reason: str | None) -> dict:
        """A chunk of new words; with its finish_reason the last one of its choice."""
        said: dict[str, Any] = {"text": delta}
        if self.chat:
            said = {"delta": {"content": delta} if delta or finish_reason is None else {}}
        return self._chunk(index, said, self._logprobs(logprobs), finish_reason)

    def closing(self, usage: Usage) -> dict:
        """The chunk that only tells the usage."""
        return self._head | {"object": self._chunk_kind, "choices": [], "usage": usage.body()}

    @property
    def _chunk_kind(self) -> str:
        return "chat.completion.chunk" if self.chat else "text_completion"

    def _chunk(self, index: int, said: dict, logprobs: dict | None, finish_reason: str | None) -> dict:
        choice = {"index": index, **said, "logprobs": logprobs, "finish_reason": finish_reason}
        return self._head | {"object": self._chunk_kind, "choices": [choice]}

    def _logprobs(self, logprobs: Sequence[TokenLogprob]) -> dict | None:
        if not logprobs or self._tokens is None:
            return None
        if self.chat:
            content = [
                self._named(token.token_id, token.logprob) | {"top_logprobs": [self._named(*top) for top in token.top]}
                for token in logprobs
            ]
            return {"content": content, "refusal": None}
        return {
            "tokens": [self._text(token.token_id) for token in logprobs],
            "token_logprobs": [token.logprob for token in logprobs],
            "top_logprobs": [{self._text(id): value for id, value in token.top} for token in logprobs],
        }

    def _named(self, token_id: int, logprob: float) -> dict:
        return {"token": self._text(token_id), "logprob": logprob, "bytes": list(self._tokens[token_id])}

    def _text(self, token_id: int) -> str:
        return self._tokens[token_id].decode("utf-8", errors="replace")
