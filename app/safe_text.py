"""Makes text that we did not write safe to show: a model may repeat what is written inside a hostile picture."""

from functools import cache

# C0 and C1 controls except tab and newline: a terminal would obey them (colours, title, clipboard).
_CONTROLS = {code: None for code in (*range(0x00, 0x09), *range(0x0B, 0x20), 0x7F, *range(0x80, 0xA0))}


def for_terminal(text: str) -> str:
    """`text` without control characters."""
    return text.translate(_CONTROLS)


def for_browser(text: str) -> str:
    """HTML of `text`, which is Markdown: no image, no link and none of its own HTML, whose source is shown instead.

    A remote image would leak the conversation through its address. Emphasis, lists, tables and code work.
    """
    return _markdown().render(for_terminal(text))


@cache
def _markdown():
    from markdown_it import MarkdownIt

    plain = MarkdownIt("commonmark", {"html": False, "linkify": False, "breaks": True})
    plain.disable(["link", "image", "autolink", "reference", "html_block", "html_inline"])
    return plain.enable(["table", "strikethrough"])
