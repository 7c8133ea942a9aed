"""What quantised weights, or keys in 8 bits, cost: how far next-token distributions are from those without.

On a model: over the answers of an evaluation task, each token predicted from the true ones before it. On layers of any
shape, with random weights: over random embeddings. Distances are Kullback-Leibler divergences KL(before || after), in
nats a token.

Legend: T tokens, R rows compared, D model width, V vocabulary, I image tokens.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from mmvl.checkpoint import load_model
from mmvl.engine.settings import kv_dtype_of
from mmvl.evaluation.run import choose, evaluate
from mmvl.evaluation.tasks import TASKS
from mmvl.kernels.keys_8bit import KINDS as KEY_KINDS
from mmvl.model import ImageBatch, VLModel
from mmvl.processor import Processor, Prompt
from mmvl.quantize import quantize_decoder
from mmvl.text_backbone.cache import HybridCache
from mmvl.text_backbone.config import TextConfig
from mmvl.text_backbone.decoder import Decoder
from mmvl.text_backbone.packed import Packed
from mmvl.vlm import VLM

KEYS = {kind: f"{kind} keys and values" for kind in KEY_KINDS}
Progress = Callable[[str], None]


class Way(NamedTuple):
    """A model, and how it is loaded and run."""

    directory: Path
    dtype: torch.dtype | None = torch.float32
    quantize: str | None = None
    kv_cache_dtype: str = "auto"


def distances(before_RV: Tensor, after_RV: Tensor, chosen_R: Tensor | None = None) -> dict[str, float]:
    """Of logits (R, V): mean and 99th percentile of KL, how often the likeliest token is the same, and
    ||after - before|| / ||before||; with the tokens that came next also both mean losses, in nats.
    """
    before_RV, after_RV = before_RV.double(), after_RV.double()
    p, q = before_RV.log_softmax(-1), after_RV.log_softmax(-1)
    kl_R = (p.exp() * (p - q)).sum(-1)
    centred = before_RV - before_RV.mean(-1, keepdim=True)  # a shift of all logits means nothing
    off = after_RV - after_RV.mean(-1, keepdim=True) - centred
    result = {
        "tokens": len(kl_R),
        "kl_mean": kl_R.mean().item(),
        "kl_p99": kl_R.quantile(0.99).item(),
        "same_top_1": (before_RV.argmax(-1) == after_RV.argmax(-1)).double().mean().item(),
        "logits_error": (off.norm() / centred.norm()).item(),
    }
    if chosen_R is not None:
        for name, logp in (("loss_before", p), ("loss_after", q)):
            result[name] = -logp.gather(1, chosen_R[:, None]).mean().item()
    return result


def compare(
    reference: Path,
    others: dict[str, Way],
    *,
    task: str = "print-lines",
    limit: int = 100,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = torch.float32,
    scores: bool = True,
    progress: Progress = lambda what: None,
) -> list[dict]:
    """Compare models with `reference` on a task: a row for each of `others` by name, itself first.

    `scores`: also let those of the reference's dtype answer the questions, and score that. Only one model is in memory
    at a time.

    Raises:
        FileNotFoundError, ValueError: a model, or the task, cannot be used.
    """
    if task not in TASKS or TASKS[task].data:
        known = ", ".join(name for name, t in TASKS.items() if not t.data)
        raise ValueError(f"the check can be on {known}; not on {task!r}")
    examples = choose(TASKS[task].load(), limit)
    processor = Processor.from_pretrained(reference)
    prompts = [
        processor.encode([*e.messages, {"role": "assistant", "content": e.reference}], add_generation_prompt=False)
        for e in examples
    ]
    rows, before_RV = [], None
    for name, way in {"reference": Way(reference, dtype, "none"), **others}.items():
        progress(f"{name}: log probabilities of {len(prompts)} answers")
        model = load_model(way.directory, device, way.dtype, quantize=way.quantize)
        if not isinstance(model, VLModel):
            raise ValueError(
                f"{way.directory} holds a text model without the vision half; the check asks about pictures"
            )
        after_RV, chosen_R = answer_logits(model, prompts, way.kv_cache_dtype)
        del model
        row = {"name": name}
        if before_RV is None:
            before_RV = after_RV
        row |= distances(before_RV, after_RV, chosen_R)
        if scores and way.dtype == dtype:
            progress(f"{name}: answering")
            engine = {"kv_cache_dtype": way.kv_cache_dtype}
            result = evaluate(task, way.directory, limit, device=device, progress=False, engine=engine)
            row["scores"] = [{"metric": s.metric, "value": s.interval.value, "n": s.n} for s in result.scores[:3]]
        rows.append(row)
    return rows


def speeds(
    directory: Path,
    ways: dict[str, tuple[torch.dtype, str]],
    *,
    device: torch.device | str,
    requests: Sequence[int] = (1, 8),
    tokens: int = 64,
    progress: Progress = lambda what: None,
) -> list[dict]:
    """Tokens a second of a model loaded in each of the ways, name -> (dtype, quantize), with so many requests at once.

    Each answers a text prompt with `tokens` tokens; the prompt's time counts. The best of three.
    """
    rows = []
    for name, (dtype, quantize) in ways.items():
        progress(f"{name}: tokens a second")
        vlm = VLM(directory, device=device, dtype=dtype, quantize=quantize)
        row = {"name": name, "tokens": tokens}
        for count in requests:
            asked = [[{"role": "user", "content": f"Say something about number {n}."}] for n in range(count)]
            seconds = []
            for _ in range(3):
                begin = time.perf_counter()
                for _, answer in vlm.batch(asked, max_tokens=tokens, ignore_eos=True):
                    if isinstance(answer, Exception):
                        raise answer
                seconds.append(time.perf_counter() - begin)
            row[f"tokens_per_second_{count}"] = count * tokens / min(seconds)
        rows.append(row)
    return rows


@torch.inference_mode()
def answer_logits(model: VLModel, prompts: Sequence[Prompt], kv_cache_dtype: str = "auto") -> tuple[Tensor, Tensor]:
    """Logits (R, V) on the CPU wherever the next token is the assistant's, and those tokens (R,)."""
    logits, chosen = [], []
    for prompt in prompts:
        ids_T = torch.tensor(prompt.token_ids, device=model.device)
        images = ImageBatch.from_images(prompt.images)
        packed, cache = _with_cache(model.language_model, len(ids_T), model, kv_dtype_of(kv_cache_dtype, model))
        hidden_TD = model(ids_T, packed, images and images.to(model.device), cache=cache).hidden_TD
        at_R = torch.tensor(prompt.loss_mask, device=model.device).nonzero()[:, 0]
        logits.append(model.language_model.logits(hidden_TD[at_R - 1]).cpu())
        chosen.append(ids_T[at_R].cpu())
    return torch.cat(logits), torch.cat(chosen)


