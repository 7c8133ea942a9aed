"""Open one image, from whatever source, as plain 8-bit RGB; refuse what is no image, damaged, or absurdly large.

Pillow's own error texts are never passed on: some hold memory addresses, and none says what to do.
"""

import io
import os
import struct
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
MAX_PIXELS = 40_000_000  # decoded: 120 MB

ImageSource = str | os.PathLike | bytes | Image.Image

MAX_JPEG_SCANS = 100  # cameras and editors write 1 to about 12

# Our limit is checked on every image and is lower than the one this warning is about.
warnings.simplefilter("ignore", Image.DecompressionBombWarning)

_EXIF_ORIENTATION = 0x0112


def open_image(
    source: ImageSource, *, name: str | None = None, max_pixels: int = MAX_PIXELS, keep_grey: bool = False
) -> Image.Image:
    """An image from a path, the bytes of an image file, or a PIL image -> an RGB PIL image, upright.

    EXIF orientation is applied, transparency is laid on white, palettes are resolved, 16-bit and float grey is scaled
    to 8 bits, and of an animation the first frame is taken. The pixel limit is checked before anything is decoded.
    name: what to call the image in errors; by default its path. keep_grey: 8-bit grey stays one channel (mode L).

    Raises FileNotFoundError (no such file), OSError (a file that may not be read), ValueError (all else), each with
    one line.
    """
    if isinstance(source, Image.Image):
        name = name or "the image"
        return _to_rgb(source, name, max_pixels, keep_grey)
    if isinstance(source, bytes | bytearray | memoryview):
        name = name or f"the image of {len(source)} bytes"
        return _decode(io.BytesIO(source), name, max_pixels, keep_grey)
    if not isinstance(source, str | os.PathLike):
        raise ValueError(f"an image is a path, bytes or a PIL image, not {type(source).__name__}")
    path = Path(source)
    name = name or str(path)
    if not path.exists():
        of_the_web = str(source).startswith(("http://", "https://"))
        hint = "; nothing is fetched from the web here: download it, and name the file" if of_the_web else ""
        raise FileNotFoundError(f"no such file: {source if of_the_web else name}{hint}")
    if not path.is_file():
        raise ValueError(f"{name} is not a file")
    try:
        file = path.open("rb")
    except PermissionError:
        raise PermissionError(f"{name}: no permission to read it") from None
    with file:
        return _decode(file, name, max_pixels, keep_grey)


def _decode(file, name: str, max_pixels: int, keep_grey: bool) -> Image.Image:
    try:
        image = Image.open(file, formats=FORMATS)
    except Image.DecompressionBombError:
        raise ValueError(
            f"{name} has more than {max_pixels / 1e6:g} million pixels, which is the limit: scale it down"
        ) from None
    except MemoryError:
        raise
    except Exception:  # a damaged header makes Pillow raise nearly anything
        raise ValueError(f"{name} is not an image that can be read ({', '.join(FORMATS)}), or is damaged") from None
    if image.format in ("JPEG", "MPO"):
        _refuse_endless_scans(file, name)
    return _to_rgb(image, name, max_pixels, keep_grey)


def _refuse_endless_scans(file, name: str) -> None:
    """A progressive JPEG may paint all its pixels again for every 59 bytes: a small file could take hours."""
    at = file.tell()
    file.seek(0)
    scans = sum(block.count(b"\xff\xda") for block in iter(lambda: file.read(1 << 20), b""))
    file.seek(at)
    if scans > MAX_JPEG_SCANS:
        raise ValueError(f"{name} is a JPEG of more than {MAX_JPEG_SCANS} scans: save it anew, as an ordinary one")


def _to_rgb(image: Image.Image, name: str, max_pixels: int, keep_grey: bool) -> Image.Image:
    width, height = image.size
    if width <= 0 or height <= 0:
        raise ValueError(f"{name} is {width} x {height} pixels: there is nothing in it")
    if width * height > max_pixels:
        raise ValueError(
            f"{name} has {width} x {height} pixels, more than the limit of {max_pixels / 1e6:g} million: scale it down"
        )
    try:
        image.load()
    except MemoryError:
        raise
    except Exception:  # as above; a truncated file is the commonest
        raise ValueError(f"{name} is truncated or damaged and cannot be decoded") from None
    try:
        upright = _upright(image)
        if keep_grey and upright.mode == "L" and "transparency" not in upright.info:
            return upright
        return _flatten(upright)
    except MemoryError:
        raise
    except Exception:
        raise ValueError(f"{name} has colours that cannot be converted to RGB (mode {image.mode})") from None


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
    except (OSError, SyntaxError, ValueError, KeyError, TypeError, struct.error):
        orientation = 1  # metadata too broken to hold an orientation; the pixels are fine
    return image if orientation == 1 else ImageOps.exif_transpose(image)


def _flatten(image: Image.Image) -> Image.Image:
    """Any colour mode -> RGB."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _grey_to_8_bits(np.asarray(image)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        if image.mode == "La":  # Pillow knows no direct way
            image = image.convert("LA")
        picture = image.convert("RGBA")
        white = Image.new("RGBA", picture.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, picture).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _grey_to_8_bits(grey_YX: np.ndarray) -> Image.Image:
    """16-bit, 32-bit or float grey -> 8 bits. Pillow itself would clip everything above 255 to white.

    Integers are on 0..65535, floats on the first of 0..1, 0..255, 0..65535 that holds them; larger ones on 0..maximum.
    """
    scales = (65535.0,) if grey_YX.dtype.kind in "iu" else (1.0, 255.0, 65535.0)
    grey_YX = np.nan_to_num(grey_YX.astype(np.float64), posinf=0.0, neginf=0.0)
    top = float(grey_YX.max())
    full = next((scale for scale in scales if top <= scale), top)
    return Image.fromarray(np.clip(np.rint(grey_YX / full * 255), 0, 255).astype(np.uint8))
