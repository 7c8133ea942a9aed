"""Renderer: one line of print a picture, and the question what it says. The ground truth is exact: we drew it."""

import random
import string

from PIL import Image, ImageDraw

from mmvl.data.corpus import Phrases
from mmvl.data.drawing import draw_line, encode, load_font, pick_colours, wear
from mmvl.data.fonts import pick
from mmvl.data.order import derive
from mmvl.data.parallel import Make
from mmvl.data.rendering import material, renderer
from mmvl.data.turns import Made, asked

QUESTIONS = (
    "Read the text.", "What does it say?", "Transcribe this line.", "What is written here?", "Read this.",
    "What does the text say?", "What text is in the picture?", "Transcribe the text.", "Please read the line.",
    "What does this say?", "Write down the text in the image.", "Read the line of print.", "OCR",
)  # fmt: skip

CAPITALS = (
    "Read the text in capital letters.", "Write down the text in capitals.", "What does it say, in capital letters?",
    "Transcribe it in upper case.", "Transcribe the text in capitals.",
)  # fmt: skip

_MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October",
           "November", "December")  # fmt: skip


@renderer("lines")
def render_text_lines(
    seed: int,
    *,
    fonts: str,
    corpus: str,
    min_chars: int = 1,
    max_chars: int = 45,
    min_size: int = 12,
    max_size: int = 40,
    max_width: int = 640,
    held_out: bool = False,
    clean: bool = False,
    jpeg: float = 0.4,
    running_text: float = 0.58,
) -> Make:
    """Write `count` pictures of one line each and return the shards.

    fonts, corpus: directories (see `fonts.find_fonts`, `text.build_corpus`). min_chars, max_chars: length of the text.
    min_size, max_size: font size in pixels. max_width: widest ink in pixels; a longer line is set smaller, then cut at
    a word. held_out: use only the held-out fonts and texts (for evaluation); otherwise only the others.
    clean: no rotation, blur, noise. jpeg: share of the pictures stored as JPEG, the others are PNG.
    running_text: share of the lines that are pieces of sentences, 0 to 0.7; single words drawn at random take what is
    missing to 0.7, so that the next word cannot be guessed; numbers, codes and letters are the rest.
    ValueError where no font or text is left.
    """
    if not 1 <= min_chars <= max_chars:
        raise ValueError(f"text lines: need 1 <= min_chars <= max_chars, got {min_chars} and {max_chars}")
    if not 0 <= running_text <= 0.7:
        raise ValueError(f"text lines: running_text is a share from 0 to 0.7, got {running_text}")
    faces, phrases = material(fonts, corpus, held_out)

    def make(index: int) -> Made:
        rng = random.Random(derive("text-lines", seed, index, held_out))
        text = make_text(rng, phrases, min_chars, max_chars, running_text)
        face = pick(faces, rng)
        # Small print is the harder half: draw sizes evenly in the logarithm.
        size = round(min_size * (max_size / min_size) ** rng.random())
        ligatures = rng.random() < 0.3
        font = load_font(face.path, size, ligatures)
        left, top, right, bottom = font.getbbox(text)
        while right - left > max_width:
            if size > min_size:
                size = max(min_size, int(size * max_width / (right - left)))
                font = load_font(face.path, size, ligatures)
            else:
                text = text[: max(1, int(len(text) * max_width / (right - left)))].rsplit(" ", 1)[0].strip()
            left, top, right, bottom = font.getbbox(text)
        paper, ink = pick_colours(rng)
        edges = [rng.randint(2, max(3, round(size * rng.choice((0.3, 0.6, 1.5))))) for _ in range(4)]
        image = Image.new("RGB", (right - left + edges[0] + edges[1], bottom - top + edges[2] + edges[3]), paper)
        draw_line(ImageDraw.Draw(image), (edges[0], edges[2]), text, font, ink)
        if not clean:
            image = wear(image, rng, paper)
        shown = encode(image, rng, jpeg)
        turn = (rng.choice(QUESTIONS), text)
        return asked("text-lines", shown, [turn], shows="line", font=face.family, style=face.style, size=size)

    return make


