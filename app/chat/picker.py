"""The page picker: which pages of the PDFs in the box are to be read, by thumbnails and by numbers."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from mmvl.app.chat.attachments import THUMBNAILS, Attachments, page_ranges
from mmvl.app.chat.conversation import Attachment
from mmvl.app.errors import one_line
from mmvl.media import is_pdf


@dataclass
class Pdf:
    """A PDF in the box. count: its pages; pages: those that are chosen; error: why it cannot be read."""

    file: Attachment | None
    name: str
    count: int = 0
    pages: tuple[int, ...] = ()
    thumbnails: list[str] = field(default_factory=list)
    error: str = ""


def open_pdfs(attachments: Attachments, paths: Sequence[str], known: dict[str, Pdf]) -> dict[str, Pdf]:
    """The PDFs among the files in the box, by path; what is `known` already is taken over. Takes a while."""
    return {path: known.get(path) or _open(attachments, path) for path in paths if is_pdf(path)}


def _open(attachments: Attachments, path: str, pages: Sequence[int] | None = None) -> Pdf:
    pdf = Pdf(None, Path(path).name)
    try:
        pdf.file = attachments.attach(path, pages)
        pdf.count = attachments.page_count(Path(path))
        pdf.pages = pdf.file.pages
        pdf.thumbnails = attachments.thumbnails(pdf.file, range(1, min(pdf.count, THUMBNAILS) + 1))
    except (ValueError, OSError) as error:
        pdf.error = one_line(error)
    return pdf


def reopen(attachments: Attachments, file: Attachment) -> Pdf:
    """The PDF of an earlier question, with the pages that were chosen then."""
    return _open(attachments, file.path, file.pages)


def picker_html(pdfs: dict[str, Pdf], most: int, opening: Sequence[str] = ()) -> str:
    """A group of controls for each PDF. most: pages of a PDF that may be read. opening: names of those to come."""
    waiting = f'<p role="status">Opening {escape(", ".join(opening))}…</p>' if opening else ""
    return "".join(_group(path, pdf, most) for path, pdf in pdfs.items()) + waiting


def _group(path: str, pdf: Pdf, most: int) -> str:
    name = escape(pdf.name)
    if not pdf.count:
        return f'<p class="error" role="alert">⚠ {escape(pdf.error)}</p>'
    shown = len(pdf.thumbnails)
    chosen = " ".join(map(str, pdf.pages))
    boxes = "".join(
        f'<label><input type="checkbox" value="{number}"{" checked" if number in pdf.pages else ""}'
        f' aria-label="Page {number} of {name}"><img src="{url}" alt=""><span>{number}</span></label>'
        for number, url in enumerate(pdf.thumbnails, 1)
    )
    note = f"{len(pdf.pages)} of {pdf.count} pages are read, at most {most}."
    problem = f'<p class="error" role="alert">⚠ {escape(pdf.error)}</p>' if pdf.error else ""
    return (
        f'<fieldset data-path="{escape(path)}" data-shown="{shown}" data-chosen="{chosen}"><legend>{name}</legend>'
        f'<p><label>Pages <input type="text" value="{page_ranges(pdf.pages)}" aria-label="Pages of {name}"'
        f' placeholder="1-3,7"></label> {note}</p>{problem}<div class="pages">{boxes}</div></fieldset>'
    )
