"""Renderers of pages, receipts, tables, charts, screens: what they say is printed is printed, and sums are right."""

import gzip
import io
import json
import random
import re

import numpy as np
import pytest
from PIL import Image

from mmvl.data.ask_charts import ask_chart
from mmvl.data.ask_tables import ask_table
from mmvl.data.chart_styles import HELD_OUT_STYLES, STYLES
from mmvl.data.charts import NAMES as CHART_NAMES
from mmvl.data.charts import Chart, chart_of_table, cut_chart, invent_chart
from mmvl.data.conversation import CANNOT_SEE, FIELDS, KINDS, converse
from mmvl.data.corpus import Phrases
from mmvl.data.draw_charts import draw_chart
from mmvl.data.fonts import training_fonts
from mmvl.data.office import HELD_OUT_LAYOUTS, LAYOUTS, draw_office_page
from mmvl.data.page import Faces, Page, Views
from mmvl.data.paper import age, fade_ink, warp
from mmvl.data.public_formats import RealTable
from mmvl.data.receipts import draw_receipt
from mmvl.data.registry import RENDERERS
from mmvl.data.render_receipts import render_receipt_lines
from mmvl.data.screens import LAYOUTS as SCREENS
from mmvl.data.screens import draw_screen
from mmvl.data.shards import read_shard
from mmvl.data.splits import split_of
from mmvl.data.tables import LAYOUTS as TABLES
from mmvl.data.tables import draw_table, invent_table, part_of

NAMES = ("pages", "receipts", "receipt-lines", "tables", "charts", "screens")
SHOWN = {
    "pages": ("letter", "form", "invoice", "note"), "receipts": ("receipt",), "receipt-lines": ("line",),
    "tables": ("table",), "charts": CHART_NAMES.values(), "screens": ("screen",),
}  # fmt: skip


def samples(shards):
    return [sample for path in shards for sample in read_shard(path)]


def exchange(sample) -> list[tuple[str, str]]:
    texts = [m["content"][-1]["text"] for m in sample.json["messages"]]
    return list(zip(texts[::2], texts[1::2], strict=True))


@pytest.fixture(scope="module")
def faces(fonts):
    return Faces(training_fonts(fonts))


@pytest.fixture(scope="module")
def phrases(corpus):
    return Phrases(corpus)


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """40 real-looking tables, a number column each."""
    path = tmp_path_factory.mktemp("tables") / "tables.jsonl.gz"
    with gzip.open(path, "wt") as file:
        for n in range(40):
            rows = [[f"Town {n}-{i}", str(1000 * n + 10 * i), "x" * (i % 3 + 1)] for i in range(1, 10)]
            qa = [{"question": f"which town of {n} is last?", "answers": [rows[-1][0]]}]
            file.write(json.dumps({"id": f"t{n}", "header": ["Town", "People", "Mark"], "rows": rows, "qa": qa}) + "\n")
    return path


@pytest.mark.parametrize("name", NAMES)
def test_every_renderer_by_name(tmp_path, fonts, corpus, real, name):
    settings = {"fonts": fonts, "corpus": corpus} | ({"tables": str(real)} if name in ("tables", "charts") else {})
    made = samples(RENDERERS[name].run(tmp_path / "a", 12, 3, 1, **settings))
    again = samples(RENDERERS[name].run(tmp_path / "b", 12, 3, 1, **settings))
    held = samples(RENDERERS[name].run(tmp_path / "c", 6, 3, 1, held_out=True, **settings))
    assert [s.members for s in made] == [s.members for s in again] and len(made) == 12
    for sample in made + held:
        [data] = sample.members.values()
        image = Image.open(io.BytesIO(data))
        image.load()
        assert max(image.size) <= 1300 and min(image.size) >= 4
        assert exchange(sample) and all(q and a for q, a in exchange(sample))
        assert sample.json["meta"]["shows"] in SHOWN[name]
        assert len(sample.json["meta"].get("kinds", "x")) == len(exchange(sample))
    assert not {s.json["meta"]["layout"] for s in made} & {s.json["meta"]["layout"] for s in held}
    text = " ".join(a for s in made for _, a in exchange(s))
    assert "unseen" not in text.lower()
    if name == "tables":
        assert all(split_of(s.json["meta"]["table"]) == "train" for s in made if s.json["meta"]["table"])
        assert all(split_of(s.json["meta"]["table"]) == "development" for s in held if s.json["meta"]["table"])


