"""mmvl in Python: open a model, ask about images.

from mmvl import VLM
print(VLM().ask("photo.png", "what is in the image?"))
"""

from __future__ import annotations

import asyncio
import queue
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch

from mmvl.checkpoint import load_config, weight_files
from mmvl.config import VLConfig
from mmvl.engine.broken import EngineBroken
from mmvl.engine.engine import Engine
from mmvl.engine.image_budget import Lease, bytes_needed
from mmvl.engine.ranks import load
from mmvl.engine.request import FinishReason, Request, Update, check_priority
from mmvl.engine.runner import Runner
from mmvl.engine.sampling_params import SamplingParams
from mmvl.engine.settings import check_for_model
from mmvl.media import iter_media
from mmvl.processor import Processor, Prompt
from mmvl.shipped import MMVL_TINY


@dataclass(frozen=True)
class Answer:
    """A whole answer. `image_tokens` and `cached_tokens` (found in the prefix cache) are part of `prompt_tokens`;
    `completion_tokens` counts the end token as well.

    finish_reason: "stop" (end of the turn, or a stop string), "length" (max_tokens or the context) or "abort".
    prefill_seconds: from the request's start to its first token; decode_seconds: from there to the last.
    """

    text: str
    finish_reason: FinishReason
    prompt_tokens: int
    image_tokens: int
    completion_tokens: int
    prefill_seconds: float
    decode_seconds: float
    cached_tokens: int = 0

    @classmethod
    def of(cls, request: Request) -> Answer:
        return cls(
            request.text,
            request.finish_reason,
            request.prompt_tokens,
            request.image_tokens,
            len(request.output_ids),
            request.prefill_seconds,
            request.decode_seconds,
            request.cached_tokens,
        )


class Stream:
    """An answer as it is generated: iterate for pieces of text; `last` (and the StopIteration's value) is the `Answer`.

    `close()`, leaving its `with` block, or dropping it aborts the request and frees its place in the batch at once.
    """

    def __init__(self, runner: Runner, prompt: Prompt, params: SamplingParams, priority: int, lease: Lease):
        self._closed = True  # until submitted, for __del__
        self._runner = runner
        self._updates: queue.SimpleQueue[Update] = queue.SimpleQueue()
        self._request = runner.submit(prompt, params, self._updates.put, priority, lease)
        self._closed = False
        self.last: Answer | None = None

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> str:
        while self.last is None:
            update = self._updates.get()
            if update.finished:
                self._closed = True
                self.last = Answer.of(self._request)
            if update.error is not None:
                raise update.error
            if update.delta:
                return update.delta
        raise StopIteration(self.last)

    def close(self) -> None:
        """Abort if it still runs. `last` is then the answer so far."""
        if not self._closed:
            self._closed = True
            self._runner.abort(self._request)
            self.last = self.last or Answer.of(self._request)

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def __del__(self) -> None:
        if not self._closed:
            self._runner.drop(self._request)


