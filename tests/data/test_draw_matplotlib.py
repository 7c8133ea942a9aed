"""Charts by matplotlib: what is asked can be seen, seeds decide everything, its settings stay as they were."""

import hashlib
import os
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import matplotlib
import matplotlib.style
import numpy as np
import pytest
from matplotlib.colors import same_color, to_rgb

from mmvl.data.ask_charts import ask_chart
from mmvl.data.chart_styles import COLOURS, HELD_OUT_MATPLOTLIB_STYLES, MATPLOTLIB_STYLES
from mmvl.data.charts import KINDS, Chart, cut_chart, invent_chart
from mmvl.data.corpus import Phrases
from mmvl.data.draw_matplotlib import draw_matplotlib
from mmvl.data.fonts import training_fonts
from mmvl.data.matplotlib_page import overlaps
from mmvl.data.page import Faces
from mmvl.data.registry import RENDERERS
from mmvl.data.shards import read_shard

ALL = MATPLOTLIB_STYLES | HELD_OUT_MATPLOTLIB_STYLES


@pytest.fixture(scope="module")
def faces(fonts):
    return Faces(training_fonts(fonts))


@pytest.fixture(scope="module")
def phrases(corpus):
    return Phrases(corpus)


def made(seed, phrases, faces, style, max_side=500, printed=None):
    rng = random.Random(seed)
    chart = cut_chart(invent_chart(rng, phrases), rng, 8, 4)
    return draw_matplotlib(rng, chart, style, faces, max_side, printed), chart


def check(page, chart: Chart) -> None:
    """All print is inside, in ink, and apart; what the chart says is printed."""
    width, height = page.image.size
    grey = np.asarray(page.image.convert("L")).astype(int)
    [row] = page.rows
    for piece in row:
        left, top, right, bottom = piece.box
        assert 0 <= left < right <= width and 0 <= top < bottom <= height, piece
        assert np.ptp(grey[top:bottom, left:right]) > 60, piece
    words = " ".join(piece.text for piece in row)
    asked = [*chart.categories, *(name for name, _ in chart.series), chart.title]
    asked += [chart.label] if chart.kind != "pie" else []
    if chart.shown:
        asked += [chart.text(value) for _, values in chart.series for value in values]
    else:
        assert chart.kind != "pie"
    for text in asked:
        assert text in words or text in words.replace(",", ""), text


@pytest.mark.parametrize("style", ALL)
def test_every_style(style, faces, phrases):
    for seed in range(4):
        page, chart = made(f"{style} {seed}", phrases, faces, style, 336 if seed % 2 else 500)
        check(page, chart)
        assert page.layout == f"matplotlib {style}" and page.image.mode == "RGB"
        assert len(set(chart.colours)) == len(chart.colours) and set(chart.colours) <= set(COLOURS)
        colours = np.unique(np.asarray(page.image).reshape(-1, 3), axis=0)
        for name in chart.colours:
            shade = np.array(to_rgb(ALL[style].get(name) or np.array(COLOURS[name]) / 255)) * 255
            assert np.abs(colours - shade).max(1).min() <= 2, "is in the picture"


@pytest.mark.parametrize("kind", sorted(set(KINDS)))
@pytest.mark.parametrize("printed", [0.0, 1.0])
def test_every_kind(kind, printed, faces):
    many = kind in ("grouped", "stacked", "stacked-horizontal", "lines")
    series = [("Yes", [12.0, 31.0, 57.0])] + [("No", [44.0, 25.0, 32.0])] * many
    for seed in range(3):
        chart = Chart(kind, ["Norway", "Peru", "Ghana"], series if many else [("", series[0][1])], "Sales", "sales")
        page = draw_matplotlib(random.Random(seed), chart, "default", faces, 480, printed)
        check(page, chart)
        assert chart.shown is (printed == 1 or kind == "pie")
        ask_chart(page, chart, random.Random(seed))
        assert any(chart.colours[0] in (answer, *ways[0].split()) for ways, answer in page.facts)


def test_bars_are_as_long_as_their_values(faces):
    for seed in range(6):
        kind = ("bar", "horizontal")[seed % 2]
        chart = Chart(kind, ["A", "B", "C", "D"], [("", [10.0, 40.0, 25.0, 5.0])], "Sales", "sales")
        page = draw_matplotlib(random.Random(seed), chart, "default", faces, 600, 0.0)
        shade = np.array(to_rgb(MATPLOTLIB_STYLES["default"][chart.colours[0]])) * 255
        ink = np.abs(np.asarray(page.image) - shade).max(-1) < 3
        lengths = ink.sum(0 if kind == "bar" else 1)
        lengths = lengths[lengths > 3]
        runs = np.split(lengths, np.nonzero(np.abs(np.diff(lengths)) > 5)[0] + 1)
        bars = np.array([np.median(run) for run in runs if len(run) > 5])
        np.testing.assert_allclose(bars / bars.max(), np.array([10, 40, 25, 5]) / 40, atol=0.02)