def in_ink(page: Page) -> None:
    """Every piece of text has ink in its box and lies inside the picture."""
    grey = np.asarray(page.image.convert("L")).astype(int)
    assert page.rows
    for row in page.rows:
        for piece in row:
            left, top, right, bottom = piece.box
            assert left >= -1 and top >= -1 and right <= grey.shape[1] + 1 and bottom <= grey.shape[0] + 1, piece
            part = grey[max(0, top) : bottom, max(0, left) : right]
            assert np.ptp(part) > 60, piece


def test_what_a_receipt_says_is_printed_and_adds_up(faces, phrases):
    for seed in range(30):
        page = draw_receipt(random.Random(seed), phrases, faces, max_side=1200)
        in_ink(page)
        text = " ".join(page.lines())
        values = page.values
        for name, value in values.items():
            assert value and value in text, (name, value)
        number = {
            k: round(100 * float(re.sub(r"[^\d.-]", "", v)))
            for k, v in values.items()
            if k in ("subtotal", "tax", "service", "rounding", "total", "cash", "change")
        }
        if {"subtotal", "tax"} <= set(number) and "discount" not in values:
            whole = sum(number.get(k, 0) for k in ("subtotal", "tax", "service", "rounding"))
            assert whole == number["total"]
        if "cash" in number:
            assert number["cash"] - number["total"] == number["change"]


def test_office_pages_and_screens_are_printed_as_they_say(faces, phrases):
    for seed in range(24):
        page = draw_office_page(random.Random(seed), phrases, faces, LAYOUTS + HELD_OUT_LAYOUTS, 2000)
        in_ink(page)
        text = " ".join(page.lines())
        for name, value in page.values.items():
            assert value in text, (page.layout, name, value)
        in_ink(draw_screen(random.Random(seed), phrases, faces, SCREENS, 2000))


def test_questions_that_have_no_answer_here(faces, phrases):
    page = draw_receipt(random.Random(1), phrases, faces)
    assert {t[1:] for t in converse(page, random.Random(0), 5, 5, unanswerable=1.0)} == {(CANNOT_SEE, "absent")}
    for seed in range(20):
        for question, answer, kind in converse(page, random.Random(seed), 5, 9, unanswerable=0.0):
            assert answer != CANNOT_SEE and question and kind != "absent"


def test_questions_tell_their_kind(faces, phrases):
    of_a_field = {question for ways in FIELDS.values() for question in ways}
    found = set()
    for seed in range(60):
        page = draw_office_page(random.Random(seed), phrases, faces, LAYOUTS + HELD_OUT_LAYOUTS, 2000)
        for question, answer, kind in converse(page, random.Random(seed), 6, 9, unanswerable=0.2, whole=0.3):
            found.add(kind)
            assert (kind == "absent") == (answer == CANNOT_SEE)
            if kind in ("field", "fact"):
                named = question in of_a_field or question.startswith(("What is written under", "What does the field"))
                assert named == (kind == "field"), question
            elif kind == "line":
                assert answer in page.lines()
            elif kind == "caption":
                assert answer == page.caption
            elif kind == "text":
                assert answer == "\n".join(page.lines())
    assert found == set(KINDS)


def test_line_crops_hold_the_whole_line(tmp_path, fonts, corpus):
    lines = samples(render_receipt_lines(tmp_path, 60, 3, 1, fonts=fonts, corpus=corpus, wear=0, per_receipt=20))
    for line in lines:
        [data] = line.members.values()
        pixels = np.asarray(Image.open(io.BytesIO(data)).convert("L")).astype(int)
        assert 4 <= pixels.shape[0] <= 48 and pixels.shape[1] <= 641 and np.ptp(pixels) > 60, exchange(line)
    with pytest.raises(ValueError, match="per_receipt"):
        render_receipt_lines(tmp_path, 1, 0, 1, fonts=fonts, corpus=corpus, per_receipt=0)


