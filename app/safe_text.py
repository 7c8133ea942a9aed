"""Makes text that we did not write safe to show: a model may repeat what is written inside a hostile picture."""

import re

# C0 and C1 controls except tab and newline: a terminal would obey them (colours, title, clipboard).
_CONTROLS = {code: None for code in (*range(0x00, 0x09), *range(0x0B, 0x20), 0x7F, *range(0x80, 0xA0))}
_HTML = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


def for_terminal(text: str) -> str:
    """`text` without control characters."""
    return text.translate(_CONTROLS)


def for_browser(text: str) -> str:
    """`text` as Markdown that shows no image, no link and no HTML: the browser fetches nothing because of it.

    A remote image would leak the conversation through its address. Emphasis, lists, tables and code still work.
    """
    text = re.sub(r"[&<>]", lambda match: _HTML[match.group()], for_terminal(text))
    # An already escaped bracket stays as it is; every other one is escaped, so neither ![..](..) nor [..](..) forms.
    text = re.sub(r"(\\*)([\[\]])", lambda m: m.group(1) + ("" if len(m.group(1)) % 2 else "\\") + m.group(2), text)
    # Bare addresses would become links: an invisible zero-width space inside them stops that.
    return re.sub(r"(?i)(:)(//)|(www)(\.)", lambda m: "\u200b".join(part for part in m.groups() if part), text)
