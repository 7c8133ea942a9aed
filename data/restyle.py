"""Restyling: another drawing of the same thing, made of one cut-out picture, in some two milliseconds on one core.

A few drawings of each thing are learned by heart; what has to be learned is the shape. So everything else is changed:
colours, shading, outlines, the ground, and the shape itself as far as another artist would (turned, sheared, wobbled,
mirrored). Things that are named by a colour keep their colours, and those named by a side are not mirrored.
"""

import functools
import math
import random
import re

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from mmvl.data.drawing import Colour, luminance

_COLOURS = re.compile(
    r"\b(red|orange|yellow|green|blue|purple|violet|brown|black|white|pink|gr[ae]y|gold|golden|silver|colou?rs?|rainbow"
    r"|tangerine|lemon|lime|traffic|sunset|sunrise)\b"
)
_SIDES = re.compile(
    r"\b(left|right|leftwards|rightwards|quarter|crescent|waxing|waning|gibbous|clockwise|letters?|character|signs?|mark"
    r"|clef|notes?|clock|calendar)\b"
)

# The weights of red, green and blue in YIQ (NTSC), whose I and Q are turned to change the hue.
_YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
_RGB = np.linalg.inv(_YIQ)


def keeps_colour(name: str) -> bool:
    """Whether a name tells a colour, so that the picture must keep it."""
    return bool(_COLOURS.search(name.lower()))


def keeps_sides(name: str) -> bool:
    """Whether a name tells a side, or what has writing on it, so that the picture must not be mirrored."""
    return bool(_SIDES.search(name.lower()))


def is_ink(picture: Image.Image) -> bool:
    """Whether all that can be seen of a picture (any mode) is black: a glyph, whose colour says nothing."""
    picture = picture.convert("RGBA")
    seen = Image.new("RGBA", picture.size, "black")
    seen.alpha_composite(picture)
    return max(highest for _, highest in seen.convert("RGB").getextrema()) < 60


def restyle(picture: Image.Image, name: str, rng: random.Random) -> Image.Image:
    """The RGBA picture drawn otherwise, of about the same size; name: what it shows (see `keeps_colour`)."""
    coloured = keeps_colour(name)
    if rng.random() < 0.3 and not keeps_sides(name):
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if rng.random() < 0.8:
        picture = _bend(picture, rng)
    alpha, rgb = picture.getchannel("A"), picture.convert("RGB")
    if is_ink(picture):
        if not coloured and rng.random() < 0.8:
            rgb = Image.new("RGB", rgb.size, _ink(rng))
        return _with_alpha(rgb, alpha)
    if rng.random() < 0.2:
        rgb = _without_lines(rgb, alpha, rng)
    if not coloured and rng.random() < 0.1:
        rgb = _line_drawing(rgb, alpha, rng)
    else:
        if rng.random() < 0.75:
            rgb = _recolour(rgb, rng, coloured)
        if rng.random() < 0.3:
            rgb = rgb.quantize(rng.randint(4, 10), dither=Image.Dither.NONE).convert("RGB")
        if rng.random() < 0.25:
            rgb = _shade(rgb, rng)
    if rng.random() < 0.3:
        rgb, alpha = _outlined(rgb, alpha, rng)
    if rng.random() < 0.2:
        rgb = rgb.filter(ImageFilter.GaussianBlur(rng.uniform(0.4, 1.2)))
    return _with_alpha(rgb, alpha)


