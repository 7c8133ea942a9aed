"""Questions about texts without a picture: every answer is what the text says, and what it does not say is refused."""

import random
import re

import pytest

from mmvl.data import import_text_questions as importer
from mmvl.data import text_facts
from mmvl.data.conversation import CANNOT_SEE
from mmvl.data.corpus import Phrases
from mmvl.data.import_text_questions import NOT_IN_TEXT, import_text_questions, prose
from mmvl.data.shards import parts_of, read_shard
from mmvl.data.text_facts import attribute_fact, person_fact
from mmvl.data.text_forms import labelled_lines, listing, table
from mmvl.evaluation import task_needle
from mmvl.evaluation.answers import is_refusal


@pytest.fixture(scope="module")
def phrases(corpus):
    return Phrases(corpus)


def made(out, corpus, count=120, seed=3, **settings):
    paths = import_text_questions(out, count, seed, 1, corpus=corpus, **settings)
    return paths, [sample for path in paths for sample in read_shard(path)]


def turns_of(sample):
    texts = [part["text"] for part in parts_of(sample.json)]
    return list(zip(texts[::2], texts[1::2], strict=True))


def test_conversations_without_pictures_whose_first_turn_holds_the_text(corpus, tmp_path):
    paths, samples = made(tmp_path / "out", corpus)
    kinds = {s.json["source"].partition("/")[2] for s in samples}
    assert kinds == {"prose", "labelled_lines", "listing", "table"}
    answers = []
    for sample in samples:
        assert sample.json["kind"] == "conversation" and not sample.members
        assert [m["role"] for m in sample.json["messages"]] == ["user", "assistant"] * len(turns_of(sample))
        (first, _), *later = turns = turns_of(sample)
        assert len(first) >= sample.json["meta"]["characters"] and all(len(q) < 120 for q, _ in later)
        assert 1 <= len(turns) <= 8 and len({q for q, _ in turns}) == len(turns)
        answers += [(first, answer) for _, answer in turns]
    said = [answer in text for text, answer in answers if answer != NOT_IN_TEXT and not answer.isdigit()]
    assert all(said) and len(said) > 200
    assert 0.05 < sum(answer == NOT_IN_TEXT for _, answer in answers) / len(answers) < 0.3
    again, _ = made(tmp_path / "again", corpus)
    assert [p.read_bytes() for p in again] == [p.read_bytes() for p in paths]
    other, _ = made(tmp_path / "other", corpus, seed=4)
    assert [p.read_bytes() for p in other] != [p.read_bytes() for p in paths]


def test_prose_is_as_long_as_it_is_to_be_and_its_facts_lie_anywhere(corpus, tmp_path):
    _, samples = made(tmp_path / "out", corpus, forms=0, shortest=100, longest=3000)
    sizes = [s.json["meta"]["characters"] for s in samples]
    assert min(sizes) < 250 and 2000 < max(sizes) < 4000
    places = []
    for sample in samples:
        (first, _), *_ = turns = turns_of(sample)
        places += [first.index(answer) / len(first) for _, answer in turns if answer != NOT_IN_TEXT]
    assert min(places) < 0.2 and max(places) > 0.8
    assert not any(
        word in s.json["messages"][0]["content"][0]["text"] for s in samples for word in ("unseena", "unseenb")
    )


def test_a_fact_answers_its_questions(phrases):
    rng = random.Random(2)
    for _ in range(400):
        for fact in (attribute_fact(rng, phrases), person_fact(rng, phrases)):
            assert fact.pairs and fact.sentence[-1] == "." and ".." not in fact.sentence
            for question, answer in fact.pairs:
                assert answer in fact.sentence and "{" not in question + fact.sentence


def test_facts_of_a_text_cannot_be_taken_for_one_another(phrases):
    rng = random.Random(5)
    vain = 0
    for _ in range(150):
        form = prose(rng, phrases, 600, 6)
        questions = [question for question, _ in form.pairs]
        assert len(set(questions)) == len(questions)
        assert all(form.text.count(answer) == 1 and answer not in question for question, answer in form.pairs)
        assert not set(form.absent) & set(questions)
        vain += len(form.absent)
    assert vain > 300
    lamp = text_facts.Fact("", [], "serial number of old lamp")
    assert importer._told("number", "lamp", [lamp]) and importer._told("serial number", "old lamp", [lamp])
    assert not importer._told("price", "lamp", [lamp]) and not importer._told("number", "tower", [lamp])


