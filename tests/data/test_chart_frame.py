"""A statistics page around a chart: it leaves the chart its place, and prints what the font has."""

import random

import numpy as np
import pytest

from mmvl.data.chart_frame import draw_frame
from mmvl.data.chart_styles import HELD_OUT_STYLES, STYLES
from mmvl.data.charts import Chart
from mmvl.data.draw_charts import draw_chart
from mmvl.data.fonts import training_fonts
from mmvl.data.page import Faces, Page


@pytest.fixture(scope="module")
def faces(fonts):
    return Faces(training_fonts(fonts))


def test_nothing_is_drawn_where_the_chart_goes(faces):
    for seed in range(20):
        rng, page = random.Random(seed), Page.blank(500, 360, "chart", "statistics", (255, 255, 255))
        face = faces.pick(rng)
        top, bottom, left, right = draw_frame(page, rng, face, 12, (70, 70, 70), (12, 348, 12, 488))
        assert (top, left) == (12, 12) and 12 < right < 460 and 200 < bottom < 320
        dark = np.asarray(page.image.convert("L")) < 255
        assert not dark[:bottom, :right].any() and dark[:, round(right) :].any() and dark[round(bottom) :].any()
        texts = [piece.text for row in page.rows for piece in row]
        assert len(texts) == 3 and (face.covers("\u00a9") or "\u00a9" not in "".join(texts))
        for row in page.rows:
            for x0, y0, x1, y1 in (piece.box for piece in row):
                assert 0 <= x0 < x1 <= 500 and 0 <= y0 < y1 <= 360


def test_charts_of_statistics_pages_stand_in_one_others_do_not(faces):
    def links(style: str, max_side: int) -> int:
        found = 0
        for seed in range(30):
            chart = Chart("bar", ["2001", "2002", "2003"], [("", [3.0, 5.0, 4.0])], "Sales", "sales", time=True)
            page = draw_chart(
                random.Random(seed), chart, (STYLES | HELD_OUT_STYLES)[style], style, faces, max_side, printed=1.0
            )
            texts = {piece.text for row in page.rows for piece in row}
            assert {"2001", "2002", "2003", "3", "5", "4"} <= texts
            found += bool(texts & {"Show source", "Source", "Download"})
        return found

    assert 10 < links("statistics", 800) < 26
    assert links("statistics", 336) == links("journal", 800) == links("office", 800) == 0
