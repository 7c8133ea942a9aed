"""Wear: what printing, handling, scanning and photographing do to a clean page, in about 10 ms a megapixel on one core.

Shading is computed on a grid of an eighth of the page and enlarged; all geometry (rotation, perspective, curl, crumple)
is one mesh transform. Nothing printed leaves the picture.
"""

import functools
import io
import math
import random

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from mmvl.data.drawing import Colour

_COARSE = 8  # pixels of the page a cell of the shading grid


@functools.lru_cache(maxsize=1)
def _grain() -> np.ndarray:
    """Normal noise of standard deviation 32 in int16, 1024 x 1024; every page shows another part of it."""
    return np.round(np.random.default_rng(5).normal(0, 32, (1024, 1024))).astype(np.int16)


def add_noise(image: Image.Image, rng: random.Random, sigma: float) -> Image.Image:
    """Grey noise of standard deviation `sigma` (0 to 255) on an L or RGB image."""
    pixels = np.asarray(image).astype(np.int16)
    height, width = pixels.shape[:2]
    grain = np.roll(_grain(), (rng.randrange(1024), rng.randrange(1024)), (0, 1))
    grain = np.tile(grain, (-(-height // 1024), -(-width // 1024)))[:height, :width]
    grain = (grain * np.int16(max(1, round(sigma * 8)))) >> 8
    pixels += grain if pixels.ndim == 2 else grain[..., None]
    return Image.fromarray(np.clip(pixels, 0, 255, out=pixels).astype(np.uint8))


def _smooth(random_: np.random.Generator, shape: tuple[int, int], cells: int) -> np.ndarray:
    """A smooth field in [0, 1] of a (height, width) from about `cells` random values along the longer side."""
    scale = cells / max(shape)
    small = random_.integers(0, 256, (max(2, round(shape[0] * scale)), max(2, round(shape[1] * scale))), np.uint8)
    field = Image.fromarray(small).resize((shape[1], shape[0]), Image.Resampling.BICUBIC)
    return np.asarray(field, np.float32) / 255


def fade_ink(image: Image.Image, rng: random.Random, strength: float = 1.0) -> Image.Image:
    """A worn print head or old thermal paper: ink paler in patches, bands or columns, at most to half its contrast."""
    random_ = np.random.default_rng(rng.getrandbits(32))
    shape = (-(-image.height // _COARSE), -(-image.width // _COARSE))
    pale = _smooth(random_, shape, rng.randint(2, 8)) * rng.uniform(0.1, 0.5)
    if rng.random() < 0.4:  # bands along the paper's way through the printer
        pale += (random_.random((1, shape[1])) < 0.08) * rng.uniform(0.1, 0.35)
    if rng.random() < 0.3:
        pale += (random_.random((shape[0], 1)) < 0.08) * rng.uniform(0.1, 0.3)
    pale = np.clip(pale * strength, 0, 0.55) * 255
    field = Image.fromarray(pale.astype(np.uint8)).resize(image.size, Image.Resampling.BILINEAR)
    return ImageChops.screen(image, field if image.mode == "L" else Image.merge("RGB", (field,) * 3))


def dot_matrix(image: Image.Image, rng: random.Random) -> Image.Image:
    """Break the ink of an L image into the rows and columns of pins."""
    pitch = rng.choice((2, 3, 3))
    gap = rng.randint(40, 130)
    cell = np.zeros((pitch, pitch), np.uint8)
    cell[-1, :] = gap
    if rng.random() < 0.6:
        cell[:, -1] = gap
    lattice = np.tile(cell, (-(-image.height // pitch), -(-image.width // pitch)))[: image.height, : image.width]
    return ImageChops.screen(image, Image.fromarray(lattice))


def _shading(size: tuple[int, int], rng: random.Random, creases: list, strength: float) -> Image.Image | None:
    """An L image to multiply a page with: uneven light, a shadow's edge, folds, crumple. None: even light."""
    random_ = np.random.default_rng(rng.getrandbits(32))
    shape = (-(-size[1] // _COARSE), -(-size[0] // _COARSE))
    y, x = np.mgrid[0 : shape[0], 0 : shape[1]].astype(np.float32)
    light = np.ones(shape, np.float32)
    if rng.random() < 0.5 * strength:  # light from one side
        angle, depth = rng.uniform(0, 2 * math.pi), rng.uniform(0.03, 0.35)
        slope = math.cos(angle) * x / shape[1] + math.sin(angle) * y / shape[0]
        light -= depth * (slope - slope.min()) / (np.ptp(slope) + 1e-6)
    if rng.random() < 0.5 * strength:
        light -= rng.uniform(0.02, 0.12) * _smooth(random_, shape, rng.randint(2, 6))
    if rng.random() < 0.2 * strength:  # a hand, a telephone, a book
        angle = rng.uniform(0, 2 * math.pi)
        away = math.cos(angle) * (x - rng.uniform(0.1, 0.9) * shape[1]) + math.sin(angle) * (
            y - rng.uniform(0.1, 0.9) * shape[0]
        )
        light *= 1 - rng.uniform(0.15, 0.45) / (1 + np.exp(np.clip(-away / rng.uniform(0.5, 8), -30, 30)))
    for position, angle, width in creases:
        away = math.cos(angle) * (x - position[0] * shape[1]) + math.sin(angle) * (y - position[1] * shape[0])
        light += rng.uniform(-0.16, 0.1) * np.exp(-np.abs(away) / width) * np.sign(away + 1e-3)
    if rng.random() < 0.12 * strength:  # crumpled and smoothed out again: facets of light
        facets = _smooth(random_, shape, rng.randint(6, 14))
        depth = rng.uniform(0.2, 0.8)
        if min(shape) > 1:  # a strip of one coarse pixel has no facets
            gy, gx = np.gradient(facets)
            light += np.clip((gx - gy) * depth, -0.12, 0.08)
    if np.ptp(light) < 0.01:
        return None
    field = np.clip(light / max(1.0, float(light.max())) * 255, 50, 255).astype(np.uint8)
    return Image.fromarray(field).resize(size, Image.Resampling.BICUBIC)


def warp(
    image: Image.Image, rng: random.Random, fill: Colour | int, angle: float, perspective: float, bend: float
) -> Image.Image:
    """Rotate by `angle` degrees, move corners by up to `perspective` of the side, bend by `bend` of the side.

    The picture grows so that everything stays inside; what is new has the colour `fill`.
    """
    width, height = image.size
    turn = math.radians(angle)
    slack_x = abs(math.sin(turn)) * height / 2 + (perspective + bend) * width
    slack_y = abs(math.sin(turn)) * width / 2 + (perspective + bend) * height
    pad_x, pad_y = math.ceil(slack_x) + 2, math.ceil(slack_y) + 2
    canvas = Image.new(image.mode, (width + 2 * pad_x, height + 2 * pad_y), fill)
    canvas.paste(image, (pad_x, pad_y))
    full = np.array(canvas.size, np.float64)
    cells = 6
    u, v = np.meshgrid(np.linspace(0, 1, cells + 1), np.linspace(0, 1, cells + 1))
    corners = np.array([[rng.uniform(-perspective, perspective) for _ in range(2)] for _ in range(4)])
    weights = np.stack([(1 - u) * (1 - v), u * (1 - v), (1 - u) * v, u * v], -1)
    shift = weights @ corners
    phase, waves = rng.uniform(0, 2 * math.pi), rng.uniform(0.5, 2)
    shift[..., 0] += bend * 0.5 * np.sin(phase + waves * 2 * math.pi * v)
    shift[..., 1] += bend * 0.5 * np.sin(phase * 2 + waves * 2 * math.pi * u)
    centred = np.stack([u - 0.5, v - 0.5], -1) * full
    turned = np.stack(
        [
            math.cos(turn) * centred[..., 0] - math.sin(turn) * centred[..., 1],
            math.sin(turn) * centred[..., 0] + math.cos(turn) * centred[..., 1],
        ],
        -1,
    )
    source = turned + full / 2 + shift * (width, height)
    mesh = []
    xs, ys = np.linspace(0, full[0], cells + 1).astype(int), np.linspace(0, full[1], cells + 1).astype(int)
    for i in range(cells):
        for j in range(cells):
            quad = (*source[i, j], *source[i + 1, j], *source[i + 1, j + 1], *source[i, j + 1])
            mesh.append(((int(xs[j]), int(ys[i]), int(xs[j + 1]), int(ys[i + 1])), tuple(map(float, quad))))
    return canvas.transform(canvas.size, Image.Transform.MESH, mesh, Image.Resampling.BILINEAR, fillcolor=fill)


def _pen(image: Image.Image, rng: random.Random) -> None:
    """A tick, a ring or a scrawl of a ball pen, thin enough to read through."""
    draw = ImageDraw.Draw(image)
    w, h = image.size
    ink = (
        rng.randint(20, 110) if image.mode == "L" else (rng.randint(10, 60), rng.randint(10, 60), rng.randint(90, 190))
    )
    x, y, r = rng.uniform(0.1, 0.9) * w, rng.uniform(0.05, 0.95) * h, rng.uniform(0.03, 0.12) * w
    kind = rng.randrange(3)
    if kind == 0:
        points = [(x, y), (x + r * 0.4, y + r * 0.5), (x + r * 1.4, y - r)]
    elif kind == 1:
        points = [(x + r * math.cos(a / 3), y + 0.7 * r * math.sin(a / 3 + 0.2)) for a in range(21)]
    else:
        points = [(x + r * a / 5 + rng.uniform(-1, 1) * r / 3, y + rng.uniform(-1, 1) * r / 2) for a in range(14)]
    draw.line(points, fill=ink, width=rng.randint(1, 2), joint="curve")


def _specks(image: Image.Image, rng: random.Random) -> None:
    """Dust on a scanner's glass, and the dark strip along an edge where the lid did not cover."""
    draw = ImageDraw.Draw(image)
    w, h = image.size

    def dark() -> Colour | int:
        value = rng.randint(0, 120)
        return value if image.mode == "L" else (value, value, value)

    for _ in range(rng.randint(1, 25)):
        x, y, r = rng.uniform(0, w), rng.uniform(0, h), rng.choice((0.5, 0.5, 1, 1.5))
        draw.ellipse((x - r, y - r, x + r, y + r), fill=dark())
    if rng.random() < 0.3:
        depth = rng.randint(1, max(2, min(w, h) // 80))
        box = rng.choice(((0, 0, w, depth), (0, h - depth, w, h), (0, 0, depth, h), (w - depth, 0, w, h)))
        draw.rectangle(box, fill=dark())


def age(
    image: Image.Image,
    rng: random.Random,
    strength: float = 1.0,
    *,
    receipt: bool = False,
    geometry: bool = True,
) -> Image.Image:
    """A worn copy of a clean L or RGB page, dark on light. strength: 0 leaves it alone, 1 is ordinary wear, 2 much.

    receipt: thermal and dot-matrix faults and photocopier contrast come more often. geometry: whether the page may turn
    and bend (False where boxes must stay true).
    """
    if strength <= 0:
        return image

    def often(share: float) -> bool:
        return rng.random() < min(0.95, share * strength)

    grey = image.mode == "L"
    if often(0.35 if receipt else 0.12):
        image = fade_ink(image, rng, min(1.5, strength))
    ground = rng.choice((255, 255, rng.randint(200, 254), rng.randint(0, 120)))
    creases = []
    if often(0.2):  # folded: across, along, or anyhow
        for _ in range(rng.randint(1, 3)):
            angle = rng.choice((0, math.pi / 2, math.pi / 2, rng.uniform(0, math.pi)))
            creases.append(((rng.uniform(0.1, 0.9), rng.uniform(0.1, 0.9)), angle, rng.uniform(0.5, 4)))
    if often(0.25) and not receipt or often(0.1):  # paper that is not white
        tint = rng.randint(215, 250)
        colour = tint if grey else (tint, tint - rng.randint(0, 8), tint - rng.randint(0, 25))
        image = ImageChops.multiply(image, Image.new(image.mode, image.size, colour))
    if often(0.12 if receipt else 0.06):
        image = image.copy()
        _pen(image, rng)
    if geometry and often(0.45):
        if rng.random() < 0.5:
            margin = round(rng.uniform(0, 0.06) * max(image.size))
            edged = Image.new(image.mode, (image.width + 2 * margin, image.height + 2 * margin), _level(ground, grey))
            edged.paste(image, (margin, margin))
            image = edged
        angle = rng.gauss(0, 1.2) * min(1.5, strength)
        hard = rng.random() < 0.35 * strength
        image = warp(image, rng, _level(ground, grey), max(-5.0, min(5.0, angle)),
                     rng.uniform(0, 0.025) if hard else 0.0, rng.uniform(0, 0.012) if hard else 0.0)  # fmt: skip
    if often(0.45) and (field := _shading(image.size, rng, creases, strength)):
        image = ImageChops.multiply(image, field if grey else Image.merge("RGB", (field,) * 3))
    if often(0.25):
        image = image.filter(ImageFilter.BoxBlur(rng.uniform(0.2, 0.75)))
    elif often(0.12):
        scale = rng.uniform(0.6, 0.85)
        small = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BILINEAR)
        image = small.resize(image.size, Image.Resampling.BILINEAR)
    if often(0.5):
        image = add_noise(image, rng, rng.uniform(1, 9))
    if grey and often(0.25 if receipt else 0.1):  # the hard contrast of copiers; colours would change their names
        low, high = rng.randint(20, 90), rng.randint(170, 235)
        table = [max(0, min(255, round((v - low) * 255 / (high - low)))) for v in range(256)]
        image = image.point(table * len(image.getbands()))
    if often(0.15):
        image = image.copy()
        _specks(image, rng)
    return image


def _level(value: int, grey: bool) -> Colour | int:
    return value if grey else (value, value, value)


def encode_page(image: Image.Image, rng: random.Random, jpeg: float = 0.9) -> tuple[str, bytes]:
    """(extension, bytes) of an L or RGB page: JPEG of quality 35 to 92 for a share of the pages, else PNG."""
    buffer = io.BytesIO()
    if rng.random() < jpeg:
        image.save(buffer, "JPEG", quality=rng.randint(35, 92))
        return "jpg", buffer.getvalue()
    image.save(buffer, "PNG", compress_level=1)
    return "png", buffer.getvalue()
