"""Look-ups, refusals, labelled values, receipts with other words: every answer is what the picture says."""

import random
import re

import numpy as np
import pytest
from PIL import Image

from mmvl.data.ask_charts import ask_chart
from mmvl.data.ask_tables import ask_table
from mmvl.data.charts import Chart, invent_chart
from mmvl.data.conversation import CANNOT_SEE, converse
from mmvl.data.corpus import Phrases
from mmvl.data.fonts import training_fonts
from mmvl.data.labelled import HELD_OUT_LAYOUTS, LAYOUTS, draw_labelled
from mmvl.data.page import Faces, Page
from mmvl.data.paper import age
from mmvl.data.public_formats import RealTable, Receipt
from mmvl.data.registry import RENDERERS
from mmvl.data.rewrite_scans import other_date, other_total, rewritten
from mmvl.data.shards import read_shard
from mmvl.data.tables import mix_table

TABLE = RealTable(
    "", ["Nation", "Gold", "Silver", "Coach"],
    [["Ukraine", "3", "2", "Ann Lee"], ["Italy", "0", "7", "Bo Roe"], ["Peru", "12", "1", "Cy Day"]], [],
)  # fmt: skip
OTHER = RealTable("", ["Rider", "Laps"], [["Tom Boonen", "80"], ["Ada Falk", "64"]], [])


@pytest.fixture(scope="module")
def faces(fonts):
    return Faces(training_fonts(fonts))


@pytest.fixture(scope="module")
def phrases(corpus):
    return Phrases(corpus)


def asked(seed: int) -> Page:
    page = Page.blank(8, 8, "table", "")
    ask_table(page, TABLE, random.Random(seed), OTHER)
    return page


def test_look_ups_name_a_row_and_a_column():
    looks = 0
    for seed in range(20):
        for ways, answer in asked(seed).facts:
            for way in ways:
                if found := re.fullmatch(r"in the row of (.+), what is the (.+)\?", way.lower()):
                    [row] = [r for r in TABLE.rows if found[1] in [cell.lower() for cell in r]]
                    assert row[[h.lower() for h in TABLE.header].index(found[2])] == answer
                    looks += 1
                if found := re.fullmatch(r'what is (below|above|to the right of|to the left of) "(.+)"\?', way.lower()):
                    [(i, j)] = [
                        (i, j) for i, r in enumerate(TABLE.rows) for j, c in enumerate(r) if c.lower() == found[2]
                    ]
                    di, dj = {"below": (1, 0), "above": (-1, 0), "to the right of": (0, 1)}.get(found[1], (0, -1))
                    assert TABLE.rows[i + di][j + dj] == answer
    assert looks > 10


def test_refusals_are_asked_in_the_words_of_look_ups():
    """No wording may give a refusal away: what is asked in vain is asked in the same forms about what is there."""

    def form(question: str) -> str:
        question = question.lower()
        for name in ("ukraine", "italy", "peru", "tom boonen", "ada falk", *(c.lower() for r in TABLE.rows for c in r)):
            question = question.replace(name, "*")
        return re.sub(r"\b(nation|gold|silver|coach|rider|laps)\b", "#", question)

    pages = [asked(seed) for seed in range(40)]
    answered = {form(way) for page in pages for ways, _ in page.facts for way in ways}
    vain = [question for page in pages for question in page.absent]
    assert len(vain) > 60
    assert np.mean([form(question) in answered for question in vain]) > 0.85
    for question in vain:
        words = question.lower()
        there = [row for row in TABLE.rows if any(re.search(rf"\b{re.escape(c.lower())}\b", words) for c in row)]
        assert not there or re.search(r"rider|laps", words), question


def test_no_row_that_is_there_is_asked_for_in_vain():
    rows = [[str(n), f"Song {n}"] for n in range(1, 13)]
    for seed in range(30):
        page = Page.blank(8, 8, "table", "")
        ask_table(page, RealTable("", ["Rank", "Song"], rows, []), random.Random(seed))
        for question in page.absent:
            assert not {n for n, _ in rows} & set(re.findall(r"\d+", question)), question


