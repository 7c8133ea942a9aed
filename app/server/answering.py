"""One request from its arrival to its last byte: read, run, answered whole or as a stream, ended if its client goes."""

import asyncio
import json
import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, aclosing
from typing import TypeVar

from fastapi import Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import ValidationError
from starlette.requests import ClientDisconnect

from mmvl.app.server.errors import CLIENT_LEFT, ApiError, from_validation, invalid, out_of_time
from mmvl.app.server.protocol import ChatRequest, CompletionRequest
from mmvl.app.server.replies import Choice, Reply, Usage
from mmvl.app.server.service import Job, Service
from mmvl.engine.request import Request as EngineRequest
from mmvl.engine.request import TokenLogprob, Update

MAX_JSON_VALUES = 500_000  # commas and brackets: small objects take a hundred times their bytes once they are parsed
_PARSED_ON_A_THREAD = 256 << 10  # bytes
_LAST_WORDS_SECONDS = 10  # after the deadline, for a client that reads slowly

log = logging.getLogger("mmvl.server")
Body = TypeVar("Body", ChatRequest, CompletionRequest)
Result = TypeVar("Result")


async def answer(
    service: Service, request: Request, kind: type[Body], jobs: Callable[[Body, ExitStack], Awaitable[list[Job]]]
) -> Response:
    """The response to a request for an answer. `jobs` makes the engine's work of its body, and may leave what has to be
    undone at the end."""
    loop = asyncio.get_running_loop()
    arrived = loop.time()
    deadline = arrived + _seconds(request, service.settings.request_seconds)
    service.gate.check()  # before a body is read for nothing; while it arrives it holds no place
    body = await _read(request, kind)
    with ExitStack() as holds:
        holds.enter_context(service.gate.enter())
        holds.callback(lambda: service.metrics.ended(loop.time() - arrived))
        told = _Answer(service, body, arrived, deadline)
        try:
            async with asyncio.timeout_at(deadline):
                work = await _while_there(request, jobs(body, holds))
        except TimeoutError:
            raise out_of_time() from None
        streamed = body.stream
        del body  # its files are opened: they are as large as all that the request holds from now on
        if not streamed:
            return await _while_there(request, told.whole(work))
        events = told.stream(work)
        # What fails before the first words is told by the status, so the response begins after them.
        first = await _while_there(request, anext(events))
        return _EventStream(first, events, holds.pop_all(), deadline + _LAST_WORDS_SECONDS)


class _Answer:
    """Turns the engine's updates into what one request gets."""

    def __init__(self, service: Service, body: ChatRequest | CompletionRequest, arrived: float, deadline: float):
        self._service, self._arrived, self._deadline = service, arrived, deadline
        self._usage_in_stream = body.usage_in_stream
        tokens = service.tokens if body.logprobs_wanted is not None else None
        self._reply = Reply(body.model, chat=isinstance(body, ChatRequest), tokens=tokens)
        self._choices: list[Choice] = []
        self._ended: dict[int, EngineRequest] = {}

    async def whole(self, jobs: list[Job]) -> Response:
        async with aclosing(self._updates(jobs)) as updates:
            async for _ in updates:
                pass
        return JSONResponse(self._reply.whole(self._choices, self._usage(jobs)))

    async def stream(self, jobs: list[Job]) -> AsyncIterator[str]:
        """Server-sent events. A failure after the first is an event too: the connection never just ends."""
        began = False
        try:
            async with aclosing(self._updates(jobs)) as updates:
                async for event in updates:
                    began = True
                    yield event
            if self._usage_in_stream:
                yield _event(self._reply.closing(self._usage(jobs)))
        except ApiError as error:
            if not began:
                raise
            self._service.metrics.refused(error.status)
            yield _event(error.body())
        yield "data: [DONE]\n\n"

    async def _updates(self, jobs: list[Job]) -> AsyncIterator[str]:
        """Notes what comes, and yields it as events."""
        self._choices = [Choice() for _ in jobs]
        metrics, loop = self._service.metrics, asyncio.get_running_loop()
        last = [self._arrived] * len(jobs)
        async with aclosing(self._service.run(jobs, self._deadline)) as updates:
            async for item in updates:
                if item is None:
                    yield ": still working\n\n"
                    continue
                index, update = item
                choice, now = self._choices[index], loop.time()
                if self._reply.chat and choice.completion_tokens == 0:
                    yield _event(self._reply.opening(index))
                if update.token_ids:
                    noted = metrics.next_token if choice.completion_tokens else metrics.first_token
                    noted(now - last[index])
                    last[index] = now
                logprobs = self._shown_logprobs(update)
                choice.text += update.delta
                choice.completion_tokens += len(update.token_ids)
                choice.logprobs += logprobs
                if update.finished:
                    choice.finish_reason = update.request.finish_reason
                    self._ended[index] = update.request
                if update.delta or logprobs or update.finished:
                    yield _event(self._reply.piece(index, update.delta, logprobs, choice.finish_reason))

    def _shown_logprobs(self, update: Update) -> list[TokenLogprob]:
        """Those of the tokens that are part of the answer: the one that ended it is none."""
        logprobs = list(update.logprobs or ())
        if logprobs and update.request.finish_reason == "stop" and update.finished:
            ends = {*self._service.vlm.processor.eos_ids, *update.request.params.stop_token_ids}
            if logprobs[-1].token_id in ends:
                logprobs.pop()
        return logprobs

    def _usage(self, jobs: list[Job]) -> Usage:
        """Prompts count once, however many choices they have."""
        first = {id(job.prompt): index for index, job in reversed(list(enumerate(jobs)))}
        prompts = [self._ended[index] for index in first.values()]
        return Usage(
            prompt_tokens=sum(request.prompt_tokens for request in prompts),
            completion_tokens=sum(request.completion_tokens for request in self._ended.values()),
            image_tokens=sum(request.image_tokens for request in prompts),
            cached_tokens=sum(request.cached_tokens for request in prompts),
        )


