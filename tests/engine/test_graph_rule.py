"""Which prompts' steps go by CUDA graphs."""

import json
from types import SimpleNamespace

import pytest
import torch

from mmvl.benchmark.decoder import SLICE
from mmvl.benchmark.shapes import WHOLE
from mmvl.engine import Engine
from mmvl.engine.graph_rule import LARGEST, chunk_tokens, device_seconds
from mmvl.text_backbone.config import TextConfig
from mmvl.text_backbone.tensor_parallel import FEW
from mmvl.vlm import MMVL_TINY

INT4 = 3 * WHOLE.intermediate_size * WHOLE.hidden_size * 17 // 32  # with its scales


def test_small_models_take_all_that_there_are_and_full_width_takes_none():
    tiny = TextConfig.from_dict(json.loads((MMVL_TINY / "config.json").read_text())["text_config"])
    assert chunk_tokens(tiny, torch.bfloat16) == chunk_tokens(tiny, torch.float32) == LARGEST
    assert chunk_tokens(SLICE, torch.bfloat16) == 0
    assert [chunk_tokens(WHOLE, torch.bfloat16, expert_bytes=INT4, ranks=n) for n in (2, 4, 8)] == [256, 512, FEW]


def test_steps_are_bound_by_reading_then_by_products():
    few, more, many = (device_seconds(SLICE, torch.bfloat16, n) for n in (1, 64, 4096))
    assert 0.002 < few < 0.003 and 0.02 < more < 0.024 and many > more
    assert device_seconds(SLICE, torch.bfloat16, 8192) == pytest.approx(2 * many)


def test_a_number_of_tokens_that_no_graph_has_is_refused():
    with pytest.raises(ValueError, match=r"graph_tokens is 4096; it can be 0 to 2,048"):
        Engine(SimpleNamespace(device=torch.device("cpu")), None, graph_tokens=4096)
