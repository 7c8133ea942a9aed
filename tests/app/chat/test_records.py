"""Conversations as JSON and Markdown, out and in again; and what must not come in."""

import base64
import hashlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmvl.app.chat.conversation import Attachment, Conversation
from mmvl.app.chat.record import conversation_of, read_record, record_of, to_json, unpack
from mmvl.app.chat.transcript import from_markdown, to_markdown
from mmvl.vlm import Answer

NUMBERS = Answer("a cat", "stop", 20, 12, 3, 0.5, 0.25, 4)


@pytest.fixture
def talk(tmp_path, picture_folder):
    """Two branches, a picture, a PDF of which one page was chosen, and a system prompt."""
    made = Conversation(system="Be brief.\n")
    first = made.ask("what?", [attached(picture_folder / "red.png"), attached(picture_folder / "two.pdf", (2,))])
    first.answer, first.numbers = "a cat", NUMBERS
    made.ask("sure?").answer = "yes"
    made.editing = first.id
    made.ask("what else?").error = "no"
    made.show(first.id)
    return made


def attached(path, pages=()) -> Attachment:
    return Attachment(str(path), path.name, hashlib.sha256(path.read_bytes()).hexdigest(), pages)


@pytest.fixture
def store(tmp_path):
    def put(data: bytes, name: str) -> str:
        folder = tmp_path / hashlib.sha256(data).hexdigest()
        folder.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
        return str(folder / name)

    return put


def without_paths(talk: Conversation) -> list:
    return [
        (turn.id, turn.parent, turn.question, turn.answer, turn.error, turn.numbers)
        + tuple((file.name, file.digest, file.pages) for file in turn.files)
        for turn in talk.turns.values()
    ]


def test_json_holds_everything_and_comes_back(talk, store):
    text = to_json(talk)
    record = read_record(text)
    back = conversation_of(record, unpack(record, store))
    assert without_paths(back) == without_paths(talk)
    assert (back.id, back.head, back.system, back.title) == (talk.id, talk.head, talk.system, talk.title)
    assert "/red.png" not in text, "where the server keeps files is nobody's business"


def test_the_history_keeps_the_same_without_the_files(talk):
    record = record_of(talk)
    assert record.data == {}
    back = conversation_of(read_record(record.model_dump(mode="json")), lambda file: "somewhere")
    assert without_paths(back) == without_paths(talk)


def test_markdown_holds_the_shown_turns_and_comes_back(talk, store):
    def attach(data: bytes, name: str, pages: str | None) -> Attachment:
        return Attachment(store(data, name), name, hashlib.sha256(data).hexdigest(), (2,) if pages == "2" else ())

    text = to_markdown(talk)
    assert "## You\n\n![red.png](data:image/png;base64," in text and "[two.pdf](data:application/pdf;base64," in text
    back = from_markdown(text, attach)
    assert back.system == talk.system
    told = [
        [(turn.question, turn.answer, turn.files and turn.files[1].pages) for turn in t.path()] for t in (talk, back)
    ]
    assert told[0] == told[1] == [("what?", "a cat", (2,)), ("sure?", "yes", ())]
    assert [file.digest for file in back.path()[0].files] == [file.digest for file in talk.path()[0].files]


LINES = st.sampled_from(
    ["<!-- mmvl:user -->", "\\<!-- mmvl:model -->", "## You", "", "text", "![x](data:image/png;base64,AA==)"]
)


@settings(deadline=None)  # the machine may be busy
@given(st.lists(st.tuples(*[st.lists(LINES, min_size=1, max_size=4).map("\n".join)] * 2), min_size=1, max_size=3))
def test_markdown_takes_any_words(said):
    talk = Conversation()
    for question, answer in said:
        talk.ask(question).answer = answer
    back = from_markdown(to_markdown(talk), None)
    assert [(turn.question, turn.answer) for turn in back.path()] == said


def broken(talk, change) -> str:
    record = json.loads(to_json(talk))
    change(record)
    return json.dumps(record)


@pytest.mark.parametrize(
    "change",
    [
        lambda record: record.update(format="other"),
        lambda record: record.update(version=2),
        lambda record: record.update(more=1),
        lambda record: record.update(id="../../x"),
        lambda record: record["turns"][1].update(parent="f" * 32),
        lambda record: record["turns"].reverse(),
        lambda record: record["turns"][1].update(id=record["turns"][0]["id"]),
        lambda record: record.update(head=None),
        lambda record: record["turns"][0].update(question="x" * 1_000_001),
        lambda record: record["turns"][0]["numbers"].update(finish_reason="why not"),
        lambda record: record["turns"][0]["numbers"].update(prefill_seconds=float("nan")),
        lambda record: record["turns"][0]["files"][0].update(name="../../evil.png"),
        lambda record: record["turns"][0]["files"][0].update(name="page.html"),
        lambda record: record["turns"][0]["files"][0].update(digest="0" * 64),
        lambda record: record["data"].update(dict.fromkeys(record["data"], base64.b64encode(b"other").decode())),
        lambda record: record["data"].update(dict.fromkeys(record["data"], "not base64!")),
    ],
)
def test_what_is_wrong_is_one_clear_line(talk, store, change):
    with pytest.raises(ValueError) as refused:
        unpack(read_record(broken(talk, change)), store)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 300


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", "{", "[" * 100_000, '{"turns": 3}'])
def test_no_record_at_all(text):
    with pytest.raises(ValueError):
        read_record(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# hello",
        "<!-- mmvl:chat -->\n<!-- mmvl:model -->\n## Answer\n\nx",
        "<!-- mmvl:chat -->\n<!-- mmvl:user files=1 -->\n## You\n\nx",
        "<!-- mmvl:chat -->\n<!-- mmvl:user files=1 -->\n## You\n\n![../x.png](data:image/png;base64,AA==)\n\nx",
    ],
)
def test_no_transcript_at_all(text):
    with pytest.raises(ValueError, match="conversation|name"):
        from_markdown(text, None)
