"""The commands `mmvl caption` and `mmvl vqa`: what they take. `job.py` does the work."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from mmvl.app import errors
from mmvl.app.options import Devices, MaxTokens, Model, Penalty, Quantize, Seed, Stop, Temperature, TopP

Source = Annotated[
    list[Path],
    typer.Argument(metavar="SOURCE", help="Pictures, PDFs, .jsonl, .parquet, .tar, or folders.", show_default=False),
]
Dest = Annotated[
    Path,
    typer.Option("-o", "--output", metavar="DEST", help="x.jsonl, x.parquet, a folder for shards, or .txt: beside."),
]
System = Annotated[str, typer.Option("--system", metavar="TEXT", help="A system prompt.")]
OnExisting = Annotated[
    str,
    typer.Option(metavar="skip|overwrite|retry-failed", help="Rows of DEST: keep all, none, or all but the failures."),
]
Image = Annotated[
    str | None, typer.Option("--image", metavar="FIELD", help="Of rows: the field with the picture.  [default: image]")
]
Id = Annotated[
    str | None, typer.Option("--id", metavar="FIELD", help="Of rows: the field that names them.  [default: id]")
]
Keep = Annotated[
    list[str] | None, typer.Option("--keep", metavar="FIELD", help="Of rows: a field to keep in DEST; repeatable.")
]
MaxSequences = Annotated[
    int, typer.Option("--max-sequences", min=1, metavar="N", help="Answers that are written at the same time.")
]
Engine = Annotated[str, typer.Option(metavar="local|ray", help="Here, or on a Ray cluster.")]
Workers = Annotated[int, typer.Option(min=0, metavar="N", help="Of --engine ray: actors; 0 is one a GPU.")]


_OPTIONS = {
    "system": (System, ""),
    "on_existing": (OnExisting, "skip"),
    "image": (Image, None),
    "id": (Id, None),
    "keep": (Keep, None),
    "model": (Model, None),
    "quantize": (Quantize, None),
    "max_sequences": (MaxSequences, 32),
    "device": (Devices, None),
    "engine": (Engine, "local"),
    "workers": (Workers, 0),
    "max_tokens": (MaxTokens, 128),
    "temperature": (Temperature, 0.0),
    "top_p": (TopP, 1.0),
    "repetition_penalty": (Penalty, 1.0),
    "seed": (Seed, None),
    "stop": (Stop, None),
}
_SAMPLING = ("max_tokens", "temperature", "top_p", "repetition_penalty", "seed", "stop")


def _command(task: str, text: str, asked: tuple) -> Callable[..., None]:
    """The function of a command, with the signature that typer reads: SOURCE, -o, the option for what is `asked`
    (name, type, default), and those that both commands have."""

    def command(**options) -> None:
        _run(task, options.pop(asked[0]), options)

    options = {asked[0]: asked[1:], **_OPTIONS}
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter(name, kind, annotation=type) for name, type in (("source", Source), ("dest", Dest))]
    parameters += [
        inspect.Parameter(name, kind, annotation=type, default=default) for name, (type, default) in options.items()
    ]
    command.__signature__ = inspect.Signature(parameters)
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    command.__name__, command.__doc__ = task, text
    return command


caption = _command(
    "caption",
    "Describe every picture of a source. Run it again to go on. Exit code 3: some rows failed, each says why.",
    (
        "prompt",
        Annotated[str, typer.Option(metavar="TEXT", help="What to ask; {{ field }} stands for a field of the row.")],
        "Describe the image.",
    ),
)
vqa = _command(
    "vqa",
    "Ask each row of a source its question. Run it again to go on. Exit code 3: some rows failed, each says why.",
    (
        "question",
        Annotated[
            str, typer.Option("-q", "--question", metavar="TEXT", help="What to ask; {{ field }}: a field of the row.")
        ],
        "{{ question }}",
    ),
)


def _run(task: str, prompt: str, options: dict) -> None:
    from mmvl.app.batch.job import job
    from mmvl.app.batch.sources import Reading

    failed = job(
        task,
        options["source"],
        options["dest"],
        prompt=prompt,
        system=options["system"],
        on_existing=options["on_existing"],
        reading=Reading(options["image"], options["id"], tuple(options["keep"] or ())),
        model=options["model"],
        quantize=options["quantize"],
        max_sequences=options["max_sequences"],
        devices=options["device"].split(",") if options["device"] else (),
        engine=options["engine"],
        workers=options["workers"],
        sampling={name: options[name] for name in _SAMPLING} | {"stop": list(options["stop"] or [])},
    )
    if failed:
        raise typer.Exit(errors.SOME_ROWS_FAILED)
