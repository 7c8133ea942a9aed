"""From a checked request to updates of the engine: media opened, prompt laid out, answers run side by side."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import replace
from typing import NamedTuple

import torch
from PIL import Image

from mmvl.app.server.content import MediaLimits, kinds, open_messages, remote_urls, texts
from mmvl.app.server.errors import ApiError, invalid, out_of_time
from mmvl.app.server.fetch import Fetcher
from mmvl.app.server.gate import Budget, Gate, Lease
from mmvl.app.server.health import Progress
from mmvl.app.server.json_grammar import Grammars
from mmvl.app.server.metrics import Metrics
from mmvl.app.server.protocol import ChatRequest, CompletionRequest, FilePart, ImagePart, TextFormat
from mmvl.app.server.settings import MIB, ServerSettings
from mmvl.engine.broken import EngineBroken
from mmvl.engine.request import Update
from mmvl.engine.sampling_params import SamplingParams
from mmvl.engine.text_stream import TokenBytes
from mmvl.processor import Prompt

log = logging.getLogger("mmvl.server")


class Job(NamedTuple):
    """One answer that the engine shall give: the arguments of `VLM.generate`."""

    prompt: Prompt
    params: SamplingParams
    priority: int = 0


class Service:
    """Everything behind the routes of one server around one `mmvl.VLM`."""

    def __init__(self, vlm, settings: ServerSettings, fetcher: Fetcher | None = None):
        self.vlm, self.settings = vlm, settings
        self.names = settings.served_names or (vlm.directory.resolve().name,)
        self.created = int(time.time())
        self.gate = Gate(settings.max_requests)
        self.bodies = Budget(settings.max_bodies_mb * MIB, "bytes of requests")
        self.progress = Progress(vlm.engine.stats, settings.stall_seconds)
        self.metrics = Metrics(self.names[0], vlm.engine.stats, lambda: self._preparing)
        self.tokens = TokenBytes(vlm.processor.tokenizer)
        self._tiles = Budget(settings.max_tiles, "images")
        self._fetcher = fetcher or Fetcher(settings)
        self._grammars = Grammars(vlm.processor)
        self._limits = MediaLimits.of(settings)
        # PDFs may take half a minute: pictures do not wait for them, nor texts for either.
        self._image_openers = ThreadPoolExecutor(settings.decode_threads, thread_name_prefix="mmvl-image")
        self._pdf_openers = ThreadPoolExecutor(settings.decode_threads, thread_name_prefix="mmvl-pdf")
        self._preparing, self._told_broken = 0, False
        self._answering: set[asyncio.Queue] = set()  # where the updates of the requests that run arrive
        # No token stands for more bytes than this: a text longer than that times the context cannot fit into it.
        self._longest_token = max(len(token) for token in vlm.processor.tokenizer.get_vocab())

    @property
    def context(self) -> int:
        """Tokens that a prompt and its answer may have together."""
        return self.vlm.engine.context

    @property
    def broken(self) -> EngineBroken | None:
        """Why the engine answers nothing any more, if it is so."""
        return self.vlm.engine.broken

    def tiles(self) -> Lease:
        """What a request's pictures hold, until it ends."""
        return self._tiles.lease()

    def check_model(self, name: str) -> None:
        if name not in self.names:
            words = "There is no model of that name here; see /v1/models."
            raise ApiError(404, words, param="model", code="model_not_found")

    async def chat_jobs(self, request: ChatRequest, body: Lease, tiles: Lease) -> list[Job]:
        """What the engine shall do for a chat request: one job a choice."""
        self._check(request)
        params = self._params(request)
        self._check_length(sum(map(len, texts(request))))
        self._preparing += 1
        try:
            fetched = await self._fetched(remote_urls(request), body)
            media = kinds(request)
            pool = self._pdf_openers if FilePart in media else self._image_openers if ImagePart in media else None
            prompt, mask = await asyncio.get_running_loop().run_in_executor(pool, self._open, request, fetched, tiles)
        except MemoryError:
            words = "The server has no memory for these files now; try again in a moment."
            raise ApiError(503, words, code="out_of_memory", retry_after=5) from None
        finally:
            self._preparing -= 1
            body.release()
        jobs = self._choices(prompt, params, request)
        if mask is not None:
            jobs = [job._replace(params=replace(job.params, logit_mask=mask.copy())) for job in jobs]
        return jobs

    async def completion_jobs(self, request: CompletionRequest, body: Lease) -> list[Job]:
        """What the engine shall do for a text completion: a job a choice of each prompt."""
        self._check(request)
        params = self._params(request)
        processor, given = self.vlm.processor, request.prompt
        if isinstance(given, str) or isinstance(given[0], int):
            given = [given]
        if len(given) * request.choices > self.settings.max_choices:
            words = f"At most {self.settings.max_choices} answers (prompts times n) in one request."
            raise invalid(words, "prompt")
        if isinstance(given[0], str):
            for text in given:
                self._check_length(len(text))
            prompts = await asyncio.to_thread(lambda: [Prompt(processor.encode_text(text)) for text in given])
        else:
            if any(max(ids) >= processor.valid_vocab_size or processor.image_id in ids for ids in given):
                raise invalid("A token id is not of this model's text vocabulary.", "prompt")
            prompts = [Prompt(list(ids)) for ids in given]
        body.release()
        for prompt in prompts:
            self._check_prompt(prompt)
        return [job for prompt in prompts for job in self._choices(prompt, params, request)]

    def _check(self, request: ChatRequest | CompletionRequest) -> None:
        self.check_model(request.model)
        if request.choices > self.settings.max_choices:
            raise invalid(f"n is at most {self.settings.max_choices} here.", "n")
        vocab = self.vlm.processor.valid_vocab_size
        if any(token >= vocab for token in request.stop_token_ids or ()):
            raise invalid("A token id is not of this model's vocabulary.", "stop_token_ids")
        wants_json = not isinstance(getattr(request, "response_format", None), TextFormat | None)
        if wants_json and (request.ignore_eos or request.min_tokens):
            words = "JSON ends where it is whole: response_format does not go with ignore_eos and min_tokens."
            raise invalid(words, "response_format")

    def _params(self, request: ChatRequest | CompletionRequest) -> SamplingParams:
        params = SamplingParams.from_kwargs(**request.sampling(self.settings.default_max_tokens))
        self.metrics.asked(params.max_tokens, request.choices)
        return params

    def _choices(self, prompt: Prompt, params: SamplingParams, request: ChatRequest | CompletionRequest) -> list[Job]:
        n, priority = request.choices, request.priority or 0
        if params.seed is None:
            return [Job(prompt, params, priority)] * n
        return [Job(prompt, replace(params, seed=(params.seed + i) % 2**63), priority) for i in range(n)]

    async def _fetched(self, urls: Sequence[str], body: Lease) -> dict[str, bytes]:
        if len(urls) > self._limits.images:
            raise ApiError(413, f"More than {self._limits.images} images in one request.", param="messages")
        fetched = {}
        for url in urls:  # one after the other: what they hold is charged before the next begins
            fetched[url] = await self._fetcher.fetch(url)
            body.take(len(fetched[url]))
        return fetched

    def _open(self, request: ChatRequest, fetched: dict[str, bytes], tiles: Lease):
        """On a thread: pictures -> tiles, messages -> prompt, response_format -> mask."""
        tile = self.vlm.processor.tiling.tile
        image_tokens = 0

        def tiled(image: Image.Image, detail: str | None):
            nonlocal image_tokens
            if detail == "low":  # as much as one tile shows
                image.thumbnail((tile, tile), Image.Resampling.BICUBIC)
            (opened,) = self.vlm.processor.tile([image])
            image_tokens += opened.num_tokens
            if image_tokens >= self.context:
                raise self._too_long(f"its images alone have {image_tokens} tokens or more")
            tiles.take(len(opened.tiles_N3TT))
            return opened

        messages = open_messages(request, self._limits, fetched=fetched, use=tiled)
        try:
            prompt = self.vlm.processor.encode(messages, add_generation_prompt=True)
        except ValueError as error:
            log.info("a conversation that the chat template does not take: %s", error)
            raise invalid("The model's chat template does not take this conversation.", "messages") from None
        self._check_prompt(prompt)
        return prompt, self._grammars.mask(request.response_format)

    def _check_length(self, characters: int) -> None:
        if characters > self.context * self._longest_token:
            raise self._too_long(f"its text of {characters} characters cannot fit")

    def _check_prompt(self, prompt: Prompt) -> None:
        if not prompt.token_ids:
            raise invalid("The prompt is empty.", "prompt")
        if len(prompt.token_ids) >= self.context:
            images = sum(image.num_tokens for image in prompt.images)
            raise self._too_long(f"it has {len(prompt.token_ids)} tokens, {images} of them for images")

    def _too_long(self, why: str) -> ApiError:
        return invalid(
            f"The prompt is longer than the context: {why}, and the model reads {self.context} with the answer.",
            "messages",
            "context_length_exceeded",
        )

    async def run(self, jobs: Sequence[Job], deadline: float) -> AsyncIterator[tuple[int, Update] | None]:
        """(number of the job, update) as they come, to the end of all jobs; None after each silence of
        `keep_alive_seconds`. deadline: in the loop's time.

        Closing the iterator, or cancelling its task, ends what still runs. Raises ApiError if a job fails or the
        deadline passes.
        """
        updates: asyncio.Queue[tuple[int, Update | Exception]] = asyncio.Queue()
        self._answering.add(updates)
        tasks = [asyncio.create_task(self._pump(index, job, updates)) for index, job in enumerate(jobs)]
        try:
            running = len(jobs)
            loop = asyncio.get_running_loop()
            while running:
                patience = loop.time() + self.settings.keep_alive_seconds
                try:
                    async with asyncio.timeout_at(min(patience, deadline)):
                        index, update = await updates.get()
                except TimeoutError:
                    if loop.time() >= deadline:
                        raise out_of_time() from None
                    yield None
                    continue
                if isinstance(update, Exception):
                    raise self._told(update)
                if update.finished:
                    self.metrics.answered(update.request)
                    running -= 1
                    if update.error is not None or update.request.finish_reason not in ("stop", "length"):
                        raise self._told(update.error)
                    if (mask := jobs[index].params.logit_mask) is not None and mask.failed:
                        raise invalid(
                            "The JSON schema is too complex to be kept to.", "response_format", "invalid_schema"
                        )
                yield index, update
        finally:
            self._answering.discard(updates)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def abort_all(self) -> None:
        """Ends every answer that runs; their clients are told that the server shuts down."""
        error = ApiError(503, "The server is shutting down.", code="shutting_down", retry_after=2)
        for updates in self._answering:
            updates.put_nowait((0, error))

    async def _pump(self, index: int, job: Job, updates: asyncio.Queue) -> None:
        try:
            async with aclosing(self.vlm.generate(*job)) as answer:
                async for update in answer:
                    updates.put_nowait((index, update))
        except Exception as error:
            updates.put_nowait((index, error))

    def _told(self, error: Exception | None) -> ApiError:
        """What a client hears of a failure in the engine."""
        if isinstance(error, ApiError):
            return error
        if error is None:
            return ApiError(503, "The server ended this answer.", code="aborted", retry_after=5)
        if not isinstance(error, EngineBroken) or not self._told_broken:  # of many requests the log needs one
            log.error("a request failed in the engine", exc_info=error)
        if isinstance(error, EngineBroken):
            self._told_broken = True
            words = "The model cannot answer until the server is started anew."
            return ApiError(503, words, code="engine_broken", retry_after=5)
        if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
            return ApiError(503, "The model ran out of memory on this request.", code="out_of_memory", retry_after=5)
        return ApiError(500, "The model failed on this request; the server's log says why.", code="engine_error")
