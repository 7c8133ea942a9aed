"""Making a table of launch parameters: wrong and failing candidates never win, and the table is used afterwards."""

import time
from concurrent.futures import Future

import pytest
import torch

from mmvl.benchmark import tune as module
from mmvl.benchmark.tune import choose_tunables, import_kernels, tune, write_table
from mmvl.kernels import tuning

CPU = torch.device("cpu")


class Immediate:
    """In place of the pool: the candidates of the test are known to this process only."""

    def __init__(self, *_, **__):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def submit(self, function, *arguments):
        done = Future()
        done.set_result(function(*arguments))
        return done


def trial(shape, device):
    x = torch.ones(shape["T"])

    def run():
        how = tuning.config("halve", **shape)
        if how["kind"] == "fails":
            raise RuntimeError("out of resources")
        time.sleep(how["wait"])
        return x * (0.5 if how["kind"] == "right" else 0.6)

    return tuning.Trial(run, lambda: x.double() / 2)


@pytest.fixture
def tunable(monkeypatch):
    monkeypatch.setattr(tuning, "_declared", {})
    monkeypatch.setattr(module, "ProcessPoolExecutor", Immediate)
    monkeypatch.setattr(module, "import_kernels", lambda: None)
    module._held.clear()
    yield tuning.declare(
        "halve",
        default={"kind": "right", "wait": 0.02},
        candidates=[{"kind": "right", "wait": 0.004}, {"kind": "wrong", "wait": 0.0}, {"kind": "fails", "wait": 0.0}],
        shapes=[{"T": 4}, {"T": 9}],
        trial=trial,
    )
    tuning._lookup.cache_clear()


def test_the_fastest_right_candidate_goes_into_the_table(tunable, tmp_path, monkeypatch):
    entries = tune([tunable], CPU, lambda text: None)
    assert [entry["shape"] for entry in entries] == [{"T": 4}, {"T": 9}]
    for entry in entries:
        assert entry["config"] == {"kind": "right", "wait": 0.004}
        assert entry["ms"] < entry["default_ms"] and entry["candidates"] == 4
        assert [f["why"].split(":")[0] for f in entry["failed"]] == ["wrong", "RuntimeError"]
    path = write_table(entries, CPU, tmp_path / "tables" / "some-gpu.json")
    monkeypatch.setattr(tuning, "_table", lambda: tuning.read_table(path))
    tuning._lookup.cache_clear()
    assert tuning.config("halve", T=5) == {"kind": "right", "wait": 0.004}


def test_entries_of_other_operations_stay(tunable, tmp_path):
    path = tmp_path / "gpu.json"
    entry = {"op": "other", "shape": {"T": 1}, "config": {"block": 1}}
    write_table([entry], CPU, path)
    write_table([{**entry, "op": "halve"}], CPU, path)
    write_table([{**entry, "op": "halve", "config": {"block": 2}}], CPU, path)
    assert {op: e[0]["config"] for op, e in tuning.read_table(path).items()} == {
        "halve": {"block": 2},
        "other": {"block": 1},
    }


def test_a_kernel_without_a_right_candidate_is_an_error(tunable):
    tuning.declare("halve", default={"kind": "wrong", "wait": 0.0}, shapes=[{"T": 4}, {"T": 9}], trial=trial)
    with pytest.raises(ValueError, match="halve, T 4: no candidate is right; the default: wrong: relative error 2.0"):
        tune(list(tuning.declared().values()), CPU, lambda text: None)


def test_an_operation_that_cannot_be_tuned_is_named(tunable):
    assert choose_tunables([]) == choose_tunables(["hal"]) == [tunable]
    with pytest.raises(ValueError, match="--op conv: what can be tuned is halve"):
        choose_tunables(["conv"])


def test_what_the_kernels_declare_is_sound():
    import_kernels()
    for op, tunable in tuning.declared().items():
        for shape in tunable.shapes:
            default = tunable.default_at(shape)
            for candidate in tunable.candidates_at(shape):
                assert candidate.keys() == default.keys(), f"{op}: {candidate} beside the default {default}"
        assert not tunable.shapes or tunable.trial, f"{op} has shapes to tune at, and no trial"
        assert set(tunable.exact) <= set().union(*tunable.shapes) or not tunable.shapes
