"""`mmvl convert` and `mmvl replay`: what people do with what a training run leaves on the disk."""

import json
import os
import sys
import time
from pathlib import Path


def convert(source: Path, dest: Path, dtype: str | None) -> None:
    """Write the checkpoint at `source` as a model directory.

    Raises:
        FileNotFoundError, ValueError, OSError: one line that says what is wrong.
    """
    from mmvl.export import export, find_checkpoint

    checkpoint, began = find_checkpoint(source), time.monotonic()
    export(checkpoint, dest, dtype=dtype)
    size = sum(f.stat().st_size for f in dest.glob("*.safetensors"))
    print(f"{checkpoint} -> {dest}: {size / 1e9:,.3f} GB in {time.monotonic() - began:.1f} s", file=sys.stderr)


def replay(directory: Path, model: Path | None, device: str | None, json_path: Path | None) -> None:
    """Run a stopped run's saved batches again and print what they do; under torchrun all ranks call it, one prints.

    Raises:
        FileNotFoundError, ValueError: one line that says what is wrong.
    """
    from mmvl.training.replay import replay as run

    seen = run(directory, model, device)
    if os.environ.get("RANK", "0") != "0":
        return
    age = "" if seen["weights_step"] is None else f", {seen['step'] - 1 - seen['weights_step']} steps older"
    print(f"step {seen['step']}: {seen['problem']}; weights of {seen['weights']}{age}")
    for i, batch in enumerate(seen["batches"]):
        norms = "  ".join(f"{part} {norm:.3g}" for part, norm in batch["grad_norm"].items())
        print(f"batch {i}: loss {batch['loss']:.4f}, {len(batch['documents'])} documents, gradients: {norms}")
        worst = batch["worst"]
        print(f"  worst document ({batch['documents'][worst['document']]['loss']:.4f}): {worst['text']!r}")
        if batch["first_not_finite"]:
            print(f"  not finite from {batch['first_not_finite']} on")
    if json_path is not None:
        json_path.write_text(json.dumps(seen, indent=2) + "\n", encoding="utf-8")