def test_mixed_tables_have_real_cells_and_new_rows():
    known = [TABLE, OTHER, RealTable("", ["Town", "Year"], [[f"T{n}", str(1990 + n)] for n in range(9)], [])]
    cells = {c for t in known for row in t.rows for c in row}
    for seed in range(20):
        table = mix_table(random.Random(seed), known)
        assert all(len(row) == len(table.header) for row in table.rows) and 2 <= len(table.rows) <= 12
        assert {c for row in table.rows for c in row} <= cells
        assert len({row[0].lower() for row in table.rows}) == len(table.rows)


@pytest.mark.parametrize("layout", LAYOUTS + HELD_OUT_LAYOUTS)
def test_labelled_values(layout, faces, phrases):
    for seed in range(6):
        page = draw_labelled(random.Random(seed), phrases, faces, (layout,))
        said = "\n".join(page.lines())
        assert max(page.image.size) <= 640 and page.layout == layout
        for ways, answer in page.facts:
            assert answer.isdigit() or answer in said
            assert not set(ways) & set(page.absent)
        printed = page.whole[1].lower()
        for question in page.absent:
            if found := re.fullmatch(r"what is the (.+)\?", question.lower()):
                assert not re.search(rf"^{re.escape(found[1])}\b[:. =-]", printed, re.MULTILINE), (question, printed)
        assert "".join(printed.split()) == "".join(said.lower().split()) or not page.read_rows or layout in ("pairs",)


def test_labelled_by_name(fonts, corpus, tmp_path):
    for held_out in (False, True):
        shards = RENDERERS["labelled"].run(
            tmp_path / str(held_out), 12, 3, workers=1, fonts=fonts, corpus=corpus, held_out=held_out, views=2
        )
        samples = [sample for path in shards for sample in read_shard(path)]
        answers = [m["content"][-1]["text"] for s in samples for m in s.json["messages"][1::2]]
        assert 0.1 < np.mean([a == CANNOT_SEE for a in answers]) < 0.5
        layouts = {s.json["meta"]["layout"] for s in samples}
        assert layouts <= set(HELD_OUT_LAYOUTS if held_out else LAYOUTS)


def test_no_series_has_anothers_name(phrases):
    for seed in range(200):
        names = [name for name, _ in invent_chart(random.Random(seed), phrases).series]
        assert len(set(names)) == len(names)


def test_a_chart_about_whom_the_page_around_it_says():
    """Statistics pages ask for the place of the page; the chart says years alone, and the year decides."""
    chart = Chart("bar", ["2018", "2019"], [("", [4.0, 9.0])], "Number of stores", "number of stores", time=True)
    chart.colours = ["blue"]
    seen = {}
    for seed in range(8):
        page = Page.blank(8, 8, "chart", "")
        ask_chart(page, chart, random.Random(seed))
        seen |= {way: answer for ways, answer in page.facts for way in ways}
        turns = converse(page, random.Random(seed), 8, 8, unanswerable=0.5)
        pairs = {question: answer for question, answer, _ in turns}
        assert all(a == CANNOT_SEE for q, a in pairs.items() if re.search(r"\b(20[01]\d|202\d)\b", q) and not
                   re.search("2018|2019", q))  # fmt: skip
    stores = {way: a for way, a in seen.items() if re.fullmatch(r"How many stores did .+ have in 201[89]\?", way)}
    assert stores and all(a == ("4" if "2018" in way else "9") for way, a in stores.items())


@pytest.mark.parametrize(
    ("categories", "form"),
    [
        (["2009", "2010*"], r"\d{4}"),
        (["2009/10", "2010/11"], r"\d{4}/\d\d"),
        (["Nov '09", "Dec '09"], r"[A-Z][a-z]{2} '09"),
    ],
)
def test_years_and_months_that_a_chart_lacks(categories, form):
    chart = Chart("line", categories, [("", [1.0, 3.0])], "", "birth rate", time=True, colours=["red"])
    for seed in range(12):
        page = Page.blank(8, 8, "chart", "")
        ask_chart(page, chart, random.Random(seed))
        lacks = [question for question in page.absent if "title" not in question]
        assert len(lacks) == 2 and all(re.search(rf"(in|of|by|as of|year) {form}\?", q) for q in lacks), lacks
        assert not any(category.strip("*") in q for q in lacks for category in categories)


