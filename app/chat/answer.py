"""Writes the answer to one turn, on the engine that the API uses, and says 15 times a second how far it is."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import ExitStack, aclosing
from dataclasses import replace

from mmvl.app.chat.attachments import Attachments, Opened, open_all
from mmvl.app.chat.conversation import Attachment, Conversation, Turn
from mmvl.app.chat.seen import SeenImage, look
from mmvl.app.errors import one_line
from mmvl.app.server.errors import ApiError
from mmvl.app.server.service import Job, Service
from mmvl.engine.request import Request
from mmvl.engine.sampling_params import SamplingParams
from mmvl.processor import Prompt
from mmvl.vlm import Answer

INTERVAL = 1 / 15  # seconds between two updates of a page

log = logging.getLogger("mmvl.chat")


class Writing:
    """The answer to `turn` while it is written. `status` says what goes on; the text itself grows in the turn."""

    def __init__(self, service: Service, attachments: Attachments, talk: Conversation, turn: Turn, sampling: dict):
        self._service, self._attachments, self._talk, self._turn = service, attachments, talk, turn
        self._sampling = sampling
        self._prompt: Prompt | None = None
        self._request: Request | None = None
        self.status = "Opening the files…" if turn.files else "Waiting for the model…"

    async def run(self) -> AsyncIterator[None]:
        """Yields about every `INTERVAL`, until the answer is there, has failed (`turn.error`) or was stopped.

        Where drawing an update takes long, fewer come: at most half of the time is spent on it. Whoever closes the
        iterator, or sets the conversation's `answering`, ends the engine's work at once.
        """
        stopped = self._talk.answering = asyncio.Event()
        loop = asyncio.get_running_loop()
        working = asyncio.create_task(self._work())
        stopping = asyncio.create_task(stopped.wait())
        next_update, drawing = loop.time(), 0.0
        try:
            while not (working.done() or stopping.done()):
                next_update = max(next_update + INTERVAL, loop.time() + drawing)
                left = next_update - loop.time()
                await asyncio.wait({working, stopping}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
                self._say()
                drawing = -loop.time()
                yield
                drawing += loop.time()
        finally:
            working.cancel()
            stopping.cancel()
            await asyncio.gather(working, stopping, return_exceptions=True)
            self._talk.answering = None
            self._end(None if working.cancelled() else working.exception())

    async def _work(self) -> None:
        service, turn = self._service, self._turn
        loop = asyncio.get_running_loop()
        arrived = loop.time()
        with ExitStack() as holds:
            holds.enter_context(service.gate.enter())
            holds.callback(lambda: service.metrics.ended(loop.time() - arrived))
            params = SamplingParams.from_kwargs(**self._sampling)
            service.metrics.asked(params.max_tokens, 1)
            held = service.tiles()
            holds.callback(held.release)
            self._prompt = await loop.run_in_executor(self._attachments.threads, self._read)
            held.take(sum(len(image.tiles_N3TT) for image in self._prompt.images))
            if len(self._prompt.token_ids) >= service.context:
                raise ValueError(
                    f"this conversation has {len(self._prompt.token_ids):,} tokens, and the model reads "
                    f"{service.context:,} with the answer: leave out files or pages, or start a new chat"
                )
            last = arrived
            async with aclosing(
                service.run([Job(self._prompt, params)], arrived + service.settings.request_seconds)
            ) as updates:
                async for item in updates:
                    if item is None:
                        continue
                    _, update = item
                    turn.answer += update.delta
                    if update.token_ids:
                        now = loop.time()
                        (service.metrics.next_token if self._request else service.metrics.first_token)(now - last)
                        last = now
                    self._request = update.request

    def _read(self) -> Prompt:
        """On a thread: files -> tiles, conversation -> prompt."""
        open_all(
            [file for turn in self._talk.read(self._turn) for file in turn.files],
            self._attachments.open,
            self._attachments.limits.images,
        )
        return prompt_of(self._service, self._attachments, self._talk, self._turn)

    def _say(self) -> None:
        """What goes on, in a few words."""
        if self._prompt is None:
            return
        if self._request is not None:
            self.status = f"Writing… {self._request.completion_tokens} tokens"
            return
        total = len(self._prompt.token_ids)
        # Looked at from outside the engine's thread: a copy of its list, and numbers that only grow.
        mine = [request for request in list(self._service.vlm.engine.running) if request.prompt is self._prompt]
        if mine:
            done = min(mine[0].num_cached, total)
            self.status = f"Reading… {done:,} of {total:,} tokens ({done * 100 // total}%)"
        else:
            self.status = f"Waiting for the model to read {total:,} tokens…"

    def _end(self, error: BaseException | None) -> None:
        self.status = ""
        if self._request is not None:
            answer = Answer.of(self._request)
            # Of a stopped request the engine hears before its next step.
            self._turn.numbers = replace(answer, finish_reason=answer.finish_reason or "abort")
        if isinstance(error, ValueError | OSError):
            self._turn.error = one_line(error)
        elif isinstance(error, ApiError):
            self._turn.error = str(error)
        elif error is not None:
            log.error("the chat page failed to answer", exc_info=error)
            self._turn.error = f"Something broke while answering ({type(error).__name__}); the server's log says where."


def prompt_of(service: Service, attachments: Attachments, talk: Conversation, turn: Turn) -> Prompt:
    """What the model reads to answer a turn. Takes as long as its files take to open."""

    def tiled(file: Attachment):
        return [opened.tiled for opened in attachments.open(file)]

    return service.vlm.processor.encode(talk.messages(turn, tiled), add_generation_prompt=True)


def seen_in(service: Service, attachments: Attachments, talk: Conversation, turn: Turn) -> tuple[list[SeenImage], int]:
    """The pictures that the model saw before it answered a turn, and the tokens of the whole prompt.

    Raises ValueError or OSError if a file is gone.
    """
    prompt = prompt_of(service, attachments, talk, turn)
    opened: list[Opened] = [
        picture for other in talk.read(turn) for file in other.files for picture in attachments.open(file)
    ]
    cached = turn.numbers.cached_tokens if turn.numbers is not None else 0
    names = [picture.name for picture in opened]
    return look(service.vlm.processor, prompt, names, cached), len(prompt.token_ids)
