"""Continuous batching: prefill chunks of some requests packed beside decode tokens of others, one decoder call a step.

T tokens of the step, S sequences, D model width, V vocabulary, I image tokens.
"""

import time
from bisect import insort
from collections import OrderedDict

import torch
from torch import Tensor

from mmvl.engine.request import FinishReason, Request, TokenLogprob, Update
from mmvl.engine.sampler import NOT_FINITE, Row, Sampler
from mmvl.engine.sampling_params import SamplingParams
from mmvl.engine.stats import Counters, Stats
from mmvl.engine.text_stream import TextStream, TokenBytes
from mmvl.model import ImageBatch, VLModel
from mmvl.processor import Processor, Prompt
from mmvl.text_backbone.cache import HybridCache


class Engine:
    """Runs requests to their end; not thread-safe (`mmvl.vlm` puts a thread around it).

    A request is admitted, first come first served, when a state slot is free and the KV pool has pages for its prompt
    and all of its max_tokens: so nothing that runs ever has to be thrown out. While it waits it costs nothing.

    max_sequences: requests that run at the same time (state slots).
    max_cached_tokens: size of the KV pool in tokens; by default what max_sequences full contexts need, at most 65,536
        tokens unless one context alone is longer and no more than `LONGEST_DEFAULT`.
    max_batch_tokens: tokens of one step; longer prompts are prefilled in chunks.
    """

    PAGE_SIZE = 64
    LONGEST_DEFAULT = 262_144

    def __init__(
        self,
        model: VLModel,
        processor: Processor,
        *,
        max_sequences: int = 32,
        max_cached_tokens: int | None = None,
        max_batch_tokens: int = 2048,
    ):
        if min(max_sequences, max_batch_tokens) < 1:
            raise ValueError("max_sequences and max_batch_tokens must be at least 1")
        self.model, self.processor = model, processor
        self.max_sequences, self.max_batch_tokens = max_sequences, max_batch_tokens
        context = model.config.text.max_position_embeddings
        if max_cached_tokens is None:
            most = max(65_536, min(context, self.LONGEST_DEFAULT))
            max_cached_tokens = min(max_sequences * context, most)
        self.num_pages = self._pages(max_cached_tokens)
        self.context = min(context, self.num_pages * self.PAGE_SIZE)
        self.cache = HybridCache(
            model.config.text,
            max_sequences=max_sequences,
            max_tokens=self.num_pages * self.PAGE_SIZE,
            page_size=self.PAGE_SIZE,
            device=model.device,
            dtype=model.dtype,
        )
        # Pages that no running request may still need: the cache hands them out only as requests grow.
        self._unpromised_pages = self.num_pages
        self._token_bytes = TokenBytes(processor.tokenizer)
        # A sampled image id would be a placeholder without an image.
        self._sampler = Sampler(processor.valid_vocab_size, [processor.image_id])
        self._image_cache = _ImageCache(max_tokens=65_536)
        self.waiting: list[Request] = []
        self.running: list[Request] = []
        self.counters = Counters()

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.running)

    def submit(self, prompt: Prompt, params: SamplingParams | None = None, priority: int = 0) -> Request:
        """Queue a prompt: `prepare` and `add`."""
        request = self.prepare(prompt, params, priority)
        self.add(request)
        return request

    def prepare(self, prompt: Prompt, params: SamplingParams | None = None, priority: int = 0) -> Request:
        """A request, checked but not queued yet; may be called from any thread.

        max_tokens is clipped to what the context leaves after the prompt.

        Raises:
            ValueError: the prompt alone fills the context, or its placeholders and its images do not match.
        """
        params = params or SamplingParams()
        length = len(prompt.token_ids)
        of_images = sum(image.num_tokens for image in prompt.images)
        if length >= self.context:
            raise ValueError(
                f"the question is longer than the context: it has {length} tokens"
                f"{f', {of_images} of them for images' if of_images else ''}, and the model reads {self.context} "
                "with the answer; shorten it, use fewer images, or start a new conversation"
            )
        if length == 0:
            raise ValueError("the prompt is empty; ask something")
        request = Request(
            prompt,
            params,
            max_tokens=min(params.max_tokens, self.context - length),
            image_token_id=self.processor.image_id,
            text_stream=TextStream(self._token_bytes, params.stop),
            end_ids=frozenset(params.stop_token_ids) | frozenset(() if params.ignore_eos else self.processor.eos_ids),
            priority=priority,
        )
        if request.image_tokens != of_images:
            raise ValueError(
                f"the prompt has {request.image_tokens} image placeholders but its images give {of_images} tokens; "
                "encode text and images together with the processor"
            )
        return request

    def add(self, request: Request) -> None:
        """Queue a request that `prepare` made."""
        insort(self.waiting, request, key=lambda r: (r.priority, r.number))

    def stats(self) -> Stats:
        """A look at the pools and the totals, from any thread."""
        return self.counters.look(
            running=len(self.running),
            waiting=len(self.waiting),
            kv_pages_used=self.num_pages - self.cache.free_pages,
            kv_pages=self.num_pages,
            state_slots_used=self.max_sequences - self.cache.free_slots,
            state_slots=self.max_sequences,
        )

    def abort(self, request: Request) -> None:
        """End a request now; its slot and pages are free on return. Does nothing to one that has ended."""
        if request in self.waiting:
            self.waiting.remove(request)
            request.finish_reason, request.finished = "abort", time.perf_counter()
            self.counters.finished_total["abort"] += 1
        elif request in self.running:
            self._finish(request, "abort")

    def give_up(self, error: Exception) -> list[Update]:
        """End all requests with an error that is none's own."""
        requests = [*self.running, *self.waiting]
        for request in requests:
            request.error = error
            if request in self.running:
                self._finish(request, "error")
            else:
                request.finish_reason, request.finished = "error", time.perf_counter()
                self.counters.finished_total["error"] += 1
        self.waiting.clear()
        return [Update(request, "", finished=True, error=error) for request in requests]

    @torch.inference_mode()
    def step(self) -> list[Update]:
        """One decoder call over all that runs, after admitting what fits. [] when there is no work."""
        chunks = self._schedule()
        if not chunks:
            return []
        logits_SV, sampled = self._forward(chunks)
        if not sampled:
            return []
        tokens_S, logprobs = self._sampler(logits_SV, [self._row(request) for request in sampled])
        tokens, by_row = tokens_S.tolist(), {}
        if logprobs is not None:
            columns = (logprobs.chosen_R.tolist(), logprobs.values_RN.tolist(), logprobs.ids_RN.tolist())
            for row, chosen, values, ids in zip(logprobs.rows, *columns, strict=True):
                top = tuple(zip(ids, values, strict=True))[: sampled[row].params.logprobs]
                by_row[row] = (TokenLogprob(tokens[row], chosen, top),)
        now = time.perf_counter()
        updates = [self._advance(r, tokens[n], now, by_row.get(n)) for n, r in enumerate(sampled)]
        self.counters.last_step_time = time.monotonic()
        return updates

    def _row(self, request: Request) -> Row:
        mask = request.params.logit_mask
        mask_V = None if mask is None else mask.next_mask(request.output_ids)
        return Row(request.sampler_state, len(request.output_ids), mask_V)

    def _schedule(self) -> list[tuple[Request, list[int]]]:
        """Who takes part in this step with which tokens: decoders first, then prompts while the budget lasts."""
        decoding = [request for request in self.running if request.prefilled]
        budget = max(self.max_batch_tokens - len(decoding), 0)
        chunks = [(request, request.next_ids(1)) for request in decoding]
        prefilling = [request for request in self.running if not request.prefilled]
        # With decoders alone above the budget, one prompt still moves, or it would starve.
        budget = max(budget, 1)
        admitted = []
        while budget > 0:
            if prefilling:
                request = prefilling.pop(0)
            elif self.waiting and self._fits(self.waiting[0]):
                request = self._admit(self.waiting.pop(0))
                admitted.append(request)
            else:
                break
            ids = request.next_ids(budget)
            chunks.append((request, ids))
            budget -= len(ids)
        self._embed_images(admitted)
        return chunks

    def _forward(self, chunks: list[tuple[Request, list[int]]]) -> tuple[Tensor | None, list[Request]]:
        """Feed the chunks. -> fp32 logits (S, V) of the requests that now need a token, and those requests."""
        device = self.model.device
        packed = self.cache.pack([(request.slot, len(ids)) for request, ids in chunks])
        ids_T: list[int] = []
        image_rows, positions, last_rows, sampled = [], [], [], []
        for request, ids in chunks:
            rows, places = request.image_rows(len(ids)) if request.image_ID is not None else (range(0), [])
            if rows:
                image_rows.append(request.image_ID[rows.start : rows.stop])
                positions += [len(ids_T) + place for place in places]
            ids_T += ids
            request.num_cached += len(ids)
            if request.prefilled:
                last_rows.append(len(ids_T) - 1)
                sampled.append(request)
                request.image_ID = None
        x_TD = self.model.embed(
            torch.tensor(ids_T, device=device),
            torch.cat(image_rows) if image_rows else None,
            torch.tensor(positions, dtype=torch.int64, device=device),
        )
        hidden_TD = self.model.language_model(x_TD, packed, self.cache).hidden_TD
        if not sampled:
            return None, []
        if len(last_rows) < len(ids_T):
            hidden_TD = hidden_TD[torch.tensor(last_rows, device=device)]
        return self.model.language_model.logits(hidden_TD), sampled

    def _advance(self, request: Request, token: int, now: float, logprobs) -> Update:
        """Note a sampled token: new text, and the end if it is one."""
        if token == NOT_FINITE:
            request.error = RuntimeError("the model's logits are not finite: its weights or its precision are broken")
            self._finish(request, "error")
            return Update(request, "", True, request.error)
        request.output_ids.append(token)
        self.counters.generation_tokens_total += 1
        request.first_token = request.first_token or now
        reason: FinishReason | None = None
        delta = ""
        if token in request.end_ids:
            reason = "stop"
        else:
            delta = request.text_stream.push(token)
            if request.text_stream.stopped:
                reason = "stop"
            elif len(request.output_ids) >= request.max_tokens:
                reason = "length"
        if reason is not None:
            delta += request.text_stream.finish()
            self._finish(request, reason)
        request.text += delta
        return Update(request, delta, reason is not None, token_ids=(token,), logprobs=logprobs)

    def _fits(self, request: Request) -> bool:
        return self.cache.free_slots > 0 and self._pages(request.cache_tokens) <= self._unpromised_pages

    def _admit(self, request: Request) -> Request:
        self._unpromised_pages -= self._pages(request.cache_tokens)
        request.slot = self.cache.allocate()
        request.started = time.perf_counter()
        self.counters.prompt_tokens_total += request.prompt_tokens
        self.running.append(request)
        return request

    def _finish(self, request: Request, reason: FinishReason) -> None:
        self.running.remove(request)
        self.cache.free(request.slot)
        self._unpromised_pages += self._pages(request.cache_tokens)
        request.slot, request.image_ID = None, None
        request.finish_reason, request.finished = reason, time.perf_counter()
        self.counters.finished_total[reason] += 1

    def _pages(self, tokens: int) -> int:
        return -(-tokens // self.PAGE_SIZE)

    def _embed_images(self, admitted: list[Request]) -> None:
        """Give each admitted request its image tokens; all tiles not seen lately go through the ViT together."""
        images = {image.digest: image for request in admitted for image in request.prompt.images}
        found = {digest: self._image_cache.get(digest) for digest in images}
        missing = [images[digest] for digest, image_ID in found.items() if image_ID is None]
        if missing:
            batch = ImageBatch.from_images(missing).to(self.model.device)
            split = self.model.embed_images(batch).split([image.num_tokens for image in missing])
            found |= {image.digest: image_ID for image, image_ID in zip(missing, split, strict=True)}
        for digest, image_ID in found.items():
            self._image_cache.put(digest, image_ID)
        for request in admitted:
            if request.prompt.images:
                request.image_ID = torch.cat([found[image.digest] for image in request.prompt.images])


class _ImageCache:
    """Image tokens of the images seen last, by content digest, at most `max_tokens` in all."""

    def __init__(self, max_tokens: int):
        self._max_tokens, self._tokens = max_tokens, 0
        self._entries: OrderedDict[str, Tensor] = OrderedDict()

    def get(self, digest: str) -> Tensor | None:
        return self._entries.get(digest)

    def put(self, digest: str, image_ID: Tensor) -> None:
        if digest in self._entries:
            self._entries.move_to_end(digest)
            return
        # A clone, so that the entry does not keep alive the whole batch that it is a slice of.
        self._entries[digest] = image_ID.clone()
        self._tokens += len(image_ID)
        while self._tokens > self._max_tokens:
            _, dropped = self._entries.popitem(last=False)
            self._tokens -= len(dropped)
