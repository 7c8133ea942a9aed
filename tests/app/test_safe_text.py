"""Text of a model on its way to a terminal or a browser."""

import re
from html.parser import HTMLParser

from hypothesis import given, settings
from hypothesis import strategies as st

from mmvl.app.safe_text import for_browser, for_terminal

HARMLESS = {"p", "em", "strong", "code", "pre", "ul", "ol", "li", "br", "hr", "blockquote", "s", "table", "thead"}
HARMLESS |= {"tbody", "tr", "th", "td", "h1", "h2", "h3", "h4", "h5", "h6"}
SIGNS = ["!", "[", "]", "(", ")", "<", ">", "\\", "`", "```", "&", "&lt;", "&#91;", ":", "/", "*", "|", "~~", "\x00"]
WORDS = [" ", "\n", "\n\n", "x", "http://a.b/c.png", "//a.b/c.png", "www.a.b", "img src=", "a href=", "<!--", "-->"]
WORDS += ["<img src=http://a.b>", "[1]: http://a.b\n", "<http://a.b>", "javascript:alert(1)", "<script>", "</div>"]
TEXTS = st.lists(st.sampled_from([*SIGNS, *WORDS]), max_size=30).map("".join)


class Tags(HTMLParser):
    def __init__(self, html: str):
        super().__init__()
        self.found: list[tuple[str, dict]] = []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))


@settings(deadline=None)  # the machine may be busy
@given(TEXTS)
def test_markdown_of_a_model_is_text_and_nothing_else(text):
    for tag, attributes in Tags(for_browser(text)).found:
        assert tag in HARMLESS
        assert set(attributes) <= {"class", "style", "start"}
        assert re.fullmatch(r"text-align:(left|right|center)", attributes.get("style", "text-align:left"))


def test_what_it_looks_like():
    assert for_browser("a **bold** `word`").strip() == "<p>a <strong>bold</strong> <code>word</code></p>"
    assert for_browser("![x](http://a.b/c.png)").strip() == "<p>![x](http://a.b/c.png)</p>"
    assert "<table>" in for_browser("|a|b|\n|-|-|\n|1|2|")


def test_a_terminal_gets_no_control_characters():
    assert for_terminal("red \x1b[31malert\x07\x9b0m\r\nnext\tline ü 🙂") == "red [31malert0m\nnext\tline ü 🙂"
