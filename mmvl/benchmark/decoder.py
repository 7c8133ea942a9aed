"""The decoder as a whole: prefill and decode of a slice of the full model beside transformers, with random weights.

The slice has the full width and 8 of the 80 layers (7 lightning, 1 softmax), with embedding and head: 47.8 billion
parameters, 96 GB in bf16. Prefill is one packed batch into the cache and the logits of its last token; a decode step is
one token of each sequence. Both are whole calls as a program makes them, the host's part included; a decode step is
also captured in a CUDA graph, which leaves that part out.
"""

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from mmvl.benchmark.run import provenance
from mmvl.text_backbone.cache import HybridCache
from mmvl.text_backbone.config import TextConfig
from mmvl.text_backbone.decoder import Decoder

SLICE = TextConfig(
    hidden_size=6144, num_hidden_layers=8, num_attention_heads=64, num_key_value_heads=8, head_dim=128, rotary_dim=64,
    vocab_size=200_064, intermediate_size=9216, num_local_experts=32, num_experts_per_tok=2,
    attn_type_list=(0, 0, 0, 0, 0, 0, 0, 1), rope_theta=10_000_000.0, postnorm=True,
    layernorm_full_attention_alpha=3.5565588200778455, layernorm_linear_attention_alpha=3.5565588200778455,
    layernorm_mlp_alpha=3.5565588200778455, max_position_embeddings=1 << 20,
)  # fmt: skip
SMALL = replace(
    SLICE, hidden_size=32, num_attention_heads=4, num_key_value_heads=2, head_dim=8, rotary_dim=4, vocab_size=64,
    intermediate_size=16, num_local_experts=4,
)  # fmt: skip
GOALS = {"prefill": {8192: 60_000, 32768: 60_000}, "decode": {1: 3.5, 8: 11.5, 64: 27.0}}  # tokens/s; ms a step
CONTEXT = 1024  # tokens that every sequence has before it decodes
REPEATS = {"prefill": 3, "decode": 20}
Progress = Callable[[str], None]


def run(device: torch.device, peer: bool, progress: Progress, lengths: Sequence[int] | None = None) -> dict:
    """Measure both; returns what is written as JSON. Raises ValueError where the memory is too small for the slice."""
    gpu = device.type == "cuda"
    config, dtype = (SLICE, torch.bfloat16) if gpu else (SMALL, torch.float32)
    if gpu and torch.cuda.mem_get_info(device)[0] < 115 << 30:
        raise ValueError(f"the slice needs 115 GiB of free memory on {torch.cuda.get_device_name(device)}")
    lengths = lengths or ((8192, 32768) if gpu else (32,))
    sequences = (1, 8, 64) if gpu else (1, 3)
    context = CONTEXT if gpu else 8
    result = {**provenance(device), "dtype": str(dtype)[6:], "context": context, "prefill": [], "decode": []}
    for name, make in [("mmvl", _Ours)] + [("transformers", _Transformers)] * peer:
        progress(f"{name}: making the weights")
        try:
            model = make(config, device, dtype)
            for length in lengths:
                progress(f"{name}: prefill of {length:,} tokens")
                seconds = _median(lambda n=length, m=model: m.prefill(n), REPEATS["prefill"], device)
                row = {"name": name, "tokens": length, "ms": 1e3 * seconds, "tokens_per_second": length / seconds}
                result["prefill"].append({**row, "goal": GOALS["prefill"].get(length) if gpu else None})
            for count in sequences:
                progress(f"{name}: decoding {count} sequences")
                step = model.start(count, context)
                ms = 1e3 * _median(step, REPEATS["decode"], device)
                row = {"name": name, "sequences": count, "ms": ms, "graph_ms": model.graph_ms()}
                result["decode"].append({**row, "goal": GOALS["decode"].get(count) if gpu else None})
        except Exception as error:  # a peer may fail in any way
            if name == "mmvl":
                raise
            result["failed"] = f"{name}: {type(error).__name__}: {' '.join(str(error).split())}"[:300]
        model = step = None
        gc.collect()
        if gpu:
            torch.cuda.empty_cache()
    return result


def _median(call: Callable, repeats: int, device: torch.device) -> float:
    """Seconds of a call, the device's work included, after two to warm up."""
    samples = []
    for repeat in range(repeats + 2):
        _wait(device)
        begin = time.perf_counter()
        call()
        _wait(device)
        if repeat >= 2:
            samples.append(time.perf_counter() - begin)
    return statistics.median(samples)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def fill_randomly(module: torch.nn.Module, device: torch.device) -> None:
    """Natural sizes: norms 1, matrices such that their outputs are as large as their inputs."""
    generator = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim == 1:
                parameter.fill_(1.0)
            else:
                parameter.normal_(0, parameter.shape[-1] ** -0.5, generator=generator)


