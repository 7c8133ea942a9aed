"""The tree of turns: branches, what is shown, and what the model reads."""

from mmvl.app.chat.conversation import Attachment, Conversation

PICTURE = Attachment("/there/red.png", "red.png", "0" * 64)


def answered(talk: Conversation, *questions: str) -> list:
    turns = []
    for question in questions:
        turn = talk.ask(question)
        turn.answer = f"answer to {question}"
        turns.append(turn)
    return turns


def shown(talk: Conversation) -> list[str]:
    return [turn.question for turn in talk.path()]


def test_turns_follow_each_other():
    talk = Conversation()
    answered(talk, "one", "two", "three")
    assert shown(talk) == ["one", "two", "three"]
    assert talk.title == "one"


def test_an_edited_question_begins_a_branch_and_the_old_one_stays():
    talk = Conversation()
    one, two, three = answered(talk, "one", "two", "three")
    talk.editing = two.id
    changed = talk.ask("two, changed", [PICTURE])
    assert shown(talk) == ["one", "two, changed"]
    assert talk.editing is None
    assert talk.siblings(changed) == [two, changed]
    talk.show(two.id)
    assert shown(talk) == ["one", "two", "three"]
    talk.show(changed.id)
    assert shown(talk) == ["one", "two, changed"]
    assert talk.siblings(one) == [one]


def test_the_first_question_can_be_edited():
    talk = Conversation()
    (one,) = answered(talk, "one")
    talk.editing = one.id
    talk.ask("other")
    assert shown(talk) == ["other"]
    assert len(talk.siblings(talk.path()[0])) == 2


def test_asking_again_keeps_question_and_files_and_every_answer():
    talk = Conversation()
    first = talk.ask("what?", [PICTURE])
    first.answer = "a cat"
    second = talk.again(first.id)
    assert (second.question, second.files, second.answer, second.parent) == ("what?", (PICTURE,), "", None)
    assert talk.head == second.id and first.answer == "a cat"


def test_going_back_shows_the_leaf_that_was_seen_last():
    talk = Conversation()
    one, two, three = answered(talk, "one", "two", "three")
    talk.editing = three.id
    answered(talk, "three, changed")
    talk.editing = one.id
    answered(talk, "one, changed")
    talk.show(one.id)
    assert shown(talk) == ["one", "two", "three, changed"]
    talk.show(three.id)
    talk.show(one.id)
    assert shown(talk) == ["one", "two", "three"]


def test_the_model_reads_the_path_its_pictures_and_the_system_prompt():
    talk = Conversation(system="Be brief.")
    first = talk.ask("what?", [PICTURE])
    first.answer = "A *red* <thing>."
    second = talk.ask("sure?")
    messages = talk.messages(second, lambda file: [file.name])
    assert messages == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "image", "image": "red.png"}, {"type": "text", "text": "what?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "A *red* <thing>."}]},
        {"role": "user", "content": [{"type": "text", "text": "sure?"}]},
    ]
    assert talk.messages(first, lambda file: [file.name]) == messages[:2]


def test_turns_that_failed_or_never_began_are_not_read():
    talk = Conversation()
    talk.ask("broken").error = "no such file"
    talk.ask("stopped before a word")
    last = talk.ask("now?")
    assert [message["content"][-1]["text"] for message in talk.messages(last, lambda file: [])] == ["now?"]


def test_titles_are_short_and_never_empty():
    talk = Conversation()
    assert talk.title == "Empty"
    talk.ask("x" * 200)
    assert len(talk.title) == 60
