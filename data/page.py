"""A page that remembers what was printed where, the type it is printed in, and several views of what was drawn once.

Renderers draw with `Page.print`; `conversation.converse` asks about rows, fields and other facts.
"""

import functools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from mmvl.data.drawing import Colour, load_font
from mmvl.data.fonts import Font, pick
from mmvl.data.order import derive


@dataclass(frozen=True)
class Piece:
    """Text as printed, and the box of its ink in pixels: left, top, right, bottom."""

    text: str
    box: tuple[int, int, int, int]


@dataclass
class Page:
    """A canvas (mode "L" or "RGB") and what is on it.

    rows: pieces in reading order, row by row. values: field (a key of FIELDS) -> text as printed. facts: (ways of
    asking, answer). may: fields that such a document could have, asked for in vain where they are not. absent: further
    questions that have no answer here. kind: "receipt", "letter" ... for captions. whole: (ways of asking, answer) for
    all that it says, where that is not its rows one below the other. fields: questions of facts that ask for a field in
    other words than FIELDS.
    """

    image: Image.Image
    kind: str = "page"
    layout: str = ""
    rows: list[list[Piece]] = field(default_factory=list)
    values: dict[str, str] = field(default_factory=dict)
    facts: list[tuple[tuple[str, ...], str]] = field(default_factory=list)
    may: Sequence[str] = ()
    absent: list[str] = field(default_factory=list)
    caption: str = ""
    read_rows: bool = True
    whole: tuple[tuple[str, ...], str] | None = None
    fields: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.draw = ImageDraw.Draw(self.image)

    @classmethod
    def blank(cls, width: int, height: int, kind: str, layout: str, paper: Colour | int = 255) -> "Page":
        mode = "L" if isinstance(paper, int) else "RGB"
        return cls(Image.new(mode, (width, height), paper), kind, layout)

    def row(self) -> None:
        """What is printed from now on stands in a new row."""
        if not self.rows or self.rows[-1]:
            self.rows.append([])

    def print(
        self,
        x: float,
        baseline: float,
        text: str,
        font: ImageFont.FreeTypeFont,
        anchor: str = "l",
        ink=0,
        stretch: tuple[float, float] = (1, 1),
    ) -> Piece:
        """Print text at x (its left, "m"iddle or "r"ight end) and note it in the present row."""
        left, top, right, bottom = font.getbbox(text, anchor="ls")
        if stretch == (1, 1):
            start = x - {"l": left, "m": (left + right) / 2, "r": right}[anchor]
            at = (round(start), round(baseline))
            self.draw.text(at, text, font=font, fill=ink, anchor="ls")
            box = (at[0] + left, at[1] + top, at[0] + right, at[1] + bottom)
        else:
            mask = Image.new("L", (max(1, right - left), max(1, bottom - top)), 0)
            ImageDraw.Draw(mask).text((-left, -top), text, font=font, fill=255, anchor="ls")
            size = (max(1, round(mask.width * stretch[0])), max(1, round(mask.height * stretch[1])))
            mask = mask.resize(size, Image.Resampling.BILINEAR)
            start = round(x - {"l": 0, "m": size[0] / 2, "r": size[0]}[anchor])
            above = round(baseline + top * stretch[1])
            self.image.paste(ink, (start, above, start + size[0], above + size[1]), mask)
            box = (start, above, start + size[0], above + size[1])
        piece = Piece(text, box)
        if not self.rows:
            self.rows.append([])
        self.rows[-1].append(piece)
        return piece

    def cut(self, width: int, height: int) -> None:
        """Make the canvas this large."""
        self.image = self.image.crop((0, 0, width, height))
        self.draw = ImageDraw.Draw(self.image)

    def shrink(self, scale: float) -> None:
        """Reduce the picture, and all boxes with it."""
        size = (max(1, round(self.image.width * scale)), max(1, round(self.image.height * scale)))
        self.image = self.image.resize(size, Image.Resampling.BOX if scale < 0.5 else Image.Resampling.BILINEAR)
        self.draw = ImageDraw.Draw(self.image)
        self.rows = [[Piece(p.text, tuple(round(v * scale) for v in p.box)) for p in row] for row in self.rows]

    def fact(self, answer: str, *questions: str, field: bool = False) -> None:
        self.facts.append((questions, answer))
        if field:
            self.fields.update(questions)

    def lines(self) -> list[str]:
        """The text of every row, its pieces from left to right joined by a space."""
        return [" ".join(p.text for p in sorted(row, key=lambda p: p.box[0])) for row in self.rows if row]


_ADVANCES: dict[tuple[str, float], dict[str, float]] = {}


