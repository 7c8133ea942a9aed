"""The engine under load, beside transformers' `generate` on the same weights in the same run.

A load is a set of prompts of random tokens that come at once, each answered with as many tokens as asked. Measured:
tokens/s, time to the first token (waiting included), time between tokens, memory. Drafts and the prefix cache are off:
random text would flatter them. The floor is what the weights, states and keys that must be read, or the products that
must be made, take at the machine's measured ceilings.
"""

import gc
import random
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import nn

from mmvl.benchmark.decoder import SLICE, SMALL, fill_randomly
from mmvl.benchmark.measure import Stopwatch, ceilings
from mmvl.benchmark.run import SECONDS, provenance
from mmvl.checkpoint import load_model
from mmvl.engine import Engine, SamplingParams
from mmvl.engine.memory import bytes_of_state, bytes_of_token
from mmvl.engine.ranks import load as load_over_ranks
from mmvl.processor import Processor, Prompt
from mmvl.text_backbone.config import TextConfig
from mmvl.text_backbone.decoder import Decoder
from mmvl.text_backbone.names import to_native
from mmvl.vlm import MMVL_TINY

SHAPES = {"slice": SLICE, "small": SMALL}
MIXED = tuple(round(512 * 32 ** (n / 63)) for n in range(64))  # 64 prompts of 512 to 16,384 tokens, evenly in their log
OURS, PEER = "mmvl", "transformers"
_FIRST_ID = 16  # special tokens come before
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Load:
    """Prompts of these lengths, `new_tokens` for each; transformers answers `peer_batch` of them at a time."""

    lengths: tuple[int, ...]
    new_tokens: int
    peer_batch: int

    @property
    def name(self) -> str:
        low, high = min(self.lengths), max(self.lengths)
        return f"{len(self.lengths)} x {low:,}" + (f" to {high:,}" if high > low else "") + f" + {self.new_tokens:,}"

    def prompts(self, vocabulary: int) -> list[list[int]]:
        """Token ids, the same for everyone."""
        rng = random.Random(0)
        return [[rng.randrange(_FIRST_ID, vocabulary) for _ in range(length)] for length in self.lengths]


def loads(sequences: Sequence[int], lengths: Sequence[int], new_tokens: int, mixed: bool) -> list[Load]:
    """Every number of sequences at every length; and the mixed one, at which transformers may try several batches."""
    found = [Load((length,) * count, new_tokens, count) for length in lengths for count in sequences]
    return found + [Load(MIXED, 256, batch) for batch in (64, 16) if mixed]


