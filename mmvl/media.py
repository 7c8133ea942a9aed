"""Files that people bring -> pages to look at: an image is one page, a PDF is as many as it has.

PDFs are rendered by `pdf_worker.py` in a process of its own, which is killed when it takes too long.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from mmvl.vision.images import MAX_PIXELS, ImageSource, open_image

MAX_PDF_BYTES = 200 << 20
MAX_PAGES = 50
PDF_DPI = 144
PDF_LONG_SIDE = 2016  # pixels: the largest canvas of the released tiling
PDF_SECONDS = 60.0
_PDF_MEMORY = 3 << 30
_WORKER = Path(__file__).with_name("pdf_worker.py")


@dataclass(frozen=True)
class Page:
    """An upright RGB image; what to call it; its page number (from 1) if it is of a PDF."""

    image: Image.Image
    name: str
    number: int | None = None


def load_media(
    source: ImageSource,
    *,
    name: str | None = None,
    pages: Sequence[int] | str | None = None,
    max_pages: int = MAX_PAGES,
    max_pixels: int = MAX_PIXELS,
    timeout: float = PDF_SECONDS,
) -> list[Page]:
    """A path, the bytes of a file, or a PIL image -> its pages: one for an image, those of a PDF in their order.

    name: what to call the source in errors and in the pages' names; by default its path.
    pages: of a PDF only these, counted from 1: numbers, or text like "1-3,7"; ignored for images.
    max_pages: the most pages of a PDF; max_pixels: of an image; timeout: seconds for a whole PDF.
    PDF pages are rendered at 144 dpi, or less where the longer side would exceed 2016 pixels.

    Raises FileNotFoundError, OSError or ValueError with one line, as `open_image` does; also for a PDF that needs a
    password, is damaged, has too many pages or an absurd page size, or takes too long.
    """
    if not _is_pdf(source):
        image = open_image(source, name=name, max_pixels=max_pixels)
        default = "image" if isinstance(source, Image.Image | bytes | bytearray | memoryview) else str(source)
        return [Page(image, name or default)]
    if isinstance(source, str | os.PathLike):
        name = name or str(source)
        size = os.path.getsize(source)
    else:
        name = name or f"the PDF of {len(source)} bytes"
        size = len(source)
    if size > MAX_PDF_BYTES:
        raise ValueError(f"{name} has {size >> 20} MiB, more than the limit of {MAX_PDF_BYTES >> 20} for a PDF")
    numbers = page_numbers(pages) if isinstance(pages, str) else list(pages or ())
    if any(not isinstance(number, int) or number < 1 for number in numbers):
        raise ValueError(f"pages of {name} are counted from 1, not {pages!r}")
    return _render(source, name, numbers, max_pages, timeout)


def page_numbers(text: str) -> list[int]:
    """ "1-3,7" -> [1, 2, 3, 7]. Raises ValueError for anything else, and for numbers of 100,000 or more."""
    numbers = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not (first.isascii() and first.isdigit() and (not dash or last.isascii() and last.isdigit())):
            raise ValueError(f"pages {text!r} cannot be read: write them like 1-3,7")
        first, last = int(first), int(last or first)
        if not 1 <= first <= last < 100_000:
            raise ValueError(f"pages {text!r}: {part.strip()!r} is no range of pages, which are counted from 1")
        numbers.extend(range(first, last + 1))
    return numbers


def _is_pdf(source) -> bool:
    """By content, and by name so that a damaged PDF is reported as such."""
    if isinstance(source, bytes | bytearray | memoryview):
        return bytes(source[:64]).lstrip().startswith(b"%PDF-")
    if not isinstance(source, str | os.PathLike) or not os.path.isfile(source):
        return False
    if Path(source).suffix.lower() == ".pdf":
        return True
    if not os.access(source, os.R_OK):
        return False  # open_image says so
    with open(source, "rb") as file:
        return file.read(64).lstrip().startswith(b"%PDF-")


def _render(source, name: str, numbers: list[int], max_pages: int, timeout: float) -> list[Page]:
    from_path = isinstance(source, str | os.PathLike)
    if from_path and not os.access(source, os.R_OK):
        raise PermissionError(f"{name}: no permission to read it")
    job = {
        "path": os.path.abspath(source) if from_path else None,
        "size": 0 if from_path else len(source),
        "pages": numbers,
        "max_pages": max_pages,
        "dpi": PDF_DPI,
        "long_side": PDF_LONG_SIDE,
        "memory": _PDF_MEMORY,
    }
    stdin = json.dumps(job).encode() + b"\n" + (b"" if from_path else bytes(source))
    # -P: else the worker's own folder comes first on the path, and mmvl's modules would stand in for others
    command = [sys.executable, "-P", str(_WORKER)]
    try:
        # on time-out, run() kills the process and waits for it
        result = subprocess.run(command, input=stdin, capture_output=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        raise ValueError(f"{name} takes more than {timeout:g} s to render: give fewer pages") from None
    pages, error = _parse(result.stdout, name)
    if error is None:
        return pages
    raise ValueError(_message(error, name, max_pages))


def _parse(output: bytes, name: str) -> tuple[list[Page], dict | None]:
    """The worker's output -> pages, and its error if it had one (an empty one if it died)."""
    pages, at = [], 0
    while (end := output.find(b"\n", at)) >= 0:
        record = json.loads(output[at:end])
        at = end + 1
        if "error" in record:
            return [], record
        if "done" in record:
            return pages, None
        (width, height), stride = record["size"], record["stride"]
        pixels = output[at : at + stride * height]
        at += stride * height
        if len(pixels) < stride * height:
            break
        image = Image.frombytes("RGB", (width, height), pixels, "raw", "RGB", stride)
        pages.append(Page(image, f"{name}, page {record['page']}", record["page"]))
    return [], {}


def _message(error: dict, name: str, max_pages: int) -> str:
    where = f"page {error['page']} of {name}" if "page" in error else name
    match error.get("error"):
        case "password":
            return f"{name} is encrypted and needs a password: save it without one"
        case "size":
            width, height = error["points"]
            return f"{where} is {width} x {height} points, too long and thin to be shown"
        case "pages":
            return f"{name} has {error['count']} pages, more than the limit of {max_pages}: choose some of them"
        case "range":
            return f"{name} has {error['count']} pages, not all that were asked for"
        case "broken":
            return f"{where} is not a PDF that can be read, or is damaged"
        case _:
            return f"{name} cannot be rendered: the PDF reader ran out of memory or crashed on it"