def length(font: ImageFont.FreeTypeFont, text: str) -> float:
    """Width of text in pixels without kerning, from remembered widths of characters: much faster than `getlength`."""
    known = _ADVANCES.setdefault((font.path, font.size), {})
    total = 0.0
    for char in text:
        width = known.get(char)
        if width is None:
            width = known[char] = font.getlength(char)
        total += width
    return total


def wrap(text: str, font: ImageFont.FreeTypeFont, width: float) -> list[str]:
    """The words of text in lines of at most `width` pixels; a longer word stands alone."""
    lines, used, space = [""], 0.0, length(font, " ")
    for word in text.split():
        wide = length(font, word)
        if lines[-1] and used + space + wide > width:
            lines.append(word)
            used = wide
        else:
            used += wide + (space if lines[-1] else 0)
            lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


@functools.lru_cache(maxsize=65536)
def covers(path: str, char: str) -> bool:
    """Whether the font file has a glyph of its own for a character."""
    font = load_font(path, 24)
    return bytes(font.getmask(char)) not in {bytes(font.getmask(c)) for c in ("\uffff", "\U0010fffe")}


class Type:
    """The faces of one page: regular and bold at any size. `pick_type` chooses them."""

    def __init__(self, regular: Font, bold: Font | None):
        self.family = regular.family
        self._regular, self._bold = regular.path, (bold or regular).path

    def covers(self, chars: str) -> bool:
        """Whether regular and bold have every character."""
        return all(covers(path, char) for path in (self._regular, self._bold) for char in chars)

    def __call__(self, size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
        return load_font(self._bold if bold else self._regular, max(6, round(size)))


_FANCY = (
    "breip",
    "dkghand",
    "domestic",
    "jara",
    "junkyard",
    "klaudia",
    "leckerli",
    "lobster",
    "oldania",
    "opendys",
    "penguin",
    "quercus",
    "rufscript",
    "steve",
    "femke",
    "okolaks",
    "chorus",
    "z003",
    "caliban",
    "emerita",
    "ocra",
    "cupola",
    "essays",
    "keyfont",
    "dunhill",
    "unslanted",
    "quotation",
    "dosis",
    "essays1743",
    "ikarius",
    "romande",
    "beteckna",
    "irianis",
)


def is_plain(font: Font) -> bool:
    """Whether it is a face that offices and tills use: no handwriting, no display face."""
    return not any(part in font.family.lower().replace(" ", "") for part in _FANCY)


def is_mono(font: Font) -> bool:
    """Whether all letters are of one width."""
    face = load_font(font.path, 24)
    return face.getlength("iiiiiiii") == face.getlength("WWWWWWWW") == face.getlength("0.,:l1Mm")


class Faces:
    """Fonts sorted by use: all, plain, mono. `type_of` makes regular and bold of one family."""

    def __init__(self, fonts: Sequence[Font]):
        upright = [f for f in fonts if not any(s in f.style.lower() for s in ("ital", "obli", "slant"))]
        self.every = [f for f in upright if "bold" not in f.style.lower() and "black" not in f.style.lower()] or fonts
        self.plain = [f for f in self.every if is_plain(f)] or self.every
        self.mono = [f for f in self.plain if is_mono(f)] or self.plain
        self._bold: dict[str, list[Font]] = {}
        for font in upright:
            if font.style.lower() in ("bold", "semibold", "demi", "demibold", "heavy"):
                self._bold.setdefault(font.family, []).append(font)

    def type_of(self, font: Font) -> Type:
        return Type(font, self._bold.get(font.family, [None])[0])

    def pick(self, rng: random.Random, mono: float = 0.0, fancy: float = 0.0) -> Type:
        """A family at random; shares of the monospaced and of any face at all."""
        draw = rng.random()
        fonts = self.mono if draw < mono else self.every if draw > 1 - fancy else self.plain
        return self.type_of(pick(fonts, rng))


class Views:
    """`views` samples of every page that is drawn, as drawing costs most: other questions, other wear each time.

    views(index) -> (page, random numbers for sample `index`); the page of the last call is kept. Of one view, or a
    page's first, the random numbers go on where `draw` (random numbers -> page) left off.
    """

    def __init__(self, views: int, draw: Callable[[random.Random], Any], *seed):
        if views < 1:
            raise ValueError(f"views is {views}; it is at least 1")
        self.views, self._draw, self._seed = views, draw, seed
        self._number: int | None = None

    def __call__(self, index: int) -> tuple[Any, random.Random]:
        number, view = divmod(index, self.views)
        name, seed, *rest = self._seed
        rng = random.Random(derive(name, seed, number, *rest))
        if number != self._number:
            self._page, self._number = self._draw(rng), number
            self._state = rng.getstate()
        if view:
            return self._page, random.Random(derive(name, seed, number, *rest, f"view {view}"))
        rng.setstate(self._state)
        return self._page, rng
