"""The command line `mmvl`: what each command is called and takes. The work itself is one import away from each.

Everything heavy is imported inside the commands, so that `mmvl --help` and a misspelt option answer at once.
"""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from mmvl.app import errors
from mmvl.app.batch import commands as batch
from mmvl.app.bench_graphs import bench_graphs
from mmvl.app.bench_laptop import bench_laptop
from mmvl.app.bench_ranks import bench_ranks
from mmvl.app.chat.command import chat
from mmvl.app.options import (
    Device,
    MaxTokens,
    MinP,
    Model,
    Penalty,
    Quantize,
    Question,
    Seed,
    Stop,
    Temperature,
    TopK,
    TopP,
)
from mmvl.app.quantize import bench_quantize, quantize
from mmvl.app.server.command import bench_server, serve

app = typer.Typer(
    help="Ask about pictures and documents, caption folders, and train vision-language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help starts in half the time, and a wrong option is one line
    context_settings={"help_option_names": ["-h", "--help"]},
)
data = typer.Typer(
    help="Make, import and look at training data (WebDataset shards).", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(data, name="data")
bench = typer.Typer(help="Measure how fast the parts are on this machine.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(bench, name="bench")


OVER_RANKS = ("ask", "caption", "vqa", "chat", "serve", "demo", "eval")  # commands whose model torchrun may spread


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of a failure.")] = False,
    local_rank: Annotated[int | None, typer.Option("--local_rank", hidden=True)] = None,  # of deepspeed's launcher
) -> None:
    if debug:
        os.environ["MMVL_DEBUG"] = "1"
    if version:
        import mmvl

        print(f"mmvl {mmvl.__version__}")
        raise typer.Exit
    if context.invoked_subcommand in OVER_RANKS and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from mmvl.engine.ranks import gather

        gather()  # under torchrun: ranks after the first stay here and help it until it ends


@app.command()
def ask(
    files: Annotated[list[Path], typer.Argument(metavar="FILE", help="Pictures and PDFs.", show_default=False)],
    question: Question,
    pages: Annotated[
        str | None, typer.Option(metavar="1-3,7", help="Of PDFs, only these pages.  [default: all]")
    ] = None,
    model: Model = None,
    device: Device = None,
    quantize: Quantize = None,
    max_tokens: MaxTokens = 256,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    top_k: TopK = 0,
    min_p: MinP = 0.0,
    repetition_penalty: Penalty = 1.0,
    seed: Seed = None,
    stop: Stop = None,
    stats: Annotated[
        bool | None, typer.Option("--stats/--no-stats", help="Timings on stderr.  [default: on a terminal]")
    ] = None,
) -> None:
    """Ask one question about pictures and PDF pages; the answer streams to stdout."""
    from mmvl.app.ask import ask as run

    run(
        files,
        question,
        lambda: _open_model(model, device, quantize),
        pages=pages,
        stats=sys.stderr.isatty() if stats is None else stats,
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        stop=stop or [],
    )


app.command()(batch.caption)
app.command()(batch.vqa)


app.command()(chat)
app.command()(serve)
app.command()(quantize)


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE.yaml", help="See mmvl/recipes.", show_default=False)],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one key of the recipe; repeatable.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only print what it would take: parameters, memory, steps, days.")
    ] = False,
) -> None:
    """Train as a recipe says."""
    if not recipe.is_file():
        raise FileNotFoundError(f"no such recipe: {recipe}")
    if dry_run:
        from mmvl.training.plan import describe

        print("\n".join(describe(recipe, overrides or [])))
        return
    from mmvl.training.train import train as run

    run(recipe, overrides or [])


@app.command()
def convert(
    source: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="A stage's `out`, or one checkpoint of it.", show_default=False)
    ],
    dest: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Where the model goes.")],
    dtype: Annotated[
        str | None, typer.Option(metavar="NAME", help="float32, bfloat16, float16.  [default: as it was trained]")
    ] = None,
) -> None:
    """Write a training checkpoint as a model in Hugging Face layout, one tensor in memory at a time."""
    from mmvl.app.convert import convert as run

    run(source, dest, dtype)


@app.command()
def grow(
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG.json", help="The larger model's config.json.", show_default=False)
    ],
    dest: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Where the larger model goes.")],
    layers: Annotated[
        str | None, typer.Option(metavar="N,N", help="New places of the decoder's layers.  [default: the first]")
    ] = None,
    vision_layers: Annotated[
        str | None, typer.Option(metavar="N,N", help="New places of the ViT's blocks.  [default: the first]")
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Of the new weights.")] = 0,
    model: Model = None,
) -> None:
    """Write a larger model that starts by computing what this one does: more layers, wider experts, larger images."""
    from mmvl.app.grow import grow as run

    run(model, config, dest, layers, vision_layers, seed)


