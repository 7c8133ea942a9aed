"""Files of visitors: what may be opened, the tiles that the model reads of them, and the previews that a page shows."""

import base64
import hashlib
import io
import os
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from mmvl.app.chat.conversation import Attachment
from mmvl.app.errors import one_line
from mmvl.app.server.content import MediaLimits
from mmvl.media import Page, is_pdf, iter_media, page_numbers, pdf_page_count
from mmvl.processor import Processor

PREVIEW, QUALITY = 224, 75  # longer side in pixels, of WebP
THUMBNAILS = 48  # pages of a PDF that can be picked by a click; others by their number


@dataclass(frozen=True)
class Opened:
    """A picture as the model reads it (`Prompt.images`), what to call it, and a data: URL to show of it."""

    tiled: Any
    name: str
    preview: str


class Attachments:
    """Opens attachments. What was opened last is kept, since each turn of a conversation reads all before it again.

    folder: the only place that files may lie in, whatever a browser says. max_bytes: of tiles that are kept.
    stored: paths of the files that `store` made, for whoever cleans up. Errors name a file, never its path.
    """

    def __init__(self, folder: Path, processor: Processor, limits: MediaLimits, threads: int, max_bytes=256 << 20):
        self._folder, self._processor, self.limits, self._max_bytes = folder, processor, limits, max_bytes
        self._opened: OrderedDict[tuple, list[Opened]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()
        self.stored: set[str] = set()
        self.threads = ThreadPoolExecutor(threads, thread_name_prefix="mmvl-page")

    def store(self, data: bytes, name: str) -> str:
        """Puts a file that nobody uploaded beside those that were; its path. Raises OSError."""
        path = self._folder / hashlib.sha256(data).hexdigest() / Path(name).name
        with _told_by_name(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
                file.write(data)
            os.replace(file.name, path)  # at once: someone may be reading the same file
        self.stored.add(str(path))
        return str(path)

    def attach(self, path: str | Path, pages: Sequence[int] | None = None) -> Attachment:
        """A file that was uploaded. pages: of a PDF, those to read; None takes as many as may be read, from the first.

        Raises ValueError or OSError if it is no such file, or cannot be used.
        """
        if not self.is_here(path):
            raise ValueError(f"{Path(path).name} is not here any more: attach it again")
        path = Path(path).resolve()
        chosen = ()
        with _told_by_name(path):
            with open(path, "rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if is_pdf(path):
                chosen = tuple(pages or range(1, min(self.page_count(path), self.limits.pdf_pages) + 1))
        return Attachment(str(path), path.name, digest, chosen)

    def is_here(self, path: str | Path) -> bool:
        """Whether it is a file that was uploaded, and is still there."""
        resolved = Path(path).resolve()
        return resolved.is_relative_to(self._folder.resolve()) and resolved.is_file()

    def page_count(self, path: Path) -> int:
        return pdf_page_count(path, name=path.name, timeout=self.limits.pdf_seconds)

    def open(self, file: Attachment) -> list[Opened]:
        """Its pictures: one of an image, the chosen pages of a PDF. Raises ValueError or OSError naming the file."""
        key = (file.digest, file.pages)
        with self._lock:
            if key in self._opened:
                self._opened.move_to_end(key)
                return self._opened[key]
        with _told_by_name(file.path, file.name):
            opened = [
                Opened(self._processor.tile([page.image])[0], _called(file, page), preview(page.image))
                for page in self._pages(file)
            ]
        with self._lock:
            if key not in self._opened:
                self._opened[key] = opened
                self._bytes += _size(opened)
            while self._bytes > self._max_bytes and len(self._opened) > 1:
                self._bytes -= _size(self._opened.popitem(last=False)[1])
        return opened

    def opened(self, file: Attachment) -> list[Opened] | None:
        """What `open` gave, if that is still known."""
        return self._opened.get((file.digest, file.pages))

    def thumbnails(self, file: Attachment, numbers: Sequence[int]) -> list[str]:
        """data: URLs of pages of a PDF."""
        with _told_by_name(file.path, file.name):
            return [preview(page.image) for page in self._pages(replace(file, pages=tuple(numbers)), len(numbers))]

    def _pages(self, file: Attachment, most: int | None = None):
        limits = self.limits
        return iter_media(
            file.path,
            name=file.name,
            pages=file.pages or None,
            max_pages=most or limits.pdf_pages,
            max_pixels=limits.pixels,
            timeout=limits.pdf_seconds,
        )


@contextmanager
def _told_by_name(path: str | Path, name: str | None = None) -> Iterator[None]:
    """A visitor knows a file by its name, not by where the server keeps it."""
    name = name or Path(path).name
    try:
        yield
    except FileNotFoundError:
        raise FileNotFoundError(f"{name} is not here any more: attach it again") from None
    except OSError as error:
        raise OSError(one_line(error).replace(str(path), name)) from None


def preview(image: Image.Image, longest: int = PREVIEW) -> str:
    """A data: URL of an RGB picture, no longer than `longest` pixels at its longer side."""
    small = image.copy()
    small.thumbnail((longest, longest), Image.Resampling.BICUBIC, reducing_gap=2.0)
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=QUALITY)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def chosen_pages(text: str, count: int) -> tuple[int, ...]:
    """ "1-3,7" -> (1, 2, 3, 7), each once, in order. Raises ValueError for what is no page of a PDF of `count`."""
    numbers = tuple(sorted(set(page_numbers(text))))
    if numbers[-1] > count:
        raise ValueError(f"there are {count} pages, no page {numbers[-1]}")
    return numbers


def page_ranges(numbers: Sequence[int]) -> str:
    """(1, 2, 3, 7) -> "1-3,7"."""
    parts: list[list[int]] = []
    for number in sorted(set(numbers)):
        if parts and parts[-1][1] == number - 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)


def open_all(files: Sequence[Attachment], open_one: Callable[[Attachment], list[Opened]], most: int) -> list[Opened]:
    """The pictures of all files. Raises ValueError above `most`."""
    opened: list[Opened] = []
    for file in files:
        opened += open_one(file)
        if len(opened) > most:
            raise ValueError(f"these files have more than {most} pictures and pages together: attach fewer")
    return opened


def _called(file: Attachment, page: Page) -> str:
    return f"{file.name}, page {page.number}" if page.number else file.name


def _size(opened: list[Opened]) -> int:
    return sum(picture.tiled.tiles_N3TT.nbytes for picture in opened)