def run(
    device: torch.device,
    *,
    model: Path | None,
    shape: str | None,
    chosen: Sequence[Load],
    peer: bool,
    progress: Progress,
    repeats: int = 3,
    settings: dict | None = None,
) -> dict:
    """Measure all loads; returns what is written as JSON.

    model: a directory (None: mmvl-tiny); or `shape`, one of `SHAPES`, for random weights. settings: of the engine.

    Raises ValueError or OSError for a model or a shape that cannot be used.
    """
    if shape is not None and shape not in SHAPES:
        raise ValueError(f"there is no shape {shape!r}; there are {', '.join(SHAPES)}")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    progress("measuring what the machine can do")
    peak = ceilings(Stopwatch(device, SECONDS[device.type]))
    result = {
        **provenance(device), "model": shape or str(model or "mmvl-tiny"), "dtype": str(dtype)[6:], "ceilings": peak,
        "threads": torch.get_num_threads(), "rows": [],
    }  # fmt: skip
    for name, make in ((OURS, _Ours), (PEER, _Transformers)):
        if name == PEER and not peer:
            continue
        progress(f"{name}: loading")
        try:
            contestant = make(model, shape, device, dtype, settings or {})
            for load in chosen:
                if name == OURS and any(row["load"] == load.name for row in result["rows"]):
                    continue
                warm = tuple(min(length, 256) for length in load.lengths)
                contestant.run(replace(load, lengths=warm, new_tokens=4))  # compiles, captures
                for repeat in range(repeats):
                    progress(f"{name}: {load.name} tokens, {repeat + 1} of {repeats}")
                    count = len(load.lengths)
                    row = {"name": name, "load": load.name, "repeat": repeat, "batch": load.peer_batch}
                    row |= {"sequences": count, "length": sum(load.lengths) // count}
                    row |= contestant.run(load) | floors(contestant.config, dtype, load, peak)
                    result["rows"].append(row)
        except Exception as error:  # a peer may fail in any way
            if name == OURS:
                raise
            result["failed"] = f"{name}: {type(error).__name__}: {' '.join(str(error).split())}"[:300]
        contestant = None
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    result["table"] = table(result["rows"])
    return result


def table(rows: Sequence[dict]) -> list[dict]:
    """A line a load: the medians of ours, transformers' best batch, and how many times its tokens/s ours are."""
    lines = []
    for load, sequences, length in dict.fromkeys((row["load"], row["sequences"], row["length"]) for row in rows):
        line: dict = {"load": load, "sequences": sequences, "length": length}
        for name in (OURS, PEER):
            batches: dict[int, list[dict]] = {}
            for row in rows:
                if (row["load"], row["name"]) == (load, name):
                    batches.setdefault(row["batch"], []).append(row)
            medians = [
                {key: statistics.median(r[key] for r in group) for key in group[0] if isinstance(group[0][key], float)}
                for group in batches.values()
            ]
            if medians:
                line[name] = max(medians, key=lambda m: m["tokens_per_second"])
        if PEER in line:
            line["times"] = line[OURS]["tokens_per_second"] / line[PEER]["tokens_per_second"]
        lines.append(line)
    return lines


def floors(config: TextConfig, dtype: torch.dtype, load: Load, peak: dict) -> dict[str, float]:
    """Seconds that the prompts, and a decode step of all, take at least: products made, or bytes read and written."""
    c, size, tokens = config, dtype.itemsize, sum(load.lengths)
    channels, keys = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    lightning, softmax = len(c.lightning_layers), len(c.softmax_layers)
    attention = lightning * 5 * channels * c.hidden_size + softmax * (2 * channels + 2 * keys) * c.hidden_size
    expert = 3 * c.hidden_size * c.intermediate_size
    shared = c.num_hidden_layers * 3 * c.hidden_size * c.shared_intermediate_size
    active = attention + shared + c.num_hidden_layers * c.num_experts_per_tok * expert
    pairs = sum(length * length / 2 for length in load.lengths)
    products = 2 * active * tokens + softmax * 4 * channels * pairs + lightning * 4 * channels * c.head_dim * tokens
    count = len(load.lengths)
    hit = c.num_local_experts * (1 - (1 - c.num_experts_per_tok / c.num_local_experts) ** count)
    weights = attention + shared + c.num_hidden_layers * hit * expert + c.vocab_size * c.hidden_size
    cached = tokens + count * load.new_tokens / 2  # half-way through the answers
    read = size * weights + count * 2 * bytes_of_state(c) + cached * bytes_of_token(c, dtype)
    return {"prefill_floor": products / peak["bf16"], "step_floor": read / peak["bytes"]}


class _Ours:
    def __init__(self, model: Path | None, shape: str | None, device, dtype, settings: dict):
        processor = Processor.from_pretrained(model or MMVL_TINY)
        loaded = load_over_ranks(model or MMVL_TINY, device=device, dtype=dtype) if shape is None else None
        whole = _TextOnly(SHAPES[shape], device, dtype) if shape else loaded
        settings = {"prefix_cache": "off", "draft_tokens": 0} | settings
        self.engine = Engine(whole, processor, **settings)
        self.config, self.device = whole.language_model.config, device
        self.vocabulary = min(processor.valid_vocab_size, self.config.vocab_size)

    def run(self, load: Load) -> dict[str, float]:
        engine = self.engine
        _reset_memory(self.device)
        params = SamplingParams(max_tokens=load.new_tokens, ignore_eos=True)
        begun = time.perf_counter()
        requests = [engine.submit(Prompt(ids), params) for ids in load.prompts(self.vocabulary)]
        times: dict[int, list[float]] = {request.number: [] for request in requests}
        while engine.has_work:
            for update in engine.step():
                times[update.request.number].append(time.perf_counter())
        seconds = time.perf_counter() - begun
        firsts = [seen[0] - begun for seen in times.values()]
        between = [after - before for seen in times.values() for before, after in zip(seen, seen[1:], strict=False)]
        return _row(load, seconds, firsts, between, self.device)


class _Transformers:
    def __init__(self, model: Path | None, shape: str | None, device, dtype, settings: dict):
        from transformers import MiniMaxConfig, MiniMaxForCausalLM

        ours = None if shape else load_model(model or MMVL_TINY, device=device, dtype=dtype).language_model
        self.config = SHAPES[shape] if shape else ours.config
        whole_heads = replace(self.config, rotary_dim=self.config.head_dim)  # it rotates no parts; as much work
        native = MiniMaxConfig(**whole_heads.to_native_dict())
        if ours is not None:
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
        if device.type == "cuda":
            self.model.set_experts_implementation("grouped_mm")
        self.device = device
        known = Processor.from_pretrained(model or MMVL_TINY).valid_vocab_size
        self.vocabulary = min(known, self.config.vocab_size)

    @torch.inference_mode()
    def run(self, load: Load) -> dict[str, float]:
        _reset_memory(self.device)
        prompts = sorted(load.prompts(self.vocabulary), key=len)
        begun, firsts, between = time.perf_counter(), [], []
        for at in range(0, len(prompts), load.peer_batch):
            batch = prompts[at : at + load.peer_batch]
            clock = _Clock(self.device)
            self._generate(batch, load.new_tokens, clock)
            firsts += [clock.times[0] - begun] * len(batch)
            steps = [after - before for before, after in zip(clock.times, clock.times[1:], strict=False)]
            between += steps * len(batch)
        return _row(load, time.perf_counter() - begun, firsts, between, self.device)

    def _generate(self, batch: list[list[int]], new_tokens: int, clock: "_Clock") -> None:
        longest = max(map(len, batch))
        ids = torch.tensor([[0] * (longest - len(row)) + row for row in batch], device=self.device)
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in batch], device=self.device)
        self.model.generate(
            ids, attention_mask=mask, max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=False,
            eos_token_id=None, pad_token_id=0, stopping_criteria=[clock],
        )  # fmt: skip
        _wait(self.device)


class _Clock:
    """Asked after every token by `generate`; notes when, and never stops it."""

    def __init__(self, device: torch.device):
        self.times: list[float] = []
        self._device = device

    def __call__(self, ids, scores, **_) -> torch.Tensor:
        _wait(self._device)
        self.times.append(time.perf_counter())
        return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)


class _TextOnly(nn.Module):
    """A decoder with random weights, with as much of a model's surface as an engine without images needs."""

    def __init__(self, config: TextConfig, device: torch.device, dtype: torch.dtype):
        super().__init__()
        with torch.device("meta"):
            self.language_model = Decoder(config).to(dtype).requires_grad_(False)
        self.language_model.to_empty(device=device)
        fill_randomly(self.language_model, device)
        self.config, self.device, self.dtype = SimpleNamespace(text=config), device, dtype


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


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _reset_memory(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _memory(device: torch.device) -> int:
    """Most bytes in use: on a GPU since the last reset, on a CPU by the process since its start."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
