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
from mmvl.app.bench_commands import bench
from mmvl.app.chat.command import chat
from mmvl.app.data_commands import data
from mmvl.app.options import (
    Device,
    JsonFile,
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
from mmvl.app.quantize import quantize
from mmvl.app.server.command import serve

app = typer.Typer(
    help="Ask about pictures and documents, caption folders, and train vision-language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help starts in half the time, and a wrong option is one line
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(data)
app.add_typer(bench)


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
def average(
    models: Annotated[list[Path], typer.Argument(metavar="MODEL...", help="Two or more.", show_default=False)],
    dest: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Where the average goes.")],
    shares: Annotated[
        str | None, typer.Option(metavar="N,N", help="Of each model, in all 1.  [default: equal]")
    ] = None,
) -> None:
    """Average the weights of models that were trained on from one another, in bf16."""
    from mmvl.app.average import average as run

    run(models, dest, shares)


@app.command()
def replay(
    directory: Annotated[
        Path, typer.Argument(metavar="BAD-STEP-DIR", help="What a stopped run kept in its `out`.", show_default=False)
    ],
    model: Annotated[
        Path | None, typer.Option("--model", metavar="DIR", help="Weights.  [default: the run's newest checkpoint]")
    ] = None,
    json_file: JsonFile = None,
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
    predictions: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Score the answers that --json wrote before; ask no model.")
    ] = None,
    model: Model = None,
    device: Device = None,
) -> None:
    """Measure a model on a task, beside its baselines."""
    from mmvl.evaluation.run import evaluate as run

    run(
        task, model=model, limit=limit, json_path=json_file, device=device, data=source, split=split, page=page,
        predictions=predictions,
    )  # fmt: skip


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
