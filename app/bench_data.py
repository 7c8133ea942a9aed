"""`mmvl bench data` and `mmvl bench packing`: the loader beside plain webdataset and PIL, and how full its rows are."""

import json
from pathlib import Path

from mmvl.app.bench import Progress, check_folder
from mmvl.benchmark.data import PEER, run
from mmvl.processor import Processor
from mmvl.shipped import MMVL_TINY


def data(
    folder: Path, model: Path | None, *, workers: int, seconds: float, rounds: int, json_path: Path | None
) -> None:
    """Measure, print, write. Raises ValueError or OSError for shards or a model that cannot be used."""
    check_folder(json_path)
    progress = Progress()
    processor = Processor.from_pretrained(model or MMVL_TINY)
    result = run(folder, processor, workers=workers, seconds=seconds, rounds=rounds, progress=progress)
    progress.clear()
    print(f"{folder}: {result['samples']:,} samples, {workers} processes on {result['cores']} cores")
    for row in result["contestants"]:
        spread = f"({row['low']:,.0f} to {row['high']:,.0f})"
        print(f"  {row['name']:<34} {row['samples_per_second']:8,.0f} samples/s {spread}")
    print(f"  {result['times_as_fast']:.2f} times as fast as {PEER}")
    _write(result, json_path)


def packing(recipe: Path, model: Path | None, overrides: list[str], *, rows: int, json_path: Path | None) -> None:
    """The share of padding in a recipe's rows. Raises ValueError or OSError for what cannot be used."""
    from mmvl.benchmark.packing import run as pack

    check_folder(json_path)
    progress = Progress()
    processor = Processor.from_pretrained(model or MMVL_TINY)
    result = pack(recipe, processor, overrides, rows=rows, progress=progress)
    progress.clear()
    print(
        f"{result['recipe']}: {result['rows']} rows of {result['batch_tokens']:,} tokens hold {result['samples']:,} "
        f"samples, {result['tokens']:,} tokens ({result['image_tokens']:,} of images): padding {result['padding']:.2%}"
    )
    _write(result, json_path)


def _write(result: dict, json_path: Path | None) -> None:
    if json_path is not None:
        json_path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        print(f"Wrote {json_path}")
