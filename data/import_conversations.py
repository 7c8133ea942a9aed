"""Importers of conversations, documents and preference pairs: LLaVA-style JSON, JSON lines, plain text files.

LLaVA's format (Liu et al., "Visual Instruction Tuning", 2023): a list of {"id", "image", "conversations": [{"from":
"human" | "gpt" | "system", "value": str}]}, in which `<image>` stands where the picture is.
"""

import random
import re
from collections.abc import Callable
from pathlib import Path

from mmvl.data.files import Files, read_json, read_jsonl, read_text
from mmvl.data.importing import Item, import_items, picture
from mmvl.data.turns import Made

SPEAKERS = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
PLACEHOLDER = "<image>"


class _Pictures:
    """Collects the files of one sample as its parts are made."""

    def __init__(self, files: Files | None, names: list[str], longest: int):
        self.files, self.names, self.longest, self.members = files, names, longest, {}

    def part(self, name: str) -> dict:
        if self.files is None:
            raise ValueError(f"it names the picture {name!r}: say where pictures are with images=DIR")
        extension, data = picture(self.files.read(name), self.longest)
        file = f"{len(self.members)}.{extension}"
        self.members[file] = data
        return {"type": "image", "file": file}

    def parts(self, text: str) -> list[dict]:
        """Text with `<image>` where a picture is -> parts. ValueError if there are more than pictures."""
        parts = []
        for number, piece in enumerate(text.split(PLACEHOLDER)):
            if number:
                if not self.names:
                    raise ValueError("more <image> than pictures")
                parts.append(self.part(self.names.pop(0)))
                piece = piece.removeprefix("\n")
            if number + 1 <= text.count(PLACEHOLDER):
                piece = piece.removesuffix("\n")
            if piece:
                parts.append({"type": "text", "text": piece})
        return parts

    def content(self, content) -> list[dict]:
        """A string with `<image>`, or parts {"type": "text", "text"} and {"type": "image", "image": name}."""
        if isinstance(content, str):
            return self.parts(content)
        if not isinstance(content, list):
            raise ValueError("a content that is neither text nor a list of parts")
        made = []
        for part in content:
            kind = part.get("type") if isinstance(part, dict) else None
            if kind == "image":
                made.append(self.part(str(part.get("image", part.get("file")))))
            elif kind == "text" and isinstance(part.get("text"), str):
                made.append({"type": "text", "text": part["text"]})
            else:
                raise ValueError("a part that is neither text nor image")
        return made

    def done(self) -> dict[str, bytes]:
        if self.names:
            raise ValueError(f"{len(self.names)} pictures without an <image> that says where they belong")
        return self.members


def _names(image) -> list[str]:
    return [] if not image else [image] if isinstance(image, str) else [str(name) for name in image]


def _kind(messages: list[dict]) -> str:
    pictures = any(part["type"] == "image" for message in messages for part in message["content"])
    return "vqa" if pictures and sum(message["role"] == "assistant" for message in messages) == 1 else "conversation"


