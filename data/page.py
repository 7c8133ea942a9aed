"""A page that remembers what was printed where, and the questions that follow from it.

Renderers draw with `Page.print`; rows, fields and other facts give transcriptions and questions with their answers.
"""

import functools
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from mmvl.data.drawing import Colour, load_font
from mmvl.data.fonts import Font, pick
from mmvl.data.order import derive

CANNOT_SEE = "I can't see that in the image."

# Ways of asking for a field by its name. A field that a page lacks may be asked for all the same: see `converse`.
FIELDS: dict[str, tuple[str, ...]] = {
    "company": (
        "What is the company?",
        "What is the name of the company?",
        "Which company is it?",
        "Who issued this?",
        "What is the company's name?",
        "Which business is this from?",
    ),
    "shop": (
        "What is the name of the shop?",
        "Which shop is it?",
        "Where was this bought?",
        "What is the company?",
        "What is the name of the company?",
        "Who is the seller?",
    ),
    "address": ("What is the address?", "What is the company's address?", "Where is the company?"),
    "date": ("What is the date?", "What date is it?", "When was it issued?", "What is the date on the document?"),
    "time": ("What is the time?", "At what time was it issued?", "What time is printed?"),
    "due": ("What is the due date?", "When is it due?", "By when must it be paid?"),
    "number": ("What is the invoice number?", "What is the number of the document?", "What is the document number?"),
    "reference": ("What is the reference?", "What is the reference number?"),
    "phone": ("What is the phone number?", "What is the telephone number?", "Which number can be called?"),
    "fax": ("What is the fax number?",),
    "email": ("What is the e-mail address?", "What is the email?"),
    "website": ("What is the website?", "What is the web address?"),
    "registration": ("What is the registration number?", "What is the company registration number?"),
    "tax number": ("What is the tax number?", "What is the GST number?", "What is the tax registration number?"),
    "cashier": ("Who is the cashier?", "Who served the customer?", "What is the cashier's name?"),
    "table number": ("What is the table number?", "Which table is it?"),
    "subtotal": ("What is the subtotal?", "How much is it before tax?", "What is the sub total?"),
    "tax": ("How much is the tax?", "What is the tax?", "How much tax was charged?"),
    "discount": ("What is the discount?", "How much is the discount?"),
    "rounding": ("What is the rounding?", "How much is the rounding adjustment?"),
    "service": ("What is the service charge?", "How much is the service charge?"),
    "total": ("What is the total?", "What is the total amount?", "How much is the total?", "How much is to be paid?"),
    "cash": ("How much was paid in cash?", "How much cash was given?"),
    "change": ("How much is the change?", "What is the change?", "How much change was given?"),
    "sender": ("Who is the sender?", "Who wrote it?", "Who signed it?", "From whom is it?"),
    "recipient": ("Who is the recipient?", "To whom is it addressed?", "Who is it for?", "Who is the customer?"),
    "recipient address": ("What is the recipient's address?", "What is the customer's address?"),
    "subject": ("What is the subject?", "What is it about?", "What is the subject of the letter?"),
    "title": ("What is the title?", "What is the heading?", "What is the title of the document?"),
    "account": ("What is the account number?", "To which account should it be paid?"),
    "birth date": ("What is the date of birth?", "When was the person born?"),
    "nationality": ("What is the nationality?",),
    "occupation": ("What is the occupation?", "What is the person's job?"),
    "name": ("What is the name?", "What is the person's name?", "Whose form is it?"),
    "city": ("What is the city?", "Which city is given?"),
    "postcode": ("What is the postcode?", "What is the postal code?"),
    "country": ("What is the country?", "Which country is given?"),
    "place": ("What is the place?", "Where is it?", "Where do they meet?"),
}

_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")
_WHOLE = (
    "Read the text.",
    "Transcribe the document.",
    "Read the whole page.",
    "Transcribe everything.",
    "Write down all the text.",
    "What does it say?",
)


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
    all that it says, where that is not its rows one below the other.
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

    def fact(self, answer: str, *questions: str) -> None:
        self.facts.append((questions, answer))

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