@app.command()
def replay(
    directory: Annotated[
        Path, typer.Argument(metavar="BAD-STEP-DIR", help="What a stopped run kept in its `out`.", show_default=False)
    ],
    model: Annotated[
        Path | None, typer.Option("--model", metavar="DIR", help="Weights.  [default: the run's newest checkpoint]")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the result here too.")] = None,
    device: Device = None,
) -> None:
    """Run the batches of a step that stopped a training run again, and tell what each document does."""
    from mmvl.app.convert import replay as run

    run(directory, model, device, json_file)


@app.command(name="eval")
def evaluate(
    task: Annotated[str, typer.Argument(help="A task's name; a wrong one lists them.", show_default=False)],
    source: Annotated[
        Path | None, typer.Option("--data", metavar="PATH", help="The set, for tasks over one that you bring.")
    ] = None,
    split: Annotated[
        str | None, typer.Option(metavar="development|train|all", help="Which part of --data.  [default: the task's]")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Only N questions, always the same random choice.")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write scores and every answer here.")
    ] = None,
    page: Annotated[
        Path | None, typer.Option(metavar="FILE.html", help="Draw a page to look through the answers.")
    ] = None,
    model: Model = None,
    device: Device = None,
) -> None:
    """Measure a model on a task, beside its baselines."""
    from mmvl.evaluation.run import evaluate as run

    run(task, model=model, limit=limit, json_path=json_file, device=device, data=source, split=split, page=page)


@app.command()
def doctor() -> None:
    """Versions, devices, memory, and what would not work here and why."""
    from mmvl.app.doctor import print_report

    print_report()


@app.command()
def demo(model: Model = None, device: Device = None) -> None:
    """Ask the model about the example files that come with mmvl."""
    from mmvl.app.demo import demo as run

    run(lambda: _open_model(model, device))


Dest = Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Where the shards go.")]
DataSeed = Annotated[int, typer.Option("--seed", metavar="N", help="The same seed gives the same shards.")]
Workers = Annotated[int, typer.Option("--workers", min=0, metavar="N", help="Processes; 0 is one a core.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting of its own; repeatable.")
]


@data.command("render")
def data_render(
    name: Annotated[str, typer.Argument(help="A renderer; a wrong name lists them.", show_default=False)],
    dest: Dest,
    count: Annotated[int, typer.Option("-n", "--count", min=1, metavar="N", help="How many samples.")] = 1000,
    seed: DataSeed = 0,
    workers: Workers = 0,
    settings: Settings = None,
) -> None:
    """Render pictures and what they say into shards."""
    from mmvl.app.data import make

    make("render", name, dest, count=count, seed=seed, workers=workers, settings=settings or [])


@data.command("import")
def data_import(
    name: Annotated[str, typer.Argument(help="An importer; a wrong name lists them.", show_default=False)],
    dest: Dest,
    count: Annotated[int, typer.Option("-n", "--count", min=0, metavar="N", help="How many samples; 0 is all.")] = 0,
    seed: DataSeed = 0,
    workers: Workers = 0,
    settings: Settings = None,
) -> None:
    """Import a public data set into shards. Exit code 3: some items were skipped."""
    from mmvl.app.data import make

    if make("import", name, dest, count=count, seed=seed, workers=workers, settings=settings or []):
        raise typer.Exit(errors.SOME_ROWS_FAILED)


@data.command("manifest")
def data_manifest(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder of shards.", show_default=False)],
    model: Model = None,
    tokens: Annotated[bool, typer.Option(help="Count tokens with the model's tokenizer, decoding pictures.")] = True,
) -> None:
    """Check every shard of a folder and write its manifest."""
    from mmvl.app.data import manifest

    manifest(folder, model, tokens)


@data.command("inspect")
def data_inspect(
    path: Annotated[Path, typer.Argument(metavar="SHARD|DIR", help="A shard or a folder.", show_default=False)],
    limit: Annotated[int, typer.Option(min=0, metavar="N", help="How many samples to print.")] = 3,
    picture: Annotated[
        Path | None, typer.Option("--picture", metavar="FILE.png", help="Draw these samples, pictures and all.")
    ] = None,
) -> None:
    """Print what shards hold: counts, kinds, sources, damage, and the first samples. Exit code 3: some are damaged."""
    from mmvl.app.data import inspect

    if inspect(path, limit, picture):
        raise typer.Exit(errors.SOME_ROWS_FAILED)


@bench.command("kernels")
def bench_kernels(
    op: Annotated[
        list[str] | None, typer.Option("--op", metavar="NAME", help="Only operations beginning so; repeatable.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer shapes.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the result here too.")] = None,
    picture: Annotated[
        Path | None, typer.Option("--picture", metavar="FILE.png", help="Draw time against length.")
    ] = None,
    tune: Annotated[bool, typer.Option("--tune", help="Make this GPU's table of launch parameters anew.")] = False,
    device: Device = None,
) -> None:
    """Run each operation beside other libraries' kernels: checked first, then timed."""
    from mmvl.app import bench

    if tune:
        bench.tune(op or [], device=device, json_path=json_file)
    elif not bench.kernels(op or [], quick=quick, device=device, json_path=json_file, picture=picture):
        raise typer.Exit(errors.SOME_ROWS_FAILED)