def test_people_ask_a_chart_for_single_values():
    """A wording for a value has the answer of its category and series; what is not there is asked for the same way."""
    series = [("Spain", [4.0, 9.0, 7.0]), ("Peru", [1.0, 3.0, 5.0])]
    label, about = "Revenue in million U.S. dollars", "revenue"
    for many in (False, True):
        chart = Chart("grouped" if many else "bar", ["Coal", "Oil", "Gas"], series if many else [("", series[0][1])],
                      label, about, colours=["blue", "red"][: 1 + many])  # fmt: skip
        seen, absent = {}, set()
        for seed in range(30):
            page = Page.blank(8, 8, "chart", "")
            ask_chart(page, chart, random.Random(seed), looks=12)
            absent |= set(page.absent)
            for ways, answer in page.facts:
                for way in ways:
                    assert seen.setdefault(way, answer) == answer, way
        assert not absent & set(seen)
        values = {"Coal": "4", "Oil": "9", "Gas": "7"}
        if many:
            assert seen["What was Peru's revenue for Oil?"] == "3" and seen["Which group has 5 for Gas?"] == "Peru"
            assert seen["What energy source shows 9 for Spain?"] == "Oil"
        else:
            assert all(seen[f"What is the revenue of {c}?"] == value for c, value in values.items())
            asked = [q for q in seen if re.fullmatch(r"How many million U.S. dollars did Oil's revenue .*", q)]
            assert asked and {seen[q] for q in asked} == {"9"}
            assert seen["Which energy source topped the list?"] == "Oil" == seen["Who had the highest revenue?"]
            assert seen["Which energy source ranked last?"] == "Coal" and seen["How many bars are there?"] == "3"
            assert any(q.startswith("How many million U.S. dollars did") for q in absent)


@pytest.mark.parametrize("date", ["03 MAR 2018", "28/04/18", "2018-01-05", "14/MAY/2017", "04-05-2018", "9/1/2017"])
def test_other_dates_keep_their_form(date):
    shape = re.sub(r"[A-Z]", "A", re.sub(r"\d", "9", date))
    for seed in range(8):
        new = other_date(date, random.Random(seed))
        assert re.sub(r"9+", "9", re.sub(r"[A-Z]", "A", re.sub(r"\d", "9", new))) == re.sub(r"9+", "9", shape)
    assert other_date("yesterday", random.Random(0)) is None
    assert other_total("RM 9.90", random.Random(0)).startswith("RM ") and other_total("nine", random.Random(0)) is None


def test_receipts_with_other_words(faces, phrases):
    scan = Image.new("L", (300, 200), 240)
    lines = [((20.0, 20.0, 200.0, 40.0), "ACME SDN BHD"), ((20.0, 60.0, 200.0, 80.0), "DATE: 03 MAR 2018 18:22"),
             ((20.0, 100.0, 80.0, 120.0), "TOTAL"), ((200.0, 100.0, 260.0, 120.0), "19.90")]  # fmt: skip
    old = Receipt("k", b"", {"company": "ACME SDN BHD", "date": "03 MAR 2018", "total": "19.90", "address": "X"}, lines)
    companies = set()
    for seed in range(8):
        receipt, image = rewritten(old, scan, random.Random(seed), faces, phrases)
        text = "\n".join(t for _, t in receipt.lines)
        assert receipt.fields["date"] != "03 MAR 2018" and receipt.fields["total"] != "19.90"
        assert all(receipt.fields[name] in text for name in ("company", "date", "total"))
        assert receipt.fields["address"] == "X" and receipt.lines[2] == lines[2] and "18:22" in text
        before, after = np.asarray(scan), np.asarray(image)
        assert (before[130:] == after[130:]).all() and (before != after).any()
        companies.add(receipt.fields["company"])
    assert len(companies) > 2 and old.lines is lines and lines[1][1].startswith("DATE: 03 MAR")
    with pytest.raises(ValueError, match="rewrite needs fonts"):
        RENDERERS["scans"].run("unused", 1, 0, workers=1, receipts="unused", rewrite=1.0)


def test_wear_of_a_strip():
    for seed in range(60):
        age(Image.new("L", (300, 3), 230), random.Random(seed), 1.0, receipt=True, geometry=False)
