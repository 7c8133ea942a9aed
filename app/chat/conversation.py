"""One visitor's conversation: a tree of turns, of which the page shows one path from the root to a leaf.

A turn is a question with its files, and the answer to it. Asking anew, or asking something else in an earlier turn's
place, makes a sibling: nothing is lost, and the page can go back to it.
"""

import asyncio
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from mmvl.vlm import Answer


def new_id() -> str:
    return uuid.uuid4().hex


@dataclass(frozen=True)
class Attachment:
    """A file of a question. path: where the server keeps it; name: what its owner calls it.

    digest: SHA-256 (hex) of its contents. pages: of a PDF, which ones are read, counted from 1; () is a picture.
    """

    path: str
    name: str
    digest: str
    pages: tuple[int, ...] = ()


@dataclass
class Turn:
    """parent: id of the turn before, None at the root. numbers: what the answer took, once it has ended.

    error: why there is no answer; such a turn is shown, but not read by the model.
    """

    question: str
    files: tuple[Attachment, ...] = ()
    parent: str | None = None
    answer: str = ""
    numbers: Answer | None = None
    error: str = ""
    id: str = field(default_factory=new_id)

    @property
    def is_read(self) -> bool:
        """Whether what follows it may build on it."""
        return bool(self.answer) and not self.error


@dataclass
class Conversation:
    """turns: all of them by id, parents before children. head: id of the last turn that is shown.

    editing: id of the turn whose place the next question takes. answering: what ends the answer that is being written.
    """

    id: str = field(default_factory=new_id)
    created: float = field(default_factory=time.time)
    system: str = ""
    turns: dict[str, Turn] = field(default_factory=dict)
    head: str | None = None
    editing: str | None = None
    answering: asyncio.Event | None = None
    _visited: dict[str | None, str] = field(default_factory=dict)  # parent -> the child that was shown last

    @property
    def busy(self) -> bool:
        return self.answering is not None

    @property
    def title(self) -> str:
        """The first question, or its files if it says little; at most 60 characters."""
        first = next(iter(self.path()), None)
        if first is None:
            return "Empty"
        text = " ".join(first.question.split()) or ", ".join(file.name for file in first.files)
        return text if len(text) <= 60 else f"{text[:59]}…"

    def path(self, last: str | None = None) -> list[Turn]:
        """The turns from the root to `last`, by default to the head."""
        turns, at = [], last or self.head
        while at is not None:
            turns.append(self.turns[at])
            at = self.turns[at].parent
        return turns[::-1]

    def siblings(self, turn: Turn) -> list[Turn]:
        """The turns that stand in one place, `turn` among them, oldest first."""
        return [other for other in self.turns.values() if other.parent == turn.parent]

    def ask(self, question: str, files: Sequence[Attachment] = ()) -> Turn:
        """A new turn at the end; or, while one is edited, beside that one. It becomes the head."""
        parent = self.turns[self.editing].parent if self.editing else self.head
        self.editing = None
        return self._add(Turn(question, tuple(files), parent))

    def again(self, turn_id: str) -> Turn:
        """A new turn with the question and files of another, beside it. It becomes the head."""
        old = self.turns[turn_id]
        return self._add(Turn(old.question, old.files, old.parent))

    def _add(self, turn: Turn) -> Turn:
        self.turns[turn.id] = turn
        self.show(turn.id)
        return turn

    def show(self, turn_id: str) -> None:
        """Shows the path through a turn, down to the leaf that was shown last below it."""
        for turn in self.path(turn_id):
            self._visited[turn.parent] = turn.id
        self.head = turn_id
        while children := [turn.id for turn in self.turns.values() if turn.parent == self.head]:
            self.head = self._visited.get(self.head, children[-1])

    def read(self, turn: Turn) -> list[Turn]:
        """The turns that the model reads to answer `turn`, which is the last of them."""
        return [other for other in self.path(turn.id) if other is turn or other.is_read]

    def messages(self, turn: Turn, pictures: Callable[[Attachment], Sequence]) -> list[dict]:
        """What the model reads to answer `turn`. pictures: an attachment -> its pictures, for the processor."""
        messages = [{"role": "system", "content": self.system}] if self.system.strip() else []
        for other in self.read(turn):
            parts = [{"type": "image", "image": picture} for file in other.files for picture in pictures(file)]
            messages.append({"role": "user", "content": [*parts, {"type": "text", "text": other.question}]})
            if other is not turn:
                messages.append({"role": "assistant", "content": [{"type": "text", "text": other.answer}]})
        return messages

    def stop(self) -> None:
        """Ends the answer that is being written, if there is one."""
        if self.answering is not None:
            self.answering.set()
