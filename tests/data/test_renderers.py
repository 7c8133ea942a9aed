"""Renderers: exact ground truth, nothing clipped, reproducible, and the held-out never in training pictures."""

import io
import random
import shutil

import numpy as np
import pytest
from PIL import Image

from mmvl.data.corpus import Phrases
from mmvl.data.documents import invent, questions
from mmvl.data.parallel import write_shards
from mmvl.data.render_documents import render_documents
from mmvl.data.render_emoji import _RANGES, emoji_name, find_pictures, render_emoji
from mmvl.data.render_text_lines import make_text, render_text_lines
from mmvl.data.shards import read_shard

from .conftest import FONT_DIR


def samples(shards):
    return [sample for path in shards for sample in read_shard(path)]


def picture(sample) -> Image.Image:
    [data] = sample.members.values()
    return Image.open(io.BytesIO(data)).convert("RGB")


def answers(sample) -> list[str]:
    return [m["content"][0]["text"] for m in sample.json["messages"] if m["role"] == "assistant"]


def test_text_lines(tmp_path, fonts, corpus):
    done = []
    lines = samples(render_text_lines(tmp_path, 60, 3, 1, fonts=fonts, corpus=corpus,
                                      progress=lambda *numbers: done.append(numbers)))  # fmt: skip
    assert len(lines) == 60 and done == [(60, 60)]
    for line in lines:
        [text] = answers(line)
        assert 1 <= len(text) <= 45 and text == " ".join(text.split()) and "unseen" not in text.lower()
        assert line.json["meta"]["shows"] == "line"
        assert line.json["meta"]["font"] != "Lato Medium" and 12 <= line.json["meta"]["size"] <= 40
        image = picture(line)
        assert image.width <= 1000 and 8 <= image.height <= 250
    assert len({text for line in lines for text in answers(line)}) > 50


def test_held_out_lines_use_only_held_out_fonts_and_words(tmp_path, fonts, corpus):
    lines = samples(render_text_lines(tmp_path, 20, 3, 1, fonts=fonts, corpus=corpus, held_out=True, min_chars=12))
    assert {line.json["meta"]["font"] for line in lines} == {"Lato Medium"}
    assert any("unseen" in answers(line)[0] for line in lines)
    assert not any("brown" in answers(line)[0].lower() for line in lines)


def test_the_number_of_workers_changes_nothing(tmp_path, fonts, corpus, monkeypatch):
    def small(*given, per_shard, **named):
        return write_shards(*given, per_shard=8, **named)

    monkeypatch.setattr("mmvl.data.rendering.write_shards", small)
    one = render_text_lines(tmp_path / "1", 20, 9, 1, fonts=fonts, corpus=corpus)
    two = render_text_lines(tmp_path / "2", 20, 9, 2, fonts=fonts, corpus=corpus)
    assert len(one) == len(two) == 3
    assert [p.read_bytes() for p in one] == [p.read_bytes() for p in two]
    other = render_text_lines(tmp_path / "3", 20, 10, 1, fonts=fonts, corpus=corpus)
    assert answers(samples(one)[0]) != answers(samples(other)[0])


def test_no_ink_is_clipped_and_ink_stands_out(tmp_path, fonts, corpus):
    """On clean lines the border is paper all round, and some ink differs from it clearly."""
    lines = samples(render_text_lines(tmp_path, 40, 1, 1, fonts=fonts, corpus=corpus, clean=True, jpeg=0.0))
    for line in lines:
        pixels = np.asarray(picture(line)).astype(int)
        border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
        assert (border == border[0]).all(), f"ink at the edge of {answers(line)}"
        assert np.abs(pixels - border[0]).max() > 60


def test_a_line_too_wide_is_cut_in_picture_and_answer_alike(tmp_path, fonts, corpus):
    lines = samples(render_text_lines(tmp_path, 30, 1, 1, fonts=fonts, corpus=corpus, clean=True, min_chars=30,
                                      max_width=120))  # fmt: skip
    assert all(0 < len(answers(line)[0]) <= 30 for line in lines)
    assert all(picture(line).width <= 120 + 2 * 60 for line in lines)


@pytest.mark.parametrize(("shortest", "longest"), [(1, 3), (5, 5), (2, 45), (40, 45)])
def test_length_of_the_text(corpus, shortest, longest):
    phrases, rng = Phrases(corpus), random.Random(1)
    for _ in range(150):
        assert shortest <= len(make_text(rng, phrases, shortest, longest)) <= longest


def test_running_text_can_give_way_to_single_words(corpus):
    phrases = Phrases(corpus)
    rng = random.Random(5)
    sentences, words = ([make_text(rng, phrases, 20, 45, share) for _ in range(300)] for share in (0.7, 0.0))
    documents = [" ".join(document) for document in phrases._documents]

    def quoted(texts):
        return sum(any(text in document for document in documents) for text in texts) / len(texts)

    assert quoted(sentences) > quoted(words) + 0.3


def test_impossible_settings(tmp_path, fonts, corpus):
    with pytest.raises(ValueError, match="1 <= min_chars <= max_chars"):
        render_text_lines(tmp_path, 1, fonts=fonts, corpus=corpus, min_chars=9, max_chars=3)
    with pytest.raises(ValueError, match="running_text"):
        render_text_lines(tmp_path, 1, fonts=fonts, corpus=corpus, running_text=0.9)
    with pytest.raises(ValueError, match="count is 0"):
        render_text_lines(tmp_path, 0, fonts=fonts, corpus=corpus)


