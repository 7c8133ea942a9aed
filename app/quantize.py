"""`mmvl quantize` writes a model with quantised weights, `mmvl bench quantize` measures what quantising costs."""

import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from mmvl.app.options import Device, check_quantize

NONE = "none"
Json = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the comparison here too.")]
Check = Annotated[str | None, typer.Option("--check", metavar="TASK", help="Compare with the source on this task.")]
Questions = Annotated[int, typer.Option("--questions", min=1, metavar="N", help="How many of the task's questions.")]


def quantize(
    source: Annotated[Path, typer.Argument(metavar="MODEL", help="In Hugging Face layout.", show_default=False)],
    dest: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Where the quantised model goes.")],
    experts: Annotated[
        str, typer.Option(metavar="int8|int4|fp8|none", callback=check_quantize, help="What the experts become.")
    ] = "int8",
    rest: Annotated[
        str,
        typer.Option(metavar="keep|attention|all", help="What else is stored as int8; attention is as released."),
    ] = "keep",
    check: Check = None,
    questions: Questions = 100,
    json_file: Json = None,
    device: Device = None,
) -> None:
    """Write a model with quantised weights, one tensor in memory at a time."""
    from mmvl.quantize import quantize_model

    if dest.exists() and any(dest.iterdir()):
        raise ValueError(f"{dest} is not empty; name a new directory")
    began, where = time.monotonic(), _device(device)
    quantize_model(source, dest, experts=None if experts == NONE else experts, rest=rest, device=where)
    before, after = (sum(f.stat().st_size for f in folder.glob("*.safetensors")) for folder in (source, dest))
    seconds = time.monotonic() - began
    print(f"{source} ({before / 1e9:,.3f} GB) -> {dest} ({after / 1e9:,.3f} GB) in {seconds:.1f} s", file=sys.stderr)
    if check is not None:
        from mmvl.quantize_check import Way, compare

        rows = compare(source, {"quantised": Way(dest)}, task=check, limit=questions, device=where)
        _report(rows, {"task": check, "questions": questions}, where, json_file)


def bench_quantize(
    model: Annotated[
        Path | None, typer.Option("--model", metavar="DIR", help="Whose weights.  [default: mmvl-tiny]")
    ] = None,
    check: Annotated[str, typer.Option("--check", metavar="TASK", help="Its answers and its score.")] = "print-lines",
    questions: Questions = 100,
    tokens: Annotated[int, typer.Option(metavar="N", help="Tokens through two layers of the full width; 0: none.")] = 0,
    experts: Annotated[int, typer.Option(min=2, metavar="N", help="Experts that these layers have.")] = 4,
    new_tokens: Annotated[int, typer.Option(min=1, metavar="N", help="Of each answer that is timed.")] = 64,
    json_file: Json = None,
    device: Device = None,
) -> None:
    """Measure what quantising costs: every kind, and keys in 8 bits, on a model and on random layers of full width."""
    import torch
    from rich.console import Console

    from mmvl.benchmark.decoder import SLICE
    from mmvl.quantize import KINDS, quantize_model
    from mmvl.quantize_check import KEYS, Way, compare, compare_layers, speeds
    from mmvl.vlm import MMVL_TINY

    source, where, console = model or MMVL_TINY, _device(device), Console(stderr=True)
    with tempfile.TemporaryDirectory() as folder:
        others = {"bfloat16": Way(source, torch.bfloat16, NONE)}
        others |= {name: Way(source, torch.float32, NONE, kind) for kind, name in KEYS.items()}
        for kind, rest in (*((kind, "keep") for kind in KINDS), ("int8", "all")):
            name = f"{kind} experts" if rest == "keep" else "int8 all"
            quantize_model(source, Path(folder, name), experts=kind, rest=rest, device=where)
            others[name] = Way(Path(folder, name))
        rows = compare(source, others, task=check, limit=questions, device=where, progress=console.print)
    ways = {str(dtype)[6:]: (dtype, NONE) for dtype in (torch.float32, torch.bfloat16)}
    ways |= {f"{kind} in memory": (torch.float32, kind) for kind in KINDS}
    about = {
        "model": source.resolve().name,
        "task": check,
        "questions": questions,
        "layers": None,
        "threads": torch.get_num_threads(),
        "speed": speeds(source, ways, device=where, tokens=new_tokens, progress=console.print),
    }
    if tokens:
        config = replace(SLICE, num_hidden_layers=2, attn_type_list=(0, 1), num_local_experts=experts, vocab_size=4096)
        of_layers = compare_layers(
            config, KINDS, tokens=tokens, device=where, progress=console.print,
            dtype=torch.bfloat16 if where.type == "cuda" else torch.float32,
        )  # fmt: skip
        about["layers"] = {
            "hidden_size": config.hidden_size, "intermediate_size": config.intermediate_size, "experts": experts,
            "kinds": ["lightning", "softmax"], "tokens": tokens, "rows": of_layers,
        }  # fmt: skip
    _report(rows, about, where, json_file)


def _device(name: str | None):
    import torch

    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))


def _report(rows: list[dict], about: dict, device, json_path: Path | None) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="distance from the reference")
    for column in ("weights", "tokens", "KL, nats a token", "99%", "same top 1", "logits' error", "loss"):
        table.add_column(column, justify="left" if column == "weights" else "right")
    layers = about.get("layers") or {"rows": []}
    for row in [*rows, *layers["rows"]]:
        loss = f"{row['loss_after']:.4f}" if "loss_after" in row else ""
        numbers = (f"{row[k]:.2e}" for k in ("kl_mean", "kl_p99"))
        table.add_row(
            row["name"], f"{row['tokens']:,}", *numbers, f"{row['same_top_1']:.2%}", f"{row['logits_error']:.2e}", loss
        )
        for score in row.get("scores", []):
            value = f"{score['value']:.2%}"
            table.add_row(f"  {score['metric']}", f"{score['n']:,} asked", "", "", "", "", value, style="dim")
    Console().print(table)
    for row in about.get("speed", []):
        rates = ", ".join(f"{v:,.0f} at {k.rpartition('_')[2]}" for k, v in row.items() if k.startswith("tokens_per"))
        print(f"{row['name']}: tokens a second at so many requests: {rates}")
    if json_path is not None:
        from mmvl.benchmark.run import provenance

        result = {**provenance(device), **about, "rows": rows}
        json_path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
