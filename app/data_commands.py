"""The commands `mmvl data`: what each is called and takes. The work is in `data.py`, imported inside the commands."""

from pathlib import Path
from typing import Annotated

import typer

from mmvl.app import errors
from mmvl.app.options import Model

data = typer.Typer(
    name="data",
    help="Make, import and look at training data (WebDataset shards).",
    no_args_is_help=True,
    rich_markup_mode=None,
)

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
