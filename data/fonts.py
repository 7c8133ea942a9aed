"""Finding fonts that can set English text, and keeping some families out of training for good.

The held-out families are what evaluation lines are set in: a model that reads them reads print, not fonts it knows.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import ImageFont

# Of different character: book serif, humanist sans (Carlito is a sister of Lato), handwritten, typewriter, slab-like.
HELD_OUT_FAMILIES = (
    "Linux Libertine", "Linux Biolinum", "Carlito", "Lato", "Comic Neue", "Courier Prime", "Vollkorn",
)  # fmt: skip

# Letters that are pictures, or capitals in the place of small letters: no exact ground truth.
_UNFIT_NAMES = (
    "emoji", "symbol", "dingbat", "icons", "math", "music", "initials", "smallcaps", "small caps", " sc", "capitals",
    "braille", "barcode", "ornament", "outline", "keyboard", "d050000l", "swash", "lastresort", "bullets", "titling",
    "ellhnikh", "phonetic", "phon?tique", "babel", "elegante", "delphine", "kristi",  # pseudo-Latin, or hardly legible
)  # fmt: skip

_PRINTABLE = [chr(c) for c in range(33, 127)]


@dataclass(frozen=True)
class Font:
    """A font file fit for English text; family and style as the file states them."""

    path: str
    family: str
    style: str

    @property
    def held_out(self) -> bool:
        return is_held_out(self.family)


def is_held_out(family: str) -> bool:
    """Whether a family, or the family that it is a width or weight of, is kept out of training."""
    name = "".join(family.lower().split())
    return any(name.startswith("".join(held.lower().split())) for held in HELD_OUT_FAMILIES)


def find_fonts(dirs: str | Path | Iterable[str | Path]) -> list[Font]:
    """All text fonts (.ttf, .otf) under the directories, held-out ones included, sorted by family, style and path."""
    dirs = [dirs] if isinstance(dirs, str | Path) else list(dirs)
    fonts = []
    for dir in dirs:
        if not Path(dir).is_dir():
            raise FileNotFoundError(f"{dir}: no such directory of fonts")
        for folder, _, names in sorted(os.walk(dir)):
            for name in sorted(names):
                if name.lower().endswith((".ttf", ".otf")) and (font := inspect(os.path.join(folder, name))):
                    fonts.append(font)
    return sorted(fonts, key=lambda f: (f.family, f.style, f.path))


def training_fonts(dirs) -> list[Font]:
    """Fonts that training pictures may be set in: `find_fonts` without the held-out families."""
    return _some([font for font in find_fonts(dirs) if not font.held_out], dirs, "training")


def held_out_fonts(dirs) -> list[Font]:
    """Fonts that only evaluation pictures may be set in."""
    return _some([font for font in find_fonts(dirs) if font.held_out], dirs, "held-out")


def _some(fonts: list[Font], dirs, what: str) -> list[Font]:
    if not fonts:
        raise ValueError(f"{dirs}: no {what} fonts there (TTF or OTF with all printable ASCII)")
    return fonts


def inspect(path: str) -> Font | None:
    """The font in a file, or None when it cannot set English text faithfully.

    Asked of it: opens; its name speaks of no symbols; every printable ASCII character has its own visible glyph, which
    is not the one for missing characters; small letters are not drawn as capitals.
    """
    try:
        font = ImageFont.truetype(path, 24, layout_engine=ImageFont.Layout.BASIC)
        family, style = font.getname()
    except (OSError, ValueError):
        return None
    names = f"{family} {style} {Path(path).stem}".lower()
    if not family or any(word in names for word in _UNFIT_NAMES):
        return None
    try:
        missing = {_glyph(font, c) for c in ("\uffff", "\U0010fffe", "\u0e5b")}
        glyphs = [_glyph(font, c) for c in _PRINTABLE]
    except OSError:
        return None
    if any(g in missing or not any(g[1]) for g in glyphs) or len(set(glyphs)) < len(glyphs) - 3:
        return None
    by_char = dict(zip(_PRINTABLE, glyphs, strict=True))
    if sum(by_char[c] == by_char[c.upper()] for c in "abdeghnrt") > 1:
        return None
    # Small capitals: a letter without ascender is as tall as the capital in shape, and "g" does not descend.
    if font.getbbox("g")[3] <= font.getbbox("x")[3] + 1:
        return None
    return Font(path, family, style or "")


def _glyph(font: ImageFont.FreeTypeFont, char: str) -> tuple[tuple[int, int], bytes]:
    mask = font.getmask(char, mode="L")
    return mask.size, bytes(mask)


def pick(fonts: Sequence[Font], rng) -> Font:
    """A font at random, every family equally likely however many styles it has."""
    families = _families(fonts)
    return rng.choice(families[rng.randrange(len(families))])


_FAMILIES: dict[int, tuple[Sequence[Font], list[list[Font]]]] = {}


def _families(fonts: Sequence[Font]) -> list[list[Font]]:
    """Fonts grouped by family; remembered per list, which renderers build once a process."""
    known = _FAMILIES.get(id(fonts))
    if known is None or known[0] is not fonts:
        groups: dict[str, list[Font]] = {}
        for font in fonts:
            groups.setdefault(font.family, []).append(font)
        known = _FAMILIES[id(fonts)] = (fonts, list(groups.values()))
    return known[1]
