"""The decoder over several GPUs, with random weights: the whole model with quantised experts, or a slice of it in bf16.

Run by torchrun, one process a GPU; also alone, for comparison. Measures what making the weights takes, prefill, decode
steps at several counts of sequences as whole calls and captured in a CUDA graph, and the same without sending anything,
which shows how much of the communication is exposed: the experts are those that were chosen with it, as others take
another time. Results are written after every measurement.

The floor of a decode step counts the bytes that a GPU must read (weights once, of the experts those that are hit on
average, keys, values and states), that of a prefill its floating-point operations.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import cycle
from pathlib import Path
from unittest.mock import patch

import torch
import torch.distributed as dist

from mmvl.benchmark.run import provenance
from mmvl.benchmark.shapes import random_decoder, shape_of
from mmvl.kernels.experts import Routing
from mmvl.text_backbone import moe
from mmvl.text_backbone.decoder import Decoder
from mmvl.text_backbone.tensor_parallel import Shard

CONTEXT = 1024  # tokens that every sequence has before it decodes
COPY_BYTES_PER_SECOND, MATMUL_FLOPS = 4.27e12, 715e12  # of an H200, as measured by `mmvl bench kernels`


@contextmanager
def silent() -> Iterator[None]:
    """Inside, ranks of GPUs send nothing but how many tokens go to each expert; it costs a copy where they would.

    What a rank would receive is made of what it has, so that experts stay as busy as they were.
    """

    class Done:
        wait = staticmethod(lambda: None)

    def all_gather_into_tensor(out, x, group=None):
        out.view(-1, *x.shape).copy_(x.expand(len(out) // len(x), *x.shape))

    def reduce_scatter_tensor(out, x, group=None, async_op=False):
        out.copy_(x[: len(out)])
        return Done

    def all_to_all_single(out, x, receive, send, group=None, async_op=False):
        rows = min(len(out), len(x))
        out[:rows].copy_(x[:rows])
        out[rows:].zero_()
        return Done

    with ExitStack() as stack:
        stack.enter_context(patch.object(Shard, "sum", lambda self, x: x))
        for one in (all_gather_into_tensor, reduce_scatter_tensor, all_to_all_single):
            stack.enter_context(patch.object(dist, one.__name__, one))
        yield


@contextmanager
def chosen(routings: Sequence[Routing]) -> Iterator[None]:
    """Inside, routers choose these, call by call, over and over (`_Bench.routings`).

    Without sums over the ranks tokens are others, and would go to other experts, more or fewer of them.
    """
    router, turns = moe.router, cycle(routings)

    def choose(*args) -> Routing:
        router(*args)  # it is not wanted, but takes its time
        return next(turns)

    with patch.object(moe, "router", choose):
        yield


def run(
    shape: str,
    experts: str | None,
    lengths: Sequence[int],
    sequences: Sequence[int],
    json_path: Path | None,
    progress: Callable[[str], None],
    sequence_parallel: bool = False,
) -> dict:
    """Measure on all ranks; the result of rank 0, which alone writes `json_path` and reports progress.

    sequence_parallel: long prompts in parts, as in `load_model`.

    Raises:
        ValueError: the shape does not exist, or does not divide by the ranks.
    """
    rank = dist.get_rank() if dist.is_initialized() else 0
    ranks = dist.get_world_size() if dist.is_initialized() else 1
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    config = shape_of(shape)
    result = {**provenance(device), "shape": shape, "ranks": ranks, "experts": experts or str(dtype)[6:]}
    result |= {"sequence_parallel": sequence_parallel, "context": CONTEXT, "prefill": [], "decode": []}

    def note(what: str) -> None:
        if rank == 0:
            progress(what)
            if json_path is not None:
                json_path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")

    begin = time.perf_counter()
    spread = {"rank": rank, "ranks": ranks, "sequence_parallel": sequence_parallel}
    bench = _Bench(random_decoder(device, config=config, experts=experts, dtype=dtype, **spread), dtype, device)
    result["make_seconds"] = time.perf_counter() - begin
    result["weight_bytes"] = bench.weight_bytes
    note(f"made {bench.weight_bytes / 1e9:.1f} GB a rank in {result['make_seconds']:.1f} s")
    for length in lengths:
        prompt = bench.prefill(length)
        seconds = bench.time(prompt, 3)
        row = {"tokens": length, "ms": 1e3 * seconds, "tokens_per_second": length / seconds}
        row["of_roofline"] = bench.flops(length) / MATMUL_FLOPS / seconds
        if ranks > 1:
            routings = bench.routings(prompt)
            with silent(), chosen(routings):
                row["ms_without_sending"] = 1e3 * bench.time(prompt, 3)
        result["prefill"].append(row)
        note(f"prefill of {length:,}: {row}")
    for count in sequences:
        step = bench.decode(count)
        row = {"sequences": count, "ms": 1e3 * bench.time(step, 10)}
        row["floor_ms"] = 1e3 * bench.decode_bytes(count) / COPY_BYTES_PER_SECOND
        note(f"decode of {count}: {row}")
        row["graph_ms"] = bench.graph_ms(step)
        if ranks > 1:
            routings = bench.routings(step)
            with silent(), chosen(routings):
                row["graph_ms_without_sending"] = bench.graph_ms(step)
        best = min(t for t in (row["ms"], row["graph_ms"]) if t is not None)
        row |= {"tokens_per_second": 1e3 * count / best, "of_roofline": row["floor_ms"] / best}
        result["decode"].append(row)
        note(f"decode of {count}: {row}")
    if device.type == "cuda":
        result["peak_bytes"] = torch.cuda.max_memory_allocated(device)
    note("done")
    return result


class _Bench:
    def __init__(self, decoder: Decoder, dtype: torch.dtype, device: torch.device):
        self.config, self.device, self.dtype, self.ranks = decoder.config, device, dtype, decoder.ranks
        self.decoder, self.shard = decoder, decoder.shard
        self.weight_bytes = sum(t.nbytes for t in self.decoder.state_dict().values())

    def _cache(self, sequences: int, tokens: int):
        return self.decoder.new_cache(
            max_sequences=sequences, max_tokens=sequences * (tokens + 192), device=self.device, dtype=self.dtype
        )

    def _embeddings(self, tokens: int) -> torch.Tensor:
        """The same on every rank."""
        generator = torch.Generator(self.device).manual_seed(tokens)
        return torch.randn(tokens, self.config.hidden_size, generator=generator, device=self.device).to(self.dtype)

    def _logits(self, hidden_SD: torch.Tensor) -> torch.Tensor | None:
        return self.decoder.logits(hidden_SD) if self.shard is None or self.shard.rank == 0 else None

    def prefill(self, tokens: int) -> Callable:
        x_TD = self._embeddings(tokens)

        @torch.inference_mode()
        def call():
            cache = self._cache(1, tokens)
            packed = cache.pack([(cache.allocate(), tokens)])
            self._logits(self.decoder(x_TD, packed, cache).hidden_TD[-1:])

        return call

    def decode(self, sequences: int) -> Callable:
        with torch.inference_mode():
            cache = self._cache(sequences, CONTEXT)
            slots = [cache.allocate() for _ in range(sequences)]
            for slot in slots:
                self.decoder(self._embeddings(CONTEXT), cache.pack([(slot, CONTEXT)]), cache)
        x_SD = self._embeddings(sequences)

        @torch.inference_mode()
        def step(packed=None):
            packed = packed or step.pack()
            return self._logits(self.decoder(x_SD, packed, cache).hidden_TD)

        step.pack = lambda: cache.pack([(slot, 1) for slot in slots])
        return step

    def routings(self, call: Callable) -> list[Routing]:
        """What the routers choose in one call, in order."""
        found, router = [], moe.router
        with patch.object(moe, "router", lambda *args: found.append(router(*args)) or found[-1]):
            call()
        return found

    def time(self, call: Callable, repeats: int) -> float:
        """Median seconds of a call on the slowest rank, after two to warm up."""
        samples = []
        for repeat in range(repeats + 2):
            self._meet()
            begin = time.perf_counter()
            call()
            self._wait()
            if repeat >= 2:
                samples.append(time.perf_counter() - begin)
        seconds = torch.tensor(statistics.median(samples), device=self.device)
        if self.ranks > 1:
            dist.all_reduce(seconds, dist.ReduceOp.MAX)
        return seconds.item()

    def graph_ms(self, step: Callable) -> float | None:
        """Milliseconds of the step captured in a CUDA graph; None on a CPU, or where it cannot be captured."""
        if self.device.type == "cpu":
            return None
        step()
        packed, graph = step.pack(), torch.cuda.CUDAGraph()
        self._meet()
        try:
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                kept = step(packed)  # noqa: F841
        except RuntimeError as error:
            print(f"no graph: {str(error).splitlines()[0]}", flush=True)
            return None
        return 1e3 * self.time(graph.replay, 20)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _meet(self) -> None:
        if self.ranks > 1:
            dist.barrier(device_ids=[self.device.index] if self.device.type == "cuda" else None)
        self._wait()

    def flops(self, tokens: int) -> float:
        """Of a prefill, on one rank: two a weight that a token meets, and softmax attention over the past."""
        c = self.config
        inner, keys = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
        lightning = 5 * inner * c.hidden_size
        softmax = (2 * inner + 2 * keys) * c.hidden_size
        ffn = 3 * c.num_experts_per_tok * c.intermediate_size * c.hidden_size
        per_token = len(c.lightning_layers) * lightning + len(c.softmax_layers) * softmax + c.num_hidden_layers * ffn
        attention = len(c.softmax_layers) * 2 * inner * tokens * tokens  # half of 4 inner T^2: causal
        return (2 * per_token * tokens + attention) / self.ranks

    def decode_bytes(self, sequences: int) -> float:
        """That rank 0 reads in a step (states are written too); of layers that are whole on every rank its part."""
        c, weights = self.config, self.decoder.state_dict()
        whole = sum(t.nbytes for name, t in weights.items() if self.shard is not None and self.shard.is_whole(name))
        stacks = [layer.block_sparse_moe.experts for layer in self.decoder.model.layers]
        experts = sum(t.nbytes for stack in stacks for t in stack.state_dict().values())
        hit = 1 - (1 - c.num_experts_per_tok / c.num_local_experts) ** sequences
        embedding = self.decoder.model.embed_tokens.weight.nbytes if self.shard is None or not self.shard.rank else 0
        state = len(c.lightning_layers) * c.num_attention_heads * c.head_dim**2 * 4 * 2
        kv = len(c.softmax_layers) * 2 * c.num_key_value_heads * c.head_dim * CONTEXT * self.dtype.itemsize
        read = self.weight_bytes - whole * (1 - 1 / self.ranks) - embedding - experts * (1 - hit)
        return read + sequences * (state + kv) / self.ranks
