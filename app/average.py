"""`mmvl average`: what the command takes and prints; the work is `mmvl.average`'s."""

import sys
from pathlib import Path


def average(sources: list[Path], dest: Path, shares: str | None) -> None:
    """Write the average and say how large it is.

    Raises:
        FileNotFoundError, ValueError: one line that says what is wrong.
    """
    from mmvl.average import average_models

    if dest.exists() and any(dest.iterdir()):
        raise ValueError(f"{dest} is not empty; name a new directory")
    average_models(sources, dest, _numbers(shares))
    size = sum(path.stat().st_size for path in dest.glob("*.safetensors"))
    print(f"{dest}: the average of {len(sources)} models, {size / 1e9:,.3f} GB", file=sys.stderr)


def _numbers(text: str | None) -> list[float] | None:
    try:
        return None if text is None else [float(number) for number in text.split(",")]
    except ValueError:
        raise ValueError(f"--shares takes numbers with commas between, such as 0.3,0.7, not {text!r}") from None