def make_text(rng: random.Random, phrases: Phrases, min_chars: int, max_chars: int, running_text: float = 0.58) -> str:
    """A line of min_chars to max_chars printable ASCII characters, single-spaced, of one of several kinds."""
    for _ in range(200):
        target = rng.randint(min_chars, max_chars)
        kind = rng.random()
        if kind < running_text:
            text = cut(phrases.fragment(rng, 2 + target // 4), target)
        elif kind < 0.70:
            text = cut(" ".join(phrases.word(rng) for _ in range(1 + target // 6)), target)
        elif kind < 0.92:
            text = " ".join(make_item(rng, phrases) for _ in range(1 + target // 16))
        else:
            letters = rng.choice((string.ascii_letters, string.ascii_letters + string.digits, string.digits,
                                  string.ascii_uppercase, string.printable[:94]))  # fmt: skip
            text = "".join(rng.choice(letters) for _ in range(min(target, rng.randint(1, 12))))
        case = rng.random()
        if case < 0.10:
            text = text.upper()
        elif case < 0.16:
            text = text.title()
        elif case < 0.20:
            text = text.lower()
        text = " ".join(text.split())
        if min_chars <= len(text) <= max_chars:
            return text
    return "".join(rng.choice(string.ascii_letters) for _ in range(min_chars))


def make_item(rng: random.Random, phrases: Phrases) -> str:
    """A number, price, date, time, code, percentage, telephone number, address of mail or web, labelled value."""
    digits = "".join(rng.choice(string.digits) for _ in range(rng.randint(1, 9)))
    day, month, year = rng.randint(1, 28), rng.randint(1, 12), rng.randint(1900, 2035)
    value = rng.choice((rng.randint(1, 99), rng.randint(1, 9999), rng.randint(1, 999_999)))
    kind = rng.randrange(12)
    if kind == 0:
        decimals = f"{value / 10 ** rng.randint(1, 3):.{rng.randint(1, 3)}f}"
        return rng.choice((digits, f"{value:,}", decimals, f"-{value}"))
    if kind in (1, 2):
        sign = rng.choice(("$", "$", "USD ", "EUR ", ""))
        return f"{sign}{value % 10_000}.{rng.randint(0, 99):02d}"
    if kind in (3, 4):
        name = _MONTHS[month - 1]
        return rng.choice((f"{year}-{month:02d}-{day:02d}", f"{day:02d}/{month:02d}/{year}", f"{day}.{month}.{year}",
                           f"{name} {day}, {year}", f"{day} {name[:3]} {year}", f"{name} {year}"))  # fmt: skip
    if kind == 5:
        return rng.choice(
            (
                f"{rng.randint(0, 23)}:{rng.randint(0, 59):02d}",
                f"{rng.randint(1, 12)}:{rng.randint(0, 59):02d} {rng.choice(('am', 'pm', 'AM', 'PM'))}",
            )
        )
    if kind == 6:
        letters = "".join(rng.choice(string.ascii_uppercase) for _ in range(rng.randint(1, 4)))
        return rng.choice((f"{letters}-{digits}", f"{letters}{digits}", f"#{digits}", f"No. {digits}"))
    if kind == 7:
        return f"{rng.randint(0, 1000) / rng.choice((1, 10)):g}%"
    if kind == 8:
        return f"+{rng.randint(1, 99)} {rng.randint(100, 999)} {rng.randint(100, 999)} {rng.randint(0, 9999):04d}"
    if kind == 9:
        name, host = phrases.word(rng).lower(), phrases.word(rng).lower()
        return rng.choice((f"{name}@{host}.com", f"www.{host}.org", f"https://{host}.net/{name}", f"/{host}/{name}.c"))
    if kind == 10:
        return f"{phrases.word(rng).capitalize()}: {rng.choice((digits, phrases.word(rng), f'${value}'))}"
    return f"{rng.randint(1, 999)} {rng.choice(('kg', 'g', 'km', 'cm', 'ml', 'MB', 'GHz', 'pcs', 'W', 'C'))}"


def cut(text: str, length: int) -> str:
    """At most `length` characters, at a word boundary where one is near."""
    if len(text) <= length:
        return text
    shortened = text[: length + 1].rsplit(" ", 1)[0]
    return (shortened if len(shortened) > length // 2 else text[:length]).strip()