def test_what_somebody_paid_for_is_not_asked_about_in_vain(phrases, monkeypatch):
    """Of two things alone, so that the same one is often in a sentence about people and in a question."""
    monkeypatch.setattr(text_facts, "THINGS", ["lamp", "tower"])
    paid = 0
    for seed in range(200):
        form = prose(random.Random(seed), phrases, 400, 5)
        for thing in re.findall(r"(?:paid \S+(?: \S+)? for|sold|The) the [\w ]*?(lamp|tower)", form.text):
            paid += 1
            assert not [question for question in form.absent if thing in question], form.text
    assert paid > 20


def test_forms_lists_and_tables(phrases):
    rng = random.Random(3)
    for _ in range(200):
        form = labelled_lines(rng, phrases)
        lines = form.text.splitlines()
        for question, answer in form.pairs:
            if asked := re.fullmatch(r"(?:What is the|Which|What) (.+?)(?: is given| is stated)?\?", question):
                rows = [line for line in lines if line.lstrip("-* ").lower().startswith(asked[1] + ":")]
                assert not rows or any(answer in row for row in rows)
        for question in form.absent:
            label = re.sub(r"^(What is written for|What is the|Which|What) | is given| is stated|[?\"]", "", question)
            assert not any(re.match(rf"[-* ]*{re.escape(label)}\b[.:]", line, re.IGNORECASE) for line in lines)
        items = listing(rng, phrases)
        names = [re.sub(r"^([-*]|\d+[.)]) ", "", line) for line in items.text.splitlines()]
        ordinals = {q: a for q, a in items.pairs if q.startswith("What is the last")}
        assert list(ordinals.values()) == [names[-1]]
        assert all(names[names.index(q[17:-1]) + 1] == a for q, a in items.pairs if q.startswith("What comes after"))
        grid = table(rng, phrases)
        rows = [re.split(r" ?[|,;\t] ?", line.strip("| ")) for line in grid.text.splitlines() if "---" not in line]
        head, body = [word.lower() for word in rows[0]], {row[0]: row for row in rows[1:]}
        for question, answer in grid.pairs:
            if asked := re.fullmatch(r"What is the (\w+) of (\w+)\?", question):
                assert body[asked[2]][head.index(asked[1])] == answer
            elif asked := re.fullmatch(r"Which \w+ has the (\w+) (.+)\?", question):
                assert [n for n, row in body.items() if row[head.index(asked[1])] == asked[2]] == [answer]
        for question in grid.absent:
            column, name = re.fullmatch(r"What is the (\w+) of (\w+)\?", question).groups()
            assert column not in head or name not in body


def test_neither_the_needles_words_nor_the_refusal_of_pictures(corpus, tmp_path):
    assert not set(task_needle._WORDS) & set(text_facts.THINGS)
    assert NOT_IN_TEXT != CANNOT_SEE and "text" in NOT_IN_TEXT and is_refusal(NOT_IN_TEXT)
    _, samples = made(tmp_path / "out", corpus, 200, forms=0)
    text = "\n".join(part["text"] for s in samples for part in parts_of(s.json))
    assert not re.search(r"[Tt]he code of the|What is the code of", text) and "code" in text


def test_mistakes(corpus, tmp_path):
    for settings, message in (
        ({"shortest": 0}, "shortest"),
        ({"shortest": 900, "longest": 300}, "in order"),
        ({"fewest_questions": 0}, "at least 1"),
        ({"unanswerable": 1.5}, "unanswerable is 1.5; it is a share"),
    ):
        with pytest.raises(ValueError, match=message):
            import_text_questions(tmp_path / "out", 1, corpus=corpus, **settings)
    with pytest.raises(FileNotFoundError, match="no corpus files"):
        import_text_questions(tmp_path / "out", 1, corpus=tmp_path)
