"""A sample's JSON: turns of a user and answers, with the picture in the first turn."""

from collections.abc import Sequence

# A sample: its JSON, and its files by name.
Made = tuple[dict, dict[str, bytes]]


def user(text: str, file: str | None = None) -> dict:
    """A user's turn, the picture first where there is one."""
    picture = [{"type": "image", "file": file}] if file else []
    return {"role": "user", "content": [*picture, {"type": "text", "text": text}]}


def assistant(text: str) -> dict:
    """An answer."""
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


def asked(source: str, shown: tuple[str, bytes], turns: Sequence[tuple[str, str]], kind: str = "", **meta) -> Made:
    """A sample of one picture (extension, bytes) and questions with answers about it.

    kind: by default vqa, or conversation if there are several turns. Raises ValueError where there is none.
    """
    if not turns:
        raise ValueError("no question with an answer")
    extension, data = shown
    file = f"0.{extension}"
    messages = []
    for number, (question, answer) in enumerate(turns):
        messages += [user(question, None if number else file), assistant(answer)]
    kind = kind or ("vqa" if len(turns) == 1 else "conversation")
    return {"source": source, "kind": kind, "messages": messages, "meta": meta}, {file: data}
