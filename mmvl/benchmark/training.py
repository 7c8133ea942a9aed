"""Training over the GPUs of one machine: experts spread over all of them, beside transformers; long rows by LASP+.

Started by torchrun, one process a GPU. The parts can be run one by one; each writes what it has measured into the
result at once, so that a run cut short leaves that:
- experts: as many layers of the full width as fit, with their optimizer's state; dispatch beside compute or not;
- layer: one lightning layer, ours beside transformers' under DeepSpeed's ZeRO;
- row: one row of 131,072 tokens over all ranks by LASP+, beside the same row on one rank.
Without GPUs everything is small, which only shows that it works.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from mmvl.benchmark.run import provenance
from mmvl.benchmark.training_row import measure_row
from mmvl.benchmark.training_step import Size, measure_experts, measure_layer
from mmvl.training.ranks import Ranks

PARTS = {"experts": measure_experts, "layer": measure_layer, "row": measure_row}
Done = Callable[[str, dict, dict], None]


def run(
    parts: Sequence[str],
    size: Callable[[Ranks], Size],
    progress: Callable[[str], None] = lambda text: None,
    done: Done = lambda part, row, result: None,
) -> dict | None:
    """Measure the parts (all of them if none is named), in their order; every process of torchrun calls it.

    `done(part, its newest row, the result so far)` follows each measurement, on rank 0. Returns the result there, None
    elsewhere.

    Raises:
        ValueError: an unknown part, or a number of processes that the experts do not divide by.
    """
    for part in parts:
        if part not in PARTS:
            raise ValueError(f"bench training {part}: the parts are {', '.join(PARTS)}")
    ranks = Ranks()
    chosen = size(ranks)
    began = time.perf_counter()
    result = {**provenance(ranks.device), "ranks": ranks.world, "size": chosen.described(), "results": []}

    def took(part: str, row: dict) -> None:
        result["results"].append({"part": part, **row})
        result["seconds"] = round(time.perf_counter() - began, 1)
        if ranks.first:
            done(part, row, result)

    for part in parts or PARTS:
        PARTS[part](ranks, chosen, progress if ranks.first else _silent, lambda row, p=part: took(p, row))
    return result if ranks.first else None


def _silent(text: str) -> None:
    pass
