"""Making a table of launch parameters: wrong and failing candidates never win, and the table is used afterwards."""

import importlib
import json
import pkgutil
import time
from types import SimpleNamespace

import pytest
import torch

import mmvl.kernels
from mmvl.benchmark.case import Case, Contestant
from mmvl.benchmark.tune import tune, write_table
from mmvl.kernels import tuning

CPU = torch.device("cpu")
CANDIDATES = [{"kind": "right", "wait": 0.004}, {"kind": "wrong", "wait": 0.0}, {"kind": "fails", "wait": 0.0}]


def halve(x: torch.Tensor) -> torch.Tensor:
    """Two kernels: the second has nothing to choose from."""
    how = tuning.config("halve", T=len(x))
    tuning.config("copy", T=len(x))
    if how["kind"] == "fails":
        raise RuntimeError("out of resources")
    time.sleep(how["wait"])
    return x * (0.5 if how["kind"] == "right" else 0.6)


@pytest.fixture
def case(monkeypatch):
    monkeypatch.setattr(tuning, "_declared", {})
    tuning.declare("halve", default={"kind": "right", "wait": 0.02}, candidates=CANDIDATES)
    tuning.declare("copy", default={"block": 1})
    yield Case(
        op="halving", about="", axis="T", full=(), quick=(), tiny=[{"T": 4}, {"T": 9}],
        inputs=lambda shape, device, dtype, seed: SimpleNamespace(x=torch.ones(shape["T"], dtype=dtype)),
        reference=lambda i: (i.x.double() / 2,),
        contestants=[Contestant("mmvl", lambda i: lambda: halve(i.x), ours=True)],
        bytes=lambda i: 2 * i.x.nbytes, flops=lambda i: i.x.numel(),
    )  # fmt: skip
    tuning._lookup.cache_clear()


def test_the_fastest_right_candidate_goes_into_the_table(case, tmp_path, monkeypatch):
    entries = list(tune([case], CPU, lambda text: None))
    assert [(entry["op"], entry["shape"]) for entry in entries] == [("halve", {"T": 4}), ("halve", {"T": 9})]
    for entry in entries:
        assert entry["config"] == {"kind": "right", "wait": 0.004}
        assert entry["ms"] < entry["default_ms"] and entry["candidates"] == 4
        assert [f["why"] for f in entry["failed"]] == [
            "wrong: relative error 2.00e-01",
            "RuntimeError: out of resources",
        ]
    path = write_table(entries, CPU, tmp_path / "tables" / "some-gpu.json")
    monkeypatch.setattr(tuning, "_table", lambda: tuning.read_table(path))
    tuning._lookup.cache_clear()
    assert tuning.config("halve", T=5) == {"kind": "right", "wait": 0.004}


@pytest.mark.parametrize(("times", "wait"), [((1.0, 0.995), 0.004), ((1.0, 0.98), 0.003)])
def test_the_default_stands_unless_another_is_clearly_faster(case, monkeypatch, times, wait):
    tuning.declare("halve", default={"kind": "right", "wait": 0.004}, candidates=[{"kind": "right", "wait": 0.003}])
    measured = iter([(SimpleNamespace(ms=ms), "") for ms in times * 2])  # two shapes
    monkeypatch.setattr("mmvl.benchmark.tune.time_contestant", lambda *_: next(measured))
    assert next(tune([case], CPU, lambda text: None))["config"] == {"kind": "right", "wait": wait}


def test_other_entries_stay(case, tmp_path):
    path = tmp_path / "gpu.json"
    entry = {"op": "other", "shape": {"T": 1}, "config": {"block": 1}}
    write_table([entry], CPU, path)
    write_table([{**entry, "op": "halve"}, {**entry, "op": "halve", "shape": {"T": 2}}], CPU, path)
    write_table([{**entry, "op": "halve", "config": {"block": 2}}], CPU, path)
    assert {op: [e["config"]["block"] for e in found] for op, found in tuning.read_table(path).items()} == {
        "halve": [1, 2],
        "other": [1],
    }


def test_entries_say_of_which_commit_they_are(case, tmp_path, monkeypatch):
    path = tmp_path / "gpu.json"
    entry = {"op": "other", "shape": {"T": 1}, "config": {"block": 1}}
    for commit, op in (("abc1234", "other"), ("def5678", "halve")):
        monkeypatch.setenv("MMVL_COMMIT", commit)
        write_table([{**entry, "op": op}], CPU, path)
    table = json.loads(path.read_text())
    assert table["commit"] == "def5678"
    assert {e["op"]: e["commit"] for e in table["entries"]} == {"other": "abc1234", "halve": "def5678"}
    assert all(e["date"] and e["torch"] and e["mmvl"] for e in table["entries"])


def test_a_kernel_without_a_right_candidate_is_an_error(case):
    tuning.declare("halve", default={"kind": "wrong", "wait": 0.0}, candidates=CANDIDATES[1:])
    with pytest.raises(ValueError, match="halving, T 4: no candidate of halve is right; the default: wrong: relative"):
        list(tune([case], CPU, lambda text: None))


def test_what_the_kernels_declare_has_a_name_and_a_default():
    for module in pkgutil.iter_modules(mmvl.kernels.__path__):
        if not module.name.endswith("_triton"):
            importlib.import_module(f"mmvl.kernels.{module.name}")
    for op, tunable in tuning.declared().items():
        assert op == tunable.op and op.replace("_", "").isalnum()
        if not callable(tunable.candidates) and not callable(tunable.default):
            for candidate in tunable.candidates:
                assert candidate.keys() == tunable.default.keys(), f"{op}: {candidate} beside {tunable.default}"
