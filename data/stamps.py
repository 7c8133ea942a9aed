"""Importer of Tux Paint's stamps (Debian `tuxpaint-stamps-default`): about 790 photographs and drawings with captions.

The package as a whole is GPL-2 (its copyright file); its changelog names the origin of single pictures.
A tenth of the pictures, by hash of the path, is held out of training.
"""

import io
import random
import re
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from mmvl.data.order import derive
from mmvl.data.parallel import write_shards
from mmvl.data.restyle import place, restyle
from mmvl.data.turns import assistant, user

LICENCE = "GPL-2 (package); origin of single pictures in its changelog"

QUESTIONS = (
    "What is this?", "What does the picture show?", "Describe the picture.", "Caption this image.",
    "What is in the picture?", "What do you see?",
)  # fmt: skip

TREE = Path("usr/share/tuxpaint/stamps")


def stamps_folder(root: str | Path) -> Path:
    """The stamps' folder in a directory of unpacked packages or in one package's tree; otherwise `root` itself."""
    root = Path(root)
    return next((d for d in (root / "tuxpaint-stamps-default" / TREE, root / TREE) if d.is_dir()), root)


def find_stamps(root: str | Path, held_out: bool = False) -> list[tuple[Path, str]]:
    """[(PNG path, English caption)], the training part or the held-out tenth.

    root: a directory of unpacked packages, the package's own tree (or "/"), or the folder of the stamps itself.
    """
    base = stamps_folder(root)  # one however it is named: what is held out goes by the path below it
    found = []
    for png in sorted(base.rglob("*.png")):
        name = png.relative_to(base).as_posix()
        captions = png.with_suffix(".txt")
        if not captions.exists() or png.stem.endswith(("_mirror", "_flip")):
            continue
        caption = captions.read_text(encoding="utf-8", errors="replace").split("\n", 1)[0].strip()
        # The same thing from several sides is numbered or suffixed: hold out by the thing, not by the file.
        thing = re.sub(r"[_\d-]*(?:photo|cartoon|drawing|\d)*$", "", name.removesuffix(".png"))
        if caption and "=" not in caption and (derive("stamp", thing) % 10 == 0) == held_out:
            found.append((png, caption))
    if not found:
        raise FileNotFoundError(f"{root}: no stamps (usr/share/tuxpaint/stamps/**/*.png with a .txt beside them)")
    return found


def load_stamp(path: Path, longest: int = 224) -> Image.Image:
    """The picture on white, its longer side at most `longest` pixels."""
    picture = Image.open(path).convert("RGBA")
    image = Image.new("RGBA", picture.size, "white")
    image.alpha_composite(picture)
    image = image.convert("RGB")
    image.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    return image


def redrawn_stamp(path: Path, caption: str, rng: random.Random, longest: int = 224) -> Image.Image:
    """The picture in other colours, lines and shape on another ground, of 72 to `longest` pixels before its margins."""
    picture = Image.open(path).convert("RGBA")
    scale = rng.randint(min(72, longest), longest) / max(picture.size)
    size = tuple(max(1, round(side * scale)) for side in picture.size)
    return place(restyle(picture.resize(size, Image.Resampling.LANCZOS), caption, rng), rng)


def import_stamps(
    out_dir: str | Path,
    count: int = 0,
    seed: int = 0,
    workers: int = 0,
    *,
    packages: str | Path,
    held_out: bool = False,
    longest: int = 224,
    prefix: str = "stamps",
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """One caption sample a stamp (WebP); count 0 means every stamp once, more gives the same ones with other questions.

    For training the second and further samples of a stamp are redrawn, each otherwise (see restyle.py). packages: see
    `find_stamps`. longest: pixels of a stamp's longer side at most.
    """
    stamps = find_stamps(packages, held_out)

    def make(index: int) -> tuple[dict, dict[str, bytes]]:
        turn, position = divmod(index, len(stamps))
        path, caption = stamps[position]
        rng = random.Random(derive("stamps", seed, turn, path.name))
        buffer = io.BytesIO()
        redrawn = turn > 0 and not held_out
        image = redrawn_stamp(path, caption, rng, longest) if redrawn else load_stamp(path, longest)
        image.save(buffer, "WEBP", quality=85, method=4)
        record = {
            "source": "tuxpaint-stamps",
            "kind": "caption",
            "messages": [user(rng.choice(QUESTIONS), "0.webp"), assistant(caption)],
            "meta": {"file": path.name},
        }
        return record, {"0.webp": buffer.getvalue()}

    return write_shards(out_dir, prefix, count or len(stamps), make, workers, per_shard=1000, progress=progress)
