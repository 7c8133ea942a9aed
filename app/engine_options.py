"""`--engine NAME=VALUE`: settings of `mmvl.engine.Engine` on the command line."""

import re
from typing import Annotated

import typer

from mmvl.app.errors import UsageError

LEAST = {  # of whole numbers
    "draft_tokens": 0, "max_cached_tokens": 1, "max_batch_tokens": 1, "graph_tokens": 0, "swap_bytes": 0,
    "expert_workspace": 1,
}  # fmt: skip
IN_BYTES = ("swap_bytes", "expert_workspace")
UNITS = {"": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
NAMES = ("prefix_cache", "kv_cache_dtype", *LEAST)

EngineOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--engine", metavar="NAME=VALUE", help=f"A setting of the engine, repeatable: {', '.join(NAMES)}."
    ),
]  # fmt: skip


def engine_settings(given: list[str] | None, kv_cache_dtype: str = "auto") -> dict[str, int | str]:
    """What `--engine` and, unless it is "auto", `--kv-cache-dtype` say, as arguments of `Engine`.

    Raises UsageError, one line, for a name or a value that there is not, or for what is said twice.
    """
    found: dict[str, int | str] = {} if kv_cache_dtype == "auto" else {"kv_cache_dtype": kv_cache_dtype}
    for text in given or ():
        name, equals, value = (part.strip() for part in text.partition("="))
        if name not in NAMES:
            raise UsageError(f"--engine: there is no setting {name!r}; there are {', '.join(NAMES)}")
        if not equals:
            raise UsageError(f"--engine {name}: write it as {name}=VALUE")
        if name in found:
            raise UsageError(f"--engine {name}: it is given twice")
        found[name] = _number(name, value) if name in LEAST else _one_of(name, value)
    return found


def _number(name: str, text: str) -> int:
    units = "|".join(UNITS) if name in IN_BYTES else ""
    match = re.fullmatch(rf"(\d{{1,18}})\s*({units})", text, re.ASCII)
    number = int(match[1]) * UNITS[match[2]] if match else -1
    if number < LEAST[name]:
        kind = "a number of bytes, as 4GiB," if name in IN_BYTES else "a whole number"
        raise UsageError(f"--engine {name}: it is {kind} from {LEAST[name]} on, not {text!r}")
    return number


def _one_of(name: str, text: str) -> str:
    from mmvl.engine.settings import CHOICES  # it brings torch

    known = CHOICES[name]
    if text not in known:
        raise UsageError(f"--engine {name}: it can be {', '.join(known)}; not {text!r}")
    return text
