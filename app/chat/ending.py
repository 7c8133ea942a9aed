"""The end of the server, as open tabs see it: each holds streams that never end by themselves, and are ended here."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from mmvl.app.server.gate import Gate

STREAMS = ("/gradio_api/heartbeat/", "/gradio_api/queue/data", "/gradio_api/call/")
LOOKED, LAST_WORDS = 0.2, 0.3  # seconds: between two looks at the gate; for an answer's last update to get through


class EndingStreams:
    """ASGI middleware. over: once it is set, whoever streams to a tab is told that the tab has left."""

    def __init__(self, app, over: asyncio.Event):
        self._app, self._over = app, over

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(STREAMS):
            return await self._app(scope, receive, send)

        async def receive_until_over() -> dict:
            message, over = asyncio.ensure_future(receive()), asyncio.ensure_future(self._over.wait())
            try:
                await asyncio.wait((message, over), return_when=asyncio.FIRST_COMPLETED)
                return message.result() if message.done() else {"type": "http.disconnect"}
            finally:
                message.cancel()
                over.cancel()

        begun = ended = False

        async def noted(message) -> None:
            nonlocal begun, ended
            begun = True
            ended = message["type"] == "http.response.body" and not message.get("more_body", False)
            await send(message)

        await self._app(scope, receive_until_over, noted)
        if begun and not ended:
            await send({"type": "http.response.body", "body": b""})


def end_streams(app: FastAPI, gate: Gate, over: asyncio.Event) -> None:
    """Has `over` set when the server drains and the last answer is written. Before the application runs."""
    around = app.router.lifespan_context

    async def watch() -> None:
        while not (gate.draining and not gate.inside):
            await asyncio.sleep(LOOKED)
        await asyncio.sleep(LAST_WORDS)
        over.set()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator:
        watching = asyncio.create_task(watch())
        try:
            async with around(app) as state:
                yield state
        finally:
            watching.cancel()

    app.router.lifespan_context = lifespan
