"""Options that several commands of `mmvl` share: one name, one meaning, one help text each."""

import re
from pathlib import Path
from typing import Annotated

import typer

from mmvl.app.errors import UsageError

_DEVICE = re.compile(r"(cpu|cuda|mps|xpu)(:\d+)?")


def _check_device(name: str | None) -> str | None:
    if name is not None and not _DEVICE.fullmatch(name):
        raise UsageError(f"--device: unknown device {name!r}; use cpu, cuda or cuda:N")
    return name


def _check_devices(names: str | None) -> str | None:
    for name in names.split(",") if names is not None else ():
        _check_device(name)
    return names


def check_quantize(option: typer.CallbackParam, kind: str | None) -> str | None:
    """Raises UsageError unless experts can be kept as `kind`."""
    if kind is not None:
        from mmvl.checkpoint import KINDS, NOT_QUANTIZED  # they bring torch

        if kind not in (NOT_QUANTIZED, *KINDS):
            known = ", ".join(KINDS)
            raise UsageError(f"{option.opts[0]}: experts can be quantised to {known}, or {NOT_QUANTIZED}; not {kind!r}")
    return kind


def _check_kv_cache_dtype(name: str) -> str:
    if name != "auto":
        from mmvl.engine.settings import KV_CACHE_DTYPES  # it brings torch

        if name not in KV_CACHE_DTYPES:
            raise UsageError(f"--kv-cache-dtype: it can be {', '.join(KV_CACHE_DTYPES)}; not {name!r}")
    return name


def whole_numbers(option: str, text: str) -> list[int]:
    """ "1,8,64" -> [1, 8, 64]. Raises UsageError, which names the option, for anything else."""
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < 1:
        raise UsageError(f"{option} takes whole numbers with commas between them, not {text!r}")
    return found


Model = Annotated[
    Path | None, typer.Option("--model", metavar="DIR", help="Model in Hugging Face layout.  [default: mmvl-tiny]")
]
Device = Annotated[
    str | None,
    typer.Option(
        "--device",
        metavar="NAME",
        callback=_check_device,
        help="cpu, cuda, cuda:1 ...  [default: a GPU if there is one]",
    ),
]
Devices = Annotated[
    str | None,
    typer.Option(
        "--device",
        metavar="NAMES",
        callback=_check_devices,
        help="cpu, cuda:0,cuda:1 ...: a process each.  [default: all GPUs]",
    ),
]
Quantize = Annotated[
    str | None,
    typer.Option(
        "--quantize",
        metavar="KIND",
        callback=check_quantize,
        help="Experts as int8, int4 or fp8 while they are loaded.  [default: as stored]",
    ),
]
KvCacheDtype = Annotated[
    str,
    typer.Option(
        "--kv-cache-dtype",
        metavar="auto|int8|fp8",
        callback=_check_kv_cache_dtype,
        help="Keys and values as the model computes, or in 8 bits: twice the tokens in the same memory.",
    ),
]
SequenceParallel = Annotated[
    bool,
    typer.Option(
        "--sequence-parallel",
        help="Of a model over several ranks: long prompts in parts, one a rank. It takes memory for weights.",
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
JsonFile = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the result here too.")]

# Of benchmarks that can measure weights which nobody has.
Shape = Annotated[
    str | None, typer.Option("--shape", metavar="slice|whole|small", help="Random weights of this shape instead.")
]
Layers = Annotated[int | None, typer.Option("--layers", min=1, metavar="N", help="Of the shape, the first so many.")]
Experts = Annotated[
    str | None, typer.Option("--experts", metavar="int8|int4|fp8", help="Of the shape, quantised experts.")
]