class VLM:
    """A model that answers. Thread-safe: calls from several threads run in one batch and progress together.

    model: directory in Hugging Face layout; None is the `mmvl-tiny` that comes with mmvl.
    device: "cpu", "cuda", "cuda:1", ...; None takes a GPU if there is one.
    dtype: a torch dtype or its name; None is bfloat16 on a GPU and float32 on the CPU.
    quantize: int8, int4 or fp8: quantise the experts as they are loaded; "none" dequantises a model that is stored so.
    sequence_parallel: of a model over several ranks, send states instead of tokens in the prefill of long prompts;
        every rank then holds its lightning layers whole.
    max_sequences: answers generated at the same time, further ones wait; None: as many as the memory allows.
    engine: further settings of `mmvl.engine.Engine`, by name.

    Under torchrun the ranks share one model: the first goes on, the others help it from here on until it ends.

    In `ask`, `chat`, `stream` and `batch`, `sampling` takes the fields of `SamplingParams`; requests of a lower
    `priority` run earlier, and may push out those of a higher one while they run. A conversation is a list of
    `{"role": "user" | "assistant" | "system", "content": str or list of parts}`, a part being
    `{"type": "text", "text": str}` or `{"type": "image", "image": path | bytes | PIL.Image}`; the path of a PDF stands
    for all its pages.

    Raises:
        FileNotFoundError, ValueError: the model, an image or a setting cannot be used; one line says why.
        EngineBroken (of mmvl.engine): nothing more can be answered in this process.
    """

    def __init__(
        self,
        model=None,
        *,
        device=None,
        dtype=None,
        quantize: str | None = None,
        sequence_parallel: bool = False,
        max_sequences: int | None = None,
        engine: dict | None = None,
    ):
        self.directory = Path(model) if model is not None else MMVL_TINY
        self.device = _device(device)
        self.dtype = _dtype(dtype, self.device)
        if engine and "max_sequences" in engine:
            raise ValueError("max_sequences is an argument of VLM itself; leave it out of engine")
        settings = {"max_sequences": max_sequences, **(engine or {})}
        _check_config(self.directory)  # and all else that can be told before the weights, which may take minutes
        check_for_model(settings, self.directory, self.device, self.dtype, quantize)
        self.processor = Processor.from_pretrained(self.directory)
        # of several ranks, all but the first stay in `load` until the first one ends
        how = {"quantize": quantize, "sequence_parallel": sequence_parallel}
        loaded = load(self.directory, device=self.device, dtype=self.dtype, **how)
        self.engine = Engine(loaded, self.processor, **settings)
        self._runner = Runner(self.engine)
        self._openers = ThreadPoolExecutor(thread_name_prefix="mmvl-open")  # images, for those who must not wait

    def warm_up(self, progress: Callable[[str], None] = lambda what: None) -> None:
        """Make ready for the first request, on a GPU: `Engine.warm_up`. For programs that will answer many."""
        self.engine.warm_up(progress)

    def ask(self, images, question: str, *, priority: int = 0, **sampling) -> str:
        """The answer to one question about images (path, bytes, PIL image, or a list of these; PDFs give pages)."""
        return self.chat(user_turn(images, question), priority=priority, **sampling).text

    def chat(self, messages: list[dict], *, priority: int = 0, **sampling) -> Answer:
        """The assistant's next turn of a conversation."""
        with self.stream(messages, priority=priority, **sampling) as stream:
            for _ in stream:
                pass
        return stream.last

    def stream(self, messages: list[dict], *, priority: int = 0, **sampling) -> Stream:
        """Like `chat`, piece by piece. Pieces are whole characters and, joined, the answer.

        Before it opens images it waits while others take so much of `image_budget.MOST_IMAGE_BYTES` that these would be
        too many.
        """
        params = SamplingParams.from_kwargs(**sampling)
        check_priority(priority)
        lease = self._ask_for_memory(messages, priority)
        return Stream(self._runner, self._open(lease, self._encode, messages), params, priority, lease)

    def batch(
        self, conversations: Iterable[list[dict]], *, priority: int = 0, **sampling
    ) -> Iterator[tuple[int, Answer | Exception]]:
        """Answer many conversations, as they finish: (index, answer), or (index, error) where one cannot be answered.

        An item may also be a pair of a conversation and a dict of sampling settings that go over those of the call.
        The iterable is read as places get free, and as there is memory for images. Closing the iterator aborts what
        still runs.

        Raises ValueError for settings that cannot be, and EngineBroken, from the iterator, when nothing more can be
        answered: what has not come until then may be asked of another process.
        """
        SamplingParams.from_kwargs(**sampling)  # wrong ones are the caller's mistake, not that of every item
        check_priority(priority)
        return self._batch(conversations, priority, sampling)

    def _batch(self, conversations, priority: int, sampling: dict) -> Iterator[tuple[int, Answer | Exception]]:
        updates: queue.SimpleQueue[Update] = queue.SimpleQueue()
        in_flight: dict[Request, int] = {}
        source, waiting, more = enumerate(conversations), None, True
        try:
            while more or in_flight:
                # Twice the places, so that the next ones wait, encoded, when a place gets free.
                while more and len(in_flight) < 2 * self.engine.max_sequences:
                    numbered, waiting = waiting or next(source, None), None
                    if numbered is None:
                        more = False
                        break
                    index, item = numbered
                    try:
                        messages, own = item if isinstance(item, tuple) and len(item) == 2 else (item, {})
                        params = SamplingParams.from_kwargs(**(sampling | own))
                        lease = self._ask_for_memory(messages, priority)
                        if in_flight and not lease.granted.done():
                            lease.release()  # nobody else should wait for what is not used while the caller is at work
                            waiting = numbered
                            break
                        prompt = self._open(lease, self._encode, messages)
                        request = self._runner.submit(prompt, params, updates.put, priority, lease)
                    except EngineBroken:
                        raise
                    except (ValueError, OSError) as error:
                        yield index, error
                    except Exception as error:  # a message of another shape, say: this one's matter alone
                        why = f"{type(error).__name__}: {error}"
                        yield index, ValueError(f"not a conversation that can be asked ({why})")
                    else:
                        in_flight[request] = index
                while in_flight:
                    update = updates.get()
                    if isinstance(update.error, EngineBroken):
                        raise update.error
                    if update.finished:
                        yield in_flight.pop(update.request), update.error or Answer.of(update.request)
                        break
        finally:
            for request in in_flight:
                self._runner.drop(request)

    async def generate(
        self, prompt: list[dict] | Prompt | str, params: SamplingParams | None = None, priority: int = 0
    ) -> AsyncIterator[Update]:
        """For an event loop: what each step did for the answer to `prompt`, up to the update that is `finished`.

        prompt: a conversation, or a text to be continued as it is, or what `processor.encode` made. A request that
        fails while it runs ends with an update whose `error` says why. Leaving the iteration, closing the iterator or
        cancelling the task ends the request before the engine's next step. Lower priorities run earlier.

        Raises what `stream` raises, at the first item; opening images does not block the loop.
        """
        loop = asyncio.get_running_loop()
        updates: asyncio.Queue[Update] = asyncio.Queue()

        def listen(update: Update) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(updates.put_nowait, update)

        prompt, lease = await self._open_aside(prompt, priority)
        request = self._runner.submit(prompt, params or SamplingParams(), listen, priority, lease)
        try:
            while True:
                update = await updates.get()
                yield update
                if update.finished:
                    return
        finally:
            if request.finish_reason is None:
                self._runner.drop(request)

    def count(self, prompt: list[dict] | Prompt | str) -> int:
        """Tokens that the prompt of a request would have, those of its images included. Waits for nobody."""
        if isinstance(prompt, Prompt):
            return len(prompt.token_ids)
        lease = self._runner.images.take(bytes_needed(prompt, self.processor.tiling))
        try:
            return len(self._open(lease, self._encoder(prompt), prompt).token_ids)
        finally:
            lease.release()

    def _ask_for_memory(self, messages, priority: int) -> Lease:
        """For the images of a conversation, which are not opened yet."""
        return self._runner.images.ask(bytes_needed(messages, self.processor.tiling), priority)

    def _open(self, lease: Lease, encode: Callable[..., Prompt], prompt) -> Prompt:
        """Open its images and encode it, when its turn has come."""
        with lease:
            lease.granted.result()
            encoded = encode(prompt)
            lease.settle(encoded.image_bytes)
        return encoded

    async def _open_aside(self, prompt: list[dict] | Prompt | str, priority: int) -> tuple[Prompt, Lease]:
        """`_open` for an event loop, which goes on meanwhile."""
        check_priority(priority)
        if isinstance(prompt, Prompt):
            return prompt, self._runner.images.take(prompt.image_bytes)
        aside, images = self._openers.submit, self._runner.images
        num_bytes = await asyncio.wrap_future(aside(bytes_needed, prompt, self.processor.tiling))
        with images.ask(num_bytes, priority) as lease:
            await asyncio.wrap_future(lease.granted)
            opening = aside(self._open, lease, self._encoder(prompt), prompt)
        try:
            return await asyncio.wrap_future(opening), lease
        except BaseException:
            opening.add_done_callback(lambda _: lease.release())  # a thread that opens them cannot be stopped
            raise

    def _encoder(self, prompt: list[dict] | str) -> Callable[..., Prompt]:
        return self._encode if not isinstance(prompt, str) else lambda text: Prompt(self.processor.encode_text(text))

    def _encode(self, messages: list[dict]) -> Prompt:
        return self.processor.encode(_with_pages(_checked(messages), self.processor), add_generation_prompt=True)


