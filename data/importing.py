"""What the importers of public formats share: items, the split by hash, pictures, and skipping that is told.

An importer lists its items, each with a key and a function that makes the sample; here they become shards. An item that
cannot be made (no such picture, a damaged one, no answer) is skipped and named in `problems`.
"""

import io
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from mmvl.data.order import derive
from mmvl.data.parallel import Progress, write_shards
from mmvl.data.shards import check
from mmvl.data.splits import in_split
from mmvl.data.turns import Made

EXTENSIONS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "TIFF": "tif"}


@dataclass(frozen=True)
class Item:
    """One sample to be: `make(rng)` gives its record and files; ValueError or OSError if it cannot be made.

    `key` names the picture, page or table, and decides the split (`splits.in_split`).
    """

    key: str
    make: Callable[[random.Random], Made]


def import_items(
    out_dir: str | Path,
    name: str,
    items: Sequence[Item],
    count: int,
    seed: int,
    workers: int,
    *,
    split: str = "all",
    progress: Progress | None = None,
    problems: list[str] | None = None,
    per_shard: int = 1000,
) -> list[Path]:
    """Shards `name-NNNNN.tar` of the items of a split; count 0 means each once, more begins again with other draws.

    Bad items are skipped, a line each in `problems`, or raise if that is None. Returns the shards.
    """
    items = [item for item in items if in_split(item.key, split)]
    if not items:
        raise ValueError(f"{name}: no items in the split {split!r}")

    def make(index: int) -> Made:
        turn, position = divmod(index, len(items))
        item = items[position]
        try:
            record, members = item.make(random.Random(derive(name, seed, turn, item.key)))
        except (ValueError, OSError) as error:
            raise ValueError(f"{item.key}: {error}") from error
        check(record, members, item.key)
        return record, members

    shards = write_shards(
        out_dir, name, count or len(items), make, workers, per_shard=per_shard, progress=progress, problems=problems
    )
    if not shards:
        raise ValueError(f"{name}: not one of {len(items)} items can be used, the first: {problems[0]}")
    return shards


def picture(data: bytes, longest: int = 0) -> tuple[str, bytes]:
    """(extension, bytes) of an image file that was decoded to see that it is whole.

    longest > 0: a larger one is scaled down to that many pixels on its longer side and kept as WebP. ValueError else.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=list(EXTENSIONS))
        extension = EXTENSIONS[image.format]
        image.load()
        if longest and max(image.size) > longest:
            image = image.convert("RGBA" if "A" in image.getbands() or "transparency" in image.info else "RGB")
            image.thumbnail((longest, longest), Image.Resampling.LANCZOS)
            buffer = io.BytesIO()
            image.save(buffer, "WEBP", quality=88, method=4)
            return "webp", buffer.getvalue()
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError):  # what Pillow makes of damage
        raise ValueError(f"a picture of {len(data)} bytes is damaged or of no known format") from None
    return extension, data
