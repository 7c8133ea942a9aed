"""The numbers of mmvl/engine/README.md are those of the result files."""

import importlib.util
from pathlib import Path

from mmvl.benchmark.engine_page import PAGE, tables


def test_the_page_is_written_from_the_results():
    path = Path(__file__).parents[2] / "docs" / "make_tables.py"
    spec = importlib.util.spec_from_file_location("make_tables", path)
    make_tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_tables)
    page = PAGE.read_text(encoding="utf-8")
    assert make_tables.between_markers(page, tables()) == page, "run docs/make_tables.py"
