"""Conversations that come in and go out: from the browser's history, from exported files, and to them."""

from pathlib import Path

from mmvl.app.chat.attachments import Attachments, chosen_pages
from mmvl.app.chat.conversation import Attachment, Conversation, new_id
from mmvl.app.chat.record import SavedFile, conversation_of, read_record, to_json, unpack
from mmvl.app.chat.transcript import from_markdown, to_markdown

MAX_PAGE = 99_999  # of a PDF whose length is not known yet


def restored(attachments: Attachments, record: dict, paths: dict[str, str]) -> Conversation:
    """A conversation of the history. paths: by "digest/name", where the browser uploaded its files to.

    A file that the browser has lost gets no path: the words are still there. Raises ValueError or OSError.
    """

    def path_of(file: SavedFile) -> str:
        path = paths.get(f"{file.digest}/{file.name}")
        if path is None:
            return ""
        if attachments.attach(path, file.pages).digest != file.digest:
            raise ValueError(f"{file.name} is not what it was")
        return path

    return conversation_of(read_record(record), path_of)


def imported(attachments: Attachments, file: Path) -> Conversation:
    """What `exported` wrote; it becomes a conversation of its own, whatever there is already.

    Raises ValueError or OSError.
    """

    def attach(data: bytes, name: str, pages: str | None) -> Attachment:
        return attachments.attach(attachments.store(data, name), chosen_pages(pages, MAX_PAGE) if pages else None)

    data = file.read_bytes()
    if file.suffix.lower() == ".md":
        return from_markdown(data.decode("utf-8", errors="replace"), attach)
    record = read_record(data)
    talk = conversation_of(record, unpack(record, attachments.store))
    talk.id = new_id()
    return talk


def exported(attachments: Attachments, talk: Conversation, kind: str) -> str:
    """The path of a file, "json" or "md", named after the conversation. Raises OSError."""
    try:
        text = to_json(talk) if kind == "json" else to_markdown(talk)
    except OSError:
        raise FileNotFoundError("a file of this chat is not here any more") from None
    name = "".join(c if c.isalnum() else "-" for c in talk.title).strip("-")[:40] or "chat"
    return attachments.store(text.encode(), f"{name}.{kind}")
