"""Streaming text: whole characters, stop strings held back, and the same text as decoding everything at the end."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from mmvl.engine.text_stream import TextStream, TokenBytes


@pytest.fixture(scope="module")
def token_bytes(tiny_tokenizer):
    return TokenBytes(tiny_tokenizer)


@pytest.fixture(scope="module")
def single_bytes(tiny_tokenizer, token_bytes):
    """Text -> ids, one token a byte: the worst case for character boundaries."""
    id_of = {token_bytes[i]: i for i in range(tiny_tokenizer.get_vocab_size())}
    return lambda text: [id_of[bytes([byte])] for byte in text.encode()]


def pieces(stream: TextStream, ids) -> list[str]:
    out = []
    for token in ids:
        out.append(stream.push(token))
        if stream.stopped:
            break
    return [*out, stream.finish()]


def test_characters_of_several_tokens_come_whole(token_bytes, single_bytes):
    text = "naïve 日本 🙂!"
    got = pieces(TextStream(token_bytes), single_bytes(text))
    assert "".join(got) == text
    assert not any("\ufffd" in piece for piece in got)


def test_an_unfinished_last_character_is_left_out(token_bytes, single_bytes):
    ids = single_bytes("ok 🙂")[:-1]
    assert "".join(pieces(TextStream(token_bytes), ids)) == "ok "


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 10_000), max_size=40), st.text(max_size=20))
def test_the_pieces_are_the_decoded_text(tiny_tokenizer, token_bytes, raw, text):
    ids = [i % tiny_tokenizer.get_vocab_size() for i in raw] + tiny_tokenizer.encode(text).ids
    whole = tiny_tokenizer.decode(ids, skip_special_tokens=True)
    streamed = "".join(pieces(TextStream(token_bytes), ids))
    # The tokenizer shows an unfinished last character as one replacement character; the stream leaves it out.
    assert whole in (streamed, streamed + "\ufffd")


def test_special_tokens_give_no_text(tiny_tokenizer, token_bytes):
    ids = [tiny_tokenizer.token_to_id("<end_of_document>"), *tiny_tokenizer.encode("a").ids]
    assert pieces(TextStream(token_bytes), ids) == ["", "a", ""]


def test_text_that_may_become_a_stop_string_is_held_back(token_bytes, single_bytes):
    ids = single_bytes("say STOP or STEP now")
    stream = TextStream(token_bytes, stop=["STEP"])
    got = pieces(stream, ids)
    assert stream.stopped
    assert "".join(got) == "say STOP or "
    assert got[:8] == ["s", "a", "y", " ", "", "", "STO", "P"]


def test_held_text_comes_out_at_the_end(token_bytes, single_bytes):
    got = pieces(TextStream(token_bytes, stop=["###"]), single_bytes("a##"))
    assert got == ["a", "", "", "##"]


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="abä", max_size=20), st.lists(st.text(alphabet="abä", min_size=1, max_size=4), max_size=3))
def test_nothing_of_a_stop_string_is_ever_shown(token_bytes, single_bytes, text, stop):
    stream = TextStream(token_bytes, stop)
    got = "".join(pieces(stream, single_bytes(text)))
    ends = [text.find(s) + len(s) for s in stop if s in text]
    assert stream.stopped == bool(ends)
    assert text.startswith(got)
    if not ends:
        assert got == text
    else:
        # It ends where the first stop string to be complete begins.
        first_complete = text[: min(ends)]
        assert got == first_complete[: min(first_complete.find(s) for s in stop if s in first_complete)]


def test_other_kinds_of_tokenizer_are_refused():
    with pytest.raises(ValueError, match="byte-level"):
        TokenBytes(Tokenizer(models.WordPiece({"[UNK]": 0}, unk_token="[UNK]")))
