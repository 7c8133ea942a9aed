"""Who takes part in `mmvl bench engine`: the engine, and transformers' `generate` on the same weights.

S sequences, L layers, E experts.
"""

import random
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import wait
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import nn

from mmvl.benchmark.decoder import fill_randomly
from mmvl.benchmark.engine_memory import in_use
from mmvl.benchmark.shapes import check_experts, random_decoder, shape_of
from mmvl.checkpoint import load_model
from mmvl.engine import Engine, SamplingParams
from mmvl.engine.cpu_decode import kernels
from mmvl.engine.memory import bytes_of_expert, check_workspace
from mmvl.engine.ranks import load as load_over_ranks
from mmvl.engine.ranks import spread
from mmvl.engine.settings import check_for_model, check_settings
from mmvl.host_memory import peak_bytes
from mmvl.processor import Processor, Prompt
from mmvl.shipped import MMVL_TINY
from mmvl.text_backbone.config import TextConfig
from mmvl.text_backbone.names import to_native

_FIRST_ID = 16  # special tokens come before
_HIT_CONTEXT, _HIT_STEPS = 128, 4  # tokens of each sequence before experts are counted, and steps over which
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Load:
    """Prompts of these lengths that come at once, `new_tokens` for each."""

    lengths: tuple[int, ...]
    new_tokens: int

    @property
    def name(self) -> str:
        low, high = min(self.lengths), max(self.lengths)
        return f"{len(self.lengths)} x {low:,}" + (f" to {high:,}" if high > low else "") + f" + {self.new_tokens:,}"

    @property
    def warm(self) -> "Load":
        """As many sequences, with little to do."""
        return Load(tuple(min(length, 256) for length in self.lengths), min(self.new_tokens, 4))

    def prompts(self, vocabulary: int) -> list[list[int]]:
        """Token ids, the same for everyone."""
        return [random_ids(length, vocabulary, seed) for seed, length in enumerate(self.lengths)]


def random_ids(count: int, vocabulary: int, seed: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(_FIRST_ID, vocabulary) for _ in range(count)]


@dataclass(frozen=True)
class Model:
    """What is measured: a directory (None: mmvl-tiny), or random weights of a config with experts of a kind."""

    directory: Path | None
    config: TextConfig | None = None
    experts: str | None = None

    def processor(self) -> Processor:
        return Processor.from_pretrained(self.directory or MMVL_TINY)

    def load(self, device: torch.device, dtype: torch.dtype):
        """The model, or with a config as much of one as an engine without images needs; spread over the ranks."""
        if self.config is None:
            return load_over_ranks(self.directory or MMVL_TINY, device=device, dtype=dtype)
        make = partial(random_decoder, config=self.config, experts=self.experts, dtype=dtype)
        return _TextOnly(spread(make, device), device, dtype)

    def check(self, settings: dict, device: torch.device, dtype: torch.dtype) -> None:
        """Raises ValueError for settings of an engine that cannot be with it, without loading it."""
        if self.config is None:
            check_for_model(settings, self.directory or MMVL_TINY, device, dtype)
        else:
            check_settings(device, settings)
            check_workspace(settings.get("expert_workspace"), self.experts, self.config, dtype)

    def vocabulary(self, processor: Processor, config: TextConfig) -> int:
        """Ids below this can be asked for and answered."""
        return min(processor.valid_vocab_size, config.vocab_size)


def model_of(directory: Path | None, shape: str | None, layers: int | None, experts: str | None) -> Model:
    """What the command's options name: a directory (None: mmvl-tiny), or the first `layers` layers of a shape.

    Raises ValueError for a shape or a kind of experts that there is not, or for layers and experts of a directory.
    """
    if shape is None and (layers is not None or experts is not None):
        raise ValueError("--layers and --experts are of a --shape; a model directory has its own")
    check_experts(experts)
    return Model(directory, None if shape is None else shape_of(shape, layers), experts)


