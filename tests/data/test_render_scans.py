"""Views of real receipts and charts: from a small made tar, only of the wanted split, never twice the same."""

import io
import json
import tarfile

import pytest
from PIL import Image, ImageDraw

from mmvl.data.conversation import CANNOT_SEE
from mmvl.data.render_scans import reading_order, render_chart_scans, render_scan_lines, render_scans
from mmvl.data.render_text_lines import CAPITALS, QUESTIONS
from mmvl.data.shards import read_shard
from mmvl.data.splits import split_of

LINES = [((10, 10, 120, 24), "Corner Shop"), ((10, 40, 60, 54), "Total"), ((80, 41, 120, 55), "4.20")]
TRAIN = [key for key in (f"s{n}" for n in range(30)) if split_of(key) == "train"][:3]
DEVELOPMENT = [key for key in (f"s{n}" for n in range(60)) if split_of(key) == "development"][:2]


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    path = tmp_path_factory.mktemp("scans") / "scans.tar"
    picture = Image.new("RGB", (150, 90), "white")
    for box, text in LINES:
        ImageDraw.Draw(picture).text(box[:2], text, fill="black")
    png = io.BytesIO()
    picture.save(png, "PNG")
    lines = [{"box": box, "text": text} for box, text in LINES]
    fields = {"company": "CORNER SHOP", "total": "4.20"}
    record = {"fields": fields, "lines": lines, "qa": [{"question": "How much?", "answer": "4.20"}]}
    with tarfile.open(path, "w") as tar:
        for key in [*TRAIN, *DEVELOPMENT]:
            for name, data in ((f"{key}.png", png.getvalue()), (f"{key}.json", json.dumps(record).encode())):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return str(path)


def samples(paths):
    return [sample for path in paths for sample in read_shard(path)]


def turns(sample):
    texts = ["".join(p.get("text", "") for p in m["content"]) for m in sample.json["messages"]]
    return list(zip(texts[::2], texts[1::2], strict=True))


def test_receipts(scans, tmp_path):
    made = samples(render_scans(tmp_path, 12, workers=1, receipts=scans, whole=1.0, unanswerable=1.0))
    assert {s.json["meta"]["id"] for s in made} == set(TRAIN)
    assert {s.json["meta"]["shows"] for s in made} == {"receipt"}
    assert len({next(iter(s.members.values())) for s in made}) == 12, "each view is another"
    for sample in made:
        *asked, (question, text) = turns(sample)
        assert question in CAPITALS and text == "CORNER SHOP\nTOTAL 4.20"
        answers = [answer for _, answer in asked]
        assert set(answers) - {CANNOT_SEE} == {"CORNER SHOP", "4.20"}
    assert any(answer == CANNOT_SEE for sample in made for _, answer in turns(sample))
    again = samples(render_scans(tmp_path / "again", 12, workers=1, receipts=scans, whole=1.0, unanswerable=1.0))
    assert [s.members for s in again] == [s.members for s in made]


def test_lines(scans, tmp_path):
    made = samples(render_scan_lines(tmp_path, 18, workers=1, receipts=scans, split="development"))
    assert {s.json["meta"]["id"].partition("/")[0] for s in made} == set(DEVELOPMENT)
    for sample in made:
        [(question, text)] = turns(sample)
        assert (question in QUESTIONS) == (text == "4.20") and text == text.upper()


def test_charts(scans, tmp_path):
    made = samples(render_chart_scans(tmp_path, 3, workers=1, charts=scans))
    assert [turns(s) for s in made] == [[("How much?", "4.20")]] * 3


def test_nothing_of_the_split(scans, tmp_path, monkeypatch):
    monkeypatch.setattr("mmvl.data.render_scans.in_split", lambda key, split: False)
    with pytest.raises(ValueError, match="no receipts of the split 'train'"):
        render_scans(tmp_path, 1, receipts=scans)


def test_rows_of_boxes():
    assert reading_order([((50, 1, 60, 11), "b"), ((0, 0, 10, 10), "a"), ((0, 20, 9, 30), "c")]) == ["a b", "c"]
