"""Importer of the Open Clip Art Library (Debian `openclipart-png`): some 2,000 drawings and their English names.

The package names a drawing after its title and author, cut at 25 characters, in several languages, and often says
nothing; so clip_art.tsv beside this file has a name for every drawing that is used, written by looking at it. Left out
are flags, maps of provinces, buttons, patterns, ornaments, cards, near copies, and what a few words do not name.

All of it was put into the public domain by its authors (the package's copyright file).
"""

import io
import random
import re
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from mmvl.data.import_captions import captioned
from mmvl.data.importing import Item, import_items
from mmvl.data.order import derive
from mmvl.data.restyle import place, restyle, set_plainly
from mmvl.data.turns import Made

LICENCE = "public domain (Creative Commons Public Domain Dedication, by the copyright file of Debian's openclipart-png)"

TITLES = Path(__file__).with_name("clip_art.tsv")
_TREE = Path("usr/share/openclipart/png")
# What a drawing's name has more or less of when the same one is there in black and white, or filled.
_VARIANTS = ("bw", "black", "color", "colour", "outline", "shaded")


def read_titles(file: str | Path = TITLES) -> dict[str, str]:
    """Path of a drawing below the package's folder of pictures -> what it shows, in the order of the file.

    A line is a path, a tab and a name; lines that begin with # are comments. ValueError names a line that is neither.
    """
    titles: dict[str, str] = {}
    for number, line in enumerate(Path(file).read_text(encoding="utf-8").splitlines(), 1):
        if line.startswith("#"):
            continue
        name, _, title = (part.strip() for part in line.partition("\t"))
        if not name or not title or name in titles:
            raise ValueError(f"{file}: line {number} is not the path of another picture, a tab and what it shows")
        titles[name] = title
    if not titles:
        raise ValueError(f"{file}: no titles")
    return titles


def find_clip_art(root: str | Path, names) -> Path:
    """The folder that paths such as "food/fruit/pear.png" are below; FileNotFoundError if not one of them is there.

    root: a directory of unpacked packages, the package's own tree (or "/"), or the folder of the pictures itself.
    """
    root = Path(root)
    base = next((d for d in (root / "openclipart-png" / _TREE, root / _TREE) if d.is_dir()), root)
    if not any((base / name).is_file() for name in names):
        raise FileNotFoundError(f"{root}: no clip art ({_TREE}/**/*.png of Debian's openclipart-png)")
    return base


def thing(name: str) -> str:
    """The key by which a drawing is split: two words of its name, so that an artist's series stays together.

    >>> thing("food/desserts/cone_alt3_bw.png"), thing("animals/mammals/orso_architetto_francesc_02.png")
    ('clip-art/cone alt', 'clip-art/orso architetto')
    """
    words = [word for word in re.split(r"[^a-z]+", Path(name).stem.lower()) if len(word) > 1 and word not in _VARIANTS]
    return f"clip-art/{' '.join(words[:2]) or name}"


def load_clip_art(path: Path, longest: int = 224) -> Image.Image:
    """The drawing without its empty margins, RGBA, its longer side at most `longest` pixels.

    ValueError for a file that is damaged, or nothing but transparent.
    """
    try:
        picture = Image.open(path, formats=["PNG"]).convert("RGBA")
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: {error}") from None
    box = picture.getchannel("A").getbbox()
    if box is None:
        raise ValueError(f"{path}: nothing is drawn there")
    picture = picture.crop(box)
    picture.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    return picture


def import_clip_art(
    out_dir: str | Path,
    count: int = 0,
    seed: int = 0,
    workers: int = 0,
    *,
    packages: str | Path,
    split: str = "all",
    views: float = 0.0,
    longest: int = 224,
    titles: str | Path = TITLES,
    problems: list[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """One caption sample a drawing (WebP), named in small letters; count over their number begins again.

    packages: see `find_clip_art`; `compact_clip_art`'s copy will do and is faster. views: share of the samples that are
    drawn otherwise (see restyle.py), for training. longest: pixels of a drawing's longer side at most, before its
    margins. titles: see `read_titles`. Drawings that the package lacks are skipped and named in `problems`.
    """
    if not 0 <= views <= 1:
        raise ValueError(f"views is {views}: a share of the samples, from 0 to 1")
    named = read_titles(titles)
    base = find_clip_art(packages, named)

    def item(name: str, title: str) -> Item:
        def make(rng: random.Random) -> Made:
            rng = random.Random(derive("clip-art", rng.getrandbits(64), name))  # not one for a whole series
            picture = load_clip_art(base / name, longest)
            image = _redrawn(picture, title, rng, longest) if rng.random() < views else set_plainly(picture, rng)
            buffer = io.BytesIO()
            image.save(buffer, "WEBP", quality=85, method=4)
            return captioned("openclipart", ("webp", buffer.getvalue()), title, rng, file=name)

        return Item(thing(name), make)

    items = [item(name, title) for name, title in named.items()]
    return import_items(
        out_dir, "clip-art", items, count, seed, workers, split=split, progress=progress, problems=problems
    )


def _redrawn(picture: Image.Image, title: str, rng: random.Random, longest: int) -> Image.Image:
    """In other colours, lines and shape on another ground, of 72 to `longest` pixels before its margins; RGB."""
    scale = rng.randint(min(72, longest), longest) / max(picture.size)
    size = tuple(max(1, round(side * scale)) for side in picture.size)
    return place(restyle(picture.resize(size, Image.Resampling.LANCZOS), title, rng), rng)


def compact_clip_art(
    out_dir: str | Path,
    count: int = 0,
    seed: int = 0,
    workers: int = 1,
    *,
    packages: str | Path,
    longest: int = 224,
    colours: int = 64,
    titles: str | Path = TITLES,
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Copy the drawings that have a title into `out_dir`, small: for `import_clip_art` on another machine.

    They become palette PNGs of at most `longest` pixels and `colours` colours. count > 0 copies the first so many;
    seed and workers change nothing. Returns the files; ValueError for a drawing that is not there or damaged.
    """
    named = list(read_titles(titles))
    base = find_clip_art(packages, named)
    written = []
    for name in named[: count or None]:
        target = Path(out_dir) / name
        target.parent.mkdir(parents=True, exist_ok=True)
        small = load_clip_art(base / name, longest).quantize(colours, dither=Image.Dither.NONE)
        small.save(target, "PNG", optimize=True)
        written.append(target)
        if progress:
            progress(len(written), len(named[: count or None]))
    return written
