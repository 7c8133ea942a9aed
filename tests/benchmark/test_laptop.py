"""`mmvl bench laptop`: what it measures, and what its table makes of turns."""

import importlib.util
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mmvl.app.cli import app
from mmvl.benchmark import laptop
from mmvl.benchmark.engine_contestants import Load


def turn(name, repeat, seconds, cpu):
    return {
        "name": name, "load": "1 x 64 + 64", "repeat": repeat, "seconds": seconds, "tokens_per_second": 64 / seconds,
        "cpu_seconds": cpu, "first_token_seconds": seconds / 4, "between_seconds": seconds / 64,
    }  # fmt: skip


def test_the_best_turn_of_each_counts():
    rows = [turn("mmvl", 0, 2.0, 0.32), turn("transformers", 0, 2.0, 1.6), turn("mmvl", 1, 0.5, 0.64)]
    [line] = laptop.table([*rows, turn("transformers", 1, 4.0, 1.28)])
    assert line["times"] == pytest.approx(4) and line["times_by_cpu"] == pytest.approx(4)
    assert line["mmvl"]["tokens_per_second"] == pytest.approx(128)
    assert line["transformers"]["cpu_ms_a_token"] == pytest.approx(20)
    assert "times" not in laptop.table(rows[:1])[0]


def test_it_measures_a_page_and_both_contestants_in_turns(tiny_model_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(laptop, "LOADS", (Load((5,), 3), Load((5, 5), 3)))
    monkeypatch.setattr(laptop, "PAGE", (56, 56))
    monkeypatch.setattr(laptop, "ANSWER", 4)
    path = tmp_path / "laptop.json"
    command = ["bench", "laptop", "--model", str(tiny_model_dir), "--threads", "1", "--repeats", "2", "--json"]
    told = CliRunner().invoke(app, [*command, str(path)], catch_exceptions=False)
    assert told.exit_code == 0 and "first token after" in told.output and "times as fast" in told.output
    result = json.loads(path.read_text())
    names = [row["name"] for row in result["rows"]]
    assert names == ["mmvl", "transformers"] * 4 and len(result["table"]) == 2
    page = result["page"]
    assert page["tiles"] > 1 and page["prompt_tokens"] > 4 and len(page["turns"]) == 2
    assert page["memory_mib"] > 0 and page["first_token_seconds"] > page["tiling_seconds"] > 0
    assert result["threads"] == 1 and result["cpu"] and result["commit"]


def test_the_page_in_docs_is_of_the_results():
    path = Path(__file__).parents[2] / "docs" / "make_tables.py"
    spec = importlib.util.spec_from_file_location("make_tables", path)
    make_tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_tables)
    page = make_tables.LAPTOP.read_text(encoding="utf-8")
    assert make_tables.between_markers(page, make_tables.laptop_tables()) == page, "run docs/make_tables.py"
