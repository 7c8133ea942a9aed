"""One step on the device: what the scheduler chose goes through the model, and the next tokens are sampled.

`Stepper.launch` queues the work of a step on the device and returns without waiting for it; `Flight.results` waits.
What is sampled stays on the device as the next step's input, so that the host may run one step behind.

T tokens of the step, W requests in it, S rows that are sampled, D model width, V vocabulary, N cache slots.
"""

import functools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from mmvl.engine.cpu_decode import CpuDecode
from mmvl.engine.images import ImageEncoder
from mmvl.engine.pools import Pools
from mmvl.engine.request import TokenLogprob
from mmvl.engine.sampler import Logprobs, Row, Sampler
from mmvl.engine.scheduler import Work
from mmvl.model import VLModel
from mmvl.text_backbone.packed import Packed, to_device


class Graphs(Protocol):
    """Steps as CUDA graphs, here (`graphs.py`) or on several ranks (`spread.py`)."""

    def prepare(self, slots: Sequence[int]) -> Tensor | None:
        """The next tokens' places of these sequences on the device, of which the slots (S,); None: no graph."""

    def run(self, slots: Sequence[int], x_SD: Tensor) -> Tensor:
        """Of those prepared: embeddings (S, D) -> hidden states (S, D), good until the next run; advances the cache."""

    def takes(self, slots: Sequence[int], counts: Sequence[int], draft: bool) -> bool:
        """Whether it takes so many tokens of each sequence; then `run_ragged` comes next."""

    def run_ragged(self, slots: Sequence[int], counts: Sequence[int], x_TD: Tensor) -> Tensor:
        """As `run`, (T, D); a draft advances nothing until `accept`."""

    def accept(self, slots: Sequence[int], counts: Sequence[int]) -> None:
        """How many tokens of each draft hold."""


@dataclass(frozen=True)
class Result:
    """What a step sampled for one request: its new tokens, and with each its log probability if it asked."""

    work: Work
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] | None


class Landing:
    """Where sampled tokens arrive in the host's memory: buffers used in turn, of which the last two are untouched.

    So the host never looks for pinned memory in the decode loop, some of which the device may still write to.
    """

    def __init__(self, device: torch.device, most: int):
        self._turn, gpu = 0, device.type == "cuda"
        self._buffers = [torch.empty(most, dtype=torch.int64, pin_memory=True) for _ in range(3)] if gpu else []
        self._arrived = [torch.cuda.Event() for _ in self._buffers]

    def bring(self, tokens_S: Tensor | None) -> tuple[Tensor | None, torch.cuda.Event | None]:
        """The tokens on the host, and when they and all before them are there; on a CPU they are."""
        if not self._buffers:
            return tokens_S, None
        self._turn = (self._turn + 1) % len(self._buffers)
        arrived = self._arrived[self._turn]
        if tokens_S is not None:
            tokens_S = self._buffers[self._turn][: len(tokens_S)].copy_(tokens_S, non_blocking=True)
        arrived.record()
        return tokens_S, arrived


