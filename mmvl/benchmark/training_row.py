"""One row over all ranks by LASP+ and gathered keys, beside the same row on one rank: equal, and how fast.

The stack has one lightning and one softmax layer of full width, and two experts a layer, which every token takes: a
choice between experts would turn rounding into other outputs. Rows: one document, and documents cut by the ranks'
borders. Compared are the output, the gradient at the embeddings and the weights' gradients (summed over the ranks), by
||a - b|| / ||b||.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor

from mmvl.benchmark.measure import relative_error
from mmvl.benchmark.training_step import Row, Size, draw_weights, wait_for
from mmvl.text_backbone.decoder import Decoder
from mmvl.text_backbone.packed import Packed
from mmvl.text_backbone.sequence_parallel import RowPart
from mmvl.training.ranks import Ranks

REPEATS = 2  # after one to warm up and compile; a pass of a long row takes seconds


def measure_row(ranks: Ranks, size: Size, progress: Callable[[str], None], took: Row) -> None:
    """Rows in the size's dtype, then a shorter one in fp32, which shows that what differs is rounding."""
    torch.set_float32_matmul_precision("highest")
    whole, short = size.row, size.row // 32 if size.row > 4096 else size.row
    cut = (whole * 5 // 16, whole * 3 // 8, whole - whole * 5 // 16 - whole * 3 // 8)
    for lengths, dtype in (((whole,), size.dtype), (cut, size.dtype), ((short,), torch.float32)):
        progress(f"a row of {sum(lengths):,} tokens in {len(lengths)} documents, {str(dtype)[6:]}")
        took(_compare(ranks, size, lengths, dtype))


def _compare(ranks: Ranks, size: Size, lengths: tuple[int, ...], dtype: torch.dtype) -> dict:
    config = replace(size.stack(2), num_local_experts=2, num_experts_per_tok=2)
    with torch.device("meta"):
        decoder = Decoder(config).to(dtype)
    decoder.to_empty(device=ranks.device)
    draw_weights(decoder)
    decoder.recomputed = frozenset(range(config.num_hidden_layers))  # as stages of such rows do
    generator = torch.Generator(ranks.device).manual_seed(0)
    tokens, D = sum(lengths), config.hidden_size
    x_TD, grad_TD = (
        torch.randn(tokens, D, generator=generator, device=ranks.device, dtype=dtype) for _ in range(2)
    )  # the same on all ranks

    part = RowPart(lengths, ranks.rank, ranks.world, None)
    mine = slice(part.begin, part.end)
    packed = part.pack(ranks.device)
    run = _passes(decoder, x_TD[mine], grad_TD[mine], packed)
    outputs, seconds = _timed(run, ranks.device, ranks.wait)
    seconds = max(ranks.gather(seconds))
    peak = _peak_gib(ranks)
    gathered = [_gathered(t, part, ranks) for t in outputs]
    weights = {}
    for name, p in _reached(decoder).items():
        total = p.grad.float()
        if ranks.world > 1:
            dist.all_reduce(total)
        weights[name] = total
    row = {
        "name": "mmvl, LASP+",
        "tokens": tokens,
        "documents": list(lengths),
        "dtype": str(dtype)[6:],
        "ms": 1e3 * seconds,
        "tokens_per_second": tokens / seconds,
        "peak_gib": peak,
    }
    if ranks.first:
        run = _passes(decoder, x_TD, grad_TD, Packed.from_lengths(lengths, ranks.device))
        alone, seconds = _timed(run, ranks.device, lambda: None)
        row |= {
            "one_rank_ms": 1e3 * seconds,
            "one_rank_peak_gib": _peak_gib(None),
            "output_error": relative_error(gathered[0], alone[0]),
            "gradient_error": relative_error(gathered[1], alone[1]),
            "weights_error": max(relative_error(weights[n], p.grad) for n, p in _reached(decoder).items()),
        }
    ranks.wait()
    return row


def _reached(decoder: Decoder) -> dict[str, Tensor]:
    """The parameters between the embeddings and the head."""
    return {name: p for name, p in decoder.named_parameters() if p.grad is not None}


def _passes(decoder: Decoder, x_TD: Tensor, grad_TD: Tensor, packed: Packed) -> Callable[[], tuple[Tensor, Tensor]]:
    def run() -> tuple[Tensor, Tensor]:
        decoder.zero_grad()
        x = x_TD.detach().requires_grad_()
        hidden_TD = decoder(x, packed).hidden_TD
        hidden_TD.backward(grad_TD)
        return hidden_TD.detach(), x.grad

    return run


def _timed(run: Callable, device: torch.device, together: Callable[[], None]) -> tuple[tuple[Tensor, Tensor], float]:
    """What the last call gives, and the seconds of the fastest after one to warm up."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    best, outputs = float("inf"), None
    for repeat in range(REPEATS + 1):
        outputs = None
        together()
        wait_for(device)
        begin = time.perf_counter()
        outputs = run()
        wait_for(device)
        if repeat:
            best = min(best, time.perf_counter() - begin)
    return outputs, best


def _gathered(mine_TD: Tensor, part: RowPart, ranks: Ranks) -> Tensor | None:
    """The whole row, on rank 0."""
    if ranks.world == 1:
        return mine_TD
    counts = [b - a for a, b in zip(part.bounds, part.bounds[1:], strict=False)]
    padded = mine_TD.new_zeros(max(counts), mine_TD.shape[1])
    padded[: len(mine_TD)] = mine_TD
    parts = [torch.empty_like(padded) for _ in range(ranks.world)]
    dist.all_gather(parts, padded)
    if not ranks.first:
        return None
    return torch.cat([p[:n] for p, n in zip(parts, counts, strict=True)])


def _peak_gib(ranks: Ranks | None) -> float | None:
    """Of memory on the GPU since `_timed` began; the largest of all ranks, or this one's own."""
    if not torch.cuda.is_available():
        return None
    peak = torch.cuda.max_memory_allocated()
    return max(ranks.gather(peak) if ranks else [peak]) / 2**30
