"""How full the rows are that the loader packs: the share of padding in rows of a fixed length, on a recipe's mixture.

The rows are as long as their documents; padding is what they would be filled up with to all be `batch_tokens` long.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch

from mmvl.benchmark.run import provenance
from mmvl.processor import Processor
from mmvl.training.loader import Loader
from mmvl.training.recipe import PreferenceRecipe, TrainRecipe, load_recipe


def run(
    recipe_path: Path,
    processor: Processor,
    overrides: list[str] | None = None,
    *,
    rows: int = 48,
    progress: Callable[[str], None] = lambda text: None,
) -> dict:
    """Pack `rows` rows as a stage would; {"padding": share of rows * batch_tokens, "samples", "tokens", ...}.

    Raises:
        ValueError, FileNotFoundError: no recipe of a stage that packs rows, or its shards are missing.
    """
    recipe = load_recipe(recipe_path, overrides)
    if not isinstance(recipe, TrainRecipe):
        raise ValueError(f"{recipe_path} is of a {recipe.stage} stage, which packs no rows")
    loader = Loader(recipe.data, processor, recipe.seed, pairs=isinstance(recipe, PreferenceRecipe))
    began, samples, tokens, image_tokens = time.perf_counter(), 0, 0, 0
    for number, batch in enumerate(itertools.islice(loader, rows), 1):
        progress(f"row {number} of {rows}")
        samples += sum(batch.samples)
        tokens += len(batch.ids_T)
        image_tokens += sum(batch.image_tokens)
    data = recipe.data
    return {
        **provenance(torch.device("cpu")),
        "webdataset": version("webdataset"),
        "recipe": recipe.name,
        "sources": {s.path.name: s.weight for s in data.sources},
        "batch_tokens": data.batch_tokens,
        "batch_tiles": data.batch_tiles,
        "open_rows": data.open_rows,
        "rows": rows,
        "samples": samples,
        "tokens": tokens,
        "image_tokens": image_tokens,
        "padding": 1 - tokens / (rows * data.batch_tokens),
        "samples_per_second": samples / (time.perf_counter() - began),
    }
