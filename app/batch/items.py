"""What a batch job asks: items, each some pictures and one question, and the places where the pictures lie.

An item holds no pixels and is picklable: pictures are opened where they are answered, one moment before.
"""

import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class FilePicture:
    """A picture file, a page (from 1) of a PDF, or a whole PDF (page None)."""

    path: str
    page: int | None = None

    def open(self) -> list:
        """Its pages as `mmvl.media.Page`. Raises OSError or ValueError with one line."""
        from mmvl.media import load_media

        return load_media(self.path, pages=None if self.page is None else [self.page])

    def read(self) -> tuple[str, bytes]:
        """(extension, bytes) of an image file: as it is, or a PNG of a PDF's page. Raises as `open` does."""
        return as_image_file(self.open if self.path.lower().endswith(".pdf") else Path(self.path).read_bytes())


@dataclass(frozen=True)
class BytesPicture:
    """The bytes of a picture file or PDF that came with its row; `name` is what errors call it."""

    data: bytes = field(repr=False)
    name: str

    def open(self) -> list:
        from mmvl.media import load_media

        return load_media(self.data, name=self.name)

    def read(self) -> tuple[str, bytes]:
        return as_image_file(self.open if self.data[:64].lstrip().startswith(b"%PDF-") else self.data)


@dataclass(frozen=True)
class SpanPicture:
    """`size` bytes of a file from `start` on, as those of a member of a tar; `name` is what errors call it."""

    path: str
    start: int
    size: int
    name: str

    def open(self) -> list:
        return self._bytes().open()

    def read(self) -> tuple[str, bytes]:
        return self._bytes().read()

    def _bytes(self) -> BytesPicture:
        with open(self.path, "rb") as file:
            file.seek(self.start)
            return BytesPicture(file.read(self.size), self.name)


Picture = FilePicture | BytesPicture | SpanPicture


@dataclass(frozen=True)
class Item:
    """One question about some pictures.

    id: what identifies it in the source and in the output.
    fields: what the prompt's template may use. shown: what its row in the output holds beside the answer.
    error: why it cannot be asked at all; it then becomes a failed row.
    chat: the body of an OpenAI request, which brings its own messages and settings; then there are no pictures.
    request: it is a line of an OpenAI batch file, even if it has no body.
    """

    id: str
    pictures: tuple[Picture, ...] = ()
    fields: dict[str, Any] = field(default_factory=dict)
    shown: dict[str, Any] = field(default_factory=dict)
    prompt: str = ""
    error: str | None = None
    chat: dict | None = None
    request: bool = False


def clean(text: str) -> str:
    """The text with whatever is no Unicode in it (file names may hold any bytes) spelt out by backslashes."""
    return text.encode("utf-8", "backslashreplace").decode()


def as_image_file(source) -> tuple[str, bytes]:
    """(extension, bytes) of a picture for a shard: the bytes of an image file as they are; of a PDF (a function that
    opens its pages) the only page as PNG. Raises ValueError for damage and for a PDF of several pages."""
    from PIL import Image

    if callable(source):
        pages = source()
        if len(pages) != 1:
            raise ValueError(f"a PDF of {len(pages)} pages is not one picture: caption its pages from a folder")
        buffer = io.BytesIO()
        pages[0].image.save(buffer, "PNG")
        return "png", buffer.getvalue()
    try:
        with Image.open(io.BytesIO(source)) as image:
            kind = image.format
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):  # what Pillow makes of damage
        raise ValueError(f"a picture of {len(source)} bytes is damaged or of no known format") from None
    return {"JPEG": "jpg", "TIFF": "tif", "MPO": "jpg"}.get(kind, kind.lower()), source
