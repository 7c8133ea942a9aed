"""`mmvl bench data`: the loader beside plain webdataset and PIL, on the terminal and as JSON."""

import json
import sys
from pathlib import Path

from mmvl.benchmark.data import PEER, run
from mmvl.processor import Processor
from mmvl.vlm import MMVL_TINY


def data(
    folder: Path, model: Path | None, *, workers: int, seconds: float, rounds: int, json_path: Path | None
) -> None:
    """Measure, print, write. Raises ValueError or OSError for shards or a model that cannot be used."""
    def progress(text: str) -> None:
        if sys.stderr.isatty():
            print(f"\r{text:<60}", end="", file=sys.stderr, flush=True)

    processor = Processor.from_pretrained(model or MMVL_TINY)
    result = run(folder, processor, workers=workers, seconds=seconds, rounds=rounds, progress=progress)
    progress("")
    if sys.stderr.isatty():
        print("\r", end="", file=sys.stderr)
    print(f"{folder}: {result['samples']:,} samples, {workers} processes on {result['cores']} cores")
    for row in result["contestants"]:
        spread = f"({row['low']:,.0f} to {row['high']:,.0f})"
        print(f"  {row['name']:<34} {row['samples_per_second']:8,.0f} samples/s {spread}")
    print(f"  {result['times_as_fast']:.2f} times as fast as {PEER}")
    if json_path is not None:
        json_path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        print(f"Wrote {json_path}")
