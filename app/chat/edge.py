"""Gradio, held to what this page needs: it fetches nothing, opens uploads alone, and tells strangers one plain line.

By itself Gradio 6.31 fetches a file that a request names by its http address, streams any address behind
`/gradio_api/file=`, has routes for services that are not used here, and puts paths and what was sent into its errors.
"""

import logging
from html import escape
from pathlib import Path

import gradio as gr
from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from gradio.route_utils import FnIndexInferError
from gradio_client.utils import is_file_obj, traverse
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware

from mmvl.app.server.errors import MAX_MESSAGE

API = "/gradio_api/"
# What the page and gradio_client ask for below `API`; followed by more, or by nothing.
NEEDED = (
    "app_id",
    "call",
    "cancel",
    "heartbeat",
    "info",
    "queue",
    "reset",
    "run",
    "startup-events",
    "upload",
    "upload_progress",
)
FILE = f"{API}file="
WORDS = {
    400: "This request is none that the page sends.",
    403: "That file is not for you, or not here any more.",
    404: "There is no such address here.",
    405: "This address does not take that method.",
    413: "The file is too large.",
    503: "Too many requests are waiting: try again in a moment.",
}
BROKEN = "Something broke here; the server's log says where."

log = logging.getLogger("mmvl.chat")


class Told(gr.Error):
    """What a visitor is told: no HTML, which the page would render, and not long."""

    def __init__(self, message: str):
        if len(message) > MAX_MESSAGE:
            message = message[: MAX_MESSAGE - 1] + "…"
        super().__init__(escape(message, quote=False), print_exception=False)


class StrictBlocks(gr.Blocks):
    """A page whose events open files in the folder `uploads` and no others, and whose errors are told in a line."""

    def __init__(self, *, uploads: Path, **options):
        super().__init__(**options)
        self._uploads = uploads.resolve()

    async def preprocess_data(self, block_fn, inputs, state, explicit_call=False):
        """Every input of every event passes here before Gradio opens or fetches a file of it."""
        try:
            traverse(inputs, self._uploaded, is_file_obj)
            return await super().preprocess_data(block_fn, inputs, state, explicit_call)
        except Told:
            raise
        except gr.Error:  # of a component, about a file's suffix
            raise Told(
                "This kind of file cannot be used here: attach pictures and PDFs, import .json and .md."
            ) from None
        except Exception as error:
            log.info("a request that does not fit the page: %s", type(error).__name__)
            raise Told("This request does not fit the page: reload it.") from None

    async def process_api(self, *args, **kwargs):
        try:
            return await super().process_api(*args, **kwargs)
        except Told:
            raise
        except Exception:
            log.exception("the chat page failed")
            raise Told(BROKEN) from None

    def _uploaded(self, file: dict) -> dict:
        path = file["path"]
        if "\0" in path or "://" in path or not Path(path).resolve().is_relative_to(self._uploads):
            raise Told("Only files that were uploaded to this page can be used, not paths or addresses.")
        for inside in file.values():  # Gradio looks there too, if this one lacks its mark
            traverse(inside, self._uploaded, is_file_obj)
        return file


class OnlyNeeded:
    """ASGI middleware: of Gradio's API, only what the page needs; files by their path alone."""

    def __init__(self, app):
        self._app = app

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] == "http" and (status := _refusal(scope["path"])):
            return await _said(status)(scope, receive, send)
        await self._app(scope, receive, send)


def _refusal(path: str) -> int | None:
    if not path.startswith(API):
        return None
    if path.startswith(FILE):
        return 403 if "://" in path else None
    return None if path.removeprefix(API).partition("/")[0] in NEEDED else 404


def app_kwargs() -> dict:
    """For `gr.mount_gradio_app`: the middleware, and errors that say a line and nothing of the request."""

    async def of_the_router(request: Request, error: HTTPException) -> JSONResponse:
        return _said(error.status_code)

    async def not_understood(request: Request, error: Exception) -> JSONResponse:
        return _said(400)

    async def unknown(request: Request, error: Exception) -> JSONResponse:
        log.info("an event that the page does not have: %s", type(error).__name__)
        return _said(404)

    async def a_defect(request: Request, error: Exception) -> JSONResponse:  # the web server logs it
        return _said(500)

    handlers = {
        HTTPException: of_the_router,
        RequestValidationError: not_understood,
        RecursionError: not_understood,
        FnIndexInferError: unknown,
        KeyError: unknown,
        Exception: a_defect,
    }
    return {"middleware": [Middleware(OnlyNeeded)], "exception_handlers": handlers}


def _said(status: int) -> JSONResponse:
    words = WORDS.get(status) or (BROKEN if status >= 500 else WORDS[400])
    return JSONResponse({"detail": words}, status)
