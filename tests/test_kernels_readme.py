"""kernels/README.md: its table and picture are of the result file, and the files and commands it names exist."""

import importlib.util
import json
import re
from pathlib import Path

import pytest
from PIL import Image

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def make_tables():
    spec = importlib.util.spec_from_file_location("make_tables", REPOSITORY / "docs" / "make_tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def result(make_tables) -> dict:
    return json.loads(make_tables.KERNEL_RESULT.read_text(encoding="utf-8"))


def test_its_table_is_of_the_result_file(make_tables, result):
    page = make_tables.KERNELS.read_text(encoding="utf-8")
    assert make_tables.between_markers(page, make_tables.kernels_table(result)) == page, "run docs/make_tables.py"


def test_the_result_says_where_it_is_from(result):
    assert "H200" in result["gpu"] and result["commit"] and result["torch"] and result["triton"] and result["date"]
    assert result["command"].startswith("mmvl bench kernels")
    for row in result["results"]:
        ours = next(c for c in row["contestants"] if c["ours"])
        assert ours["status"] == "ok" or ours["note"], row["op"]


def test_its_picture_is_there(make_tables):
    with Image.open(make_tables.KERNEL_RESULT.with_suffix(".png")) as picture:
        assert min(picture.size) > 1000


def test_every_file_it_names_exists(make_tables):
    page = make_tables.KERNELS.read_text(encoding="utf-8")
    folder = make_tables.KERNELS.parent
    links = re.findall(r"\]\(([^)#:]+)\)", page)
    files = re.findall(r"`([a-z][\w/]+\.py)`", page)
    assert links and files
    assert not [name for name in links + files if not (folder / name).exists()]


def test_a_table_says_what_was_missed_and_what_was_left_out(make_tables):
    def row(length, contestants, **fields):
        return {"op": "double", "shape": {"T": length}, "axis": "T", "floor_ms": 0.05, "ms": None, "best_peer": None,
                "times_faster": None, "goal_ms": None, "contestants": contestants} | fields  # fmt: skip

    ours = {"name": "mmvl", "ours": True, "status": "ok", "ms": 0.1, "of_roofline": 0.5, "error": 2e-3}
    peer = {"name": "peer", "ours": False, "status": "ok", "ms": 0.25, "error": 2e-3}
    wrong = {"name": "other", "ours": False, "status": "wrong", "error": 0.3}
    broken = {"name": "third", "ours": False, "status": "failed", "note": "ValueError: no"}
    compared = {"ms": 0.1, "best_peer": "peer", "times_faster": 2.5, "goal_ms": 0.08}
    result = {
        "results": [row(1000, [ours, peer], **compared), row(8, [{**ours, "status": "failed"}, wrong, broken])],
        "ceilings": {"bytes": 4.2e12, "bf16": 700e12}, "gpu": "G", "driver": "1", "torch": "2", "triton": "3",
        "date": "today", "commit": "abc", "command": "mmvl bench kernels", "corrections": ["something"],
    }  # fmt: skip
    lines = make_tables.kernels_table(result).splitlines()
    assert lines[2] == "| double | T 1,000 | 0.100 | 2.0e-03 | 0.0500 | 50% | peer | 0.250 | 2.50 | 0.08, missed |"
    assert lines[3] == "| double | T 8 | failed | 2.0e-03 | 0.0500 | - | - | - | - |  |"
    text = "\n".join(lines)
    assert "- other: not timed where its relative error was over the tolerance: double at T 8 (3.0e-01)." in text
    assert "- third: failed: double at T 8 (ValueError)." in text and "- Corrected since: something." in text
    assert "4.20 TB/s for a copy, 700 TFLOP/s for a matrix product in bf16." in text
