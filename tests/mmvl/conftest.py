"""The tiny model as a VLM, which the tests of a file share."""

import time

import pytest

from mmvl.engine import Engine
from mmvl.vlm import VLM


@pytest.fixture(scope="module")
def vlm(tiny_model_dir):
    return VLM(tiny_model_dir, device="cpu")


@pytest.fixture
def slow(vlm, monkeypatch):
    """Answers of 150 tokens or so, that take a second: the end token is not one."""
    monkeypatch.setattr(vlm.processor, "eos_ids", ())
    step = Engine.step
    monkeypatch.setattr(Engine, "step", lambda engine: time.sleep(0.005) or step(engine))
    return vlm
