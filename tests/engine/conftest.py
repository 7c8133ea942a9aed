"""The tiny model that the engine's tests share."""

import pytest
import torch

from mmvl.checkpoint import load_model
from mmvl.processor import Processor


@pytest.fixture(scope="module")
def model(tiny_model_dir):
    return load_model(tiny_model_dir, dtype=torch.float32)


@pytest.fixture(scope="module")
def processor(tiny_model_dir):
    return Processor.from_pretrained(tiny_model_dir)