class _Ours:
    def __init__(self, config: TextConfig, device: torch.device, dtype: torch.dtype):
        with torch.device("meta"):
            self.decoder = Decoder(config).to(dtype).requires_grad_(False)
        self.decoder.to_empty(device=device)
        fill_randomly(self.decoder, device)
        self.config, self.device, self.dtype = config, device, dtype
        self._last: tuple | None = None

    def _cache(self, sequences: int, tokens: int) -> HybridCache:
        tokens = sequences * (tokens + 256)
        return HybridCache(
            self.config, max_sequences=sequences, max_tokens=tokens, device=self.device, dtype=self.dtype
        )

    @torch.no_grad()
    def _forward(self, ids_T, packed, cache):
        hidden_TD = self.decoder(self.decoder.embed(ids_T), packed, cache).hidden_TD
        return self.decoder.logits(hidden_TD.index_select(0, packed.last_S))

    def prefill(self, tokens: int) -> torch.Tensor:
        cache = self._cache(1, tokens)
        ids_T = torch.arange(tokens, device=self.device) % self.config.vocab_size
        return self._forward(ids_T, cache.pack([(cache.allocate(), tokens)]), cache)

    def start(self, sequences: int, context: int) -> Callable:
        """A step that gives every sequence its likeliest next token."""
        cache = self._cache(sequences, context)
        slots = [cache.allocate() for _ in range(sequences)]
        self.ids_S = torch.zeros(sequences, dtype=torch.int64, device=self.device)
        for slot in slots:
            ids_T = (torch.arange(context, device=self.device) * 7919 + slot) % self.config.vocab_size
            self._forward(ids_T, cache.pack([(slot, context)]), cache)

        def step():
            packed = cache.pack([(slot, 1) for slot in slots])
            self._last = packed, cache
            self.ids_S = self._forward(self.ids_S, packed, cache).argmax(-1)

        return step

    def graph_ms(self) -> float | None:
        """Milliseconds of the last step on the device alone; None on a CPU, or where it cannot be captured."""
        if self.device.type == "cpu":
            return None
        _, cache = self._last
        packed = cache.pack([(slot, 1) for slot in self._last[0].slots])
        graph, ids_S = torch.cuda.CUDAGraph(), self.ids_S.clone()
        try:
            with torch.cuda.graph(graph):
                kept = self._forward(ids_S, packed, cache)  # noqa: F841
        except RuntimeError:
            torch.cuda.synchronize(self.device)
            return None
        return 1e3 * _median(graph.replay, REPEATS["decode"], self.device)


class _Transformers:
    def __init__(self, config: TextConfig, device: torch.device, dtype: torch.dtype):
        from transformers import MiniMaxConfig, MiniMaxForCausalLM

        whole_heads = replace(config, rotary_dim=config.head_dim)  # it rotates no parts of heads; as much work
        with torch.device("meta"):
            self.model = MiniMaxForCausalLM(MiniMaxConfig(**whole_heads.to_native_dict())).to(dtype)
        decays = {name: buffer.shape for name, buffer in self.model.named_buffers()}
        self.model.requires_grad_(False).to_empty(device=device)
        fill_randomly(self.model, device)
        for name in decays:  # their values do not matter for time, only that they are numbers
            self.model.get_buffer(name).fill_(0.5)
        self.model.eval()
        if device.type == "cuda":
            self.model.set_experts_implementation("grouped_mm")
        self.config, self.device = config, device

    @torch.no_grad()
    def prefill(self, tokens: int) -> torch.Tensor:
        ids = torch.arange(tokens, device=self.device)[None] % self.config.vocab_size
        return self.model(ids, use_cache=True, logits_to_keep=1).logits

    def start(self, sequences: int, context: int) -> Callable:
        ids = torch.arange(sequences * context, device=self.device).view(sequences, context) % self.config.vocab_size
        with torch.no_grad():
            out = self.model(ids, use_cache=True, logits_to_keep=1)
        last = [out.logits[:, -1:].argmax(-1)]
        cache = out.past_key_values

        @torch.no_grad()
        def step():
            last[0] = self.model(last[0], past_key_values=cache, use_cache=True).logits[:, -1:].argmax(-1)

        return step

    def graph_ms(self) -> None:
        return None
