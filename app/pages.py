"""Files that a person names -> pages (pictures), and pages + a question -> a user's turn."""

from pathlib import Path

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"})
MEDIA_SUFFIXES = IMAGE_SUFFIXES | {".pdf"}


def open_pages(files, pages: str | None = None) -> list:
    """All pictures of `files`, in order, as `mmvl.media.Page`; a PDF gives one a page, or only `pages` ("1-3,7").

    Raises FileNotFoundError or ValueError naming the file that cannot be used.
    """
    from mmvl.media import load_media

    return [page for file in files for page in load_media(Path(file), pages=pages)]


def checked_question(text: str) -> str:
    """The question without surrounding blanks. Raises ValueError if nothing is left."""
    question = text.strip()
    if not question:
        raise ValueError("the question is empty: say what you want to know, for example -q 'What is this?'")
    return question


def user_turn(pages, question: str) -> dict:
    """A user's message in the form the processor takes: the pictures first, then the question."""
    pictures = [{"type": "image", "image": page.image} for page in pages]
    return {"role": "user", "content": [*pictures, {"type": "text", "text": question}]}
