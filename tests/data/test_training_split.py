"""The copy of a set's training split: the same samples as bytes, nothing of the development split."""

import gzip
import io
import json
import tarfile

import pytest

from mmvl.data.public_formats import read_charts, read_tables
from mmvl.data.splits import split_of
from mmvl.data.training_split import copy_training_split

KEYS = [f"sample-{n}" for n in range(40)]
TRAINED = [key for key in KEYS if split_of(key) == "train"]


@pytest.fixture
def charts(tmp_path):
    path = tmp_path / "charts.tar"
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for key in KEYS:
            asked = json.dumps({"qa": [{"question": "How many?", "answer": len(key)}]}).encode()
            for extension, data in (("png", key.encode() * 100), ("json", asked)):
                info = tarfile.TarInfo(f"charts/{key}.{extension}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture
def tables(tmp_path):
    path = tmp_path / "tables.jsonl.gz"
    rows = [{"id": key, "header": ["a"], "rows": [["1"]], "qa": [{"question": "?", "answers": ["1"]}]} for key in KEYS]
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    return path


def test_charts_and_tables_for_training_alone(charts, tables, tmp_path):
    assert 0 < len(TRAINED) < len(KEYS)
    for read, path in ((read_charts, charts), (read_tables, tables)):
        [copy] = copy_training_split(tmp_path / "out", file=path)
        assert copy == tmp_path / "out" / path.name
        assert list(read(copy)) == [sample for sample in read(path) if split_of(sample.key) == "train"]
        assert [sample.key for sample in read(copy)] == TRAINED
        first = copy.read_bytes()
        assert copy_training_split(tmp_path / "out", file=path)[0].read_bytes() == first
    with tarfile.open(tmp_path / "out" / "charts.tar") as archive:
        assert len(archive.getnames()) == 2 * len(TRAINED)


def test_plain_lines(tables, tmp_path):
    lines = tmp_path / "tables.jsonl"
    lines.write_bytes(gzip.decompress(tables.read_bytes()))
    [copy] = copy_training_split(tmp_path / "out", file=lines)
    assert [json.loads(line)["id"] for line in copy.read_text().splitlines()] == TRAINED


def test_what_cannot_be_copied_is_said_clearly(charts, tables, tmp_path):
    with pytest.raises(ValueError, match="written over it"):
        copy_training_split(tmp_path, file=charts)
    with pytest.raises(FileNotFoundError, match="a folder has no copy"):
        copy_training_split(tmp_path / "out", file=tmp_path)
    short = tmp_path / "short.tar"
    short.write_bytes(charts.read_bytes()[:3000])
    with pytest.raises(ValueError, match="short.tar is damaged or no tar: cut short"):
        copy_training_split(tmp_path / "out", file=short)
    odd = tmp_path / "odd.jsonl"
    odd.write_text('{"id": "sample-1"}\n{"name": "x"}\n')
    with pytest.raises(ValueError, match="odd.jsonl, line 2: not an object with an 'id'"):
        copy_training_split(tmp_path / "out", file=odd)
    held = next(key for key in KEYS if key not in TRAINED)
    odd.write_text(json.dumps({"id": held}) + "\n")
    with pytest.raises(ValueError, match="nothing in it is of the training split"):
        copy_training_split(tmp_path / "out", file=odd)
    assert not (tmp_path / "out").exists()