def test_documents(tmp_path, fonts, corpus):
    documents = samples(render_documents(tmp_path, 40, 5, 1, fonts=fonts, corpus=corpus))
    assert {d.json["source"].split("/")[0] for d in documents} == {"documents"}
    assert len({d.json["source"] for d in documents}) >= 5
    assert all(d.json["source"] == f"documents/{d.json['meta']['shows']}" for d in documents)
    for document in documents:
        turns = document.json["messages"]
        assert 2 <= len(answers(document)) <= 5 and all(answers(document))
        assert [t["role"] for t in turns] == ["user", "assistant"] * (len(turns) // 2)
        assert [p["type"] for t in turns for p in t["content"]].count("image") == 1
        assert turns[0]["content"][0]["type"] == "image"
        assert max(picture(document).size) <= 450 * 1.3 + 30


def test_facts_stand_in_the_document(corpus):
    phrases = Phrases(corpus)
    for seed in range(300):
        rng = random.Random(seed)
        document = invent(rng, phrases)
        text = " ".join(line.text for line in document.lines)
        assert 1 <= len(document.lines) <= 12
        for ways, answer in document.facts:
            counted = answer.isdigit() and any("How many" in way for way in ways)
            assert counted or all(part in text for part in answer.split(", ")), (document.kind, ways, answer)
        asked = questions(document, rng)
        assert 2 <= len(asked) <= 5 and len({question for question, _ in asked}) == len(asked)


def test_the_total_of_a_receipt_is_the_sum(corpus):
    phrases, checked = Phrases(corpus), 0
    for seed in range(300):
        document = invent(random.Random(seed), phrases)
        if document.kind == "receipt":
            prices = [line.right for line in document.lines if "." in line.right and line.right[-3] == "."]
            cents = [round(float(price.lstrip("$EUR ")) * 100) for price in prices]
            total = next(answer for ways, answer in document.facts if "What is the total?" in ways)
            assert prices[-1] == total and sum(cents[:-1]) == cents[-1]
            checked += 1
    assert checked > 30


def test_emoji(tmp_path):
    # Any font with pictographs will do to test the drawing: DejaVu has many, if black.
    shutil.copy(FONT_DIR / "DejaVuSans.ttf", tmp_path / "NotoColorEmoji.ttf")
    emoji = samples(render_emoji(tmp_path / "out", 30, 1, 1, fonts=tmp_path))
    assert len({answers(e)[0] for e in emoji}) == 30
    for sample in emoji:
        assert sample.json["kind"] == "caption" and answers(sample)[0] == answers(sample)[0].lower()
        assert sample.json["meta"]["emoji"].startswith("U+") and sample.json["meta"]["shows"] == "emoji"
        assert 30 <= picture(sample).height <= 112 * 3 and len(set(picture(sample).getdata())) > 1


def test_black_pictures_of_what_is_named_by_its_colour_are_not_trained_on(tmp_path):
    for code, colour in (("2764", "black"), ("1f422", "black"), ("1f499", "blue")):
        (tmp_path / "lines").mkdir(exist_ok=True)
        Image.new("RGBA", (9, 9), colour).save(tmp_path / "lines" / f"{code}.png")
    names = {char: emoji_name(char) for char in "\u2764\U0001f422\U0001f499"}
    assert [name for _, _, name, _ in find_pictures(tmp_path, names, held_out=False)] == ["turtle", "blue heart"]


def test_emoji_in_drawing_styles_one_of_which_is_held_out(tmp_path):
    shutil.copy(FONT_DIR / "DejaVuSans.ttf", tmp_path / "NotoColorEmoji.ttf")
    for style, colour in (("openmoji", "red"), ("twemoji", "blue")):
        (tmp_path / "styles" / style).mkdir(parents=True)
        for code in ("1f600", "263a", "61"):
            Image.new("RGBA", (20, 20), colour).save(tmp_path / "styles" / style / f"{code}.png")
    settings = {"workers": 1, "fonts": tmp_path, "pictures": tmp_path / "styles"}
    known = samples(render_emoji(tmp_path / "out", 1000, 1, **settings))
    assert {e.json["meta"].get("style") for e in known} == {None, "openmoji"}
    drawn = samples(render_emoji(tmp_path / "held", 4, 1, held_out=True, **settings))
    assert {e.json["meta"]["style"] for e in drawn} == {"twemoji"}
    assert {answers(e)[0] for e in drawn} == {"grinning face", "smiling face"}, "a letter is no emoji"
    plain = samples(render_emoji(tmp_path / "plain", 4, 1, held_out=True, restyled=0, **settings))
    assert [e.members for e in plain] == [e.members for e in drawn], "held-out styles are shown as they are drawn"
    with pytest.raises(ValueError, match="needs pictures=DIR"):
        render_emoji(tmp_path / "x", 1, fonts=tmp_path, held_out=True)
    (tmp_path / "styles" / "openmoji" / "smile.png").touch()
    with pytest.raises(ValueError, match="named by its code point"):
        render_emoji(tmp_path / "x", 1, **settings)


def test_emoji_names_and_a_missing_font(tmp_path):
    assert [emoji_name(c) for c in "\u2764\U0001f600\U0001f422"] == ["red heart", "grinning face", "turtle"]
    assert emoji_name("\U0001f645") == "face with no good gesture"  # a person with crossed arms is not a face
    clocks = range(0x1F550, 0x1F568)
    assert not [code for first, last in _RANGES for code in clocks if first <= code <= last], "they are left out"
    with pytest.raises(FileNotFoundError, match="fonts-noto-color-emoji"):
        render_emoji(tmp_path, 1, fonts=tmp_path)
