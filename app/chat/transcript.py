"""The shown turns of a conversation as Markdown, to be read by people and to be imported again.

Invisible comments mark where a question or an answer begins; pictures are in the text as data: URLs.
"""

import base64
import binascii
import mimetypes
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from mmvl.app.chat.attachments import page_ranges
from mmvl.app.chat.conversation import Attachment, Conversation
from mmvl.app.chat.record import MAX_TEXT, MAX_TURNS, check_name

_MARK = re.compile(r"^<!-- mmvl:(chat|system|user|model)(?: files=(\d{1,3}))? -->$", re.MULTILINE)
_ESCAPED = re.compile(r"^\\*<!-- mmvl:", re.MULTILINE)
_UNESCAPED = re.compile(r"^\\(\\*<!-- mmvl:)", re.MULTILINE)
_HEADINGS = {"system": "System", "user": "You", "model": "Answer"}
_FILE = re.compile(r'^!?\[([^\]\n]*)\]\(data:[a-z0-9.+/-]+;base64,([A-Za-z0-9+/=]*)(?: "pages ([0-9,-]+)")?\)\n\n')


def to_markdown(talk: Conversation) -> str:
    """The path that is shown. Raises OSError if a file is gone."""
    parts = [f"<!-- mmvl:chat -->\n# {' '.join(talk.title.split())}\n\n"]
    if talk.system:
        parts.append(_part("system", talk.system))
    for turn in talk.path():
        parts.append(_part("user", turn.question, [_file(file) for file in turn.files]))
        parts.append(_part("model", turn.answer))
    return "".join(parts)


def from_markdown(text: str, attach: Callable[[bytes, str, str | None], Attachment]) -> Conversation:
    """A conversation that `to_markdown` wrote. attach: contents, name and pages ("1-3,7") of a file -> an attachment.

    Raises ValueError, and what `attach` raises.
    """
    pieces = _MARK.split(text.replace("\r\n", "\n"))
    kinds, counts, bodies = pieces[1::3], pieces[2::3], pieces[3::3]
    if not kinds or kinds[0] != "chat" or pieces[0].strip():
        raise ValueError("this is no conversation that mmvl wrote: its first line must be <!-- mmvl:chat -->")
    if kinds.count("user") > MAX_TURNS or max(map(len, bodies)) > 100 * MAX_TEXT:
        raise ValueError("this conversation is too long")
    talk = Conversation()
    turn = None
    for kind, count, body in zip(kinds[1:], counts[1:], bodies[1:], strict=True):
        body = body.removeprefix(f"\n## {_HEADINGS.get(kind, '')}\n\n")
        if kind == "system":
            talk.system = _said(body)
        elif kind == "user":
            files = []
            for _ in range(int(count or 0)):
                found = _FILE.match(body)
                if found is None:
                    raise ValueError("this conversation is damaged: a file of it is missing")
                files.append(attach(*_contents(found)))
                body = body[found.end() :]
            turn = talk.ask(_said(body), files)
        elif kind == "model" and turn is not None:
            turn.answer = _said(body)
        else:
            raise ValueError("this conversation is damaged: an answer comes before its question")
    return talk


def _part(kind: str, text: str, files: Sequence[str] = ()) -> str:
    count = f" files={len(files)}" if files else ""
    said = _ESCAPED.sub(lambda found: f"\\{found.group()}", text)
    return "\n\n".join([f"<!-- mmvl:{kind}{count} -->\n## {_HEADINGS[kind]}", *files, said]) + "\n\n"


def _said(body: str) -> str:
    """What was written, without the blank lines that end a part; an editor may have taken one of them."""
    return _UNESCAPED.sub(r"\1", body.removesuffix("\n").removesuffix("\n"))


def _file(file: Attachment) -> str:
    kind = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
    name = re.sub(r"[\[\]\n]", "_", file.name)
    pages = f' "pages {page_ranges(file.pages)}"' if file.pages else ""
    data = base64.b64encode(Path(file.path).read_bytes()).decode()
    return f"{'' if file.pages else '!'}[{name}](data:{kind};base64,{data}{pages})"


def _contents(found: re.Match) -> tuple[bytes, str, str | None]:
    name, data, pages = found.groups()
    check_name(name)
    try:
        contents = base64.b64decode(data, validate=True)
    except binascii.Error:
        raise ValueError(f"this conversation is damaged: {name} is not base64") from None
    return contents, name, pages