def test_answers_about_a_chart():
    chart = Chart(
        "bar",
        ["2001", "2002", "2003"],
        [("", [10.5, 30.0, 20.0])],
        "Sales",
        "sales",
        decimals=1,
        time=True,
        colours=["blue"],
    )
    page = Page.blank(10, 10, "chart", "plain")
    for seed in range(6):
        ask_chart(page, chart, random.Random(seed))
    answers = {question: answer for ways, answer in page.facts for question in ways}
    assert answers["Which year has the highest sales?"] == "2002" and answers["What is the lowest value?"] == "10.5"
    assert answers["What was the sales in 2003?"] == "20" and answers["How many years are shown?"] == "3"
    assert answers["In which year was the value 30?"] == "2002" and answers["What is the average?"] == "20.17"
    between = {
        q: a for q, a in answers.items() if q.startswith("What is the difference") and "2001" in q and "2002" in q
    }
    assert set(between.values()) == {"19.5"}
    assert not set(page.absent) & set(answers)


def test_charts_of_every_kind_and_style(faces, phrases):
    for seed, (name, style) in enumerate((STYLES | HELD_OUT_STYLES).items()):
        for turn in range(4):
            rng = random.Random(100 * seed + turn)
            chart = invent_chart(rng, phrases)
            page = draw_chart(rng, chart, style, name, faces)
            in_ink(page)
            if chart.kind == "pie":
                assert sum(chart.series[0][1]) == pytest.approx(100)
    table = RealTable("t", ["Town", "People"], [["Aa", "1,200"], ["Bb", "900"], ["Cc", "1,500"]], [])
    assert chart_of_table(random.Random(0), table).series == [("", [1200.0, 900.0, 1500.0])]
    assert chart_of_table(random.Random(0), RealTable("t", ["A", "B"], [["x", "y"]] * 4, [])) is None


@pytest.mark.parametrize("kind", ["bar", "horizontal bar", "line"])
def test_a_chart_of_nothing_but_zeros_is_drawn(kind, faces):
    chart = Chart(kind, ["Ann", "Bob"], [("", [0.0, 0.0])], "Goals", "goals")
    page = draw_chart(random.Random(1), chart, STYLES["office"], "office", faces, 336, 1.0)
    assert min(page.image.size) > 100


def test_small_charts_print_their_values(faces, phrases):
    kinds = set()
    for seed in range(40):
        rng = random.Random(seed)
        chart = cut_chart(invent_chart(rng, phrases), rng, 5, 3)
        assert 2 <= len(chart.categories) <= 5 and len(chart.series) <= 3
        if chart.unit == "%" and chart.label == "Share":  # a pie, or a stack: the whole of it is 100
            parts = [chart.series[0][1]] if chart.kind == "pie" else zip(*(v for _, v in chart.series), strict=True)
            assert all(sum(part) == pytest.approx(100) for part in parts)
        page = draw_chart(rng, chart, STYLES["office"], "office", faces, 336, 1.0)
        in_ink(page)
        kinds.add(chart.kind)
        assert all(len(values) == len(chart.categories) for _, values in chart.series)
        words = "".join(piece.text for row in page.rows for piece in row).replace(",", "")
        if chart.shown:
            assert all(chart.text(value) in words for _, values in chart.series for value in values)
        sizes = [piece.box[3] - piece.box[1] for row in page.rows for piece in row if piece.text.isdigit()]
        assert all(size >= 7 for size in sizes), "digits of the smallest print"
    assert {"bar", "horizontal", "line", "pie"} <= kinds


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ({"most_categories": 1}, "most_categories is 1; it is 2 to 24"),
        ({"most_series": 9}, "most_series is 9; it is 2 to 5"),
        ({"printed_values": 1.5}, "printed_values is 1.5; it is a share, 0 to 1, or null"),
        ({"matplotlib": 2}, "matplotlib is 2; it is a share, 0 to 1"),
        ({"max_side": 100}, "max_side is 100; print has no room below 240"),
    ],
)
def test_settings_of_charts(fonts, corpus, tmp_path, setting, text):
    with pytest.raises(ValueError, match=text):
        RENDERERS["charts"].run(tmp_path, 1, 0, 1, fonts=fonts, corpus=corpus, **setting)


def test_small_charts_by_name(fonts, corpus, tmp_path):
    settings = {"max_side": 336, "most_categories": 4, "printed_values": 1.0, "fewest_questions": 8, "views": 2}
    for sample in samples(RENDERERS["charts"].run(tmp_path, 8, 1, 1, fonts=fonts, corpus=corpus, **settings)):
        [data] = sample.members.values()
        assert max(Image.open(io.BytesIO(data)).size) <= 350  # wear may add a margin
        assert len(exchange(sample)) >= 6