class Ours:
    """The engine. Drafts and the prefix cache are off, `settings` go over that: random text would flatter them."""

    def __init__(self, model: Model, device: torch.device, dtype: torch.dtype, settings: dict, progress: Progress):
        processor, loaded = model.processor(), model.load(device, dtype)
        self.engine = Engine(loaded, processor, **{"prefix_cache": "off", "draft_tokens": 0} | settings)
        self.config, self.device = loaded.language_model.config, device
        self.vocabulary = model.vocabulary(processor, self.config)
        began = time.perf_counter()
        if device.type == "cpu":
            progress("compiling, unless it was done before")
            wait([kernels()])
        self.engine.warm_up(progress)
        self.warm_up_seconds = time.perf_counter() - began

    def expert_bytes(self) -> int:
        """Of one expert of one layer."""
        return bytes_of_expert(self.engine.model.language_model)

    def run(self, load: Load) -> dict[str, float]:
        """Answer the load; its row."""
        engine = self.engine
        _reset_memory(self.device)
        engine.counters.reset()
        params = SamplingParams(max_tokens=load.new_tokens, ignore_eos=True)
        prompts = [Prompt(ids) for ids in load.prompts(self.vocabulary)]
        begun = time.perf_counter()
        requests = [engine.submit(prompt, params) for prompt in prompts]
        times: dict[int, list[float]] = {request.number: [] for request in requests}
        while engine.has_work:
            for update in engine.step():
                if update.error is not None:
                    raise update.error
                times[update.request.number].append(time.perf_counter())
        seconds = time.perf_counter() - begun
        firsts = [seen[0] - begun for seen in times.values()]
        between = [after - before for seen in times.values() for before, after in zip(seen, seen[1:], strict=False)]
        return _row(load, seconds, firsts, between, self.device) | in_use(engine, load.lengths)

    @torch.inference_mode()
    def experts_hit(self, sequences: int) -> float | None:
        """Experts of a layer that a decode step of so many sequences reads, counted over layers and a few steps.

        None over several ranks, which do not tell.
        """
        decoder, cache = self.engine.model.language_model, self.engine.cache
        slots = [cache.allocate() for _ in range(min(sequences, self.engine.max_sequences))]
        found: list[torch.Tensor] = []
        try:
            ids = [random_ids(_HIT_CONTEXT, self.vocabulary, seed) for seed in range(len(slots))]
            count = _HIT_CONTEXT
            for _ in range(1 + _HIT_STEPS):
                ids_T = torch.tensor(ids, device=self.device).flatten()
                packed = cache.pack([(slot, count) for slot in slots])
                out = decoder(decoder.embed(ids_T), packed, cache)
                if not out.expert_counts_LE.shape[-1]:
                    return None
                found.append((out.expert_counts_LE > 0).sum(1).float().mean())
                ids, count = decoder.logits(out.hidden_TD[packed.last_S]).argmax(-1).tolist(), 1
        finally:
            for slot in slots:
                cache.free(slot)
        return torch.stack(found[1:]).mean().item()

    def agreement(self, requests: int, new_tokens: int) -> dict:
        """Greedy answers of each request alone and of all together: where do they differ first?

        `rate`: how often a token was the first that differed, of all tokens up to there.
        """
        load = Load(tuple(8 + 24 * n for n in range(requests)), new_tokens)
        params = SamplingParams(max_tokens=new_tokens, ignore_eos=True)
        prompts = [Prompt(ids) for ids in load.prompts(self.vocabulary)]
        alone = [self._answers([prompt], params)[0] for prompt in prompts]
        firsts = []
        for one, other in zip(alone, self._answers(prompts, params), strict=True):
            firsts.append(next((n for n, pair in enumerate(zip(one, other, strict=True)) if pair[0] != pair[1]), None))
        compared = sum(new_tokens if first is None else first + 1 for first in firsts)
        differ = [first for first in firsts if first is not None]
        return {
            "requests": requests, "new_tokens": new_tokens, "equal": requests - len(differ),
            "first_differences": differ, "tokens_compared": compared, "rate": len(differ) / compared,
        }  # fmt: skip

    def _answers(self, prompts: Sequence[Prompt], params: SamplingParams) -> list[list[int]]:
        requests = [self.engine.submit(prompt, params) for prompt in prompts]
        while self.engine.has_work:
            self.engine.step()
        return [request.output_ids for request in requests]


