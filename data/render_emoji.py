"""Renderer: a colour emoji on a plain ground, and its Unicode name as the answer.

The font is Noto Color Emoji (SIL OFL 1.1, pictures Apache-2.0); it holds bitmaps of one size, 109, scaled afterwards.
Other drawing styles come as folders of pictures named by code point, such as openmoji/1f600.png: what an SVG set of
emoji (npm's @iconify-json/openmoji, fluent-emoji, emojione, fxemoji, streamline-emojis, twemoji and so on) gives with
any rasteriser. One style is never trained on, so that it can be asked whether a thing is known or only its drawing. For
the same reason most pictures for training are redrawn (see restyle.py).
"""

import random
import unicodedata
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from mmvl.data.drawing import encode
from mmvl.data.order import derive
from mmvl.data.parallel import Make
from mmvl.data.rendering import renderer
from mmvl.data.restyle import is_ink, keeps_colour, place, restyle, set_plainly
from mmvl.data.turns import Made, asked

_BITMAP_SIZE = 109

HELD_OUT_STYLES = ("twemoji",)

QUESTIONS = (
    "What is this?", "What does the picture show?", "Caption this image.", "What is in the picture?",
    "Which emoji is this?", "Name this emoji.", "Describe the picture.",
)  # fmt: skip

# Pictographs of Unicode; left out are letters, arrows, clocks, keycaps and skin tones, whose names say little.
_RANGES = (
    (0x2600, 0x27BF), (0x1F300, 0x1F3FA), (0x1F400, 0x1F4FF), (0x1F507, 0x1F54E), (0x1F568, 0x1F5FF),
    (0x1F600, 0x1F64F), (0x1F680, 0x1F6FF), (0x1F900, 0x1F9FF), (0x1FA70, 0x1FAFF),
)  # fmt: skip
_DULL = ("SQUARED", "CIRCLED", "SIGN OF", "INPUT SYMBOL", "BLACK SQUARE", "DINGBAT", "FITZPATRICK", "ZODIAC", "ARROW")


def find_font(fonts: str | Path) -> str:
    """Path of NotoColorEmoji.ttf in a directory tree."""
    found = sorted(Path(fonts).rglob("NotoColorEmoji*.ttf"))
    if not found:
        raise FileNotFoundError(f"{fonts}: no NotoColorEmoji.ttf (Debian package fonts-noto-color-emoji)")
    return str(found[0])


def emoji_name(char: str) -> str:
    """Plain lower-case name: "grinning face", "red heart"."""
    name = unicodedata.name(char).lower()
    for part in ("black ", "white ", "heavy ", " symbol"):
        name = name.replace(part, "")
    return {"heart": "red heart"}.get(name, name).strip()


def find_emoji(font_path: str) -> list[tuple[str, str]]:
    """[(character, name)] of every single-character pictograph that the font draws in colour."""
    font = ImageFont.truetype(font_path, _BITMAP_SIZE, layout_engine=ImageFont.Layout.BASIC)
    missing = bytes(draw_emoji(font, "\U0010fffe").tobytes())
    found, names = [], set()
    for first, last in _RANGES:
        for code in range(first, last + 1):
            char = chr(code)
            name = unicodedata.name(char, "")
            if not name or any(word in name for word in _DULL):
                continue
            picture = draw_emoji(font, char)
            if picture.getbbox() is None or picture.tobytes() == missing or emoji_name(char) in names:
                continue
            names.add(emoji_name(char))
            found.append((char, emoji_name(char)))
    return found


def draw_emoji(font: ImageFont.FreeTypeFont, char: str) -> Image.Image:
    """The bitmap of one emoji, RGBA 136 x 128 pixels."""
    image = Image.new("RGBA", (136, 128), (0, 0, 0, 0))
    ImageDraw.Draw(image).text((0, 0), char, font=font, embedded_color=True)
    return image


def find_pictures(folder: str | Path, names: dict[str, str], held_out: bool) -> list[tuple[str, str, str, Path]]:
    """[(style, character, name, file)] of folder/STYLE/CODE.png, held-out styles or the others, in order.

    names: character -> name; other characters are left out, and for training also black glyphs of what is named by its
    colour. ValueError for a file that is not named by a code point, FileNotFoundError where no picture of the wanted
    styles is.
    """
    found = []
    for path in sorted(Path(folder).glob("*/*.png")):
        if (path.parent.name in HELD_OUT_STYLES) != held_out:
            continue
        try:
            char = chr(int(path.stem, 16))
        except (ValueError, OverflowError):
            raise ValueError(f"{path}: a picture of an emoji is named by its code point, such as 1f600.png") from None
        if char in names and (held_out or not keeps_colour(names[char]) or not is_ink(Image.open(path))):
            found.append((path.parent.name, char, names[char], path))
    if not found:
        kind = f"the held-out styles ({', '.join(HELD_OUT_STYLES)})" if held_out else "styles for training"
        raise FileNotFoundError(f"{folder}: no STYLE/CODE.png of {kind}")
    return found


@renderer("emoji")
def render_emoji(
    seed: int,
    *,
    fonts: str | Path,
    pictures: str | Path = "",
    held_out: bool = False,
    min_size: int = 40,
    max_size: int = 112,
    restyled: float = 0.85,
) -> Make:
    """Write `count` pictures of one emoji each, min_size to max_size pixels high, and return the shards.

    fonts: directory with NotoColorEmoji.ttf. pictures: folder of further styles, see `find_pictures`. held_out: only
    the held-out styles, which need `pictures` (for evaluation); otherwise the font and the other styles. restyled:
    share of the pictures for training whose drawing and ground are changed.
    """
    if held_out and not pictures:
        raise ValueError("emoji: held_out needs pictures=DIR, a folder of drawing styles")
    path = find_font(fonts)
    known = find_emoji(path)
    emoji: list[tuple[str, str, str, Path | None]] = []
    if not held_out:
        emoji += [("", char, name, None) for char, name in known]
    if pictures:
        emoji += find_pictures(pictures, dict(known), held_out)
        emoji.sort(key=lambda item: derive("emoji styles", *item[:2]))  # so that a few are of every style
    font = ImageFont.truetype(path, _BITMAP_SIZE, layout_engine=ImageFont.Layout.BASIC)

    def make(index: int) -> Made:
        turn, position = divmod(index, len(emoji))
        style, char, name, file = emoji[position]
        rng = random.Random(derive("emoji", seed, turn, char, *([style] if style else [])))
        picture = Image.open(file).convert("RGBA") if file else draw_emoji(font, char)
        picture = picture.crop(picture.getbbox())
        height = rng.randint(min_size, max_size)
        picture = picture.resize((max(1, round(picture.width * height / picture.height)), height), Image.LANCZOS)
        if not held_out and rng.random() < restyled:
            image = place(restyle(picture, name, rng), rng)
        else:
            image = set_plainly(picture, rng)
        shown = encode(image, rng, jpeg=0.3)
        meta = {"shows": "emoji", "emoji": f"U+{ord(char):04X}"} | ({"style": style} if style else {})
        return asked("emoji", shown, [(rng.choice(QUESTIONS), name)], kind="caption", **meta)

    return make