def import_llava(
    out_dir: str | Path,
    count: int = 0,
    seed: int = 0,
    workers: int = 0,
    *,
    file: str | Path,
    images: str | Path | None = None,
    source: str = "llava",
    longest: int = 0,
    split: str = "all",
    problems: list[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """LLaVA-style JSON `file` (a list; .jsonl too) with its `images` (folder, tar or zip); some may have no picture."""
    entries = [row for _, row in read_jsonl(file)] if ".jsonl" in Path(file).name else read_json(file)
    if not isinstance(entries, list):
        raise ValueError(f"{file}: not a list of conversations")
    files = None if images is None else Files(images)

    def item(number: int, entry) -> Item:
        def make(rng) -> Made:
            if not isinstance(entry, dict) or not isinstance(entry.get("conversations"), list):
                raise ValueError("no list of conversations")
            pictures = _Pictures(files, _names(entry.get("image")), longest)
            messages = []
            turns = entry["conversations"]
            # some releases give the picture and no <image>: it belongs to the first question
            unmarked = pictures.names and not any(PLACEHOLDER in str(turn.get("value")) for turn in turns)
            for turn in turns:
                role = SPEAKERS.get(turn.get("from"))
                if role is None or not isinstance(turn.get("value"), str):
                    raise ValueError(f"a turn from {turn.get('from')!r} (known: {', '.join(SPEAKERS)})")
                text = turn["value"]
                if unmarked and role == "user":
                    text, unmarked = PLACEHOLDER * len(pictures.names) + text, False
                messages.append({"role": role, "content": pictures.parts(text)})
            record = {"source": source, "kind": _kind(messages), "messages": messages, "meta": {"id": entry.get("id")}}
            return record, pictures.done()

        # The split goes by the picture, so that no picture is on both sides.
        names = _names(entry.get("image")) if isinstance(entry, dict) else []
        return Item(f"{source}/{names[0] if names else number}", make)

    items = [item(number, entry) for number, entry in enumerate(entries)]
    return import_items(
        out_dir, "llava", items, count, seed, workers, split=split, progress=progress, problems=problems
    )


def import_jsonl(
    out_dir: str | Path,
    count: int = 0,
    seed: int = 0,
    workers: int = 0,
    *,
    file: str | Path,
    images: str | Path | None = None,
    source: str = "",
    longest: int = 0,
    split: str = "all",
    problems: list[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """JSON lines (.gz and .bz2 too), each of any kind, by its keys:

    {"text": str}: a document; {"content": CONTENT}: an interleaved document; {"messages": [{"role", "content":
    CONTENT}]}: a conversation; with "chosen" and "rejected" (CONTENT) beside the messages, or beside "prompt" (str): a
    preference pair. CONTENT is a string, in which `<image>` stands for the next of the line's "images", or a list of
    parts {"type": "text", "text"} and {"type": "image", "image": NAME}. Names count from `images` (folder, tar, zip).
    """
    name = source or re.sub(r"\W+", "-", Path(file).name.split(".")[0]).strip("-") or "jsonl"
    files = None if images is None else Files(images)

    def item(number: int, line: dict | None) -> Item:
        shown = _shown(line)

        def make(rng) -> Made:
            if line is None:
                raise ValueError("not a JSON object")
            pictures = _Pictures(files, _names(line.get("images", line.get("image"))), longest)
            try:
                return {"source": name, **_record(line, pictures)}, pictures.done()
            except (ValueError, OSError) as error:
                raise ValueError(f"line {number}: {error}" if shown else str(error)) from error

        # The split goes by the picture, so that no picture is on both sides.
        return Item(f"{name}/{shown or f'line {number}'}", make)

    items = [item(number, line) for number, line in read_jsonl(file)]
    return import_items(
        out_dir, "jsonl", items, count, seed, workers, split=split, progress=progress, problems=problems, per_shard=5000
    )


def _shown(line: dict | None) -> str:
    """The name of a line's first picture, "" for none."""
    line = line or {}
    contents = [m.get("content") for m in line.get("messages") or [] if isinstance(m, dict)] + [line.get("content")]
    parts = [part for content in contents if isinstance(content, list) for part in content if isinstance(part, dict)]
    named = [str(part.get("image", part.get("file"))) for part in parts if part.get("type") == "image"]
    return next(iter(_names(line.get("images", line.get("image"))) + named), "")


def _record(line: dict, pictures: _Pictures) -> dict:
    if "chosen" in line or "rejected" in line:
        prompt = line.get("messages") or [{"role": "user", "content": line.get("prompt")}]
        answers = {name: pictures.content(line.get(name)) for name in ("chosen", "rejected")}
        return {"kind": "preference", "messages": _messages(prompt, pictures), **answers}
    if "messages" in line:
        messages = _messages(line["messages"], pictures)
        return {"kind": _kind(messages), "messages": messages}
    if "content" in line:
        return {"kind": "interleaved", "content": pictures.content(line["content"])}
    return {"kind": "text", "text": line.get("text")}


def _messages(messages, pictures: _Pictures) -> list[dict]:
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise ValueError("its messages are not a list of objects")
    return [{"role": m.get("role"), "content": pictures.content(m.get("content"))} for m in messages]


def import_text_files(
    out_dir: str | Path,
    count: int = 0,
    seed: int = 0,
    workers: int = 0,
    *,
    files: str | Path,
    source: str = "text-files",
    longest: int = 16_000,
    split: str = "all",
    problems: list[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Plain UTF-8 text: a file, or every .txt and .md in a folder (with all below it), as documents.

    A file of over `longest` characters becomes several documents, cut at blank lines (or else at line ends).
    """
    path = Path(files)
    if not path.exists():
        raise FileNotFoundError(f"no file or folder at {path}")
    found = sorted(p for p in path.rglob("*") if p.suffix in (".txt", ".md")) if path.is_dir() else [path]
    documents, bad = [], []
    for each in found:
        name = each.relative_to(path).as_posix() if path.is_dir() else each.name
        try:
            documents += [(f"{name}/{n}", text) for n, text in enumerate(_cut(read_text(each), longest))]
        except ValueError as error:
            if problems is None:
                raise
            bad.append(str(error))
    if problems is not None:
        problems += bad
    random.Random(seed).shuffle(documents)
    items = [
        Item(key, lambda rng, key=key, text=text: ({"source": source, "kind": "text", "text": text,
                                                    "meta": {"from": key}}, {}))
        for key, text in documents
    ]  # fmt: skip
    return import_items(
        out_dir, "text-files", items, count, seed, workers, split=split, progress=progress, problems=problems,
        per_shard=5000,
    )  # fmt: skip


def _cut(text: str, longest: int) -> list[str]:
    if len(text.strip()) <= longest:
        return [text.strip()] if text.strip() else []
    pieces, current = [], ""
    for block in re.split(r"(\n\s*\n)", text):
        for line in block.splitlines(keepends=True) if len(block) > longest else [block]:
            if current and len(current) + len(line) > longest:
                pieces.append(current.strip())
                current = ""
            current += line
    return [piece for piece in [*pieces, current.strip()] if piece]
