"""The engine: requests go in, what each step said comes out. See README.md here for who does what."""

import contextlib
import time
from collections import deque

import torch

from mmvl.engine.broken import EngineBroken, device_fault
from mmvl.engine.cpu_decode import CpuDecode
from mmvl.engine.draft import PromptLookup, Worth
from mmvl.engine.graph_rule import chunk_tokens_of
from mmvl.engine.graphs import StepGraphs
from mmvl.engine.images import ImageEncoder
from mmvl.engine.masks import ask_masks
from mmvl.engine.memory import (
    MOST_SEQUENCES,
    PAGE_SIZE,
    activation_bytes,
    checkpoint_spacing,
    choose_sizes,
    is_out_of_memory,
    largest_step,
    room_for,
    workspace_bytes,
)
from mmvl.engine.pace import Pace
from mmvl.engine.pools import Pools
from mmvl.engine.prefix import PrefixCache
from mmvl.engine.prefix_keys import PrefixKeys
from mmvl.engine.request import FinishReason, Request, Update, check_priority
from mmvl.engine.sampler import NOT_FINITE, Sampler
from mmvl.engine.sampling_params import SamplingParams
from mmvl.engine.scheduler import Scheduler, Work
from mmvl.engine.settings import check_settings, kv_dtype_of
from mmvl.engine.spread import SpreadDecoder, SpreadGraphs
from mmvl.engine.stats import Counters, Stats
from mmvl.engine.step import Flight, Result, Stepper
from mmvl.engine.text_stream import TextStream, TokenBytes
from mmvl.engine.warm_up import Progress, warm_up
from mmvl.model import VLModel
from mmvl.processor import Processor, Prompt
from mmvl.text_backbone.cache import CacheFull
from mmvl.text_backbone.tensor_parallel import FEW


