"""Every kind of source to every kind of destination: what can be answered is, what cannot is a row with its reason, and
a second run finds all of them there."""

import io
import json
import shutil
import tarfile
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

ENCRYPTED = Path(__file__).parent.parent / "files" / "encrypted.pdf"


def png(colour: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (6, 4), colour).save(buffer, "PNG")
    return buffer.getvalue()


def pictures(at: Path) -> Path:
    at.mkdir()
    (at / "red.png").write_bytes(png("red"))
    (at / "cut.png").write_bytes(png("red")[:20])
    return at


def pdfs(at: Path) -> Path:
    at.mkdir()
    Image.new("RGB", (50, 50), "white").save(at / "page.pdf")
    shutil.copy(ENCRYPTED, at / "locked.pdf")
    return at


def lines(at: Path) -> Path:
    pictures(at)
    rows = [{"id": name, "image": f"{name}.png", "question": "?"} for name in ("red", "cut", "gone")]
    (at / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return at / "rows.jsonl"


def parquet(at: Path) -> Path:
    at.mkdir()
    images = [{"bytes": png("red"), "path": None}, {"bytes": b"no picture", "path": None}, None]
    table = pyarrow.table({"id": ["red", "cut", "gone"], "image": images})
    pyarrow.parquet.write_table(table, at / "rows.parquet")
    return at / "rows.parquet"


def shard(at: Path) -> Path:
    at.mkdir()
    with tarfile.open(at / "x.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in {"red.png": png("red"), "cut.png": b"no picture", "gone.json": b"{}"}.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return at


SOURCES = {
    "pictures": (pictures, 1),
    "pdfs": (pdfs, 1),
    "jsonl": (lines, 2),
    "parquet": (parquet, 2),
    "shard": (shard, 2),
}


@pytest.mark.parametrize("dest", ["rows.jsonl", "rows.parquet", "shards"])
@pytest.mark.parametrize("kind", SOURCES)
def test_from_every_source_to_every_destination(batch, tmp_path, kind, dest):
    make, failures = SOURCES[kind]
    source, dest = make(tmp_path / "source"), tmp_path / dest
    tally = batch.run(source, dest)
    rows = batch.rows(dest)
    assert (tally.good, tally.failed) == (1, failures) and len(rows) == 1 + failures
    reasons = [row["error"] for row in rows.values() if "error" in row]
    assert len(reasons) == failures and all(reason and "\n" not in reason for reason in reasons)
    again = batch.run(source, dest)
    assert (again.good, again.failed, again.done) == (0, 0, 1 + failures)
    assert batch.rows(dest) == rows


@pytest.mark.parametrize("kind", ["pictures", "pdfs"])
def test_from_folders_to_texts_beside(batch, tmp_path, kind):
    make, failures = SOURCES[kind]
    source = make(tmp_path / "source")
    tally = batch.run(source, ".txt")
    assert (tally.good, tally.failed, len(list(source.glob("*.txt")))) == (1, failures, 1)
    assert len(batch.rows(source / "captions.jsonl")) == 1 + failures
