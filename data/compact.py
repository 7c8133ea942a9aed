"""Compact copies of the fonts and stamps that training renders with: only what is drawn, to take to another machine.

Text fonts keep printable ASCII and nothing else, colour emoji fonts the emoji that are asked about. Licences of fonts
in Debian main allow the cut; a font whose licence reserves its name must not be published under it, so the copy is for
own use.
"""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

from fontTools.subset import Options, Subsetter
from fontTools.ttLib import TTFont, TTLibError
from PIL import Image

from mmvl.data.fonts import inspect, training_fonts
from mmvl.data.render_emoji import find_emoji
from mmvl.data.stamps import TREE, find_stamps, stamps_folder

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
    """Copy every training font under `packages` into `out_dir`, cut to printable ASCII, and emoji fonts cut to emoji.

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
        _cut_emoji(emoji, target)
        written.append(target)
    return written


def compact_stamps(
    out_dir: str | Path,
    count: int = 0,
    seed: int = 0,
    workers: int = 1,
    *,
    packages: str | Path,
    longest: int = 224,
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Copy the training stamps under `packages` (see `stamps.find_stamps`) into out_dir/usr/share/tuxpaint/stamps.

    Pictures get at most `longest` pixels and 128 colours, captions their first line. `count` > 0 copies the first so
    many; `seed` and `workers` change nothing. Returns the pictures' paths.
    """
    stamps = find_stamps(packages)[: count or None]
    base, written = stamps_folder(packages), []
    for path, caption in stamps:
        target = Path(out_dir) / TREE / path.relative_to(base)
        target.parent.mkdir(parents=True, exist_ok=True)
        image = Image.open(path).convert("RGBA")
        image.thumbnail((longest, longest), Image.Resampling.LANCZOS)
        image.quantize(128, Image.Quantize.FASTOCTREE).save(target, optimize=True)
        target.with_suffix(".txt").write_text(f"{caption}\n", encoding="utf-8")
        written.append(target)
        if progress:
            progress(len(written), len(stamps))
    return written


def _cut_emoji(source: Path, target: Path) -> None:
    """Subset an emoji font to what `render_emoji` draws; one that the subsetter cannot handle, or spoils, is copied."""
    options = Options(notdef_outline=True, glyph_names=False)
    options.layout_features = []
    options.drop_tables += ["GSUB", "GPOS", "GDEF"]
    known = find_emoji(str(source))
    try:
        with TTFont(source, recalcTimestamp=False) as font:  # the same bytes each time
            subsetter = Subsetter(options)
            subsetter.populate(unicodes=[ord(char) for char, _ in known])
            subsetter.subset(font)
            font.save(target)
    except (TTLibError, KeyError, AssertionError, AttributeError):
        shutil.copyfile(source, target)
        return
    if find_emoji(str(target)) != known:
        shutil.copyfile(source, target)


def _cut(source: Path, target: Path) -> None:
    """Subset one font; one that the subsetter cannot handle, or spoils, is copied whole."""
    # Kerning and the ligatures that are on by default, as the renderers' layout engines apply them.
    features = ["kern", "liga", "clig", "rlig", "calt", "ccmp", "locl", "mark", "mkmk"]
    options = Options(hinting=True, legacy_kern=True, notdef_outline=True, name_IDs=[1, 2, 4, 6, 16, 17])
    options.layout_features = features
    options.drop_tables += ["BASE", "JSTF", "MATH", "morx", "feat", "kerx"]
    try:
        with TTFont(source, recalcTimestamp=False) as font:  # the same bytes each time
            subsetter = Subsetter(options)
            subsetter.populate(unicodes=PRINTABLE)
            subsetter.subset(font)
            font.save(target)
    except (TTLibError, KeyError, AssertionError, AttributeError):
        shutil.copyfile(source, target)
        return
    if inspect(str(target)) is None:
        shutil.copyfile(source, target)