def _with_cache(decoder: Decoder, tokens: int, like, kv_dtype: torch.dtype) -> tuple[Packed, HybridCache]:
    """For one sequence, on the device and in the dtype of `like`."""
    cache = decoder.new_cache(
        max_sequences=1, max_tokens=tokens, device=like.device, dtype=like.dtype, kv_dtype=kv_dtype
    )
    return cache.pack([(cache.allocate(), tokens)]), cache


@torch.inference_mode()
def compare_layers(
    config: TextConfig,
    kinds: Sequence[str],
    *,
    tokens: int,
    device: torch.device | str,
    dtype: torch.dtype,
    progress: Progress = lambda what: None,
) -> list[dict]:
    """Random weights of a shape, as `init_weights` draws them, over random embeddings: a row a kind, and one for
    each kind of keys with the weights as they were.

    `experts_error` is the relative error of the first layer's experts alone, which the residual dilutes in the logits.
    """
    progress("making the weights")
    decoder = Decoder(config).to(device, dtype).requires_grad_(False)
    decoder.init_weights(0)
    generator = torch.Generator().manual_seed(1)
    x_TD = torch.randn(tokens, config.hidden_size, generator=generator).to(device, dtype)
    packed = Packed.from_lengths((tokens,), device)
    before_RV = decoder.logits(decoder(x_TD, packed).hidden_TD).cpu()
    experts = decoder.model.layers[0].block_sparse_moe
    before_TD = experts(x_TD)[0].double()
    rows = []
    for kind in kinds:
        progress(f"{kind}: {tokens} tokens")
        with quantize_decoder(decoder, kind):
            row = distances(before_RV, decoder.logits(decoder(x_TD, packed).hidden_TD).cpu())
            off_TD = experts(x_TD)[0].double() - before_TD
            rows.append({"name": kind, **row, "experts_error": (off_TD.norm() / before_TD.norm()).item()})
    for kind, name in KEYS.items():
        progress(f"{name}: {tokens} tokens")
        hidden_TD = decoder(x_TD, *_with_cache(decoder, tokens, x_TD, KEY_KINDS[kind])).hidden_TD
        rows.append({"name": name, **distances(before_RV, decoder.logits(hidden_TD).cpu())})
    return rows
