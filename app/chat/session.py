"""One visitor's page, as the server remembers it."""

import asyncio
from dataclasses import dataclass, field

from mmvl.app.chat.conversation import Conversation
from mmvl.app.chat.picker import Pdf


@dataclass
class Session:
    """pdfs: those in the box, by their path. drawn: set once an answer's last update was sent."""

    _talk: Conversation | None = None
    pdfs: dict[str, Pdf] = field(default_factory=dict)
    drawn: asyncio.Event | None = None

    @property
    def talk(self) -> Conversation:
        if self._talk is None:  # not before: sessions begin as copies of one object, and ids must differ
            self._talk = Conversation()
        return self._talk

    @talk.setter
    def talk(self, talk: Conversation) -> None:
        self._talk = talk
