"""Files that people bring -> pages to look at: an image is one page, a PDF is as many as it has.

PDFs are rendered by `pdf_worker.py` in a process of its own, which is killed when it takes too long.
"""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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


def load_media(source: ImageSource, **options) -> list[Page]:
    """All of `iter_media` at once."""
    return list(iter_media(source, **options))


def iter_media(
    source: ImageSource,
    *,
    name: str | None = None,
    pages: Sequence[int] | str | None = None,
    max_pages: int = MAX_PAGES,
    max_pixels: int = MAX_PIXELS,
    timeout: float = PDF_SECONDS,
) -> Iterator[Page]:
    """A path, the bytes of a file, or a PIL image -> its pages: one for an image, those of a PDF in their order.

    One page is in memory at a time. Closing the iterator ends the process that reads the PDF.

    name: what to call the source in errors and in the pages' names; by default its path.
    pages: of a PDF only these, counted from 1: numbers, or text like "1-3,7"; ignored for images.
    max_pages: the most pages of a PDF; max_pixels: of an image; timeout: seconds of waiting for a whole PDF.
    PDF pages are rendered at 144 dpi, or less where the longer side would exceed 2016 pixels.

    Raises FileNotFoundError, OSError or ValueError with one line, as `open_image` does; also for a PDF that needs a
    password, is damaged, has too many pages or an absurd page size, or takes too long.
    """
    if is_pdf(source):
        name = _checked_size(source, name)
        numbers = page_numbers(pages) if isinstance(pages, str) else list(pages or ())
        if any(not isinstance(number, int) or number < 1 for number in numbers):
            raise ValueError(f"pages of {name} are counted from 1, not {pages!r}")
        yield from _render(source, name, numbers, max_pages, timeout)
    else:
        image = open_image(source, name=name, max_pixels=max_pixels)
        default = "image" if isinstance(source, Image.Image | bytes | bytearray | memoryview) else str(source)
        yield Page(image, name or default)


def pdf_page_count(source: ImageSource, *, name: str | None = None, timeout: float = PDF_SECONDS) -> int:
    """How many pages the PDF at a path, or of these bytes, has. Raises what `iter_media` raises."""
    if not is_pdf(source):
        raise ValueError(f"{name or (source if isinstance(source, str | os.PathLike) else 'this file')} is not a PDF")
    name = _checked_size(source, name)
    with _Worker(source, name, {"count": True}, timeout) as worker:
        return worker.record()["count"]


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


def is_pdf(source: ImageSource) -> bool:
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


def _checked_size(source, name: str | None) -> str:
    """What to call a PDF that is not too large."""
    if isinstance(source, str | os.PathLike):
        name, size = name or str(source), os.path.getsize(source)
    else:
        name, size = name or f"the PDF of {len(source)} bytes", len(source)
    if size > MAX_PDF_BYTES:
        raise ValueError(f"{name} has {size >> 20} MiB, more than the limit of {MAX_PDF_BYTES >> 20} for a PDF")
    return name


def _render(source, name: str, numbers: list[int], max_pages: int, timeout: float) -> Iterator[Page]:
    wanted = {"pages": numbers, "max_pages": max_pages, "dpi": PDF_DPI, "long_side": PDF_LONG_SIDE}
    with _Worker(source, name, wanted, timeout) as worker:
        while record := worker.record():
            (width, height), stride = record["size"], record["stride"]
            pixels = worker.read(stride * height)
            image = Image.frombytes("RGB", (width, height), pixels, "raw", "RGB", stride)
            yield Page(image, f"{name}, page {record['page']}", record["page"])


class _Worker:
    """The process that reads one PDF, for as long as the `with` block lasts; it is killed at its end.

    Only the time that is spent waiting for the process counts against `timeout`, not what is done with its pages.
    """

    def __init__(self, source, name: str, wanted: dict, timeout: float):
        self._name, self._max_pages = name, wanted.get("max_pages")
        self._timeout = self._left = timeout
        from_path = isinstance(source, str | os.PathLike)
        if from_path and not os.access(source, os.R_OK):
            raise PermissionError(f"{name}: no permission to read it")
        path, size = (os.path.abspath(source), 0) if from_path else (None, len(source))
        self._job = json.dumps({"path": path, "size": size, "memory": _PDF_MEMORY} | wanted).encode() + b"\n"
        self._data = b"" if from_path else source
        # -P: else the worker's own folder comes first on the path, and mmvl's modules would stand in for others
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(_WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # a crash is told by what is missing from stdout
        )

    def __enter__(self) -> "_Worker":
        try:
            with self._clock():
                self._process.stdin.write(self._job)
                self._process.stdin.write(self._data)
                self._process.stdin.close()
        except BrokenPipeError:
            pass  # it ended early; what it said on stdout tells why
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_) -> None:
        self._process.kill()
        self._process.stdout.close()
        try:
            self._process.stdin.close()
        except BrokenPipeError:
            pass  # there was something left to write to a process that is gone
        self._process.wait()

    def record(self) -> dict | None:
        """The next line of the worker, None if that was its last. Raises ValueError if it tells of an error."""
        with self._clock():
            line = self._process.stdout.readline()
        record = json.loads(line) if line.endswith(b"\n") else {"error": None}
        if "error" in record:
            raise ValueError(_message(record, self._name, self._max_pages))
        return None if record.get("done") else record

    def read(self, size: int) -> bytes:
        with self._clock():
            data = self._process.stdout.read(size)
        if len(data) < size:
            raise ValueError(_message({"error": None}, self._name, self._max_pages))
        return data

    @contextmanager
    def _clock(self):
        """Kills the process if what is done inside takes longer than is left, and says so."""
        timer = threading.Timer(self._left, self._process.kill)
        start = time.monotonic()
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            self._left -= time.monotonic() - start
            if self._left <= 0:
                raise ValueError(f"{self._name} takes more than {self._timeout:g} s to render: give fewer pages")


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