class Transformers:
    """`MiniMaxForCausalLM.generate`, in batches filled up on the left, the longest prompts first."""

    def __init__(
        self,
        model: Model,
        device: torch.device,
        dtype: torch.dtype,
        experts: str | None = None,
        cudnn: bool = True,
    ):
        """experts: how it computes them, by its own name for that ("grouped_mm", "eager"); None: as it likes. cudnn:
        whether cuDNN may compute its attention; that is said for the whole process."""
        from transformers import MiniMaxConfig, MiniMaxForCausalLM

        torch.backends.cuda.enable_cudnn_sdp(cudnn)

        if model.experts is not None:
            raise ValueError("it has no such quantised experts")
        ours = model.config or load_model(model.directory or MMVL_TINY, device=device, dtype=dtype).language_model
        self.config = model.config or ours.config
        whole_heads = replace(self.config, rotary_dim=self.config.head_dim)  # it rotates no parts; as much work
        native = MiniMaxConfig(**whole_heads.to_native_dict())
        if model.config is None:
            self.model = MiniMaxForCausalLM(native).to(dtype)
            self.model.load_state_dict(to_native(ours.state_dict()), strict=False)
            self.model.to(device)
        else:
            with torch.device("meta"):
                self.model = MiniMaxForCausalLM(native).to(dtype)
            decays = [name for name, _ in self.model.named_buffers()]
            self.model.requires_grad_(False).to_empty(device=device)
            fill_randomly(self.model, device)
            for name in decays:  # their values do not matter for time, only that they are numbers
                self.model.get_buffer(name).fill_(0.5)
        self.model.requires_grad_(False).eval()
        if experts is not None:
            self.model.set_experts_implementation(experts)
        self.device = device
        self.vocabulary = model.vocabulary(model.processor(), self.config)

    @torch.inference_mode()
    def run(self, load: Load, budget: int, new_tokens: int | None = None) -> dict[str, float]:
        """Answer the load, or `new_tokens` of each answer, for the others of which the median step is assumed."""
        _reset_memory(self.device)
        now, firsts, between = 0.0, [], []
        made = min(new_tokens or load.new_tokens, load.new_tokens)
        for batch in batches(load.prompts(self.vocabulary), budget):
            begun, clock = time.perf_counter(), _Clock(self.device)
            self._generate(batch, made, clock)
            firsts += [now + clock.times[0] - begun] * len(batch)
            steps = [after - before for before, after in zip(clock.times, clock.times[1:], strict=False)]
            steps += [statistics.median(steps)] * (load.new_tokens - made) if steps else []
            between += steps * len(batch)
            now += clock.times[0] - begun + sum(steps)
        return _row(load, now, firsts, between, self.device)

    def _generate(self, batch: list[list[int]], new_tokens: int, clock: "_Clock") -> None:
        longest = max(map(len, batch))
        ids = torch.tensor([[0] * (longest - len(row)) + row for row in batch], device=self.device)
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in batch], device=self.device)
        self.model.generate(
            ids, attention_mask=mask, max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=False,
            eos_token_id=None, pad_token_id=0, stopping_criteria=[clock],
            past_key_values=_cache_that_counts_keys(self.config.softmax_layers),
        )  # fmt: skip


def _cache_that_counts_keys(softmax_layers: Sequence[int]):
    """transformers' cache, whose first layer is asked how many keys there are, if any layer has some.

    That is a lightning layer and has none: in transformers 5.17 to 5.23 the mask of a decode step is then of one key,
    so that filled up prompts get wrong answers on a CPU, and attention ends with a CUDA fault or an error on a GPU.
    """
    from transformers.models.minimax.modeling_minimax import MiniMaxCache

    class Cache(MiniMaxCache):
        def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
            return super().get_mask_sizes(query_length, softmax_layers[0])

        def get_query_offset(self, layer_idx: int = 0) -> int:
            return super().get_query_offset(softmax_layers[0])

    return Cache() if softmax_layers else MiniMaxCache()


def batches(prompts: Sequence[Sequence[int]], budget: int) -> list[list[Sequence[int]]]:
    """The longest first, so many that the longest times their number is within `budget`, at least one."""
    found: list[list[Sequence[int]]] = []
    for prompt in sorted(prompts, key=len, reverse=True):
        if not found or (len(found[-1]) + 1) * len(found[-1][0]) > budget:
            found.append([])
        found[-1].append(prompt)
    return found


class _Clock:
    """Asked after every token by `generate`; notes when, and never stops it."""

    def __init__(self, device: torch.device):
        self.times: list[float] = []
        self._device = device

    def __call__(self, ids, scores, **_) -> torch.Tensor:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self.times.append(time.perf_counter())
        return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)


class _TextOnly(nn.Module):
    """A decoder with as much of a model's surface as an engine without images needs."""

    def __init__(self, decoder: nn.Module, device: torch.device, dtype: torch.dtype):
        super().__init__()
        self.language_model = decoder
        self.config, self.device, self.dtype = SimpleNamespace(text=decoder.config), device, dtype


def _row(load: Load, seconds: float, firsts: list[float], between: list[float], device) -> dict[str, float]:
    made, read = len(load.lengths) * load.new_tokens, sum(load.lengths)
    between = sorted(between) or [0.0]
    return {
        "seconds": seconds,
        "tokens_per_second": made / seconds,
        "prompt_tokens_per_second": read / max(firsts),
        "first_token_seconds": statistics.median(firsts),
        "first_token_seconds_worst": max(firsts),
        "between_seconds": statistics.median(between),
        "between_seconds_p95": between[int(0.95 * (len(between) - 1))],
        "memory_gib": _memory(device) / (1 << 30),
    }


def _reset_memory(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _memory(device: torch.device) -> int:
    """Most bytes in use: on a GPU since the last reset, on a CPU by the process since its start."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return peak_bytes()
