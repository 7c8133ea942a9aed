"""What the chat page keeps of a conversation: what the model reads of it, and what a browser is shown."""

import pytest

from mmvl.app.conversation import Conversation, Turn


def test_the_model_reads_all_turns_and_the_last_is_open(picture_path):
    talk = Conversation([Turn([str(picture_path)], "What?", "A *red* <thing>."), Turn([], "Sure?")])
    first, answer, second = talk.messages()
    assert [part["type"] for part in first["content"]] == ["image", "text"]
    assert answer == {"role": "assistant", "content": [{"type": "text", "text": "A *red* <thing>."}]}
    assert second == {"role": "user", "content": [{"type": "text", "text": "Sure?"}]}


def test_a_turn_that_failed_is_shown_but_never_read(picture_path):
    talk = Conversation([Turn(["gone.png"], "What?", error="no such file: gone.png"), Turn([], "And now?")])
    assert [message["content"][-1]["text"] for message in talk.messages()] == ["And now?"]
    assert "no such file: gone.png" in str(talk.shown())


def test_pdfs_become_pages(picture_folder):
    (message,) = Conversation([Turn([str(picture_folder / "two.pdf")], "What?")]).messages()
    assert [part["type"] for part in message["content"]] == ["image", "image", "text"]


def test_nothing_shown_is_raw(picture_path):
    turn = Turn([str(picture_path)], "<b>why</b>", "![x](http://a.b/c.png) <img src=http://a.b>", note="3 tokens")
    file, question, answer = Conversation([turn]).shown()
    assert file["content"]["path"] == str(picture_path)
    assert question["content"] == "&lt;b&gt;why&lt;/b&gt;"
    assert answer["content"].startswith("!\\[x\\](http:\u200b//a.b/c.png) &lt;img")
    assert answer["content"].endswith("\n\n*3 tokens*")


def test_a_file_that_is_gone_is_an_error():
    with pytest.raises(FileNotFoundError):
        Conversation([Turn(["gone.png"], "What?")]).messages()
