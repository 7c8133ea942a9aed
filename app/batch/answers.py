"""The one who answers: a model in this process, fed with opened pictures a little ahead of the engine."""

import functools
import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from mmvl.app.batch.items import Item
from mmvl.app.errors import one_line

Keep = Callable[[Item, dict], None]
"""Takes an item and its result: {"text", "finish_reason", "prompt_tokens", "image_tokens", "completion_tokens"}, or
{"error"}; of an OpenAI request {"status", "body"}."""

_THREADS = 4  # that open pictures; decoding leaves Python's lock


@dataclass(frozen=True)
class Answering:
    """How to open the model and ask it; picklable, for processes elsewhere. sampling: fields of `SamplingParams`."""

    model: Path | None
    device: str | None
    name: str
    system: str
    sampling: dict
    quantize: str | None = None
    max_sequences: int = 32
    dtype: str | None = None

    def open(self) -> "ModelAnswerer":
        """Raises what `mmvl.VLM` raises."""
        from mmvl import VLM

        how = {"dtype": self.dtype, "quantize": self.quantize, "max_sequences": self.max_sequences}
        return ModelAnswerer(VLM(self.model, device=self.device, **how), self)


class ModelAnswerer:
    """Answers items with one engine. `capacity`: how many items it takes at most before it has answered the first."""

    def __init__(self, vlm, how: Answering):
        self._vlm, self._how = vlm, how
        self._threads = min(_THREADS, os.cpu_count() or 1)
        self.capacity = 2 * vlm.engine.max_sequences + 2 * self._threads

    def answer(self, items: Iterable[Item], keep: Keep) -> None:
        """Calls keep(item, result) once for every item, on this thread, in the order in which they are done."""
        in_flight: dict[int, Item] = {}
        asked = self._asked(items, in_flight, keep)
        for index, answer in self._vlm.batch(asked, **self._how.sampling):
            self._keep(keep, in_flight.pop(index), answer)

    def _asked(self, items: Iterable[Item], in_flight: dict[int, Item], keep: Keep) -> Iterator:
        """What `VLM.batch` takes, one after the other; what cannot be opened is kept as a failure at once."""
        number = itertools.count()
        for item, opened in self._ahead(items):
            try:
                conversation = opened()
            except Exception as error:  # whatever a hostile file does to the libraries, it is this item's failure
                self._keep(keep, item, error)
            else:
                if isinstance(conversation, dict):  # a request that was refused
                    keep(item, conversation)
                else:
                    in_flight[next(number)] = item
                    yield conversation

    def _ahead(self, items: Iterable[Item]) -> Iterator[tuple[Item, Callable]]:
        """Items with a function that waits for what `_open` makes of them; some are being opened while one is used."""
        waiting: deque = deque()
        with ThreadPoolExecutor(self._threads, "mmvl-open") as pool:
            for item in items:
                waiting.append((item, pool.submit(self._open, item).result))
                if len(waiting) >= 2 * self._threads:
                    yield waiting.popleft()
            while waiting:
                yield waiting.popleft()

    def _open(self, item: Item):
        if item.chat is not None:
            return self._chats.open(item.chat)
        pages = [page for picture in item.pictures for page in picture.open()]
        parts = [{"type": "image", "image": page.image} for page in pages]
        messages = [{"role": "user", "content": [*parts, {"type": "text", "text": item.prompt}]}]
        return [{"role": "system", "content": self._how.system}, *messages] if self._how.system else messages

    def _keep(self, keep: Keep, item: Item, answer) -> None:
        """Keep a `mmvl.vlm.Answer`, or the exception that came instead of one."""
        if item.chat is not None:
            keep(item, self._chats.result(answer))
        elif isinstance(answer, Exception):
            keep(item, {"error": one_line(answer)})
        else:
            names = ("text", "finish_reason", "prompt_tokens", "image_tokens", "completion_tokens")
            keep(item, {name: getattr(answer, name) for name in names})

    @functools.cached_property
    def _chats(self):
        from mmvl.app.batch.requests import ChatRequests  # whose imports are not for everyone

        return ChatRequests(self._vlm.processor, self._how.name)