@bench.command("decoder")
def bench_decoder(
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the result here too.")] = None,
    peer: Annotated[bool, typer.Option("--peer/--no-peer", help="Measure transformers as well.")] = True,
    device: Device = None,
) -> None:
    """Prefill and decode of 8 of the full model's 80 layers, beside transformers. Needs 115 GiB on a GPU."""
    from mmvl.app import bench

    bench.decoder(device=device, peer=peer, json_path=json_file)


@bench.command("engine")
def bench_engine(
    model: Model = None,
    shape: Annotated[
        str | None, typer.Option("--shape", metavar="slice|whole|small", help="Random weights of this shape instead.")
    ] = None,
    layers: Annotated[int | None, typer.Option(min=1, metavar="N", help="Of the shape, the first so many.")] = None,
    experts: Annotated[
        str | None, typer.Option(metavar="int8|int4|fp8", help="Of the shape, quantised experts.")
    ] = None,
    sequences: Annotated[str, typer.Option(metavar="N,N", help="Requests at the same time.")] = "1,8",
    lengths: Annotated[str, typer.Option(metavar="N,N", help="Tokens of their prompts.")] = "128",
    new_tokens: Annotated[int, typer.Option(min=1, metavar="N", help="Tokens of an answer.")] = 64,
    mixed: Annotated[bool, typer.Option("--mixed", help="64 prompts of 512 to 16,384 tokens as well.")] = False,
    repeats: Annotated[int, typer.Option(min=1, metavar="N", help="How often each is measured.")] = 3,
    peer: Annotated[bool, typer.Option("--peer/--no-peer", help="Measure transformers as well.")] = True,
    peer_tokens: Annotated[
        int | None, typer.Option(min=2, metavar="N", help="Of its answers make so many tokens, and extrapolate.")
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the result here too.")] = None,
    picture: Annotated[Path | None, typer.Option("--picture", metavar="FILE.png", help="Draw it.")] = None,
    device: Device = None,
) -> None:
    """Tokens a second, waiting times and memory of the engine under load, beside transformers' generate.

    Under torchrun the engine is spread over the ranks.
    """
    from mmvl.app.bench_engine import engine

    engine(
        model, shape, sequences, lengths, new_tokens, mixed=mixed, repeats=repeats, peer=peer, peer_tokens=peer_tokens,
        layers=layers, experts=experts, json_path=json_file, picture=picture, device=device,
    )  # fmt: skip


bench.command("quantize")(bench_quantize)
bench.command("server")(bench_server)
bench.command("ranks")(bench_ranks)
bench.command("graphs")(bench_graphs)
bench.command("laptop")(bench_laptop)


@bench.command("data")
def bench_data(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder of shards.", show_default=False)],
    model: Model = None,
    workers: Annotated[int, typer.Option("--workers", min=0, metavar="N", help="Processes that read.")] = 2,
    seconds: Annotated[float, typer.Option("--seconds", min=0.1, help="How long a contestant is measured.")] = 5.0,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="How many turns each takes.")] = 3,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the result here too.")] = None,
) -> None:
    """Samples a second of the training loader, beside plain webdataset and PIL."""
    from mmvl.app.bench_data import data as run

    run(folder, model, workers=workers, seconds=seconds, rounds=rounds, json_path=json_file)


@bench.command("packing")
def bench_packing(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="Its shards must be there.", show_default=False)],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a key of the recipe; repeatable.")
    ] = None,
    rows: Annotated[int, typer.Option("--rows", min=1, metavar="N", help="How many rows to pack.")] = 48,
    model: Model = None,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the result here too.")] = None,
) -> None:
    """The share of padding in the rows that a recipe's samples are packed into."""
    from mmvl.app.bench_data import packing as run

    run(recipe, model, overrides or [], rows=rows, json_path=json_file)


@bench.command("training")
def bench_training(
    parts: Annotated[
        list[str] | None, typer.Argument(metavar="[experts|layer|row]...", help="What to measure; all by default.")
    ] = None,
    layers: Annotated[int | None, typer.Option(min=1, metavar="N", help="Layers of the part experts.")] = None,
    tokens: Annotated[int | None, typer.Option(min=1, metavar="N", help="Tokens of a rank and step.")] = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="How long one measurement may take.")] = 5.0,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the result here too.")] = None,
) -> None:
    """Training steps of full-width layers over all GPUs, beside transformers; torchrun -m mmvl.app.cli starts it."""
    from mmvl.app.bench_training import training

    training(parts or [], layers=layers, tokens=tokens, seconds=seconds, json_path=json_file)


def _open_model(model: Path | None, device: str | None, quantize: str | None = None):
    from mmvl import VLM

    return VLM(model, device=device, quantize=quantize)


def main() -> None:
    """The console script. Exit codes: 0 done, 1 failed, 2 wrong usage, 3 done with failed rows, 130 interrupted."""
    try:
        app(prog_name="mmvl")
    except BrokenPipeError:
        _close_stdout_quietly()
        sys.exit(errors.FAILED)
    except KeyboardInterrupt:
        sys.exit(errors.INTERRUPTED)
    except Exception as error:
        sys.exit(errors.report(error, errors.debugging()))


def _close_stdout_quietly() -> None:
    """The reader of our pipe is gone: without this, Python complains once more when it flushes at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