def place(picture: Image.Image, rng: random.Random) -> Image.Image:
    """The picture on a ground from which it stands out (plain, graded, striped or a panel), somewhere on it; RGB.

    Up to a sixteenth of it may be cut off at a side.
    """
    width, height = picture.size
    edges = [rng.randint(-side // 16, 2 + height // 2) for side in (width, width, height, height)]
    size = (max(8, width + edges[0] + edges[1]), max(8, height + edges[2] + edges[3]))
    image = _ground(size, _contrast(picture, rng), rng)
    image.paste(picture, (edges[0], edges[2]), picture)
    return image


def set_plainly(picture: Image.Image, rng: random.Random) -> Image.Image:
    """The RGBA picture as it is, on white or another light ground; RGB."""
    height = picture.height
    ground = (255, 255, 255) if rng.random() < 0.5 else tuple(rng.randint(120, 255) for _ in range(3))
    edges = [rng.randint(2, 2 + height // 2) for _ in range(4)]
    image = Image.new("RGBA", (picture.width + edges[0] + edges[1], height + edges[2] + edges[3]), (*ground, 255))
    image.alpha_composite(picture, (edges[0], edges[2]))
    return image.convert("RGB")


def _with_alpha(rgb: Image.Image, alpha: Image.Image) -> Image.Image:
    rgb.putalpha(alpha)
    return rgb


def _bend(picture: Image.Image, rng: random.Random, cells: int = 4) -> Image.Image:
    """Turned, stretched, sheared and wobbled by one mesh transform, on a canvas that holds it."""
    angle = math.radians(rng.gauss(0, 7))
    stretch, shear = math.exp(rng.gauss(0, 0.08)), rng.gauss(0, 0.08)
    cos, sin = math.cos(angle), math.sin(angle)
    wobble = rng.choice((0, 0.015, 0.03))
    width, height = picture.size
    # From the new picture to the old one, both with their middle at the origin.
    a, b, c, d = cos / stretch, sin + shear, -sin, cos * stretch
    det = a * d - b * c
    new_width = round((abs(d) * width + abs(b) * height) / det) + 4
    new_height = round((abs(c) * width + abs(a) * height) / det) + 4
    xs = [round(new_width * i / cells) for i in range(cells + 1)]
    ys = [round(new_height * i / cells) for i in range(cells + 1)]

    def source(x: int, y: int) -> tuple[float, float]:
        u, v = x - new_width / 2, y - new_height / 2
        return (
            a * u + b * v + width * (0.5 + rng.gauss(0, wobble)),
            c * u + d * v + height * (0.5 + rng.gauss(0, wobble)),
        )

    points = [[source(x, y) for x in xs] for y in ys]
    mesh = [
        (
            (xs[i], ys[j], xs[i + 1], ys[j + 1]),
            (*points[j][i], *points[j + 1][i], *points[j + 1][i + 1], *points[j][i + 1]),
        )
        for j in range(cells)
        for i in range(cells)
    ]
    size = (new_width, new_height)
    bent = picture.transform(size, Image.Transform.MESH, mesh, Image.Resampling.BICUBIC)
    return bent.crop(bent.getbbox()) if bent.getbbox() else picture


def _ink(rng: random.Random) -> Colour:
    return tuple(rng.randint(0, 255) for _ in range(3))


def _recolour(rgb: Image.Image, rng: random.Random, keep_hue: bool) -> Image.Image:
    """Hue, saturation, brightness and contrast changed; keep_hue: only a little, so that colours keep their names."""
    if keep_hue:
        hue, saturation, tint = rng.gauss(0, 0.06), rng.uniform(0.8, 1.2), 0.0
    else:
        hue = rng.uniform(-math.pi, math.pi) if rng.random() < 0.25 else rng.gauss(0, 0.25)
        saturation, tint = 0.0 if rng.random() < 0.12 else rng.uniform(0.4, 1.5), 10.0
    cos, sin = saturation * math.cos(hue), saturation * math.sin(hue)
    turned = _RGB @ np.array([[1, 0, 0], [0, cos, -sin], [0, sin, cos]]) @ _YIQ
    contrast = rng.uniform(0.75, 1.2)
    middle = 128 * (1 - contrast) + rng.uniform(-20, 20)
    rows = [(*(contrast * turned[i]), middle + rng.gauss(0, tint)) for i in range(3)]
    return rgb.convert("RGB", tuple(float(value) for row in rows for value in row))


def _without_lines(rgb: Image.Image, alpha: Image.Image, rng: random.Random) -> Image.Image:
    """Thin dark lines overgrown by the colours beside them, so that an outlined drawing becomes flat areas."""
    width = 5 if min(rgb.size) > 70 and rng.random() < 0.5 else 3
    bare = Image.new("RGB", rgb.size)
    bare.paste(rgb, (0, 0), alpha)  # what is not seen is black and does not grow
    return bare.filter(ImageFilter.MaxFilter(width))


def _edges(rgb: Image.Image, strength: float) -> Image.Image:
    """How much of an edge every pixel is on, L."""
    near = rgb.convert("L")
    rise = ImageChops.subtract(near.filter(ImageFilter.MaxFilter(3)), near.filter(ImageFilter.MinFilter(3)))
    return rise.point([min(255, round(max(0, value - 12) * strength)) for value in range(256)])


def _line_drawing(rgb: Image.Image, alpha: Image.Image, rng: random.Random) -> Image.Image:
    """Its edges in dark ink on light paper."""
    paper = tuple(rng.randint(200, 255) for _ in range(3))
    drawn = Image.new("RGB", rgb.size, paper)
    rim = ImageChops.subtract(alpha, alpha.filter(ImageFilter.MinFilter(3)))
    lines = ImageChops.lighter(_edges(rgb, rng.uniform(3, 8)), rim)
    drawn.paste(tuple(rng.randint(0, 90) for _ in range(3)), (0, 0), lines)
    return drawn


def _outlined(rgb: Image.Image, alpha: Image.Image, rng: random.Random) -> tuple[Image.Image, Image.Image]:
    """A line around it, dark or (as on stickers) white, and often along its inner edges."""
    width = rng.choice((3, 3, 5)) if min(rgb.size) > 40 else 3
    ink = (255, 255, 255) if rng.random() < 0.2 else tuple(rng.randint(0, 70) for _ in range(3))
    pad = width // 2
    size = (rgb.width + 2 * pad, rgb.height + 2 * pad)
    inside = Image.new("L", size)
    inside.paste(alpha, (pad, pad))
    if ink != (255, 255, 255) and rng.random() < 0.6:
        rgb.paste(ink, (0, 0), _edges(rgb, rng.uniform(1.5, 4)))
    drawn = Image.new("RGB", size, ink)
    drawn.paste(rgb, (pad, pad), alpha)
    return drawn, inside.filter(ImageFilter.MaxFilter(width))


def _shade(rgb: Image.Image, rng: random.Random) -> Image.Image:
    """Light from one side: brighter there, darker at the other."""
    light = _ramp(rgb.size, rng)
    dark = light.point([round(255 - (255 - value) * 0.5) for value in range(256)])
    return ImageChops.multiply(rgb, Image.merge("RGB", (dark,) * 3))


@functools.lru_cache(maxsize=1)
def _ramps() -> list[Image.Image]:
    """Ramps of 48 x 48 pixels from black to white, in 16 directions."""
    y, x = np.mgrid[-1:1:48j, -1:1:48j]
    turns = [math.tau * k / 16 for k in range(16)]
    fields = [(x * math.cos(t) + y * math.sin(t)) / (abs(math.cos(t)) + abs(math.sin(t))) for t in turns]
    return [Image.fromarray(np.round(127.5 + 127.5 * field).astype(np.uint8)) for field in fields]


def _ramp(size: tuple[int, int], rng: random.Random) -> Image.Image:
    return rng.choice(_ramps()).resize(size, Image.Resampling.BILINEAR)


def _contrast(picture: Image.Image, rng: random.Random) -> Colour:
    """A colour from which the picture stands out: mostly white or light; dark only where the picture is not."""
    pixel = picture.resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))
    middle = luminance(pixel[:3])
    if middle < 190 and rng.random() < 0.45:
        return (255, 255, 255)
    while True:
        low = 0 if rng.random() < 0.3 else 110
        colour = tuple(rng.randint(low, 255) for _ in range(3))
        if abs(luminance(colour) - middle) >= 60:
            return colour


def _ground(size: tuple[int, int], colour: Colour, rng: random.Random) -> Image.Image:
    """Plain in half of the cases; else towards a similar colour by a ramp or in stripes, or with a panel of it."""
    image = Image.new("RGB", size, colour)
    kind = rng.choice(("plain", "plain", "plain", "ramp", "stripes", "panel"))
    if kind == "plain":
        return image
    other = tuple(min(255, max(0, value + rng.randint(-45, 45))) for value in colour)
    if kind == "ramp":
        image.paste(other, (0, 0), _ramp(size, rng))
    draw = ImageDraw.Draw(image)
    if kind == "stripes":
        step, slope = rng.randint(6, 24), rng.uniform(-1, 1)
        reach = round(abs(slope) * size[1])
        for x in range(-reach, size[0] + reach, step):
            draw.line((x, 0, x + slope * size[1], size[1]), fill=other, width=max(1, step // 2))
    if kind == "panel":
        inset = rng.randint(1, max(1, min(size) // 8))
        box = (inset, inset, size[0] - 1 - inset, size[1] - 1 - inset)
        draw.rounded_rectangle(box, radius=rng.randint(0, min(size) // 3), fill=other)
    return image
