"""`mmvl bench laptop`: a small model on a few cores, as its user meets it: one page of a document, and the text half
beside transformers.

The page comes first, in a process that has held nothing else, so that its memory is what one question takes. Ours and
transformers then answer the same prompts in turns, so that what else the machine does meets both; of each the best turn
counts. Processor time is kept beside: it says more than a clock on a machine with other work.
"""

import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from mmvl.benchmark.engine_contestants import Load, Model, Ours, Transformers
from mmvl.benchmark.run import provenance
from mmvl.checkpoint import load_model
from mmvl.engine import Engine, SamplingParams
from mmvl.engine.cpu_decode import kernels
from mmvl.host_memory import peak_bytes
from mmvl.model import ImageBatch
from mmvl.processor import Processor
from mmvl.shipped import MMVL_TINY

LOADS = (Load((64,), 64), Load((64,) * 8, 64))
PAGE = (1240, 1754)  # pixels: A4 at 150 dpi
ANSWER = 64  # tokens
PEER = "transformers"
Progress = Callable[[str], None]


def run(model: Path | None, *, peer: bool, threads: int, repeats: int, progress: Progress) -> dict:
    """Measure; returns what is written as JSON. Raises ValueError or OSError for a model that cannot be used."""
    torch.set_num_threads(threads)
    began = time.perf_counter()
    progress("compiling, unless it was done before")
    kernels().result()
    result = {
        **provenance(torch.device("cpu")), "model": "mmvl-tiny" if model is None else model.name, "cpu": _cpu(),
        "cores": os.cpu_count(), "threads": threads, "load": os.getloadavg()[0],
        "compiled_seconds": time.perf_counter() - began, "page": _page(model or MMVL_TINY, repeats, progress),
        "rows": [],
    }  # fmt: skip
    what, cpu = Model(model), torch.device("cpu")
    contestants: dict = {"mmvl": Ours(what, cpu, torch.float32, {}, progress)}
    if peer:
        contestants[PEER] = Transformers(what, cpu, torch.float32)
    for load in LOADS:
        budget = (sum(load.lengths),)  # all in one batch
        for repeat in range(-1, repeats):  # the first turn warms up
            for name, contestant in contestants.items():
                progress(f"{name}: {load.name} tokens, {max(repeat, 0) + 1} of {repeats}")
                processor = time.process_time()
                row = contestant.run(load, *budget * (name == PEER))
                spent = time.process_time() - processor
                if repeat >= 0:
                    named = {"name": name, "sequences": len(load.lengths), "load": load.name, "repeat": repeat}
                    result["rows"].append(named | row | {"cpu_seconds": spent})
    result["table"] = table(result["rows"])
    return result


def table(rows: list[dict]) -> list[dict]:
    """A line a load: the best tokens/s and the least processor time a token of both, and how many times as good."""
    lines = []
    for load in dict.fromkeys(row["load"] for row in rows):
        line: dict = {"load": load}
        for name in dict.fromkeys(row["name"] for row in rows):
            turns = [row for row in rows if (row["load"], row["name"]) == (load, name)]
            made = [row["tokens_per_second"] * row["seconds"] for row in turns]
            line[name] = {
                "tokens_per_second": max(row["tokens_per_second"] for row in turns),
                "cpu_ms_a_token": min(1e3 * row["cpu_seconds"] / m for row, m in zip(turns, made, strict=True)),
                "first_token_seconds": min(row["first_token_seconds"] for row in turns),
                "between_seconds": min(row["between_seconds"] for row in turns),
            }
        if PEER in line:
            ours, theirs = line["mmvl"], line[PEER]
            line["times"] = ours["tokens_per_second"] / theirs["tokens_per_second"]
            line["times_by_cpu"] = theirs["cpu_ms_a_token"] / ours["cpu_ms_a_token"]
        lines.append(line)
    return lines


def _page(directory: Path, repeats: int, progress: Progress) -> dict:
    """One question about a page: seconds of tiling, of the ViT and to the first token, tokens/s, memory."""
    model = load_model(directory, device=torch.device("cpu"), dtype=torch.float32)
    processor = Processor.from_pretrained(directory)
    engine = Engine(model, processor)
    turns = []
    for repeat in range(-1, repeats):  # pages that differ, so that no cache knows them
        progress(f"a page, {max(repeat, 0) + 1} of {repeats}")
        noise = np.random.default_rng(repeat + 1).integers(0, 256, (PAGE[1] // 4, PAGE[0] // 4), dtype=np.uint8)
        page = Image.fromarray(noise).resize(PAGE).convert("RGB")
        content = [{"type": "image", "image": page}, {"type": "text", "text": "What is the total?"}]
        begun, spent = time.perf_counter(), time.process_time()
        prompt = processor.encode([{"role": "user", "content": content}])
        tiled = time.perf_counter()
        request = engine.submit(prompt, SamplingParams(max_tokens=ANSWER, ignore_eos=True))
        while not request.output_ids:
            engine.step()
        first, first_spent = time.perf_counter(), time.process_time()
        early = len(request.output_ids)
        while engine.has_work:
            engine.step()
        ended = time.perf_counter()
        batch = ImageBatch.from_images(prompt.images)
        with torch.inference_mode():
            model.embed_images(batch)
        turns.append({
            "tiling_seconds": tiled - begun, "first_token_seconds": first - begun,
            "first_token_cpu_seconds": first_spent - spent, "vision_seconds": time.perf_counter() - ended,
            "tokens_per_second": (ANSWER - early) / (ended - first),
        })  # fmt: skip
    peak = peak_bytes() / (1 << 20)
    shape = {"pixels": PAGE, "tiles": len(batch.tiles_N3tt), "prompt_tokens": len(prompt.token_ids)}
    size = sum(p.numel() for p in model.parameters())
    best = {key: (max if "per" in key else min)(turn[key] for turn in turns[1:]) for key in turns[0]}
    return shape | {"parameters": size, "memory_mib": peak, **best, "turns": turns[1:]}


def _cpu() -> str:
    """The processor's name; Linux does not tell it through `platform`."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor()
