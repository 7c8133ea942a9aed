"""The tasks over public sets, on small sets in their formats; and the page, with hostile text in it."""

import io
import json
import tarfile
from html.parser import HTMLParser

import pytest
from PIL import Image

from mmvl.data.shards import ShardWriter
from mmvl.data.splits import split_of
from mmvl.evaluation import tesseract
from mmvl.evaluation.draw import draw_lines, draw_table
from mmvl.evaluation.page import Shown, write_page
from mmvl.evaluation.run import evaluate
from mmvl.evaluation.task import commonest
from mmvl.evaluation.task_receipts import crop_line
from mmvl.evaluation.tasks import TASKS

HELD_OUT = [key for key in (f"k-{n}" for n in range(100)) if split_of(key) == "development"]
TRAINED = [key for key in (f"k-{n}" for n in range(100)) if split_of(key) == "train"]


def tar(path, samples):
    """samples: (key, picture, record)."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as file:
        for key, picture, record in samples:
            for name, data in ((f"{key}.png", picture), (f"{key}.json", json.dumps(record).encode())):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                file.addfile(info, io.BytesIO(data))
    return path


def receipt(total):
    lines = ["GOOD SHOP SDN BHD", "12 MILL LANE, LEEDS", "DATE: 25/12/2018", f"TOTAL RM {total}"]
    fields = {"company": lines[0], "date": "25/12/2018", "address": lines[1], "total": total}
    boxes = [{"box": [18, 22 + 27 * n, 250, 40 + 27 * n], "text": line} for n, line in enumerate(lines)]
    return draw_lines(lines), {"fields": fields, "lines": boxes}


@pytest.fixture(scope="module")
def receipts(tmp_path_factory):
    """Two held-out receipts, one that is in train too under another key, and two of train."""
    samples = [(HELD_OUT[0], *receipt("9.00")), (HELD_OUT[1], *receipt("8.50")), (HELD_OUT[2], *receipt("1.00")),
               (TRAINED[0], *receipt("1.00")), (TRAINED[1], *receipt("9.00"))]  # fmt: skip
    samples[4] = (TRAINED[1], draw_lines(["other"]), samples[4][2])
    return tar(tmp_path_factory.mktemp("set") / "receipts.tar", samples)


def test_only_held_out_receipts_that_training_has_under_no_key(receipts):
    examples = TASKS["receipts"].load(receipts, "development")
    assert {e.group for e in examples} == set(HELD_OUT[:2]) and len(examples) == 8
    assert {e.group for e in TASKS["receipts"].load(receipts, "train")} == set(TRAINED[:2])
    assert len(TASKS["receipts"].load(receipts, "all")) == 16  # the picture that is there twice counts once


def test_receipt_scores_by_field(receipts):
    task = TASKS["receipts"]
    examples = task.load(receipts, "development")
    answers = [e.reference.lower() if e.meta["field"] != "total" else "" for e in examples]
    scores = {s.metric: s for s in task.score(examples, answers)}
    assert scores["fields right"].interval.value == 0.75
    assert scores["field F1"].interval.value == pytest.approx(2 * 6 / (8 + 6))
    assert scores["total right"].interval.value == 0 and scores["company right"].interval.value == 1
    always = task.rivals(examples, receipts)["always the commonest"]
    assert [a for a, e in zip(always, examples, strict=True) if e.meta["field"] == "date"] == ["25/12/2018"] * 2


def test_lines_are_cut_out_and_scored_with_and_without_case(receipts):
    task = TASKS["receipt-lines"]
    examples = task.load(receipts, "development")
    assert len(examples) == 8 and examples[0].reference == "GOOD SHOP SDN BHD"
    with Image.open(io.BytesIO(examples[0].messages[0]["content"][0]["image"])) as crop:
        assert crop.height == 24  # 3 pixels of margin: 15% of 18
    scores = {s.metric: s.interval.value for s in task.score(examples, [e.reference.lower() for e in examples])}
    assert scores["character error rate without case"] == 0 and scores["lines right without case"] == 1
    assert scores["character error rate"] > 0.4
    assert crop_line(Image.new("RGB", (50, 50)), (60, 60, 70, 70)) is None


def test_simple_rules_on_text_of_a_receipt():
    text = """tan woon yann
