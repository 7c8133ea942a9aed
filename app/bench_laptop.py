"""`mmvl bench laptop`: one page of a document, and the text half beside transformers, on a few cores."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from mmvl.app.bench import Progress, check_folder
from mmvl.app.options import JsonFile


def bench_laptop(
    model: Annotated[Path | None, typer.Option("--model", metavar="DIR", help="Model in Hugging Face layout.",
                                               show_default="mmvl-tiny")] = None,
    peer: Annotated[bool, typer.Option("--peer/--no-peer", help="Measure transformers as well.")] = True,
    threads: Annotated[int, typer.Option("--threads", min=1, metavar="N", help="Of torch.")] = 2,
    repeats: Annotated[int, typer.Option("--repeats", min=1, metavar="N", help="Turns of each; the best counts.")] = 3,
    json_file: JsonFile = None,
) -> None:  # fmt: skip
    """First token, tokens a second and memory of a small model on a CPU, beside transformers' generate."""
    from mmvl.benchmark.laptop import run

    check_folder(json_file)
    progress = Progress()
    result = run(model, peer=peer, threads=threads, repeats=repeats, progress=progress)
    progress.clear()
    console = Console(highlight=False)
    page = result["page"]
    console.print(
        f"a page of {page['tiles']} tiles, {page['prompt_tokens']:,} tokens: first token after "
        f"{page['first_token_seconds']:.2f} s ({page['first_token_cpu_seconds']:.2f} of processor time; "
        f"ViT {page['vision_seconds']:.2f} s), then {page['tokens_per_second']:.0f} tokens/s; "
        f"{page['memory_mib']:,.0f} MiB",
        markup=False,
    )
    for line in result["table"]:
        for name in ("mmvl", "transformers"):
            if name in line:
                row = line[name]
                times = f", {line['times']:.2f} times as fast" if name == "mmvl" and "times" in line else ""
                console.print(
                    f"{line['load']} tokens, {name}: {row['tokens_per_second']:,.0f} tokens/s{times}; "
                    f"{row['cpu_ms_a_token']:.2f} ms of processor time a token",
                    markup=False,
                )
    if json_file is not None:
        json_file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        console.print(f"Wrote {json_file}", markup=False)