class Flight:
    """A step that was launched."""

    def __init__(
        self,
        works: Sequence[Work],
        tokens_S: Tensor | None,
        logprobs: Logprobs | None,
        landing: Landing,
        launched: float,
    ):
        self.works, self.launched = works, launched  # when the host began with it
        self._sampled = [work for work in works if work.samples]
        self._logprobs = logprobs
        self._tokens_S, self._ready = landing.bring(tokens_S)
        self._results: list[Result] | None = None

    @functools.cached_property
    def num_tokens(self) -> int:
        """Without the guesses."""
        return sum(work.count - len(work.draft) for work in self.works)

    @functools.cached_property
    def num_answers(self) -> int:
        """Requests that are being answered, and got their next token."""
        return sum(w.count - len(w.draft) == 1 and w.start >= w.request.prompt_tokens for w in self.works)

    @property
    def drafted(self) -> bool:
        return any(work.draft for work in self.works)

    @property
    def seen(self) -> bool:
        """Whether its results were waited for already."""
        return self._results is not None

    def results(self) -> list[Result]:
        """Wait for the device; the tokens of everyone who sampled. Of a draft, those that held and the one behind."""
        if self._results is None:
            if self._ready is not None:  # also without tokens: or the host would queue a whole prompt's chunks
                self._ready.synchronize()
            self._results = [] if self._tokens_S is None else self._read()
        return self._results

    def _read(self) -> list[Result]:
        tokens, by_row = self._tokens_S.tolist(), self._logprobs_by_row()
        results, row = [], 0
        for work in self._sampled:
            found = tokens[row : row + 1 + len(work.draft)]
            held = next((n for n, guess in enumerate(work.draft) if guess != found[n]), len(work.draft))
            logprobs = None
            if row in by_row:
                logprobs = tuple(
                    TokenLogprob(found[n], *by_row[row + n][:1], by_row[row + n][1][: work.request.params.logprobs])
                    for n in range(held + 1)
                )
            results.append(Result(work, tuple(found[: held + 1]), logprobs))
            row += 1 + len(work.draft)
        return results

    def _logprobs_by_row(self) -> dict[int, tuple]:
        if self._logprobs is None:
            return {}
        columns = (x.tolist() for x in (self._logprobs.chosen_R, self._logprobs.ids_RN, self._logprobs.values_RN))
        return {
            row: (chosen, tuple(zip(ids, values, strict=True)))
            for row, chosen, ids, values in zip(self._logprobs.rows, *columns, strict=True)
        }


