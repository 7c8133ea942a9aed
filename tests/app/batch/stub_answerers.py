"""Answerers for processes of their own, which import this file by its name; no model, and trouble on demand."""

import os
import signal
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Stub:
    """Opens an answerer that says its own number; an item called "deadly" kills its process, "once" only once.

    trouble: "exit" or "raise" while it opens, "raise later" or "broken once" over an item. folder: where it notes what
    has happened.
    """

    number: int
    folder: str
    trouble: str = ""

    def __call__(self) -> "Stub":
        if self.trouble == "exit":
            os._exit(5)
        if self.trouble == "raise":
            raise FileNotFoundError("no model directory here")
        Path(self.folder, f"opened-{self.number}-{os.getpid()}").touch()
        return self

    open = __call__  # as `Answering` is opened
    capacity = 10

    def answer(self, items, keep) -> None:
        waiting = []
        for item in items:  # like an engine it takes some before it answers the first
            waiting.append(item)
            if len(waiting) == self.capacity:
                self._answer(waiting.pop(0), keep)
        for item in waiting:
            self._answer(item, keep)

    def _answer(self, item, keep) -> None:
        once = Path(self.folder, "once")
        if item.id == "deadly" or item.id == "once" and not once.exists():
            once.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if self.trouble == "broken once" and not once.exists():
            from mmvl.engine.broken import EngineBroken  # it brings torch

            once.touch()
            raise EngineBroken("the engine is broken until the process is started anew")
        if self.trouble == "raise later":
            raise KeyError("a defect")
        numbers = {"prompt_tokens": 1, "image_tokens": 1, "completion_tokens": 1}
        keep(item, {"text": f"{self.number} {'x' * len(item.id) * 2000}", "finish_reason": "stop"} | numbers)
