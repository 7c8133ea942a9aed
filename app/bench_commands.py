"""The commands `mmvl bench`: what each is called and takes. The work is imported inside the commands."""

from pathlib import Path
from typing import Annotated

import typer

from mmvl.app import errors
from mmvl.app.bench_graphs import bench_graphs
from mmvl.app.bench_laptop import bench_laptop
from mmvl.app.bench_ranks import bench_ranks
from mmvl.app.engine_options import EngineOptions, engine_settings
from mmvl.app.options import Device, Experts, JsonFile, Layers, Model, Shape
from mmvl.app.quantize import bench_quantize
from mmvl.app.server.command import bench_server

bench = typer.Typer(
    name="bench",
    help="Measure how fast the parts are on this machine.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@bench.command("kernels")
def bench_kernels(
    op: Annotated[
        list[str] | None, typer.Option("--op", metavar="NAME", help="Only operations beginning so; repeatable.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer shapes.")] = False,
    json_file: JsonFile = None,
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
    json_file: JsonFile = None,
    peer: Annotated[bool, typer.Option("--peer/--no-peer", help="Measure transformers as well.")] = True,
    device: Device = None,
) -> None:
    """Prefill and decode of 8 of the full model's 80 layers, beside transformers. Needs 115 GiB on a GPU."""
    from mmvl.app import bench

    bench.decoder(device=device, peer=peer, json_path=json_file)


@bench.command("engine")
def bench_engine(
    model: Model = None,
    shape: Shape = None,
    layers: Layers = None,
    experts: Experts = None,
    sequences: Annotated[str, typer.Option(metavar="N,N", help="Requests at the same time.")] = "1,8",
    lengths: Annotated[str, typer.Option(metavar="N,N", help="Tokens of their prompts.")] = "128",
    new_tokens: Annotated[int, typer.Option(min=1, metavar="N", help="Tokens of an answer.")] = 64,
    mixed: Annotated[bool, typer.Option("--mixed", help="64 prompts of 512 to 16,384 tokens as well.")] = False,
    repeats: Annotated[int, typer.Option(min=1, metavar="N", help="How often each is measured.")] = 3,
    peer: Annotated[bool, typer.Option("--peer/--no-peer", help="Measure transformers as well.")] = True,
    peer_tokens: Annotated[
        int | None, typer.Option(min=2, metavar="N", help="Of its answers make so many tokens, and extrapolate.")
    ] = None,
    settings: EngineOptions = None,
    json_file: JsonFile = None,
    picture: Annotated[Path | None, typer.Option("--picture", metavar="FILE.png", help="Draw it.")] = None,
    device: Device = None,
) -> None:
    """Tokens a second, waiting times and memory of the engine under load, beside transformers' generate.

    Under torchrun the engine is spread over the ranks. Drafts and the prefix cache are off, unless --engine says more.
    """
    from mmvl.app.bench_engine import engine

    engine(
        model, shape, sequences, lengths, new_tokens, mixed=mixed, repeats=repeats, peer=peer, peer_tokens=peer_tokens,
        layers=layers, experts=experts, settings=engine_settings(settings), json_path=json_file, picture=picture,
        device=device,
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
    json_file: JsonFile = None,
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
    json_file: JsonFile = None,
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
    json_file: JsonFile = None,
) -> None:
    """Training steps of full-width layers over all GPUs, beside transformers; torchrun -m mmvl.app.cli starts it."""
    from mmvl.app.bench_training import training

    training(parts or [], layers=layers, tokens=tokens, seconds=seconds, json_path=json_file)
