"""Launch parameters: which entry of a table answers, and what happens without one."""

import importlib
import json
import pkgutil
import subprocess
import sys

import pytest

import mmvl.kernels
from mmvl.kernels import tuning

DEFAULT = {"block": 64, "num_warps": 4}


@pytest.fixture
def op(monkeypatch):
    """A tunable `scale` whose table a test can set: op({...shape}, {...config}), ..."""
    monkeypatch.setattr(tuning, "_declared", {})
    tuning.declare("scale", default=DEFAULT, exact=("K",))

    def set_entries(*entries):
        table = {"scale": [{"shape": shape, "config": config} for shape, config in entries]}
        monkeypatch.setattr(tuning, "_table", lambda: table)
        tuning._lookup.cache_clear()

    set_entries()
    yield set_entries
    tuning._lookup.cache_clear()


def test_without_an_entry_the_default_stands(op):
    assert tuning.config("scale", T=100, K=128) == DEFAULT
    tuning.declare("by_shape", default=lambda T: {"block": min(T, 64)})
    assert tuning.config("by_shape", T=16) == {"block": 16}


def test_the_nearest_entry_answers(op):
    op(({"T": 1, "K": 128}, {"block": 16}), ({"T": 4096, "K": 128}, {"block": 128}))
    blocks = [tuning.config("scale", T=T, K=128)["block"] for T in (1, 4, 8, 512, 4096, 32768)]
    assert blocks == [16, 16, 16, 128, 128, 128]
    assert tuning.config("scale", T=0, K=128)["block"] == 16
    op(({"T": 4, "K": 128}, {"block": 16}), ({"T": 16, "K": 128}, {"block": 128}))
    assert tuning.config("scale", T=8, K=128)["block"] == 16  # as far from both: the earlier one


def test_an_entry_does_not_answer_for_shapes_far_away(op):
    op(({"T": 1, "K": 128}, {"block": 16}), ({"T": 4096, "K": 128}, {"block": 128}))
    assert [tuning.config("scale", T=T, K=128)["block"] for T in (9, 64, 511, 10**6)] == [DEFAULT["block"]] * 4


def test_what_must_be_equal_is_equal(op):
    op(
        ({"T": 1, "K": 64, "dtype": "bfloat16", "gated": True}, {"block": 16}),
        ({"T": 8, "K": 128, "dtype": "bfloat16", "gated": True}, {"block": 32}),
    )
    ask = {"T": 1, "K": 128, "dtype": "bfloat16", "gated": True}
    assert tuning.config("scale", **ask)["block"] == 32
    for change in ({"K": 32}, {"dtype": "float32"}, {"gated": False}):
        assert tuning.config("scale", **(ask | change)) == DEFAULT
    assert tuning.config("scale", T=1, K=128) == DEFAULT  # a table with other keys is of another kernel


def test_a_table_sets_only_what_the_kernel_knows(op):
    op(({"T": 1, "K": 128}, {"block": 16, "gone": 1}))
    assert tuning.config("scale", T=1, K=128) == {"block": 16, "num_warps": 4}


def test_parameters_can_be_forced(op):
    with tuning.forced("scale", {"block": 1}):
        assert tuning.config("scale", T=1, K=128) == {"block": 1}
        with tuning.forced("scale", {"block": 2}):
            assert tuning.config("scale", T=1, K=128) == {"block": 2}
        assert tuning.config("scale", T=1, K=128) == {"block": 1}
    assert tuning.config("scale", T=1, K=128) == DEFAULT


def test_parameters_can_be_forced_at_one_shape(op):
    with tuning.forced("scale", {"block": 1}, {"K": 128, "T": 1}), tuning.forced("scale", {"block": 2}):
        assert tuning.config("scale", T=1, K=128) == {"block": 1}
        assert tuning.config("scale", T=2, K=128) == {"block": 2}


def test_what_is_asked_is_recorded(op):
    with tuning.asked() as asked:
        for T in (1, 2, 1):
            tuning.config("scale", T=T, K=128)
    tuning.config("scale", T=3, K=128)
    assert asked == [("scale", {"T": 1, "K": 128}), ("scale", {"T": 2, "K": 128})]


def test_the_default_is_the_first_candidate_and_none_comes_twice(op):
    tuning.declare("two", default=lambda T: {"block": T}, candidates=lambda T: [{"block": 1}, {"block": T}])
    assert tuning.declared()["two"].candidates_at({"T": 8}) == [{"block": 8}, {"block": 1}]


def test_an_unknown_operation_is_named(op):
    with pytest.raises(ValueError, match="declared for 'shift'; declared are scale"):
        tuning.config("shift", T=1)


def test_a_table_is_read_and_a_broken_one_is_named(tmp_path):
    assert tuning.read_table(tmp_path / "none.json") == {}
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    entry = {"op": "scale", "shape": {"T": 1}, "config": {"block": 16}, "ms": 0.1}
    good.write_text(json.dumps({"gpu": "x", "entries": [entry]}))
    assert tuning.read_table(good) == {"scale": [{"shape": {"T": 1}, "config": {"block": 16}}]}
    for text in ("{", "[]", '{"entries": [{}]}'):
        bad.write_text(text)
        with pytest.raises(ValueError, match="bad.json is not a tuning table"):
            tuning.read_table(bad)


def test_every_table_shipped_is_named_after_its_gpu_and_of_kernels_that_are_there():
    for module in pkgutil.iter_modules(mmvl.kernels.__path__):
        if not module.name.endswith("_triton"):
            importlib.import_module(f"mmvl.kernels.{module.name}")
    for path in tuning.TABLES.glob("*.json"):
        table = json.loads(path.read_text(encoding="utf-8"))
        assert tuning.gpu_slug(table["gpu"]) == path.stem
        for op, entries in tuning.read_table(path).items():
            for entry in entries:
                assert entry["config"].keys() == tuning.declared()[op].default_at(entry["shape"]).keys(), op
    assert tuning.gpu_slug("NVIDIA A100-SXM4-80GB") == "nvidia-a100-sxm4-80gb"


def test_operations_are_imported_without_triton():
    code = """
import importlib, pkgutil, sys, mmvl.kernels
for module in pkgutil.iter_modules(mmvl.kernels.__path__):
    if not module.name.endswith("_triton"):
        importlib.import_module(f"mmvl.kernels.{module.name}")
assert "triton" not in sys.modules, "an operation imports triton before it needs it"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
