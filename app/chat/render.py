"""A conversation as HTML. What a visitor or a model wrote is escaped: it makes a browser fetch and run nothing."""

from collections.abc import Callable
from html import escape

from mmvl.app.about import timings
from mmvl.app.chat.attachments import Opened, page_ranges
from mmvl.app.chat.conversation import Attachment, Conversation, Turn
from mmvl.app.chat.seen import SeenImage, Tile
from mmvl.app.safe_text import for_browser, for_terminal

Previews = Callable[[Attachment], list[Opened] | None]


def turn_html(talk: Conversation, turn: Turn, previews: Previews, status: str = "") -> str:
    """One turn: its question with files, its answer, and what can be done with them.

    previews: an attachment -> its pictures, None while they are not opened. status: what goes on, while it is answered.
    """
    disabled = " disabled" if talk.busy else ""
    number = len(talk.path(turn.id))
    files = "".join(_file(file, previews(file)) for file in turn.files)
    question = f'<p class="question">{escape(for_terminal(turn.question))}</p>'
    return (
        f'<article class="turn" aria-label="Turn {number}"><section class="user" aria-label="You">'
        f"{f'<ul class=files>{files}</ul>' if files else ''}{question}"
        f'<div class="do">{_versions(talk, turn, disabled)}'
        f"{_button('edit', turn.id, 'Edit', f'Edit question {number} and its files', disabled)}</div></section>"
        f'<section class="model" aria-label="Answer">{_answer(turn, status)}'
        f'<div class="do">{_button("copy", turn.id, "Copy", f"Copy answer {number}")}'
        f"{_button('again', turn.id, 'Regenerate', f'Regenerate answer {number}', disabled)}"
        f"{_seen_button(turn, number, disabled)}</div></section></article>"
    )


def turns_html(talk: Conversation, turns: list[Turn], previews: Previews) -> str:
    return "".join(turn_html(talk, turn, previews) for turn in turns)


def _answer(turn: Turn, status: str) -> str:
    parts = [f'<div class="answer">{for_browser(turn.answer)}</div>']
    if turn.error:
        parts.append(f'<p class="error" role="alert">⚠ {escape(for_terminal(turn.error))}</p>')
    if status:
        parts.append(f'<p class="status">{escape(status)}</p>')
    elif turn.numbers is not None:
        parts.append(f'<p class="note">{escape(timings(turn.numbers))}</p>')
    elif not turn.answer and not turn.error:
        parts.append('<p class="note">Stopped before the first word.</p>')
    return "".join(parts)


def _file(file: Attachment, opened: list[Opened] | None) -> str:
    name = escape(for_terminal(file.name))
    pictures = "".join(f'<img src="{picture.preview}" alt="{escape(picture.name)}">' for picture in opened or ())
    pages = f", pages {page_ranges(file.pages)}" if file.pages else ""
    return f"<li><div>{pictures}</div><span>{name}{pages}</span></li>"


def _versions(talk: Conversation, turn: Turn, disabled: str) -> str:
    """How to get to the siblings of a turn."""
    siblings = talk.siblings(turn)
    if len(siblings) == 1:
        return ""
    at = siblings.index(turn)

    def to(place: int, sign: str, label: str) -> str:
        there = 0 <= place < len(siblings)
        return _button("show", siblings[place].id if there else "", sign, label, disabled if there else " disabled")

    before, after = to(at - 1, "‹", "Previous version"), to(at + 1, "›", "Next version")
    return f'<span class="versions">{before}<span>{at + 1} / {len(siblings)}</span>{after}</span>'


def _seen_button(turn: Turn, number: int, disabled: str) -> str:
    return _button("seen", turn.id, "What the model saw", f"What the model saw in turn {number}", disabled)


def _button(do: str, turn_id: str, text: str, label: str, disabled: str = "") -> str:
    return (
        f'<button type="button" data-do="{do}" data-turn="{turn_id}" aria-label="{escape(label)}"{disabled}>'
        f"{text}</button>"
    )


def seen_html(images: list[SeenImage], prompt_tokens: int, cached_tokens: int) -> str:
    """What the model saw: each picture's thumbnail and tiles with the tokens that they became."""
    pictures = sum(image.tokens for image in images)
    text = prompt_tokens - pictures
    return (
        f'<p class="total"><b>{prompt_tokens:,} tokens</b> were read: {pictures:,} of pictures, {text:,} of text; '
        f"{cached_tokens:,} of them were in the cache.</p>" + "".join(map(_seen, images))
    )


def _seen(image: SeenImage) -> str:
    (width, height), (canvas_width, canvas_height) = image.size, image.grid
    tiles = "".join(
        _tile(tile, f"Tile {row + 1}, {column + 1}")
        for row, tiles in enumerate(image.rows)
        for column, tile in enumerate(tiles)
    )
    return (
        f'<section class="seen"><h3>{escape(for_terminal(image.name))}</h3>'
        f"<p>Taken as {width} × {height} pixels, on a canvas of {canvas_width} × {canvas_height}: "
        f"{image.tokens:,} tokens, {image.newlines} of them ends of rows. {_cached(image.cached, image.tokens)}</p>"
        f'<div class="thumbnail">{_tile(image.thumbnail, "Thumbnail")}</div>'
        f'<div class="tiles" style="--across: {len(image.rows[0])}">{tiles}</div></section>'
    )


def _tile(tile: Tile, name: str) -> str:
    kept = "all" if tile.cached == tile.tokens else "part" if tile.cached else "none"
    tokens = "1 token" if tile.tokens == 1 else f"{tile.tokens:,} tokens"
    if not tile.tokens:
        kept, tokens = "empty", "no tokens: only border"
    words = {"all": ", cached", "part": f", {tile.cached:,} cached", "none": "", "empty": ""}[kept]
    return (
        f'<figure class="tile {kept}"><img src="{tile.picture}" alt="{name}">'
        f"<figcaption>{name}: {tokens}{words}</figcaption></figure>"
    )


def _cached(cached: int, tokens: int) -> str:
    if cached == tokens:
        return "All were cached."
    return f"{cached:,} were cached." if cached else "None was cached."
