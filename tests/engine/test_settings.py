"""Settings of an engine: a mistake is told in one line, before the weights are read where that can be."""

import inspect
import json
import shutil
from functools import partial

import pytest
import torch

from mmvl.app.bench_engine import engine as bench_engine
from mmvl.checkpoint import load_config
from mmvl.engine import Engine
from mmvl.engine.settings import CHOICES, NUMBERS, check_settings
from mmvl.vlm import VLM


@pytest.fixture
def no_weights(monkeypatch):
    """Neither a model is loaded nor a machine measured."""

    def read(*_, **__):
        raise AssertionError("weights are read")

    monkeypatch.setattr("mmvl.vlm.load", read)
    monkeypatch.setattr("mmvl.benchmark.engine.ceilings", read)


def test_all_that_an_engine_takes_is_known():
    assert {*NUMBERS, *CHOICES} == set(inspect.getfullargspec(Engine.__init__).kwonlyargs)
    defaults = inspect.getfullargspec(Engine.__init__).kwonlydefaults
    check_settings(torch.device("cpu"), defaults)


@pytest.mark.parametrize(
    ("settings", "says"),
    [({"max_sequences": "3"}, "max_sequences is '3'; it must be a whole number from 1 on"),
     ({"max_sequences": 0}, "max_sequences is 0; it must be a whole number from 1 on"),
     ({"engine": {"max_sequences": 3}}, "max_sequences is an argument of VLM itself; leave it out of engine"),
     ({"engine": {"nonsense": 1}}, "an engine has no setting nonsense; there are: max_sequences, max_cached_tokens, "),
     ({"engine": {"model": 1}}, "an engine has no setting model; there are: "),
     ({"engine": {"max_cached_tokens": 2.5}}, "max_cached_tokens is 2.5; it must be a whole number from 1 on"),
     ({"engine": {"max_batch_tokens": True}}, "max_batch_tokens is True; "),
     ({"engine": {"draft_tokens": -1}}, "draft_tokens is -1; it must be a whole number from 0 on"),
     ({"engine": {"draft_tokens": None}}, "draft_tokens is None; it must be a whole number from 0 on"),
     ({"engine": {"swap_bytes": -1}}, "swap_bytes is -1; it must be a whole number from 0 on"),
     ({"engine": {"graph_tokens": -1}}, "graph_tokens is -1; it can be 0 to 2,048"),
     ({"engine": {"graph_tokens": 4096}}, "graph_tokens is 4096; it can be 0 to 2,048"),
     ({"engine": {"graphs": "off"}}, "graphs is 'off'; it can be True, False"),
     ({"engine": {"behind": "yes"}}, "behind is 'yes'; it can be None, True, False"),
     ({"engine": {"prefix_cache": ["exact"]}}, "prefix_cache is ['exact']; it can be exact, int8, off"),
     ({"engine": {"kv_cache_dtype": "int4"}}, "kv_cache_dtype is 'int4'; it can be auto, fp8, int8"),
     ({"engine": {"expert_workspace": 1 << 30}}, "expert_workspace is for experts in int8 or int4, and this model has"),
     ({"engine": {"expert_workspace": 1}, "quantize": "int8"}, "expert_workspace is 0.00 GiB; one unpacked expert")],
)  # fmt: skip
def test_a_setting_that_cannot_be_is_one_line(tiny_model_dir, no_weights, settings, says):
    with pytest.raises(ValueError) as told:
        VLM(tiny_model_dir, device="cpu", **settings)
    assert str(told.value).startswith(says) and "\n" not in str(told.value)


def test_keys_that_a_gpu_cannot_keep_are_told_before_loading(monkeypatch):
    monkeypatch.setattr("mmvl.kernels.keys_8bit.capability", lambda device: (8, 0))
    gpu = torch.device("cuda")
    check_settings(gpu, {"kv_cache_dtype": "int8"})
    with pytest.raises(ValueError, match="fp8 need a GPU of compute capability 8.9"):
        check_settings(gpu, {"kv_cache_dtype": "fp8"})


@pytest.mark.parametrize("lacks", ["vision half", "tokenizer"])
def test_a_model_that_cannot_answer_is_told_before_its_weights_are_read(tiny_model_dir, no_weights, tmp_path, lacks):
    directory = shutil.copytree(tiny_model_dir, tmp_path / "model")
    if lacks == "tokenizer":
        (directory / "tokenizer.json").unlink()
    else:
        (directory / "config.json").write_text(json.dumps(load_config(directory).text.to_dict()))
    with pytest.raises((ValueError, OSError), match=lacks):
        VLM(directory, device="cpu")


@pytest.mark.parametrize(("experts", "says"), [(None, "this model has none"), ("int8", "one unpacked expert takes")])
@pytest.mark.parametrize("shape", [None, "small"])
def test_settings_are_told_before_anything_is_measured(no_weights, shape, experts, says):
    bench = partial(bench_engine, None, shape, "1", "8", 2, mixed=False, repeats=1, peer=False, json_path=None,
                    picture=None, device="cpu")  # fmt: skip
    says = says if shape else "this model has none"  # on a CPU a model's int8 experts are not kept so
    with pytest.raises(ValueError, match=says):
        bench(experts=experts if shape else None, settings={"expert_workspace": 1})
    with pytest.raises(ValueError, match="graph_tokens is 4096"):
        bench(settings={"graph_tokens": 4096})


@pytest.mark.parametrize("settings", [{"max_sequences": 10**12}, {"engine": {"max_cached_tokens": 10**15}}])
def test_pools_that_no_memory_holds_are_one_line(tiny_model_dir, settings):
    with pytest.raises(ValueError, match=r"no memory for the pools of [\d,]+ sequences and [\d,]+ cached tokens; take"):
        VLM(tiny_model_dir, device="cpu", **settings)
