"""Serves an application from a thread, for as long as a `with` block lasts: for pictures, tests, notebooks."""

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI


@contextmanager
def in_thread(app: FastAPI, port: int = 0) -> Iterator[str]:
    """The address of an application of `create_app`, once it is served. port: 0 takes a free one.

    Raises OSError if the port is taken.
    """
    with socket.create_server(("127.0.0.1", port)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=1, lifespan="on"))
        thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])))
        thread.start()
        while not server.started and thread.is_alive():
            time.sleep(0.02)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            app.state.service.gate.draining = True
            server.should_exit = True
            thread.join()