def test_tables_are_printed_as_they_say(faces, phrases):
    for seed in range(12):
        rng = random.Random(seed)
        page, table = draw_table(rng, invent_table(rng, phrases), TABLES, faces, 1600)
        in_ink(page)
        words = " ".join(piece.text for row in page.rows for piece in row).split()
        assert (
            sorted(w for row in [table.header, *table.rows] for c in row for w in c.split()) == sorted(words)
            or page.values
        )
        ask_table(page, table, rng, invent_table(rng, phrases))
        for ways, answer in page.facts:
            for look in filter(None, (re.fullmatch(r"In the row of (.+), what is the (.+)\?", q) for q in ways)):
                [row] = [r for r in table.rows if look[1] in r]
                assert row[[h.lower() for h in table.header].index(look[2].lower())] == answer
    table, whole = part_of(RealTable("t", ["A"], [["é – \u2603"], ["b"]], [("q", ["b"])]), random.Random(0), 1)
    assert not whole and not table.qa and len(table.rows) == 1


def test_tables_are_cut_to_few_rows_as_often_as_is_asked_for(fonts, corpus, real, tmp_path):
    def rows(**settings) -> list[int]:
        common = {"workers": 1, "fonts": fonts, "corpus": corpus, "tables": str(real), "real": 1.0, "people": 1.0}
        drawn = samples(RENDERERS["tables"].run(tmp_path / str(settings), 8, 7, whole=1.0, **common, **settings))
        return [len(exchange(sample)[-1][1].splitlines()) - 1 for sample in drawn]

    assert set(rows(cut=0.0)) == {9}
    assert set(rows(cut=1.0)) == {5, 8}
    assert set(rows(cut=1.0, most_rows=4)) == {4}


def test_wear_keeps_mode_and_leaves_ink(faces, phrases):
    page = draw_receipt(random.Random(2), phrases, faces).image
    assert age(page, random.Random(0), 0) is page
    for seed in range(12):
        worn = age(page, random.Random(seed), 2.0, receipt=True)
        assert worn.mode == "L" and np.ptp(np.asarray(worn)) > 60
        assert age(page, random.Random(seed), 1.0, geometry=False).size == page.size
    assert age(page.convert("RGB"), random.Random(3), 1.5).mode == "RGB"
    dark = Image.new("L", (64, 64), 255)
    dark.paste(0, (16, 16, 48, 48))
    turned = np.asarray(warp(dark, random.Random(0), 255, 4.0, 0.02, 0.01))
    assert abs((turned < 128).sum() - 1024) < 160  # nothing of the square is lost
    assert np.asarray(fade_ink(dark, random.Random(0)))[30, 30] <= 140


@pytest.mark.parametrize("name", ["receipts", "pages", "tables", "charts", "screens"])
def test_views_of_a_page_differ_in_questions_and_wear_only(name, fonts, corpus, tmp_path):
    settings = {"workers": 1, "fonts": fonts, "corpus": corpus}
    settings |= {"statistics": 0.0} if name == "charts" else {}
    one = samples(RENDERERS[name].run(tmp_path / "one", 2, 7, **settings))
    three = samples(RENDERERS[name].run(tmp_path / "three", 6, 7, views=3, **settings))
    for number in range(2):
        first, *others = three[3 * number : 3 * number + 3]
        assert (first.json, first.members) == (one[number].json, one[number].members), "the first as without views"
        for other in others:
            assert other.json["meta"]["layout"] == first.json["meta"]["layout"]
            assert exchange(other) != exchange(first)


def test_views_say_the_same_wherever_a_process_begins():
    def draw(rng):
        return rng.random()

    whole = Views(3, draw, "x", 1)
    all_of_them = [(page, rng.random()) for page, rng in map(whole, range(9))]
    late = Views(3, draw, "x", 1)
    assert [(page, rng.random()) for page, rng in map(late, range(4, 9))] == all_of_them[4:]
    assert len({page for page, _ in all_of_them}) == 3 and len({value for _, value in all_of_them}) == 9
    with pytest.raises(ValueError, match="views is 0"):
        Views(0, draw, "x", 1)
