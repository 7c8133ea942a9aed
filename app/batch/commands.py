"""The commands `mmvl caption` and `mmvl vqa`: what they take. `job.py` does the work."""

from pathlib import Path
from typing import Annotated

import typer

from mmvl.app import errors
from mmvl.app.options import MaxTokens, Model, Penalty, Quantize, Seed, Stop, Temperature, TopP

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
Devices = Annotated[
    str | None,
    typer.Option("--device", metavar="NAMES", help="cpu, cuda:0,cuda:1 ...: a process each.  [default: all GPUs]"),
]
MaxSequences = Annotated[
    int, typer.Option("--max-sequences", min=1, metavar="N", help="Answers that are written at the same time.")
]
Engine = Annotated[str, typer.Option(metavar="local|ray", help="Here, or on a Ray cluster.")]
Workers = Annotated[int, typer.Option(min=0, metavar="N", help="Of --engine ray: actors; 0 is one a GPU.")]


def caption(
    source: Source,
    dest: Dest,
    prompt: Annotated[
        str, typer.Option(metavar="TEXT", help="What to ask; {{ field }} stands for a field of the row.")
    ] = "Describe the image.",
    system: System = "",
    on_existing: OnExisting = "skip",
    image: Image = None,
    id: Id = None,
    keep: Keep = None,
    model: Model = None,
    quantize: Quantize = None,
    max_sequences: MaxSequences = 32,
    device: Devices = None,
    engine: Engine = "local",
    workers: Workers = 0,
    max_tokens: MaxTokens = 128,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    repetition_penalty: Penalty = 1.0,
    seed: Seed = None,
    stop: Stop = None,
) -> None:
    """Describe every picture of a source. Run it again to go on. Exit code 3: some rows failed, each says why."""
    _run("caption", prompt, locals())


def vqa(
    source: Source,
    dest: Dest,
    question: Annotated[
        str, typer.Option("-q", "--question", metavar="TEXT", help="What to ask; {{ field }}: a field of the row.")
    ] = "{{ question }}",
    system: System = "",
    on_existing: OnExisting = "skip",
    image: Image = None,
    id: Id = None,
    keep: Keep = None,
    model: Model = None,
    quantize: Quantize = None,
    max_sequences: MaxSequences = 32,
    device: Devices = None,
    engine: Engine = "local",
    workers: Workers = 0,
    max_tokens: MaxTokens = 128,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    repetition_penalty: Penalty = 1.0,
    seed: Seed = None,
    stop: Stop = None,
) -> None:
    """Ask each row of a source its question. Run it again to go on. Exit code 3: some rows failed, each says why."""
    _run("vqa", question, locals())


def _run(task: str, prompt: str, options: dict) -> None:
    from mmvl.app.batch.job import job
    from mmvl.app.batch.sources import Reading

    sampling = ("max_tokens", "temperature", "top_p", "repetition_penalty", "seed", "stop")
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
        sampling={name: options[name] for name in sampling} | {"stop": list(options["stop"] or [])},
    )
    if failed:
        raise typer.Exit(errors.SOME_ROWS_FAILED)
