"""One visitor's page, as the server remembers it."""

import asyncio
from dataclasses import dataclass, field

from mmvl.app.chat.conversation import Conversation
from mmvl.app.chat.picker import Pdf


@dataclass
class Session:
    """One visitor's chat, and what lies in the box.

    pdfs: those in the box, by their path. drawn: set once an answer's last update was sent. orders: number of the last
    event that was followed, by what it chose.
    """

    _talk: Conversation | None = None
    pdfs: dict[str, Pdf] = field(default_factory=dict)
    drawn: asyncio.Event | None = None
    orders: dict[str, int] = field(default_factory=dict)

    @property
    def talk(self) -> Conversation:
        if self._talk is None:  # not before: sessions begin as copies of one object, and ids must differ
            self._talk = Conversation()
        return self._talk

    def follows(self, chosen: str, said: dict) -> bool:
        """Whether no later event of the page has said what is `chosen`; events can come in another order."""
        order = said.get("order")
        order = order if isinstance(order, int) else 0
        if order < self.orders.get(chosen, 0):
            return False
        self.orders[chosen] = order
        return True

    @talk.setter
    def talk(self, talk: Conversation) -> None:
        self._talk = talk
