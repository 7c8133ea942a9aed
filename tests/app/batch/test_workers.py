"""Several processes answer one job: all of them work, and one that dies costs nothing but the item that killed it."""

import importlib
import sys
from pathlib import Path

import pytest

from mmvl.app.batch.items import Item
from mmvl.app.batch.workers import Processes


@pytest.fixture
def stub(monkeypatch):
    """The class `Stub`, importable by the processes too."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    yield importlib.import_module("stub_answerers").Stub
    sys.modules.pop("stub_answerers")


def answers(processes, ids) -> dict:
    found = {}

    def keep(item, result):
        assert item.id not in found, "answered twice"
        found[item.id] = result

    try:
        processes.answer((Item(id) for id in ids), keep)
    finally:
        processes.close()
    return found


def test_every_item_once_by_all_of_them(stub, tmp_path):
    ids = [f"{n}" for n in range(300)]
    found = answers(Processes([stub(1, str(tmp_path)), stub(2, str(tmp_path))]), ids)
    assert set(found) == set(ids)
    assert {result["text"][0] for result in found.values()} == {"1", "2"}


def test_a_process_that_dies_costs_only_what_killed_it(stub, tmp_path):
    ids = [*map(str, range(40)), "deadly", *map(str, range(40, 60)), "once", *map(str, range(60, 100))]
    found = answers(Processes([stub(1, str(tmp_path)), stub(2, str(tmp_path))]), ids)
    assert set(found) == set(ids)
    failed = {id: result for id, result in found.items() if "error" in result}
    assert set(failed) == {"deadly"} and "died, twice (signal 9)" in failed["deadly"]["error"]


def test_a_process_whose_engine_is_broken_is_started_anew(stub, tmp_path, capfd):
    found = answers(Processes([stub(1, str(tmp_path), "broken once")]), map(str, range(40)))
    assert set(found) == set(map(str, range(40))) and all("error" not in result for result in found.values())
    assert len([*tmp_path.glob("opened-*")]) == 2 and "mmvl: the engine is broken" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("trouble", "error", "says"),
    [
        ("exit", ChildProcessError, r"died while it opened the model \(exit code 5\)"),
        ("raise", FileNotFoundError, "no model directory here"),
        ("raise later", RuntimeError, "KeyError: 'a defect'"),
    ],
)
def test_what_goes_wrong_in_one_is_told_here(stub, tmp_path, trouble, error, says):
    with pytest.raises(error, match=says):
        answers(Processes([stub(1, str(tmp_path)), stub(2, str(tmp_path), trouble)]), map(str, range(50)))


def test_two_processes_on_a_real_model_equal_one(run_cli, batch, picture_folder, tiny_model_dir, tmp_path):
    options = ["--model", tiny_model_dir, "--max-tokens", "3"]
    for name, device in (("one", "cpu"), ("two", "cpu,cpu")):
        result = run_cli("caption", picture_folder, "-o", tmp_path / f"{name}.jsonl", *options, "--device", device)
        assert result.code == 3, result.err
    assert batch.rows(tmp_path / "one.jsonl") == batch.rows(tmp_path / "two.jsonl")
