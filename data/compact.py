"""A compact copy of the fonts that training renders with: only what is drawn, so that it travels to another machine.

Text fonts keep printable ASCII and nothing else; colour emoji fonts are copied whole. Licences of fonts in Debian main
allow the cut; a font whose licence reserves its name must not be published under it, so the copy is for own use.
"""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

from fontTools.subset import Options, Subsetter
from fontTools.ttLib import TTFont, TTLibError

from mmvl.data.fonts import inspect, training_fonts

PRINTABLE = range(0x20, 0x7F)

logging.getLogger("fontTools").setLevel(logging.CRITICAL)  # one line for every table of an editor that it drops


def compact_fonts(
    out_dir: str | Path,
    count: int = 0,
    seed: int = 0,
    workers: int = 1,
    *,
    packages: str | Path,
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Copy every training font under `packages` (and emoji fonts) into `out_dir`, cut to printable ASCII.

    Held-out families are not copied. `count` > 0 copies the first so many text fonts; `seed` and `workers` change
    nothing. Returns the files. ValueError where no font is left.
    """
    packages, out_dir = Path(packages), Path(out_dir)
    fonts = training_fonts(packages)[: count or None]
    written = []
    for number, font in enumerate(fonts, 1):
        target = out_dir / Path(font.path).relative_to(packages)
        target.parent.mkdir(parents=True, exist_ok=True)
        _cut(Path(font.path), target)
        written.append(target)
        if progress:
            progress(number, len(fonts))
    for emoji in sorted(packages.rglob("NotoColorEmoji.ttf")):
        target = out_dir / emoji.relative_to(packages)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(emoji, target)
        written.append(target)
    return written


def _cut(source: Path, target: Path) -> None:
    """Subset one font; one that the subsetter cannot handle, or spoils, is copied whole."""
    # Kerning and the ligatures that are on by default, as the renderers' layout engines apply them.
    features = ["kern", "liga", "clig", "rlig", "calt", "ccmp", "locl", "mark", "mkmk"]
    options = Options(hinting=True, legacy_kern=True, notdef_outline=True, name_IDs=[1, 2, 4, 6, 16, 17])
    options.layout_features = features
    options.drop_tables += ["BASE", "JSTF", "MATH", "morx", "feat", "kerx"]
    try:
        with TTFont(source) as font:
            subsetter = Subsetter(options)
            subsetter.populate(unicodes=PRINTABLE)
            subsetter.subset(font)
            font.save(target)
    except (TTLibError, KeyError, AssertionError, AttributeError):
        shutil.copyfile(source, target)
        return
    if inspect(str(target)) is None:
        shutil.copyfile(source, target)
