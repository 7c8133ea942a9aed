"""A conversation as HTML: whatever was written, no element of it can fetch, link or run anything."""

from html.parser import HTMLParser

from hypothesis import given, settings
from hypothesis import strategies as st

from mmvl.app.chat.conversation import Attachment, Conversation
from mmvl.app.chat.render import turn_html

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
@given(TEXTS, TEXTS, TEXTS, TEXTS)
def test_a_turn_shows_what_was_written_and_makes_nothing_of_it(question, answer, error, name):
    talk = Conversation()
    turn = talk.ask(question, [Attachment("/x", name, "0" * 64)])
    turn.answer, turn.error = answer, error
    plain = Conversation()
    empty = plain.ask("x", [Attachment("/x", "x", "0" * 64)])
    empty.error = "x"
    expected = [tag for tag, _ in Tags(turn_html(plain, empty, lambda file: None)).found]
    ours = [(tag, found) for tag, found in Tags(turn_html(talk, turn, lambda file: None)).found if tag not in HARMLESS]
    allowed = [tag for tag in expected if tag not in HARMLESS]
    assert [tag for tag, _ in ours] == allowed
    assert not any(key in ("src", "href", "srcset") or key.startswith("on") for _, found in ours for key in found)


def test_versions_of_a_turn_can_be_reached_by_name():
    talk = Conversation()
    first = talk.ask("one")
    assert "versions" not in turn_html(talk, first, lambda file: None)
    second = talk.again(first.id)
    html = turn_html(talk, second, lambda file: None)
    assert "2 / 2" in html and f'data-turn="{first.id}" aria-label="Previous version"' in html
    assert 'aria-label="Next version" disabled' in html
