"""Options that several commands of `mmvl` share: one name, one meaning, one help text each."""

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[
    Path | None, typer.Option("--model", metavar="DIR", help="Model in Hugging Face layout.  [default: mmvl-tiny]")
]
Device = Annotated[
    str | None, typer.Option("--device", metavar="NAME", help="cpu, cuda, cuda:1 ...  [default: a GPU if there is one]")
]
Quantize = Annotated[
    str | None,
    typer.Option(
        "--quantize", metavar="KIND", help="Experts as int8, int4 or fp8 while they are loaded.  [default: as stored]"
    ),
]
Question = Annotated[str, typer.Option("-q", "--question", metavar="TEXT", help="What to ask about the files.")]
MaxTokens = Annotated[int, typer.Option("--max-tokens", min=1, metavar="N", help="Longest answer, in tokens.")]
Temperature = Annotated[float, typer.Option(min=0.0, metavar="T", help="0 is greedy: the likeliest token each time.")]
TopP = Annotated[float, typer.Option("--top-p", min=0.0, max=1.0, metavar="P", help="Nucleus: keep this probability.")]
TopK = Annotated[int, typer.Option("--top-k", min=0, metavar="K", help="Keep the K likeliest tokens; 0 keeps all.")]
MinP = Annotated[
    float, typer.Option("--min-p", min=0.0, max=1.0, metavar="P", help="Drop tokens under P times the likeliest's.")
]
Penalty = Annotated[
    float, typer.Option("--repetition-penalty", min=0.01, metavar="X", help="Above 1 discourages repeats.")
]
Seed = Annotated[int | None, typer.Option(metavar="N", help="Makes sampling repeatable.")]
Stop = Annotated[list[str] | None, typer.Option("--stop", metavar="TEXT", help="End before this text; repeatable.")]
