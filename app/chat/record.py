"""A conversation as a record: what the browser keeps as history, and what is exported and imported as a JSON file.

A record holds the whole tree of turns. Files stand beside it by their SHA-256: in the browser's own store, or in an
exported file as base64.
"""

import base64
import binascii
import hashlib
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mmvl.app.chat.conversation import Attachment, Conversation, Turn
from mmvl.app.pages import MEDIA_SUFFIXES
from mmvl.engine.request import FinishReason
from mmvl.vlm import Answer

FORMAT, VERSION = "mmvl-chat", 1
MAX_TURNS, MAX_TEXT = 2000, 1_000_000  # of a record; characters of one text

Id = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Text = Annotated[str, Field(max_length=MAX_TEXT)]
Count = Annotated[int, Field(ge=0, le=10**9)]
Seconds = Annotated[float, Field(ge=0, le=10**9)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)


class SavedFile(_Strict):
    """pages: of a PDF, those that were read."""

    digest: Digest
    name: Annotated[str, Field(min_length=1, max_length=255)]
    pages: Annotated[tuple[Annotated[int, Field(ge=1, lt=100_000)], ...], Field(max_length=1000)] = ()


class Numbers(_Strict):
    """What an answer took; see `mmvl.vlm.Answer`."""

    finish_reason: FinishReason
    prompt_tokens: Count
    image_tokens: Count
    completion_tokens: Count
    prefill_seconds: Seconds
    decode_seconds: Seconds
    cached_tokens: Count = 0


class SavedTurn(_Strict):
    id: Id
    parent: Id | None = None
    question: Text
    files: Annotated[tuple[SavedFile, ...], Field(max_length=100)] = ()
    answer: Text = ""
    numbers: Numbers | None = None
    error: Text = ""


class Record(_Strict):
    """data: base64 of the files by their digest; empty in the browser's history."""

    format: Literal["mmvl-chat"] = FORMAT
    version: Literal[1] = VERSION
    id: Id
    created: Annotated[float, Field(ge=0, le=10**11)]
    title: Annotated[str, Field(max_length=200)] = ""
    system: Text = ""
    head: Id | None = None
    turns: Annotated[tuple[SavedTurn, ...], Field(max_length=MAX_TURNS)] = ()
    data: dict[Digest, str] = {}


def record_of(talk: Conversation) -> Record:
    """What is kept of a conversation, without the contents of its files."""
    return Record(
        id=talk.id,
        created=talk.created,
        title=talk.title,
        system=talk.system,
        head=talk.head,
        turns=tuple(_saved(turn) for turn in talk.turns.values()),
    )


def to_json(talk: Conversation) -> str:
    """The whole conversation, files included. Raises OSError if one of them is gone."""
    record = record_of(talk)
    for turn in talk.turns.values():
        for file in turn.files:
            if file.digest not in record.data:
                record.data[file.digest] = base64.b64encode(Path(file.path).read_bytes()).decode()
    return record.model_dump_json(indent=1)


def read_record(data: str | bytes | dict) -> Record:
    """JSON, or what it says -> a checked record. Raises ValueError with one line."""
    try:
        record = Record.model_validate(data) if isinstance(data, dict) else Record.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(str(part) for part in first["loc"])[:100] or "the file"
        raise ValueError(f"this is no conversation that mmvl wrote: {place}: {first['msg']}") from None
    known: set[str | None] = {None}
    for turn in record.turns:
        if turn.parent not in known or turn.id in known:
            raise ValueError(f"this conversation is damaged: turn {turn.id} hangs in the air")
        known.add(turn.id)
    if record.head not in known or (record.turns and record.head is None):
        raise ValueError("this conversation is damaged: its last turn is missing")
    return record


def conversation_of(record: Record, path_of: Callable[[SavedFile], str]) -> Conversation:
    """The conversation of a record. path_of: where the server keeps a file's contents now."""
    talk = Conversation(id=record.id, created=record.created, system=record.system)
    for saved in record.turns:
        files = tuple(Attachment(path_of(file), file.name, file.digest, file.pages) for file in saved.files)
        numbers = Answer(saved.answer, **saved.numbers.model_dump()) if saved.numbers else None
        talk.turns[saved.id] = Turn(
            saved.question, files, saved.parent, saved.answer, numbers, saved.error, id=saved.id
        )
    if record.head is not None:
        talk.show(record.head)
    return talk


def unpack(record: Record, store: Callable[[bytes, str], str]) -> Callable[[SavedFile], str]:
    """The `path_of` of an imported record. store: contents and name -> where they were put.

    Raises ValueError if a file is missing, damaged, or of a kind that cannot be attached.
    """
    paths: dict[tuple[str, str], str] = {}
    for turn in record.turns:
        for file in turn.files:
            if (file.digest, file.name) not in paths:
                check_name(file.name)
                paths[file.digest, file.name] = store(_contents(record, file), file.name)
    return lambda file: paths[file.digest, file.name]


def check_name(name: str) -> None:
    """Raises ValueError unless it is a plain name of a picture or PDF."""
    if Path(name).name != name or "\\" in name or "\0" in name or Path(name).suffix.lower() not in MEDIA_SUFFIXES:
        raise ValueError(f"{name[:100]!r} is no name of a picture or PDF")


def _contents(record: Record, file: SavedFile) -> bytes:
    try:
        data = base64.b64decode(record.data[file.digest], validate=True)
    except KeyError:
        raise ValueError(f"this conversation is damaged: {file.name} is missing from it") from None
    except binascii.Error:
        data = b""
    if hashlib.sha256(data).hexdigest() != file.digest:
        raise ValueError(f"this conversation is damaged: {file.name} is not what it was")
    return data


def _saved(turn: Turn) -> SavedTurn:
    numbers = asdict(turn.numbers) if turn.numbers else None
    if numbers:
        del numbers["text"]
    return SavedTurn(
        id=turn.id,
        parent=turn.parent,
        question=turn.question,
        files=tuple(SavedFile(digest=file.digest, name=file.name, pages=file.pages) for file in turn.files),
        answer=turn.answer,
        numbers=Numbers(**numbers) if numbers else None,
        error=turn.error,
    )
