"""`mmvl bench graphs`: what CUDA graphs gain, step by step. Under torchrun the decoder is spread over the ranks."""

import json
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from mmvl.app.bench import Progress, check_folder
from mmvl.app.errors import UsageError, usage
from mmvl.app.options import Experts, JsonFile, Layers, Model, Shape


def bench_graphs(
    model: Model = None,
    shape: Shape = None,
    layers: Layers = None,
    experts: Experts = None,
    dtype: Annotated[str, typer.Option(metavar="bfloat16|float32", help="Of weights and steps.")] = "bfloat16",
    sequences: Annotated[int, typer.Option(min=1, metavar="N", help="Sequences of a step, beside one alone.")] = 8,
    repeats: Annotated[int, typer.Option(min=1, metavar="N", help="How often each is measured.")] = 10,
    json_file: JsonFile = None,
) -> None:
    """Decode steps, drafts and chunks of prompts with and without CUDA graphs, and how much of it is the host's."""
    import torch

    from mmvl.benchmark.engine_contestants import model_of
    from mmvl.benchmark.engine_graphs import run
    from mmvl.benchmark.run import choose_device, provenance
    from mmvl.engine.ranks import gather

    gather()  # under torchrun: ranks after the first stay here and help it until it ends
    check_folder(json_file)
    if dtype not in ("bfloat16", "float32"):
        raise UsageError(f"--dtype {dtype}: it can be bfloat16 or float32")
    with usage():
        measured = model_of(model, shape, layers, experts)
    if not torch.cuda.is_available():
        raise ValueError("CUDA graphs are of a GPU: there is none")
    device, number = choose_device("cuda"), getattr(torch, dtype)
    progress = Progress()
    progress("loading")
    decoder = measured.load(device, number).language_model
    result = {**provenance(device), "model": shape or str(model or "mmvl-tiny"), "dtype": dtype, "ranks": decoder.ranks}
    result |= run(decoder, device, number, sequences=sequences, repeats=repeats, progress=progress)
    progress.clear()
    Console(highlight=False).print(printed(result))
    print(f"By the rule, chunks of up to {result['rule']:,} tokens go by a graph.")
    if json_file is not None:
        json_file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        print(f"Wrote {json_file}")


def printed(result: dict) -> Table:
    """A row a step; what the rule and the clock do not agree on is marked."""
    shown = Table(box=None, pad_edge=False)
    for name in ("step", "sequences", "tokens", "ms", "host's", "graph's", "host's", "times", "error", "by the rule"):
        shown.add_column(name, justify="left" if name == "step" else "right", no_wrap=True)
    for row in result["rows"]:
        wrong = row["kind"] == "chunk" and row["ruled"] != (row["times"] > 1)
        milliseconds = (row[key] for key in ("plain_ms", "plain_host_ms", "graph_ms", "graph_host_ms"))
        shown.add_row(
            row["kind"], str(row["sequences"]), str(row["tokens"]), *(f"{ms:.2f}" for ms in milliseconds),
            f"{row['times']:.2f}", f"{row['error']:.0e}", ("graph" if row["ruled"] else "plain") + " (!)" * wrong,
        )  # fmt: skip
    return shown
