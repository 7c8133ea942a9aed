"""Memory for decoded images: who may open theirs next, and what that will take, told before they are decoded."""

import io
import os
import threading
from bisect import insort
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from operator import attrgetter

from PIL import Image

from mmvl.media import MAX_PAGES, PDF_LONG_SIDE, is_pdf
from mmvl.vision.config import TilingConfig
from mmvl.vision.images import FORMATS, MAX_PIXELS

MOST_IMAGE_BYTES = 1 << 30
# Bytes a pixel while a picture is decoded, made RGB and cut into tiles, as peaks of a process were: for common kinds 2
# to 8; progressive JPEG and TIFF of one strip 5 to 12; with transparency 20, WebP 15, 16-bit grey 26.
PLAIN_MODES, PLAIN_BYTES, STAGED_BYTES, OTHER_BYTES = ("RGB", "L", "P", "1", "CMYK"), 8, 14, 28


class Lease:
    """A part of a budget. `granted` is done when its turn has come. A `with` block gives it back if it fails."""

    def __init__(self, budget: "ImageBudget", num_bytes: int, priority: int = 0):
        self._budget, self.num_bytes, self.priority = budget, num_bytes, priority
        self.granted: Future[None] = Future()
        self.granted.set_running_or_notify_cancel()  # a task that waits for it can be cancelled, it cannot

    def settle(self, num_bytes: int) -> None:
        """It takes so much in fact."""
        self._budget.settle(self, num_bytes)

    def release(self) -> None:
        """Give it back, or ask no longer. Once is enough, twice does no harm."""
        self._budget.release(self)

    def __enter__(self) -> "Lease":
        return self

    def __exit__(self, kind, *_) -> None:
        if kind is not None:
            self.release()


class ImageBudget:
    """`most` bytes for the images of all requests, given by priority, the lowest first, then in the order of asking.

    Who asks for more than that gets it when nobody else has any. Every method may be called from any thread and from a
    finalizer, and waits for nobody.
    """

    def __init__(self, most: int = MOST_IMAGE_BYTES):
        self.most = most
        self._inbox: deque[Callable[[], None]] = deque()  # changes that are to be made
        self._lock = threading.Lock()  # whoever has it makes those of others as well
        self._waiting: list[Lease] = []
        self._held: set[Lease] = set()

    @property
    def held(self) -> int:
        """Bytes that are given out."""
        return sum(lease.num_bytes for lease in tuple(self._held))

    def ask(self, num_bytes: int, priority: int = 0) -> Lease:
        """A lease that waits for its turn; for nothing it need not."""
        if not num_bytes:
            return self.take(0)
        lease = Lease(self, num_bytes, priority)
        self._change(lambda: insort(self._waiting, lease, key=attrgetter("priority")))
        return lease

    def take(self, num_bytes: int) -> Lease:
        """At once: for what is in memory, whether there was room or not."""
        lease = Lease(self, num_bytes)
        lease.granted.set_result(None)
        self._change(lambda: self._held.add(lease))
        return lease

    def settle(self, lease: Lease, num_bytes: int) -> None:
        """What `Lease.settle` does."""
        self._change(lambda: setattr(lease, "num_bytes", num_bytes))

    def release(self, lease: Lease) -> None:
        """What `Lease.release` does."""
        self._change(lambda: self._forget(lease))

    def _forget(self, lease: Lease) -> None:
        if lease in self._waiting:
            self._waiting.remove(lease)
        self._held.discard(lease)

    def _change(self, change: Callable[[], None]) -> None:
        """Make a change and see whose turn it is. If somebody is at it, perhaps this very thread, where garbage was
        collected, that one does it."""
        self._inbox.append(change)
        while self._inbox and self._lock.acquire(blocking=False):
            granted = []
            try:
                while self._inbox:
                    self._inbox.popleft()()
                while self._waiting and (not self.held or self.held + self._waiting[0].num_bytes <= self.most):
                    granted.append(self._waiting.pop(0))
                    self._held.add(granted[-1])
            finally:
                self._lock.release()
            for lease in granted:
                lease.granted.set_result(None)


def bytes_needed(messages: Iterable, tiling: TilingConfig) -> int:
    """Memory that a conversation's images take at most while they are opened one after the other, from their headers.

    Their tiles, and once what decoding the largest takes; of a PDF as many pages as it may have. What cannot be opened
    counts nothing: it takes nothing, and who opens it says why.
    """
    images = [part.get("image") for part in _parts(messages) if part.get("type") == "image"]
    if not images:
        return 0
    tiles = 1 + max(width * height for width, height in tiling.grid_pinpoints) // tiling.tile**2
    pages, decoding = zip(*map(_size_of, images), strict=True)
    return sum(pages) * tiles * 3 * tiling.tile**2 + max(decoding)


def _parts(messages: Iterable) -> Iterable[dict]:
    """The parts of all messages, those that are such: others are refused when they are encoded."""
    for message in messages if isinstance(messages, list | tuple) else ():
        content = message.get("content") if isinstance(message, dict) else None
        for part in content if isinstance(content, list | tuple) else ():
            if isinstance(part, dict):
                yield part


def _size_of(source) -> tuple[int, int]:
    """(pages, bytes while the largest of them is decoded)."""
    if isinstance(source, Image.Image):
        return _of_image(source)
    try:
        if is_pdf(source):
            return MAX_PAGES, PLAIN_BYTES * PDF_LONG_SIDE**2
        file = io.BytesIO(source) if isinstance(source, bytes | bytearray | memoryview) else os.fspath(source)
        if isinstance(file, str) and not os.path.isfile(file):  # a pipe would be waited for
            return 0, 0
        with Image.open(file, formats=FORMATS) as image:
            return _of_image(image)
    except Exception:  # a damaged header makes Pillow raise nearly anything; opening it says so in our words
        return 0, 0


def _of_image(image: Image.Image) -> tuple[int, int]:
    pixels = image.width * image.height
    if pixels > MAX_PIXELS:
        return 0, 0  # it will be refused
    if image.mode not in PLAIN_MODES or "transparency" in image.info or image.format == "WEBP":
        return 1, OTHER_BYTES * pixels
    staged = image.format == "TIFF" or "progressive" in image.info  # all of it lies beside the picture once more
    return 1, (STAGED_BYTES if staged else PLAIN_BYTES) * pixels