def user_turn(images, question: str) -> list[dict]:
    """A conversation of one turn: the images (one, a list, or None), then the question."""
    if images is None:
        images = []
    elif not isinstance(images, list | tuple):
        images = [images]
    parts = [{"type": "image", "image": image} for image in images]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]


def _checked(messages: list[dict]) -> list[dict]:
    """Refuse what is no conversation, or has no question at its end; what is in it the processor looks at."""
    if not messages:
        raise ValueError("the conversation is empty; ask something")
    if not isinstance(messages, list | tuple) or not all(isinstance(message, dict) for message in messages):
        raise ValueError("a conversation is a list of messages, each a dict with a role and a content")
    last = messages[-1]
    if last.get("role") != "user":
        raise ValueError(f"the last turn is of role {last.get('role')!r}; it must be the user's question")
    content = last.get("content")
    parts = content if isinstance(content, list | tuple) else [{"type": "text", "text": content}]
    texts = [part.get("text") for part in parts if isinstance(part, dict) and part.get("type") == "text"]
    if not any(isinstance(text, str) and text.strip() for text in texts) and all(isinstance(p, dict) for p in parts):
        raise ValueError("the question is empty; ask something")
    return messages


def _with_pages(messages: list[dict], processor: Processor) -> list[dict]:
    """Open the media: each image part becomes one part a page, cut into tiles."""
    return [message | {"content": _open_parts(message.get("content"), processor)} for message in messages]


def _open_parts(content, processor: Processor):
    if not isinstance(content, list | tuple):
        return content
    parts = []
    for part in content:
        if isinstance(part, dict) and part.get("type") == "image":
            with closing(iter_media(part.get("image"))) as pages:  # one picture is in memory at a time
                parts += [{"type": "image", "image": tiled} for page in pages for tiled in processor.tile([page.image])]
        else:
            parts.append(part)
    return parts


def _check_config(directory: Path) -> None:
    config = load_config(directory)
    weight_files(directory)
    if not isinstance(config, VLConfig):
        raise ValueError(f"{directory} holds a text model without the vision half; mmvl needs both to answer")


def _device(device) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"unknown device {device!r}; use cpu, cuda or cuda:N") from error
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"no device {str(chosen)!r} here: torch sees {torch.cuda.device_count()} GPUs")
    return chosen


def _dtype(dtype, device: torch.device) -> torch.dtype:
    if dtype is None:
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    chosen = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if chosen not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"dtype {dtype!r} is not one of float32, bfloat16, float16")
    return chosen
