"""What the renderers share: colours with enough contrast, text on a canvas, the small damages of scanners, encoding."""

import functools
import io
import random

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

Colour = tuple[int, int, int]


@functools.lru_cache(maxsize=512)
def load_font(path: str, size: int, ligatures: bool = False) -> ImageFont.FreeTypeFont:
    """A font at a pixel size. Without ligatures the plain layout is used, which is faster and needs no libraqm."""
    engine = ImageFont.Layout.RAQM if ligatures else ImageFont.Layout.BASIC
    return ImageFont.truetype(path, size, layout_engine=engine)


def luminance(colour: Colour) -> float:
    """Perceived brightness, 0 to 255 (ITU-R BT.601 weights)."""
    return 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]


def pick_colours(rng: random.Random, inverted: float = 0.12, coloured: float = 0.35) -> tuple[Colour, Colour]:
    """(paper, ink), at least 90 apart in luminance; mostly dark on white, `inverted` of them light on dark."""
    while True:
        if rng.random() < coloured:
            paper = tuple(rng.randint(170, 255) for _ in range(3))
            ink = tuple(rng.randint(0, 150) for _ in range(3))
        else:
            white, black = rng.choice((255, 255, 255, rng.randint(225, 254))), rng.choice((0, 0, rng.randint(0, 90)))
            paper, ink = (white,) * 3, (black,) * 3
        if rng.random() < inverted:
            paper, ink = ink, paper
        if abs(luminance(paper) - luminance(ink)) >= 90:
            return paper, ink


def draw_line(draw: ImageDraw.ImageDraw, xy: tuple[int, int], text: str, font: ImageFont.FreeTypeFont, ink) -> None:
    """Draw one line so that the top left corner of its ink is at xy."""
    left, top, _, _ = font.getbbox(text)
    features = ["-calt"] if font.layout_engine == ImageFont.Layout.RAQM else None  # no arrows in the place of "->"
    draw.text((xy[0] - left, xy[1] - top), text, font=font, fill=ink, features=features)


def wear(image: Image.Image, rng: random.Random, paper: Colour, strength: float = 1.0) -> Image.Image:
    """Slight rotation, rescaling, blur and noise, each on some pictures only; text stays legible and inside."""
    if rng.random() < 0.15 * strength:
        angle = rng.uniform(-1.5, 1.5)
        image = image.rotate(angle, Image.Resampling.BICUBIC, expand=True, fillcolor=paper)
    if rng.random() < 0.2 * strength:
        scale = rng.uniform(0.8, 1.25)
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        image = image.resize(size, rng.choice((Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)))
    if rng.random() < 0.15 * strength:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 0.8)))
    if rng.random() < 0.15 * strength:
        noise = np.random.default_rng(rng.getrandbits(32)).normal(0, rng.uniform(2, 10), (image.height, image.width, 1))
        image = Image.fromarray(np.clip(np.asarray(image, np.float32) + noise, 0, 255).astype(np.uint8))
    return image


def encode(image: Image.Image, rng: random.Random, jpeg: float = 0.4) -> tuple[str, bytes]:
    """(extension, bytes): JPEG for a share of the pictures, else PNG; one channel where there is no colour."""
    buffer = io.BytesIO()
    pixels = np.asarray(image)
    if (pixels[..., :1] == pixels[..., 1:]).all():
        image = image.getchannel(0)
    if rng.random() < jpeg:
        image.save(buffer, "JPEG", quality=rng.randint(45, 92))
        return "jpg", buffer.getvalue()
    image.save(buffer, "PNG", compress_level=3)
    return "png", buffer.getvalue()