class Stepper:
    """Runs steps of a model over the pools.

    behind: the host may launch a step before it has seen the last one's. most_sampled: tokens of a step, where that is
    more than the cache has places for sequences, as with drafts. graphs, cpu: what is faster than the decoder
    itself, where it takes a step.
    """

    def __init__(
        self,
        model: VLModel,
        pools: Pools,
        sampler: Sampler,
        images: ImageEncoder,
        *,
        behind: bool,
        most_sampled: int = 0,
        graphs: Graphs | None = None,
        cpu: CpuDecode | None = None,
    ):
        self.model, self.pools, self.sampler, self.images = model, pools, sampler, images
        self.graphs, self.cpu = graphs, cpu
        num_slots = pools.cache.free_slots
        self._landing = Landing(model.device, max(num_slots, most_sampled))
        self._last_N = torch.zeros(num_slots, dtype=torch.int64, device=model.device) if behind else None

    def launch(self, works: Sequence[Work]) -> Flight:
        """Feed the works' tokens and sample. The requests' counts of cached and unseen tokens are advanced."""
        began = time.perf_counter()
        drafting = any(work.draft for work in works)
        hidden_TD, slots_W, packed = self._through(works, drafting)
        rows_T, rows, at = [], [], 0
        for work in works:
            at += work.count
            if work.samples:
                rows_T += range(at - 1 - len(work.draft), at)
                rows += self._rows(work)
        tokens_S = logprobs = None
        if rows:
            if len(rows) < at:
                hidden_TD = hidden_TD.index_select(0, self._to_device(rows_T))
            tokens_S, logprobs = self.sampler(self._logits(hidden_TD), rows)
            if self._last_N is not None and not drafting:
                self._remember(works, slots_W, tokens_S)
        flight = Flight(works, tokens_S, logprobs, self._landing, began)
        if drafting:
            self._settle(flight, packed)
        for work in works:
            if not drafting:
                work.request.num_cached += work.count
            if work.samples:
                work.request.in_flight += 1
            if work.checkpoint:
                self.pools.checkpoint(work.request)
        return flight

    def _through(self, works: Sequence[Work], drafting: bool) -> tuple[Tensor, Tensor | None, Packed | None]:
        """-> hidden states (T, D); the slots on the device, if they are there; the batch, unless it was a graph's."""
        cache, slots = self.pools.cache, [work.request.slot for work in works]
        counts = [work.count for work in works]
        one_each, slots_W = max(counts) == 1, None
        if self.graphs is not None and one_each:
            slots_W = self.graphs.prepare(slots)
            if slots_W is not None:
                return self.graphs.run(slots, self._embed(works, slots_W)), slots_W, None
        if self._last_N is not None and any(work.request.in_flight for work in works):
            slots_W = self._to_device(slots)
        x_TD = self._embed(works, slots_W)
        if self.cpu is not None and one_each and self.cpu.fits(slots):
            return self.cpu.run(slots, x_TD), slots_W, None
        if self.graphs is not None and not one_each and self.graphs.takes(slots, counts, drafting):
            return self.graphs.run_ragged(slots, counts, x_TD), slots_W, None
        packed = cache.pack(list(zip(slots, counts, strict=True)), draft=drafting)
        if self.cpu is not None and drafting and self.cpu.fits(range(sum(counts))):
            return self.cpu.verify(packed, x_TD), slots_W, packed
        return self.model.language_model(x_TD, packed, cache).hidden_TD, packed.slots_S, packed

    def _logits(self, hidden_SD: Tensor) -> Tensor:
        fast = self.cpu is not None and self.cpu.fits(range(len(hidden_SD)))
        return (self.cpu if fast else self.model.language_model).logits(hidden_SD)

    def _embed(self, works: Sequence[Work], slots_W: Tensor | None) -> Tensor:
        """Token and image embeddings (T, D); a token that only the device knows is taken from there, by `slots_W`."""
        ids, unseen, pieces, places = [], [], [], []  # unseen: whose last token it is, -1 if the host knows it
        for number, work in enumerate(works):
            request = work.request
            if request.in_flight:
                ids.append(0)
                unseen.append(number)
                continue
            if request.image_positions:
                rows, inside = self.images.rows(work)
                pieces += rows
                places += [len(ids) + place for place in inside]
            ids += request.ids(work.start, work.start + work.count - len(work.draft))
            ids += work.draft
            unseen += [-1] * work.count
        if max(unseen) < 0:
            ids_T = self._to_device(ids)
        else:
            ids_T = self._last_N.index_select(0, slots_W)
            if min(unseen) < 0:
                known_T, unseen_T = self._to_device((ids, unseen))
                ids_T = torch.where(unseen_T < 0, known_T, ids_T.index_select(0, unseen_T.clamp(min=0)))
        if not pieces:
            return self.model.language_model.embed(ids_T)
        x_TD = self.model.embed(ids_T, torch.cat(pieces), self._to_device(places))
        self.images.trim()
        return x_TD

    def _rows(self, work: Work) -> list[Row]:
        """Whose logits are sampled, one row for every guess and one behind them."""
        request = work.request
        first = len(request.output_ids) + request.in_flight
        return [Row(request.sampler_state, first + n, request.mask_V) for n in range(1 + len(work.draft))]

    def _remember(self, works: Sequence[Work], slots_W: Tensor | None, tokens_S: Tensor) -> None:
        if slots_W is None or len(tokens_S) < len(works):
            slots_W = self._to_device([work.request.slot for work in works if work.samples])
        self._last_N.index_copy_(0, slots_W, tokens_S.clamp(min=0))  # NOT_FINITE must not be embedded before it is seen

    def _settle(self, flight: Flight, packed: Packed | None) -> None:
        """Wait, and keep of the drafts what held."""
        results = flight.results()
        counts = [len(result.token_ids) for result in results]
        if packed is None:
            self.graphs.accept([work.request.slot for work in flight.works], counts)
        else:
            self.pools.cache.accept(packed, counts)
        for result in results:
            work = result.work
            work.request.num_cached += len(result.token_ids)
            if work.draft:
                work.request.lookup.learn(len(work.draft), len(result.token_ids) - 1)

    def _to_device(self, numbers: Sequence) -> Tensor:
        return to_device(torch.tensor(numbers, dtype=torch.int64), self.model.device)