def test_named_colours_are_of_the_style_sheets():
    assert not set(MATPLOTLIB_STYLES) & set(HELD_OUT_MATPLOTLIB_STYLES)
    default = matplotlib.rcParamsDefault["axes.prop_cycle"]
    for style, named in ALL.items():
        sheet = matplotlib.style.library[style] if style != "default" else {}
        cycle = sheet.get("axes.prop_cycle", default).by_key()["color"]
        assert set(named) <= set(COLOURS), style
        assert all(any(same_color(colour, other) for other in cycle) for colour in named.values()), style


def test_shades_of_grey_are_not_asked_for_by_name(faces):
    series = [(name, [4.0, 6.0 + i, 9.0]) for i, name in enumerate(("North", "South", "East", "West"))]
    for kind in ("grouped", "lines"):
        chart = Chart(kind, ["2001", "2002", "2003"], series, "Sales", "sales", time=True)
        page = draw_matplotlib(random.Random(1), chart, "grayscale", faces)
        ask_chart(page, chart, random.Random(1))
        ways = [way for ways, _ in page.facts for way in ways]
        assert chart.colours == [] and not any(w.startswith(("What colour", "Which colour")) for w in ways)


@pytest.mark.parametrize("kind", ["bar", "horizontal", "line"])
def test_a_chart_of_nothing_but_zeros(kind, faces):
    chart = Chart(kind, ["Ann", "Bob"], [("", [0.0, 0.0])], "Goals", "goals")
    check(draw_matplotlib(random.Random(1), chart, "ggplot", faces, 336, 1.0), chart)


def test_a_chart_without_room_stays_as_it_was(faces):
    names = [f"{year} " + "W" * 60 for year in (2001, 2002, 2003)]
    chart = Chart("line", names, [("", [1.0, 2.0, 3.0])], "Sales", "sales", time=True)
    before = repr(chart)
    assert draw_matplotlib(random.Random(1), chart, "bmh", faces, 240) is None and repr(chart) == before


def test_settings_of_matplotlib_neither_leak_nor_matter(faces, phrases):
    one, _ = made(5, phrases, faces, "dark_background")
    with matplotlib.rc_context({"axes.facecolor": "pink", "lines.linewidth": 9, "text.parse_math": True}):
        before = dict(matplotlib.rcParams)
        other, _ = made(5, phrases, faces, "dark_background")
        assert dict(matplotlib.rcParams) == before
    assert one.image.tobytes() == other.image.tobytes()


def test_threads_draw_one_after_the_other(faces, phrases):
    styles = ["ggplot", "dark_background", "classic", "bmh"]
    alone = [made(i, phrases, faces, style)[0].image.tobytes() for i, style in enumerate(styles)]
    with ThreadPoolExecutor(4) as pool:
        together = pool.map(lambda i: made(i, phrases, faces, styles[i])[0].image.tobytes(), range(4))
    assert list(together) == alone


def test_a_seed_decides_the_shards_of_another_process(tmp_path, fonts, corpus):
    settings = {"fonts": str(fonts), "corpus": str(corpus), "matplotlib": 0.5, "fewest_questions": 2}
    [shard] = RENDERERS["charts"].run(tmp_path / "a", 6, 3, 1, **settings)
    code = f"""from mmvl.data.render_charts import render_charts
render_charts({str(tmp_path / "b")!r}, 6, 3, 1, **{settings!r})"""
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONHASHSEED": "7"})
    digests = [hashlib.sha256((tmp_path / part / shard.name).read_bytes()).hexdigest() for part in "ab"]
    assert digests[0] == digests[1]
    assert len({s.json["meta"]["layout"].startswith("matplotlib ") for s in read_shard(shard)}) == 2, "a share"


def test_styles_that_are_kept_for_evaluation(tmp_path, fonts, corpus):
    settings = {"fonts": fonts, "corpus": corpus, "matplotlib": 1.0, "max_side": 400}
    for held_out, styles in ((False, MATPLOTLIB_STYLES), (True, HELD_OUT_MATPLOTLIB_STYLES)):
        [shard] = RENDERERS["charts"].run(tmp_path / str(held_out), 8, 3, 1, held_out=held_out, **settings)
        layouts = {sample.json["meta"]["layout"] for sample in read_shard(shard)}
        assert layouts <= {f"matplotlib {style}" for style in styles}


def test_overlaps():
    boxes = np.array([[0, 0, 10, 10], [9.5, 0, 20, 10], [5, 5, 8, 8]])
    assert overlaps(boxes) == [(0, 2)] and overlaps(boxes, 0.2) == [(0, 1), (0, 2)]
