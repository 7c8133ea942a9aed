"""`mmvl grow`: what the command takes and prints; the work is `mmvl.training.grow`'s."""

import sys
from pathlib import Path


def grow(
    source: Path | None, config: Path, out: Path, layers: str | None, vision_layers: str | None, seed: int
) -> None:
    """Write the larger model and say what changed.

    Raises:
        FileNotFoundError, ValueError: one line that says what is wrong.
    """
    from mmvl.training.grow import grow as run
    from mmvl.vlm import MMVL_TINY

    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty; name a new directory")
    change = run(source or MMVL_TINY, config, out, _places(layers), _places(vision_layers), seed)
    size = sum(path.stat().st_size for path in out.glob("*.safetensors"))
    print(
        f"{out}: {size / 1e6:.1f} MB; decay rates of lightning layers changed by {change:.1%} at most", file=sys.stderr
    )


def _places(text: str | None) -> list[int] | None:
    if text is None:
        return None
    if not all(number.strip().isdigit() for number in text.split(",")):
        raise ValueError(f"places are numbers with commas between, such as 0,1,2,4, not {text!r}")
    return [int(number) for number in text.split(",")]