def region_questions(page: Page, rng: random.Random, number: int) -> list[tuple[str, str]]:
    """Questions for one line each, which they name by its place or by a neighbour's words."""
    lines = page.lines()
    count = Counter(line.lower() for line in lines)
    heads = Counter(line.split()[0].lower() for line in lines if line.split())
    out = []
    for _ in range(number):
        at = rng.randrange(len(lines))
        if not any(c.isalnum() for c in lines[at]):
            continue
        ways = []
        if at < len(_ORDINALS):
            ways.append(f"What is the {_ORDINALS[at]} line?")
        if at == len(lines) - 1:
            ways += ["What is the last line?", "Read the last line."]
        if at == 0:
            ways += ["What is at the top?", "Read the first line."]
        for step, where in ((1, "below"), (-1, "above")):
            if 0 <= at - step < len(lines):
                beside = lines[at - step]
                if count[beside.lower()] == 1 and len(beside) <= 40 and any(c.isalpha() for c in beside):
                    ways.append(f'What is the line {where} "{beside}"?')
                    ways.append(f'Read the line {where} "{beside}".')
        head = lines[at].split()[0]
        if len(lines[at].split()) > 1 and heads[head.lower()] == 1 and len(head) > 2:
            ways.append(f'Read the line that begins with "{head}".')
        if ways:
            out.append((rng.choice(ways), lines[at]))
    return out


def converse(
    page: Page,
    rng: random.Random,
    fewest: int,
    most: int,
    unanswerable: float = 0.1,
    longest: int = 1600,
    whole: float = 0.0,
) -> list[tuple[str, str]]:
    """`fewest` to `most` different (question, answer) about a page; fewer where there is less to ask.

    unanswerable: share of the questions whose answer is not in the picture. longest: most characters of a page that may
    be asked for as a whole. whole: share of the conversations that end with all that the page says, where they have not
    had it: at the end, so that no answer before can be copied from there.
    """
    known = [(rng.choice(FIELDS[name]), value) for name, value in page.values.items()]
    # "What is the company?" is asked twice as often as all else: it is what people ask.
    known += [(rng.choice(FIELDS[n]), page.values[n]) for n in ("company", "shop", "date", "total") if n in page.values]
    known += [(rng.choice(ways), answer) for ways, answer in page.facts]
    answered = {question for name in page.values for question in FIELDS[name]}
    answered |= {question for ways, _ in page.facts for question in ways}
    missing = [q for name in page.may if name not in page.values for q in FIELDS[name] if q not in answered]
    missing += [question for question in page.absent if question not in answered]
    lines = page.lines() if page.read_rows else []
    text = "\n".join(lines)
    asked: dict[str, str] = {}
    number = rng.randint(fewest, most)
    for _ in range(8 * number):
        if len(asked) >= number:
            break
        draw = rng.random()
        if draw < unanswerable:
            if missing:
                asked.setdefault(rng.choice(missing), CANNOT_SEE)
        elif draw < unanswerable + 0.18 and lines:
            for question, answer in region_questions(page, rng, 1):
                asked.setdefault(question, answer)
        elif draw < unanswerable + 0.24 and page.caption and page.caption not in asked.values():
            ways = ("Caption this image.", "Describe the picture.", "What is this?", "What does the picture show?")
            asked.setdefault(rng.choice(ways), page.caption)
        elif draw < unanswerable + 0.28 and lines and len(text) <= longest and text not in asked.values():
            asked.setdefault(rng.choice(_WHOLE), text)
        elif known:
            question, answer = rng.choice(known)
            asked.setdefault(question, answer)
    if not asked and (known or lines):
        question, answer = rng.choice(known) if known else ("What is the first line?", lines[0])
        asked[question] = answer
    ways, text = page.whole or (_WHOLE, text)
    if whole and rng.random() < whole and 0 < len(text) <= longest and text not in asked.values():
        asked.setdefault(rng.choice(ways), text)
    return list(asked.items())
