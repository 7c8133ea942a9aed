"""The engine under load, beside transformers' `generate` on the same weights in the same run.

A load is a set of prompts of random tokens that come at once, each answered with as many tokens as asked. Measured:
tokens/s, time to the first token (waiting included), time between tokens, memory; and how often a greedy answer is
another one beside others than alone. Before, the engine is warmed up as `mmvl serve` does it, and both have answered
as many short prompts; transformers, in a process of its own, has tried which batches suit it best.

The floor is what the weights, states and keys that must be read, or the products that must be made, take at the
machine's measured ceilings; of the experts those count that were hit.
"""

import gc
import os
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from mmvl.benchmark.engine_contestants import Load, Ours, Progress, model_of
from mmvl.benchmark.engine_peer import NAME as PEER
from mmvl.benchmark.engine_peer import Peer, PeerError, measure
from mmvl.benchmark.measure import Stopwatch, ceilings
from mmvl.benchmark.run import SECONDS, provenance
from mmvl.engine.graph_rule import weights
from mmvl.engine.memory import bytes_of_state, bytes_of_token
from mmvl.text_backbone.config import TextConfig

MIXED = tuple(round(512 * 32 ** (n / 63)) for n in range(64))  # 64 prompts of 512 to 16,384 tokens, evenly in their log
OURS = "mmvl"
AGREEMENT = {"requests": 12, "new_tokens": 48}


def loads(sequences: Sequence[int], lengths: Sequence[int], new_tokens: int, mixed: bool) -> list[Load]:
    """Every number of sequences at every length; and the mixed one."""
    found = [Load((length,) * count, new_tokens) for length in lengths for count in sequences]
    return found + [Load(MIXED, 256)] * mixed


def run(
    device: torch.device,
    *,
    model: Path | None,
    shape: str | None,
    chosen: Sequence[Load],
    peer: bool,
    progress: Progress,
    repeats: int = 3,
    layers: int | None = None,
    experts: str | None = None,
    peer_tokens: int | None = None,
    settings: dict | None = None,
    done: Callable[[dict], None] = lambda result: None,
) -> dict:
    """Measure all loads; returns what is written as JSON. `done` gets what there is of it after every load.

    model: a directory (None: mmvl-tiny); or `shape` with random weights, the first `layers` layers of it, with
    quantised `experts`. peer_tokens: of transformers' answers only so many tokens are made. settings: of the engine.
    Under torchrun the engine is spread over the ranks.

    Raises ValueError or OSError for a model, a shape or settings that cannot be used, before anything is measured.
    """
    what = model_of(model, shape, layers, experts)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    what.check(settings or {}, device, dtype)
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    progress("measuring what the machine can do")
    peak = ceilings(Stopwatch(device, SECONDS[device.type]))
    result = {
        **provenance(device), "model": shape or str(model or "mmvl-tiny"), "layers": layers, "ranks": ranks,
        "dtype": str(dtype)[6:], "experts": experts, "ceilings": peak, "threads": torch.get_num_threads(),
        "peer_tokens": peer_tokens, "settings": settings or {}, "rows": [],
    }  # fmt: skip

    def noted() -> None:
        result["table"] = table(result["rows"])
        done(result)

    _measure_ours(result, what, device, dtype, chosen, repeats, settings or {}, progress, noted)
    _free(device)
    if peer:
        named = {"directory": None if model is None else str(model), "shape": shape, "layers": layers}
        where = f"cuda:{torch.cuda.current_device()}" if device.type == "cuda" else str(device)
        runs = {"experts": experts, "device": where, "dtype": str(dtype)[6:], "threads": torch.get_num_threads()}
        try:
            with Peer(named | runs, progress) as started:
                _measure_peer(result, started, chosen, repeats, peer_tokens, progress, noted)
        except PeerError as error:
            result["failed"] = f"{PEER}: {error}"
    return result