GOOD SHOP SDN. BHD.
(Co. Reg: 123456-X)
12 MILL LANE,
81100 LEEDS
Tel: 07-123456
Date : 25/12/2018 8:13 PM
Subtotal 12.00
TOTAL (RM) : 9.00
CASH 10.00"""
    assert tesseract.receipt_fields(text) == {
        "company": "GOOD SHOP SDN. BHD.", "date": "2018-12-25", "address": "12 MILL LANE, 81100 LEEDS", "total": "9.00",
    }  # fmt: skip
    assert tesseract.receipt_fields("a\n1.50\n12.30")["total"] == "12.30"
    assert set(tesseract.receipt_fields("").values()) == {""}


def test_tesseract_reads_a_clean_receipt_and_is_left_out_where_it_is_not(receipts, monkeypatch):
    task = TASKS["receipts"]
    examples = task.load(receipts, "development")
    found = task.rivals(examples, receipts).get("Tesseract")
    if found is not None:
        scores = {s.metric: s.interval.value for s in task.score(examples, found)}
        assert scores["total right"] == scores["date right"] == scores["company right"] == 1
    lines = TASKS["receipt-lines"].load(receipts, "development")
    rivals = TASKS["receipt-lines"].rivals(lines, receipts)
    assert rivals["always the commonest"] == ["GOOD SHOP SDN BHD"] * len(lines)
    assert ("Tesseract" in rivals) == (found is not None)
    monkeypatch.setattr(tesseract.shutil, "which", lambda name: None)
    assert set(task.rivals(examples, receipts)) == {"always the commonest"}
    assert set(TASKS["receipt-lines"].rivals(lines, receipts)) == {"always the commonest"}


def test_charts_documents_and_tables_score_as_they_say(tmp_path):
    picture = draw_lines(["x"])
    record = {"qa": [{"question": "How many?", "answer": "100"}]}
    path = tar(tmp_path / "c.tar", [(HELD_OUT[0], picture, record), (TRAINED[0], draw_lines(["y"]), record)])
    charts = TASKS["chartqa"].load(path, "development")
    assert [e.key for e in charts] == [f"{HELD_OUT[0]}/0"]
    assert [s.interval.value for s in TASKS["chartqa"].score(charts, ["104%"])] == [0, 1, 0]
    assert TASKS["chartqa"].rivals(charts, path) == {"always the commonest": ["100"]}
    made = {"question": "Which?", "answer": "B", "kind": "augmented"}
    told = {"qa": [record["qa"][0] | {"kind": "human"}, made]}
    charts = TASKS["chartqa"].load(tar(tmp_path / "k.tar", [(HELD_OUT[0], picture, told)]), "development")
    scores = {s.metric: (s.interval.value, s.n) for s in TASKS["chartqa"].score(charts, ["99", "A"])}
    assert scores["relaxed accuracy, human questions"] == (1, 1)
    assert scores["relaxed accuracy, augmented questions"] == (0, 1) and scores["relaxed accuracy"] == (0.5, 2)
    (tmp_path / "release" / "png").mkdir(parents=True)
    (tmp_path / "release" / "png" / "1.png").write_bytes(picture)
    for kind in ("human", "augmented"):
        row = {"imgname": "1.png", "query": f"{kind}?", "label": "1"}
        (tmp_path / "release" / f"test_{kind}.json").write_text(json.dumps([row]))
    released = TASKS["chartqa"].load(tmp_path / "release", "all")
    assert [(e.messages[0]["content"][1]["text"], e.meta["kind"]) for e in released] == [
        ("augmented?", "augmented"), ("human?", "human"),
    ]  # fmt: skip
    documents = TASKS["docvqa"].load(path, "all")
    assert [s.interval.value for s in TASKS["docvqa"].score(documents, ["100", "10"])] == [pytest.approx(5 / 6), 0.5]
    table = {"id": HELD_OUT[0], "header": ["a", "b"], "rows": [["one", "2"], ["three", "4"]],
             "qa": [{"question": "what is b of three?", "answers": ["4"]},
                    {"question": "list all b", "answers": ["2", "4"]}]}  # fmt: skip
    (tmp_path / "t.jsonl").write_text(json.dumps(table) + "\n")
    tables = TASKS["tables"].load(tmp_path / "t.jsonl", "development")
    assert [e.meta["lookup"] for e in tables] == [True, False]
    scores = TASKS["tables"].score(tables, ["4.0", "4"])
    assert [s.interval.value for s in scores] == [0.5, 1.0] and [s.n for s in scores] == [2, 1]


def test_coco_captions(tmp_path):
    (tmp_path / "images").mkdir()
    for n in (1, 2):
        (tmp_path / "images" / f"{n}.png").write_bytes(draw_lines([str(n)]))
    record = {"images": [{"id": n, "file_name": f"{n}.png"} for n in (1, 2)],
              "annotations": [{"image_id": 1, "caption": "A red dog runs."}, {"image_id": 1, "caption": "Dog."},
                              {"image_id": 2, "caption": "A blue cat sits."}]}  # fmt: skip
    (tmp_path / "captions.json").write_text(json.dumps(record))
    examples = TASKS["captions"].load(tmp_path / "captions.json", "all")
    assert examples[0].meta["references"] == ["A red dog runs.", "Dog."]
    within, points = TASKS["captions"].score(examples, ["a red dog runs", "nothing"])
    assert within.interval.value == 0.5 and points.unit == "" and 0 < points.interval.value < 10
    (tmp_path / "images" / "2.png").unlink()
    with pytest.raises(FileNotFoundError, match="2.png"):
        TASKS["captions"].load(tmp_path / "captions.json", "all")


def test_needles_have_one_answer_and_are_the_same_every_time():
    for name in ("needle-text", "needle-images"):
        task = TASKS[name]
        examples = task.load()
        assert examples == task.load() and len({e.key for e in examples}) == len(examples)
        assert task.score(examples, [f"It is {e.reference}." for e in examples])[0].interval.value == 1
        assert task.score(examples, ["1234 or 5678"] * len(examples))[0].interval.value == 0
    cards = TASKS["needle-images"].load()
    assert TASKS["needle-images"].always(cards) in {e.reference for e in cards}
    text = TASKS["needle-text"].load()[-1]
    assert (
        len(text.messages[0]["content"][0]["text"]) > 24000
        and text.messages[0]["content"][0]["text"].count(text.reference) == 1
    )


def test_refusals_and_false_refusals():
    task = TASKS["refusals"]
    examples = task.load(None, "all")
    assert sum(e.meta["answerable"] for e in examples) == 100
    good = [s.interval.value for s in task.score(examples, [e.reference for e in examples])]
    always = [s.interval.value for s in task.score(examples, ["I can't see that."] * len(examples))]
    assert good == [1, 0, 1] and always == [1, 1, 0]


def test_commonest():
    assert commonest(["Yes", "no", "yes "]) == "Yes" and commonest([]) == ""


def test_a_table_of_ragged_rows_and_long_cells_is_drawn():
    with Image.open(io.BytesIO(draw_table(["a", "b"], [["x" * 100], ["1", "2", "3"], ["", "é – 日"]]))) as picture:
        assert picture.width > 300 and picture.height > 150


class Checker(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.attributes = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs


def test_the_page_escapes_everything_and_fetches_nothing(tmp_path):
    evil = "</dd><script>alert(1)</script><img src=http://example.com/x onerror=alert(1)>\"'\u202eabc\x00"
    shown = [
        Shown(evil, evil, [draw_lines(["x"])], evil, evil, evil, score, {evil: evil}, evil) for score in (0, 0.5, 1)
    ]
    shown.append(Shown("k", "other", [b"not a picture"], "q" * 5000, "r", "p", None, {}))
    write_page(tmp_path / "page.html", evil, [evil], [(evil, "1%", "0% to 2%", "3")], shown, 40)
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    checker = Checker()
    checker.feed(page)
    assert "script" not in checker.tags and checker.tags.count("img") == 1
    assert all(value.startswith("data:image/webp") for name, value in checker.attributes if name == "src")
    assert not [name for name, _ in checker.attributes if name.startswith("on")]
    assert "\u202e" not in page and "\\u202e" in page and "default-src 'none'" in page
    assert "Wrong (1)" in page and "Partly (2)" in page and "Right (1)" in page and "4 of 40" in page
    assert len(page) < 60_000


def test_a_whole_run_over_a_set_that_the_user_brings(receipts, tiny_model_dir, tmp_path, capsys):
    result = evaluate("receipts", model=tiny_model_dir, data=receipts, limit=6, device="cpu",
                      json_path=tmp_path / "r.json", page=tmp_path / "r.html")  # fmt: skip
    written = json.loads((tmp_path / "r.json").read_text())
    assert written["data"] == {"name": "receipts.tar", "split": "development", "examples": 8}
    assert len(written["predictions"]) == 6 and "score" in written["predictions"][0]
    assert {"prediction_without_the_image", "prediction_always_the_commonest"} <= set(written["predictions"][0])
    assert result.score("field F1, always the commonest").n == 6
    assert "split: development" in capsys.readouterr().out and "Wrong" in (tmp_path / "r.html").read_text()


def test_mistakes_in_the_data_are_told_in_one_line(tiny_model_dir, tmp_path, receipts):
    for task, arguments, message in (
        ("receipts", {}, "receipts needs --data: a tar of SROIE"),
        ("easy-vqa", {"data": receipts}, "takes no --data"),
        ("receipts", {"data": tmp_path / "none.tar"}, "no such file or folder"),
        ("receipts", {"data": receipts, "split": "test"}, "no split 'test'"),
        ("refusals", {"split": "all"}, "--split is of --data"),
        ("chartqa", {"data": receipts}, "no questions in its split"),
        ("receipts", {"data": receipts, "page": tmp_path / "no" / "x.html"}, "folder that exists"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            evaluate(task, model=tiny_model_dir, **arguments)


def test_rendered_questions_are_asked_alone(tmp_path):
    """A sample of three turns: an answer, a refusal, a text; each with the picture and without what was said before."""

    def turn(role, text, *files):
        content = [{"type": "image", "file": file} for file in files] + [{"type": "text", "text": text}]
        return {"role": role, "content": content}

    turns = [turn("user", "Name?", "0.png"), turn("assistant", "Ann"), turn("user", "Age?")]
    turns += [turn("assistant", "I can't see that in the image."), turn("user", "All?"), turn("assistant", "Ann\nBob")]
    with ShardWriter(tmp_path, "set") as writer:
        record = {"source": "pages/note", "kind": "conversation", "messages": turns, "meta": {}}
        writer.write(record, {"0.png": draw_lines(["Ann", "Bob"])})
    task = TASKS["rendered"]
    examples = task.load(tmp_path, "all")
    assert [(e.reference, e.meta["answerable"]) for e in examples] == [
        ("Ann", True),
        (turns[3]["content"][0]["text"], False),
    ]
    assert [[p["type"] for p in e.messages[0]["content"]] for e in examples] == [["image", "text"]] * 2
    values = {s.metric: s.interval.value for s in task.score(examples, ["Anna", "I can't see that."])}
    assert values == {
        "ANLS": 0.75,
        "relaxed accuracy": 0.0,
        "false refusals": 0.0,
        "refused where there is no answer": 1.0,
    }
    [text] = TASKS["rendered-text"].load(tmp_path, "all")
    assert TASKS["rendered-text"].score([text], ["Ann\nBib"])[0].interval.value == pytest.approx(1 / 7)