class _EventStream(StreamingResponse):
    """Sends events, whose first is there already, and undoes what the request holds however the sending ends."""

    def __init__(self, first: str, events: AsyncIterator[str], holds: ExitStack, deadline: float):
        super().__init__(self._all(first, events), media_type="text/event-stream")
        self.headers["cache-control"] = "no-store"
        self.headers["x-accel-buffering"] = "no"  # nginx would collect the pieces
        self._events, self._holds, self._deadline = events, holds, deadline

    @staticmethod
    async def _all(first: str, events: AsyncIterator[str]) -> AsyncIterator[str]:
        yield first
        async for event in events:
            yield event

    async def __call__(self, scope, receive, send) -> None:
        try:
            async with asyncio.timeout_at(self._deadline):
                await super().__call__(scope, receive, send)
        except TimeoutError:
            log.warning("a client did not read its answer in time")
        finally:
            try:
                await self._events.aclose()
            finally:
                self._holds.close()


async def _read(request: Request, kind: type[Body]) -> Body:
    """The request's body, checked. Large ones are parsed on a thread: others wait for this one meanwhile."""
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "application/json":  # web pages of others may send anything else without asking
        raise ApiError(415, "The Content-Type must be application/json.", code="unsupported_media_type")
    data = bytearray()
    try:
        async for chunk in request.stream():
            data += chunk
    except ClientDisconnect:
        raise _left() from None
    if len(data) > _PARSED_ON_A_THREAD:
        return await asyncio.to_thread(_parsed, data, kind)
    return _parsed(data, kind)


def _parsed(data: bytearray, kind: type[Body]) -> Body:
    if sum(data.count(mark) for mark in b",[{") > MAX_JSON_VALUES:
        raise ApiError(413, "The request has too many values.", code="request_too_large")
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        raise from_validation(error) from None


def _seconds(request: Request, limit: float) -> float:
    """How long the request may take: the server's limit, or less if it says so."""
    asked = request.headers.get("x-request-timeout")
    if asked is None:
        return limit
    try:
        seconds = float(asked)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise invalid("X-Request-Timeout must be a number of seconds.", code="invalid_value")
    return min(seconds, limit)


async def _while_there(request: Request, work: Awaitable[Result]) -> Result:
    """The result of `work`, which is cancelled if the client leaves."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.create_task(_until_it_leaves(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise _left()
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _until_it_leaves(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _left() -> ApiError:
    return ApiError(CLIENT_LEFT, "The client has left.", code="client_left")


def _event(body: dict) -> str:
    return f"data: {json.dumps(body, ensure_ascii=False, separators=(',', ':'))}\n\n"