class Engine:
    """Runs requests to their end; not thread-safe but for `prepare` and `stats` (`runner.py` puts a thread around it).

    max_sequences: requests that run at the same time (state slots); None: as the memory allows.
    max_cached_tokens: size of the KV pool in tokens; None: what the memory leaves on a GPU; on a CPU what
        max_sequences full contexts need, at most 65,536 unless one context alone is longer.
    max_batch_tokens: most tokens of one step; longer prompts are prefilled in chunks, and beside answers in shorter
        ones (`pace.py`). None: up to 32,768 on a GPU, as its memory allows, else 2,048.
    kv_cache_dtype: "auto" keeps keys and values in the model's dtype, "int8" and "fp8" in half of bf16's memory, less
        exactly, for twice as many cached tokens; on a CPU decoding is then slower (without `cpu_decode.py`).
    prefix_cache: "exact", "int8" (four times as many checkpoints, not exact) or "off".
    draft_tokens: most tokens of a draft by prompt look-up; 0 is off.
    swap_bytes: host memory for requests that have to wait; None: a part of what there is on a GPU, else none. Without
        room there they are computed again.
    behind: launch a step before the last one's tokens were seen; None: on a GPU.
    graphs: decode by CUDA graphs, or on a CPU by `cpu_decode.py`; False is off.
    graph_tokens: most tokens of a step with chunks of prompts that goes by a CUDA graph; 0: none; None: by the rule in
        `graph_rule.py`.
    expert_workspace: bytes into which experts in int8 or int4 are unpacked for many tokens; None: an eighth of a GPU's
        free memory, at most 3 GiB. Less leaves room for more sequences, and makes long prompts a little slower.

    Raises ValueError for a setting that there is not, or that cannot be; one line says why.
    """

    def __init__(
        self,
        model: VLModel,
        processor: Processor,
        *,
        max_sequences: int | None = None,
        max_cached_tokens: int | None = None,
        max_batch_tokens: int | None = None,
        kv_cache_dtype: str = "auto",
        prefix_cache: str = "exact",
        draft_tokens: int = 7,
        swap_bytes: int | None = None,
        behind: bool | None = None,
        graphs: bool = True,
        graph_tokens: int | None = None,
        expert_workspace: int | None = None,
        **unknown: object,
    ):
        gpu = model.device.type == "cuda"
        check_settings(model.device, {
            "max_sequences": max_sequences, "max_cached_tokens": max_cached_tokens,
            "max_batch_tokens": max_batch_tokens, "draft_tokens": draft_tokens, "swap_bytes": swap_bytes,
            "graph_tokens": graph_tokens, "expert_workspace": expert_workspace, "prefix_cache": prefix_cache,
            "kv_cache_dtype": kv_cache_dtype, "behind": behind, "graphs": graphs, **unknown,
        })  # fmt: skip
        kv_dtype = kv_dtype_of(kv_cache_dtype, model)
        max_batch_tokens = max_batch_tokens or largest_step(model)
        self.model, self.processor, self.draft_tokens = model, processor, draft_tokens
        decoder = model.language_model
        if graph_tokens is None:
            graph_tokens = chunk_tokens_of(decoder, model.dtype)
        # over ranks, of more tokens each has a share, by counts that the host has to know
        most = max_batch_tokens if decoder.ranks == 1 else min(max_batch_tokens, FEW)
        self.graph_tokens = min(graph_tokens, most) if graphs and gpu else 0
        self.expert_workspace = workspace_bytes(model, expert_workspace)
        decoder.limit_workspace(self.expert_workspace)
        # a few tokens more cost a GPU nothing, which reads all weights for one; a CPU has to multiply
        verified = (16 if gpu else 1) * (draft_tokens + 2) if draft_tokens else 0
        sampled = min(max(max_sequences or MOST_SEQUENCES[model.device.type], verified), max_batch_tokens)
        self.sizes = choose_sizes(
            decoder.cache_config,
            model.device,
            kv_dtype,
            max_sequences=max_sequences,
            max_cached_tokens=max_cached_tokens,
            prefix_cache=prefix_cache,
            activations=activation_bytes(
                model, max_batch_tokens, self.expert_workspace, sampled=sampled, in_graphs=self.graph_tokens
            ),
        )
        self.max_sequences, self.num_pages = self.sizes.max_sequences, self.sizes.num_pages
        self.context = min(model.config.text.max_position_embeddings, (self.num_pages - 1) * PAGE_SIZE)
        with room_for(self.sizes):
            self.cache = decoder.new_cache(
                max_sequences=self.max_sequences,
                max_tokens=self.num_pages * PAGE_SIZE,
                page_size=PAGE_SIZE,
                max_checkpoints=self.sizes.max_checkpoints,
                checkpoint_dtype=torch.int8 if prefix_cache == "int8" else None,
                device=model.device,
                dtype=model.dtype,
                kv_dtype=kv_dtype,
            )
        gap, interval = checkpoint_spacing(decoder.config, kv_dtype)
        self.prefixes = PrefixCache(self.cache, gap=gap, interval=interval)
        self.counters = Counters()
        swap_bytes = self.sizes.swap_bytes if swap_bytes is None else swap_bytes
        self.pools = Pools(self.cache, self.prefixes, self.num_pages, swap_bytes, self.counters)
        # a GPU reads all weights for a few tokens as it does for 512
        self.pace = Pace(max_batch_tokens, least=512 if gpu else 128, first=2048 if gpu else 256)
        self.scheduler = Scheduler(self.pools, pace=self.pace, max_draft_tokens=verified)
        self._images = ImageEncoder(model, max_bytes=self.sizes.feature_bytes, fill_tiles=64 if gpu else 0)
        self.behind = gpu if behind is None else behind
        # A sampled image id would be a placeholder without an image, one that has no token would be no text.
        known = min(processor.valid_vocab_size, model.config.text.vocab_size)
        sampler = Sampler(known, [processor.image_id, *processor.missing_ids])
        self.graphs, cpu = None, None
        with self._on_device():
            if graphs and gpu:
                self.graphs = self._new_graphs((draft_tokens and draft_tokens + 1, verified))
            elif graphs:
                cpu = CpuDecode.of(decoder, self.cache)
            self._stepper = Stepper(
                model, self.pools, sampler, self._images, behind=self.behind, most_sampled=verified,
                graphs=self.graphs, cpu=cpu,
            )  # fmt: skip
        self._token_bytes = TokenBytes(processor.tokenizer)
        self._flights: deque[Flight] = deque()
        self._landed = 0.0  # when the last one did
        self.broken: EngineBroken | None = None  # why nothing more can be answered in this process
        self._told: list[Update] = []  # what is to be told next, also if the step that found it fails

    def _on_device(self):
        """Streams, events and kernels are the current device's, and a new thread begins with the first one."""
        device = self.model.device
        return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()

    def _new_graphs(self, drafts: tuple[int, int]) -> StepGraphs | SpreadGraphs:
        decoder, sizes = self.model.language_model, (self.max_sequences, drafts, self.graph_tokens)
        settings = (self.cache, decoder.config.hidden_size, self.model.dtype, *sizes)
        return decoder.new_graphs(*settings) if isinstance(decoder, SpreadDecoder) else StepGraphs(decoder, *settings)

    def warm_up(self, progress: Progress = lambda what: None) -> None:
        """On a GPU, run what requests will need once, which takes from seconds to a minute or two where kernels have
        to be compiled; on a CPU nothing has to be. Before the first request. `progress` is told what is being done."""
        if self.model.device.type == "cuda":
            with self._on_device():
                warm_up(self, progress)

    def forget_all(self) -> None:
        """Drop what is cached, counted and learnt of drafts. While nobody runs."""
        self.prefixes.clear()
        self.counters.reset()
        self.scheduler.worth = Worth()

    @property
    def running(self) -> list[Request]:
        return self.scheduler.running

    @property
    def waiting(self) -> list[Request]:
        return self.scheduler.waiting

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running or self._flights)

    def submit(self, prompt: Prompt, params: SamplingParams | None = None, priority: int = 0) -> Request:
        """Queue a prompt: `prepare` and `add`."""
        request = self.prepare(prompt, params, priority)
        self.add(request)
        return request

    def prepare(self, prompt: Prompt, params: SamplingParams | None = None, priority: int = 0) -> Request:
        """A request, checked but not queued yet; may be called from any thread.

        max_tokens is clipped to what the context leaves after the prompt.

        Raises:
            ValueError: the prompt alone fills the context, or its placeholders and its images do not match; a priority
                that is no whole number.
        """
        check_priority(priority)
        params = params or SamplingParams()
        length, image_id = len(prompt.token_ids), self.processor.image_id
        of_images = sum(image.num_tokens for image in prompt.images)
        if length >= self.context:
            raise ValueError(
                f"the question is longer than the context: it has {length} tokens"
                f"{f', {of_images} of them for images' if of_images else ''}, and the model reads {self.context} "
                "with the answer; shorten it, use fewer images, or start a new conversation"
            )
        if length == 0:
            raise ValueError("the prompt is empty; ask something")
        placeholders = prompt.token_ids.count(image_id)
        if placeholders != of_images:
            raise ValueError(
                f"the prompt has {placeholders} image placeholders but its images give {of_images} tokens; "
                "encode text and images together with the processor"
            )
        vocabulary = self.model.config.text.vocab_size
        if min(prompt.token_ids) < 0 or max(prompt.token_ids) >= vocabulary:
            raise ValueError(f"the prompt has token ids that the model does not know: they end at {vocabulary - 1}")
        keys = PrefixKeys(prompt, image_id, PAGE_SIZE)
        keys.pages(length)
        drafts = self.draft_tokens and not params.penalised and params.logit_mask is None
        return Request(
            prompt,
            params,
            max_tokens=min(params.max_tokens, self.context - length),
            image_token_id=image_id,
            text_stream=TextStream(self._token_bytes, params.stop),
            keys=keys,
            end_ids=frozenset(params.stop_token_ids) | frozenset(() if params.ignore_eos else self.processor.eos_ids),
            priority=priority,
            lookup=PromptLookup(prompt.token_ids, image_id, self.draft_tokens) if drafts else None,
        )

    def add(self, request: Request) -> None:
        """Queue a request that `prepare` made."""
        self.scheduler.add(request)

    def abort(self, request: Request) -> None:
        """End a request now; its slot and pages are free on return. Does nothing to one that has ended."""
        if request.finish_reason is None:
            self._finish(request, "abort")

    def give_up(self, error: Exception) -> list[Update]:
        """End all requests with an error that is none's own; also what a step that raised had still to tell.

        If the device computes nothing more, the engine is `broken` from now on, and they are told so.
        """
        if (fault := device_fault(self.model.device)) is not None:
            error = self.broken = self.broken or EngineBroken.by(fault)
        self._flights.clear()
        told, self._told = self._told, []
        return told + [self._fail(request, error) for request in [*self.running, *self.waiting]]

    def stats(self) -> Stats:
        """A look at the pools and the totals, from any thread."""
        self.counters.preemptions_total = self.scheduler.preemptions
        return self.counters.look(
            running=len(self.running),
            waiting=len(self.waiting),
            kv_pages_used=self.cache.used_pages,
            kv_pages=self.num_pages,
            state_slots_used=self.max_sequences - self.cache.free_slots,
            state_slots=self.max_sequences,
        )

    @torch.inference_mode()
    def step(self) -> list[Update]:
        """Launch one step over all that can go on, and tell what the last one that is not waited for any more said."""
        with self._on_device():
            self._step()
        told, self._told = self._told, []
        return told

    def _step(self) -> None:
        if self._flights and self.scheduler.wants_all_seen:
            self._collect()
            return
        works = self.scheduler.schedule()
        if works:
            self._launch(works)
        elif not self._flights and self.waiting and not self.running:
            error = CacheFull("the request needs more memory than there is, even alone; shorten it")
            self._told.append(self._fail(self.waiting[0], error))
            return
        drain = not works or self._flights and self._flights[-1].seen
        while self._flights and (drain or len(self._flights) > int(self.behind)):
            self._collect()

    def _launch(self, works: list[Work]) -> None:
        """Put a step on the device; whoever cannot take part for want of memory is told, or tries again."""
        failed = self._images.prepare(works, self.waiting) | ask_masks(works, self.processor.valid_vocab_size)
        self._told += [self._fail(request, error) for request, error in failed.items()]
        works = [work for work in works if work.request not in failed]
        if not works:
            return
        try:
            self._flights.append(self._stepper.launch(works))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            self._too_large(works, error)

    def _too_large(self, works: list[Work], error: Exception) -> None:
        """A step ran out of memory: one that was alone fails, several begin again one by one, in smaller steps."""
        if self.model.device.type == "cuda":
            torch.cuda.empty_cache()
        smallest = PAGE_SIZE
        if len(works) == 1 and works[0].count <= smallest:
            self._told.append(self._fail(works[0].request, error))
            return
        self.pace.too_large([work.count for work in works], smallest)
        for work in works:
            work.request.suspect = True  # the states are half-written: nothing of them is kept
            self.scheduler.preempt(work.request)

    def _collect(self) -> None:
        """What the oldest step that was launched said."""
        flight = self._flights.popleft()
        results = flight.results()
        now = time.perf_counter()
        seconds, self._landed = now - max(flight.launched, self._landed), now
        self.pace.took(flight.num_tokens - flight.num_answers, flight.num_answers, seconds)
        if flight.num_answers == len(flight.works):
            made = sum(len(result.token_ids) for result in results)
            self.scheduler.worth.took(len(flight.works), made, flight.drafted, seconds)
        for result in results:
            result.work.request.in_flight -= 1
            if result.work.request.finish_reason is None:  # else it has ended while the step ran
                try:
                    self._told.append(self._advance(result, now))
                except Exception as error:  # of this answer alone: ids that are no text, say
                    self._told.append(self._fail(result.work.request, error))
        if len(flight.works) == 1:
            flight.works[0].request.suspect = False
        self.counters.last_step_time = time.monotonic()

    def _advance(self, result: Result, now: float) -> Update:
        """Note sampled tokens: new text, and the end if it is one."""
        request, delta, taken = result.work.request, "", 0
        reason: FinishReason | None = None
        request.first_token = request.first_token or now
        for token in result.token_ids:
            if token == NOT_FINITE:
                why = "its weights or its precision are broken, or its constraint leaves no token"
                return self._fail(request, RuntimeError(f"the model's logits are not finite: {why}"))
            taken += 1
            request.output_ids.append(token)
            if request.lookup is not None:
                request.lookup.push(token)
            if token in request.end_ids:
                reason = "stop"
            else:
                delta += request.text_stream.push(token)
                if request.text_stream.stopped:
                    reason = "stop"
                elif len(request.output_ids) >= request.max_tokens:
                    reason = "length"
            if reason is not None:
                break
        self.counters.generation_tokens_total += taken
        self.counters.draft_tokens_total += len(result.work.draft)
        self.counters.draft_tokens_accepted += len(result.token_ids) - 1
        if reason is not None:
            delta += request.text_stream.finish()
        request.text += delta
        if reason is not None:
            self._finish(request, reason)
        logprobs = None if result.logprobs is None else result.logprobs[:taken]
        return Update(request, delta, reason is not None, token_ids=result.token_ids[:taken], logprobs=logprobs)

    def _fail(self, request: Request, error: Exception) -> Update:
        request.error = error
        self._finish(request, "error")
        return Update(request, "", True, error)

    def _finish(self, request: Request, reason: FinishReason) -> None:
        self.scheduler.remove(request)
        known = request.prompt_tokens + len(request.output_ids)  # of a draft that went on behind the end, it is less
        if reason in ("stop", "length") and request.slot is not None and self.cache.length(request.slot) <= known:
            self.pools.checkpoint(request)  # the conversation may go on
        self.pools.release(request)
        request.finish_reason, request.finished = reason, time.perf_counter()
        self.counters.finished_total[reason] += 1
