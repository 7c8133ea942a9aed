"""Text of a model on its way to a terminal or a browser."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from mmvl.app.safe_text import for_browser, for_terminal

# As lenient as a browser's Markdown gets: HTML passes, bare addresses become links, tables are on.
MARKDOWN = MarkdownIt("commonmark", {"html": True}).enable("table")
SIGNS = ["!", "[", "]", "(", ")", "<", ">", "\\", "`", "```", "&", "&lt;", "&#91;", ":", "/", "*", "|"]
WORDS = [" ", "\n", "\n\n", "x", "http://a.b/c.png", "//a.b/c.png", "www.a.b", "img src=", "a href=", "<img src=http://a.b>"]
PIECES = st.sampled_from([*SIGNS, *WORDS, "[1]: http://a.b\n"])


@given(st.lists(PIECES, max_size=30).map("".join))
def test_markdown_of_it_has_no_image_no_link_and_no_html(text):
    html = MARKDOWN.render(for_browser(text))
    assert not re.search(r"<(img|a|script|iframe|svg|style|link)\b", html), html
    assert not re.search(r"https?://|www\.", for_browser(text)), "a bare address would become a link"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a **bold** `word`", "<p>a <strong>bold</strong> <code>word</code></p>"),
        ("![x](http://a.b/c.png)", "<p>![x](http:\u200b//a.b/c.png)</p>"),
        ("1 < 2 & 3", "<p>1 &lt; 2 &amp; 3</p>"),
        ("- one\n- two", "<ul>\n<li>one</li>\n<li>two</li>\n</ul>"),
    ],
)
def test_what_it_looks_like(text, shown):
    assert MARKDOWN.render(for_browser(text)).strip() == shown


def test_a_terminal_gets_no_control_characters():
    assert for_terminal("red \x1b[31malert\x07\x9b0m\r\nnext\tline ü 🙂") == "red [31malert0m\nnext\tline ü 🙂"
