"""The routes: `create_app(vlm, settings)` -> a FastAPI application with the OpenAI endpoints, health and metrics.

A page may be mounted on it beside them; the guard around the application then guards the page as well.
"""

import asyncio
from contextlib import ExitStack, asynccontextmanager

from fastapi import FastAPI, Request, Response
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, PlainTextResponse
from starlette.exceptions import HTTPException

import mmvl
from mmvl.app.server.answering import answer
from mmvl.app.server.errors import ApiError
from mmvl.app.server.fetch import Fetcher
from mmvl.app.server.guard import LEASE, Guard
from mmvl.app.server.openapi import add_bodies, request_body
from mmvl.app.server.protocol import ChatRequest, CompletionRequest
from mmvl.app.server.service import Job, Service
from mmvl.app.server.settings import ServerSettings


def create_app(vlm, settings: ServerSettings | None = None, *, fetcher: Fetcher | None = None) -> FastAPI:
    """The server around an open `mmvl.VLM`. `app.state.service` is the `Service` that its routes work with.

    fetcher: stands in for the one that the settings give (tests).
    """
    settings = settings or ServerSettings()
    service = Service(vlm, settings, fetcher)

    @asynccontextmanager
    async def lifespan(app: FastAPI):
        watching = asyncio.create_task(service.progress.watch())
        try:
            yield
        finally:
            watching.cancel()

    app = FastAPI(title="mmvl", version=mmvl.__version__, docs_url=None, redoc_url=None, lifespan=lifespan)
    app.state.service = service
    app.add_middleware(Guard, settings=settings, bodies=service.bodies, refused=service.metrics.refused)
    if settings.allow_origins:
        origins, methods = list(settings.allow_origins), ["GET", "POST"]
        app.add_middleware(CORSMiddleware, allow_origins=origins, allow_methods=methods, allow_headers=["*"])
    _add_error_handlers(app, service)
    _add_routes(app, service)
    add_bodies(app, ChatRequest, CompletionRequest)
    return app


def _add_error_handlers(app: FastAPI, service: Service) -> None:
    def told(error: ApiError) -> Response:
        service.metrics.refused(error.status)
        return JSONResponse(error.body(), error.status, error.headers())

    @app.exception_handler(ApiError)
    async def of_ours(request: Request, error: ApiError) -> Response:
        return told(error)

    @app.exception_handler(HTTPException)
    async def of_the_router(request: Request, error: HTTPException) -> Response:
        words = {404: "There is no such address here.", 405: "This address does not take that method."}
        answer = told(ApiError(error.status_code, words.get(error.status_code, "The request cannot be answered.")))
        answer.headers.update(error.headers or {})  # of 405: the methods that it takes
        return answer

    @app.exception_handler(Exception)  # the web server logs it as well
    async def a_defect(request: Request, error: Exception) -> Response:
        return told(ApiError(500, "Something broke while answering; the server's log says where.", code="defect"))


def _add_routes(app: FastAPI, service: Service) -> None:
    @app.head("/health", include_in_schema=False)
    @app.get("/health")
    async def health() -> Response:
        """200 while the engine moves; 503 if it hangs or is broken, or the server is shutting down."""
        states = {"broken": service.broken, "draining": service.gate.draining, "stalled": service.progress.stalled}
        status = next((state for state, holds in states.items() if holds), "ok")
        return JSONResponse({"status": status}, 200 if status == "ok" else 503)

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics(request: Request) -> Response:
        """Numbers for Prometheus."""
        page, content_type = service.metrics.page(request.headers.get("accept", ""))
        return Response(page, headers={"content-type": content_type})

    @app.get("/v1/models")
    async def models() -> dict:
        """The names that this server's one model answers to."""
        return {"object": "list", "data": [_model(service, name) for name in service.names]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict:
        """One model."""
        service.check_model(name)
        return _model(service, name)

    @app.post("/v1/chat/completions", openapi_extra=request_body(ChatRequest))
    async def chat(request: Request) -> Response:
        """The assistant's next turn."""

        async def jobs(body: ChatRequest, holds: ExitStack) -> list[Job]:
            tiles = service.tiles()
            holds.callback(tiles.release)
            return await service.chat_jobs(body, request.scope[LEASE], tiles)

        return await answer(service, request, ChatRequest, jobs)

    @app.post("/v1/completions", openapi_extra=request_body(CompletionRequest))
    async def complete(request: Request) -> Response:
        """A text, gone on with."""

        async def jobs(body: CompletionRequest, holds: ExitStack) -> list[Job]:
            return await service.completion_jobs(body, request.scope[LEASE])

        return await answer(service, request, CompletionRequest, jobs)


def _model(service: Service, name: str) -> dict:
    return {
        "id": name,
        "object": "model",
        "created": service.created,
        "owned_by": "mmvl",
        "max_model_len": service.context,
    }
