"""The split of a key, and readers of public formats on small files in each publisher's layout."""

import gzip
import io
import json
import tarfile

import pytest

from mmvl.data import public_formats as formats
from mmvl.data.splits import in_split, split_of

PICTURE = b"bytes of a picture"


def tar(path, members):
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as file:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


def test_the_split_of_a_key_never_moves():
    # A change here would train on what was measured before.
    assert [k for k in (f"sroie-{n:03d}" for n in range(30)) if split_of(k) == "development"] == [
        "sroie-019",
        "sroie-026",
    ]
    share = sum(split_of(f"key {n}") == "development" for n in range(8000)) / 8000
    assert 0.115 < share < 0.135
    assert in_split("sroie-000", "all") and in_split("x", split_of("x"))
    with pytest.raises(ValueError, match="no split 'test'"):
        in_split("x", "test")
    with pytest.raises(ValueError, match="without a key"):
        split_of("")


def test_receipts_of_a_tar_and_of_the_released_folder(tmp_path):
    record = {"fields": {"total": "9.00", "date": ""}, "lines": [{"box": [1, 2, 30, 9], "text": "A, B"}]}
    path = tar(tmp_path / "r.tar", {"a-1.webp": PICTURE, "a-1.json": json.dumps(record).encode()})
    whole = formats.Receipt("a-1", PICTURE, {"total": "9.00"}, [((1, 2, 30, 9), "A, B")])
    assert list(formats.read_receipts(path)) == [whole]
    for name in ("img", "box", "key"):
        (tmp_path / "sroie" / name).mkdir(parents=True)
    (tmp_path / "sroie/img/a-1.jpg").write_bytes(PICTURE)
    (tmp_path / "sroie/box/a-1.csv").write_text("1,2,30,2,30,9,1,9,A, B\n\n")
    (tmp_path / "sroie/key/a-1.json").write_text(json.dumps(record["fields"]))
    assert list(formats.read_receipts(tmp_path / "sroie")) == [whole]
    (tmp_path / "sroie/box/a-1.csv").write_text("1,2,x\n")
    with pytest.raises(ValueError, match="a-1.csv, line 1: not eight numbers"):
        list(formats.read_receipts(tmp_path / "sroie"))


def test_charts_and_documents(tmp_path):
    (tmp_path / "png").mkdir()
    (tmp_path / "png" / "7.png").write_bytes(PICTURE)
    (tmp_path / "test_human.json").write_text(json.dumps([{"imgname": "7.png", "query": "How many?", "label": 3}]))
    asked = [formats.Asked("7", PICTURE, [("How many?", ["3"])])]
    assert list(formats.read_charts(tmp_path)) == [formats.Asked("7", PICTURE, asked[0].qa, ("human",))]
    record = json.dumps({"qa": [{"question": "How many?", "answer": "3"}]}).encode()
    path = tar(tmp_path / "c.tar", {"7.png": PICTURE, "7.json": record})
    assert list(formats.read_charts(path)) == list(formats.read_documents(path)) == asked
    row = {"question": "Who?", "image": "png/7.png", "answers": ["A", "B"]}
    (tmp_path / "val.json").write_text(json.dumps({"data": [row]}))
    assert list(formats.read_documents(tmp_path / "val.json")) == [formats.Asked("7", PICTURE, [("Who?", ["A", "B"])])]
    (tmp_path / "val.json").write_text(json.dumps({"data": [row | {"image": "../../secret.png"}]}))
    with pytest.raises(ValueError, match="outside its folder"):
        list(formats.read_documents(tmp_path / "val.json"))


def test_tables_of_a_list_and_of_the_released_folder(tmp_path):
    row = {"id": "csv/1.csv", "header": ["a"], "rows": [["x|y"]], "qa": [{"question": "q?", "answers": ["1", "2"]}]}
    with gzip.open(tmp_path / "t.jsonl.gz", "wt") as file:
        file.write(json.dumps(row) + "\n")
    whole = formats.RealTable("csv/1.csv", ["a"], [["x|y"]], [("q?", ["1", "2"])])
    assert list(formats.read_tables(tmp_path / "t.jsonl.gz")) == [whole]
    (tmp_path / "data").mkdir()
    (tmp_path / "csv").mkdir()
    (tmp_path / "data" / "part.tsv").write_text("id\tutterance\tcontext\ttargetValue\nnt-1\tq?\tcsv/1.csv\t1|2\n")
    (tmp_path / "csv" / "1.csv").write_text('"a"\n"x|y"\n')
    assert list(formats.read_tables(tmp_path)) == [whole]
    (tmp_path / "bad.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match="bad.jsonl, line 1: not a table"):
        list(formats.read_tables(tmp_path / "bad.jsonl"))


def test_what_is_not_there_or_not_whole_is_said_in_one_line(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        list(formats.read_receipts(tmp_path / "none.tar"))
    with pytest.raises(ValueError, match="sample 'a' needs a .json and a picture"):
        list(formats.read_charts(tar(tmp_path / "half.tar", {"a.json": b"{}"})))
    (tmp_path / "cut.tar").write_bytes(b"x" * 700)
    with pytest.raises(ValueError, match="is damaged"):
        list(formats.read_charts(tmp_path / "cut.tar"))
    with pytest.raises(FileNotFoundError, match="has no img"):
        list(formats.read_receipts(tmp_path))
