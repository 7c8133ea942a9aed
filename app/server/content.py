"""The parts of a request's messages -> messages that the processor takes: data: URLs, PDFs and fetched images opened.

Nothing here touches the network or an event loop: what was fetched is handed in. Every picture is handed to `use` and
let go before the next is opened, so that one decoded picture is in memory at a time.
"""

import base64
import binascii
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image

from mmvl.app.server.errors import ApiError, invalid
from mmvl.app.server.protocol import ChatRequest, FileData, FilePart, ImagePart, TextPart
from mmvl.app.server.settings import MIB, ServerSettings
from mmvl.media import is_pdf, iter_media


@dataclass(frozen=True)
class MediaLimits:
    """What one request may bring. images counts pages of PDFs as well."""

    images: int
    image_bytes: int
    pixels: int
    pdf_pages: int
    pdf_seconds: float

    @classmethod
    def of(cls, settings: ServerSettings) -> "MediaLimits":
        return cls(
            images=settings.max_images,
            image_bytes=settings.max_image_mb * MIB,
            pixels=settings.max_image_megapixels * 1_000_000,
            pdf_pages=settings.max_pdf_pages,
            pdf_seconds=settings.pdf_seconds,
        )


def open_messages(
    request: ChatRequest,
    limits: MediaLimits,
    *,
    fetched: Mapping[str, bytes] | None = None,
    use: Callable[[Image.Image, str | None], Any] = lambda image, detail: image,
) -> list[dict]:
    """The conversation as `Processor.encode` and `VLM.batch` take it.

    fetched: the files behind the http(s) URLs of the request; see `remote_urls`.
    use: makes of each upright RGB picture, and the `detail` that was asked for, what becomes the part's "image".

    Raises ApiError: 400 for a part that is malformed, 413 for one that is too large, 422 for a file of no use.
    """
    if request.messages[-1].role != "user":
        raise invalid("The last message must be the user's.", "messages")
    opener = _Opener(limits, fetched or {}, use)
    messages = []
    for number, message in enumerate(request.messages):
        content = message.content
        if not isinstance(content, str):
            content = [
                opened
                for index, part in enumerate(content)
                for opened in opener.open(part, f"messages[{number}].content[{index}]")
            ]
        role = "system" if message.role == "developer" else message.role
        messages.append({"role": role, "content": content})
    if not _says_something(messages[-1]["content"]):
        raise invalid("The last message asks nothing: it needs a text.", "messages")
    return messages


def remote_urls(request: ChatRequest) -> list[str]:
    """The http(s) URLs of a request, each once, in their order."""
    urls = {}
    for message in request.messages:
        for part in message.content if not isinstance(message.content, str) else ():
            if isinstance(part, ImagePart) and not _is_data(part.image_url.url):
                urls[part.image_url.url] = None
    return list(urls)


def texts(request: ChatRequest) -> Iterator[str]:
    """All texts of a request."""
    for message in request.messages:
        if isinstance(message.content, str):
            yield message.content
        else:
            yield from (part.text for part in message.content if isinstance(part, TextPart))


def kinds(request: ChatRequest) -> set[type]:
    """The classes of a request's parts."""
    contents = (message.content for message in request.messages if not isinstance(message.content, str))
    return {type(part) for content in contents for part in content}


class _Opener:
    """Opens parts one after the other and counts their pictures."""

    def __init__(self, limits: MediaLimits, fetched: Mapping[str, bytes], use: Callable):
        self._limits, self._fetched, self._use = limits, fetched, use
        self._images = 0

    def open(self, part, place: str) -> Iterator[dict]:
        if isinstance(part, ImagePart):
            url = part.image_url.url
            data = self._decoded(url, place) if _is_data(url) else self._fetched[url]
            if is_pdf(data):
                raise invalid("A PDF belongs into a part of type 'file'.", place)
            yield from self._pictures(data, "the image", place, detail=part.image_url.detail)
        elif isinstance(part, FilePart):
            yield from self._file(part.file, place)
        else:
            yield {"type": "text", "text": part.text}

    def _file(self, file: FileData, place: str) -> Iterator[dict]:
        if file.file_data is None:
            raise invalid("file_data is missing: send the file itself, as a data: URL.", place)
        data = self._decoded(file.file_data, place)
        yield from self._pictures(data, "the PDF" if is_pdf(data) else "the file", place, pages=file.pages)

    def _pictures(self, data: bytes, name: str, place: str, *, detail=None, pages=None) -> Iterator[dict]:
        limits = self._limits
        opened = iter_media(
            data,
            name=name,
            pages=pages,
            max_pages=limits.pdf_pages,
            max_pixels=limits.pixels,
            timeout=limits.pdf_seconds,
        )
        try:
            for page in opened:
                self._images += 1
                if self._images > limits.images:
                    raise ApiError(413, f"More than {limits.images} images and pages in one request.", param=place)
                yield {"type": "image", "image": self._use(page.image, detail)}
        except ValueError as error:  # in words of ours, see mmvl.media
            raise ApiError(422, f"{place}: {error}", param=place, code="invalid_media") from None
        finally:
            opened.close()

    def _decoded(self, url: str, place: str) -> bytes:
        """The bytes of a data: URL (RFC 2397), or of bare base64, which clients send as `file_data` too."""
        encoded = url
        if _is_data(url):
            header, comma, encoded = url.partition(",")
            if not comma or not header.lower().endswith(";base64"):
                raise invalid("A data: URL must be base64-encoded, and say so.", place)
        if len(encoded) > self._limits.image_bytes * 4 // 3 + 4:
            raise ApiError(413, f"{place}: larger than {self._limits.image_bytes // MIB} MiB.", param=place)
        try:
            data = base64.b64decode(encoded, validate=True)
        except (binascii.Error, ValueError):
            raise invalid("The base64 of a file is damaged.", place) from None
        if not data:
            raise invalid("The file is empty.", place)
        return data


def _is_data(url: str) -> bool:
    return url[:5].lower() == "data:"


def _says_something(content: str | list[dict]) -> bool:
    texts = [content] if isinstance(content, str) else [part["text"] for part in content if part["type"] == "text"]
    return any(text.strip() for text in texts)
