"""Opens a model for a server, and serves an application until it is told to stop: after SIGTERM running requests are
finished, new ones sent away."""

import asyncio
import logging
import os
import signal
import socket
import sys
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from mmvl import VLM
from mmvl.app.bench import Progress
from mmvl.app.server.listener import bind, not_had
from mmvl.app.server.service import Service
from mmvl.app.server.settings import LOOPBACK, ServerSettings
from mmvl.app.server.wire import Http

_BACKLOG = 2048  # connections that wait to be taken
_GOODBYE_SECONDS = 3.0  # for the last words of answers that were ended
_RANKS_DRAIN_SECONDS = 20.0  # at most, under torchrun: 30 s after its SIGTERM comes SIGKILL, and ending takes up to 8
_LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def open_model(model: Path | str | None, **options) -> VLM:
    """`VLM(model, **options)`, made ready for its first request, with progress on stderr. Raises what `VLM` raises."""
    vlm = VLM(model, **options)
    progress = Progress()
    try:
        vlm.warm_up(progress)
    finally:
        progress.clear()
    return vlm


def run_app(app: FastAPI, settings: ServerSettings, *, listener: socket.socket | None = None, ready=None) -> None:
    """Serves `app`, which `create_app` made, on the settings' host and port until SIGTERM or Ctrl-C.

    listener: what `bind` gave; None: it is called now. ready: called with the server's URL once it listens.

    After the first SIGTERM /health answers 503, new requests are told 503 with Retry-After, and running ones get
    `drain_seconds`; a second signal, or Ctrl-C, ends at once. It ends by itself when the engine is broken.

    Raises OSError if the port cannot be had, KeyboardInterrupt after Ctrl-C, EngineBroken.
    """
    logging.basicConfig(stream=sys.stderr, format=_LOG_FORMAT)
    for name in ("mmvl", "uvicorn"):
        logging.getLogger(name).setLevel(settings.log_level.upper())
    with listener or bind(settings) as listener:
        try:
            listener.listen(_BACKLOG)
        except OSError as error:  # somebody else had bound it as well, and was faster
            raise not_had(settings, error) from error
        if settings.host not in LOOPBACK and not settings.api_keys:
            logging.getLogger("mmvl.server").warning(
                "everyone who can reach %s may use this server: set keys with --api-key-file or MMVL_API_KEY",
                settings.host,
            )
        server = _Server(web_server_config(app), app.state.service, _drain_seconds(settings))
        if ready is not None:
            shown = f"[{settings.host}]" if ":" in settings.host else settings.host
            server.tell_ready = lambda: ready(f"http://{shown}:{listener.getsockname()[1]}")
        server.run(sockets=[listener])
    if server.interrupted:
        raise KeyboardInterrupt
    if (broken := app.state.service.broken) is not None:
        raise broken


def _drain_seconds(settings: ServerSettings) -> float:
    """The setting, or what torchrun leaves of it; a line says so to whoever set it."""
    seconds = settings.drain_seconds
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or seconds <= _RANKS_DRAIN_SECONDS:
        return seconds
    if "drain_seconds" in settings.model_fields_set:
        logging.getLogger("mmvl.server").warning(
            "after SIGTERM running requests get %g s, not drain_seconds, %g: torchrun kills all ranks after 30 s",
            _RANKS_DRAIN_SECONDS,
            seconds,
        )
    return _RANKS_DRAIN_SECONDS


def web_server_config(app: FastAPI) -> uvicorn.Config:
    """How uvicorn is to serve it."""
    return uvicorn.Config(
        app,
        http=Http,
        log_config=None,
        backlog=_BACKLOG,
        server_header=False,
        timeout_graceful_shutdown=5,
        timeout_keep_alive=30,
        lifespan="on",
    )


class _Server(uvicorn.Server):
    """uvicorn stops listening on SIGTERM at once; this one first answers 503 for as long as requests run."""

    def __init__(self, config: uvicorn.Config, service: Service, drain_seconds: float):
        super().__init__(config)
        self._service, self._drain_seconds = service, drain_seconds
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ending: asyncio.Task | None = None
        self.interrupted = False
        self.tell_ready = lambda: None

    async def startup(self, sockets=None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        self.tell_ready()

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second."""
        if self._service.broken is not None and self._ending is None:
            self._ending = asyncio.create_task(self._drain(_GOODBYE_SECONDS))
        return await super().on_tick(counter)

    def handle_exit(self, sig: int, frame) -> None:
        """Called by Python's signal handling, between two instructions of whatever runs."""
        self.interrupted |= sig == signal.SIGINT
        at_once = sig == signal.SIGINT or self._service.gate.draining
        self._service.gate.draining = True
        if self._loop is None:
            self.should_exit = True
        else:
            self._loop.call_soon_threadsafe(self._end, 0.0 if at_once else self._drain_seconds)

    def _end(self, seconds: float) -> None:
        if self._ending is not None:
            self._ending.cancel()
        self._ending = asyncio.create_task(self._drain(seconds))

    async def _drain(self, seconds: float) -> None:
        if not await self._service.gate.drained(seconds):
            self._service.abort_all()
            await self._service.gate.drained(_GOODBYE_SECONDS)
        self.should_exit = True