def _measure_ours(result, what, device, dtype, chosen, repeats, settings, progress, noted) -> None:
    progress(f"{OURS}: loading")
    most = max(AGREEMENT["requests"], *(len(load.lengths) for load in chosen))
    settings = {"max_sequences": most} | settings
    contestant = Ours(what, device, dtype, settings, progress)
    result["warm_up_seconds"] = contestant.warm_up_seconds
    result["step_tokens"] = contestant.engine.pace.most
    progress(f"{OURS}: alone and together")
    result["agreement"] = contestant.agreement(**AGREEMENT)
    hit = {count: contestant.experts_hit(count) for count in sorted({len(load.lengths) for load in chosen})}
    for load in chosen:
        count = len(load.lengths)
        floor = floors(
            contestant.config, dtype, load, result["ceilings"], hit=hit[count],
            expert_bytes=contestant.expert_bytes(), ranks=result["ranks"],
        )  # fmt: skip
        contestant.run(load.warm)
        for repeat in range(repeats):
            progress(f"{OURS}: {load.name} tokens, {repeat + 1} of {repeats}")
            row = contestant.run(load) | floor
            result["rows"].append(_named(OURS, load, repeat) | row | {"experts_hit": hit[count]})
        noted()


def _measure_peer(result, peer: Peer, chosen, repeats, peer_tokens, progress, noted) -> None:
    for load in chosen:
        ours = next(row for row in result["rows"] if row["load"] == load.name)
        floor = {key: ours[key] for key in ours if "floor" in key}
        for row in measure(peer, load, repeats, peer_tokens, progress):
            result["rows"].append(_named(PEER, load, row["repeat"]) | row | floor)
        noted()


def _named(name: str, load: Load, repeat: int) -> dict:
    count = len(load.lengths)
    return {
        "name": name, "load": load.name, "repeat": repeat, "sequences": count, "length": sum(load.lengths) // count
    }  # fmt: skip


def _free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def table(rows: Sequence[dict]) -> list[dict]:
    """A line a load: the medians of ours and of transformers, how many times its tokens/s ours are, and what failed."""
    lines = []
    for load, sequences, length in dict.fromkeys((row["load"], row["sequences"], row["length"]) for row in rows):
        line: dict = {"load": load, "sequences": sequences, "length": length}
        for name in (OURS, PEER):
            group = [row for row in rows if (row["load"], row["name"]) == (load, name)]
            if failed := [row["failed"] for row in group if "failed" in row]:
                line["failed"] = f"{name} {failed[-1]}"
            group = [row for row in group if "tokens_per_second" in row]
            if group:
                keys = [key for key, value in group[0].items() if isinstance(value, float)]
                line[name] = {key: statistics.median(row[key] for row in group) for key in keys}
        if PEER in line:
            line["times"] = line[OURS]["tokens_per_second"] / line[PEER]["tokens_per_second"]
        lines.append(line)
    return lines


def floors(
    config: TextConfig,
    dtype: torch.dtype,
    load: Load,
    peak: dict,
    *,
    hit: float | None = None,
    expert_bytes: float | None = None,
    ranks: int = 1,
) -> dict[str, float]:
    """Seconds that the prompts, and a decode step of all, take at least: products made, or bytes read and written.

    hit: experts of a layer that the step reads (None: as many as independent random choices hit on average);
    expert_bytes: what each has (None: in `dtype`). Over several ranks everything but the head is shared evenly.
    """
    c, size, tokens = config, dtype.itemsize, sum(load.lengths)
    channels, lightning, softmax = c.num_attention_heads * c.head_dim, len(c.lightning_layers), len(c.softmax_layers)
    every, expert = weights(c)
    active = every + c.num_hidden_layers * c.num_experts_per_tok * expert
    pairs = sum(length * length / 2 for length in load.lengths)
    products = 2 * active * tokens + softmax * 4 * channels * pairs + lightning * 4 * channels * c.head_dim * tokens
    count = len(load.lengths)
    if hit is None:
        hit = c.num_local_experts * (1 - (1 - c.num_experts_per_tok / c.num_local_experts) ** count)
    read = size * every + c.num_hidden_layers * hit * (expert_bytes or size * expert)
    cached = tokens + count * load.new_tokens / 2  # half-way through the answers
    read += count * 2 * bytes_of_state(c) + cached * bytes_of_token(c, dtype)
    head = size * c.vocab_size * c.hidden_size
    return {
        "prefill_floor": products / ranks / peak["bf16"],
        "step_floor": (read / ranks + head) / peak["bytes"],
    }
