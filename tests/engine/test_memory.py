"""What steps take of a GPU's memory, and how long they may be for it."""

from types import SimpleNamespace

import pytest
import torch

from mmvl.benchmark.decoder import SLICE
from mmvl.engine.memory import activation_bytes, largest_step
from mmvl.text_backbone.decoder import Decoder
from mmvl.text_backbone.moe import QuantizedStack

GIB = 1 << 30


def slice_of_the_model(kind=None):
    with torch.device("meta"):
        decoder = Decoder(SLICE)
        if kind:
            decoder.model.layers[0].block_sparse_moe.experts = QuantizedStack(SLICE, kind)
    return SimpleNamespace(
        config=SimpleNamespace(text=SLICE), language_model=decoder, dtype=torch.bfloat16, device=torch.device("cuda")
    )


def test_quantised_experts_need_room_to_be_unpacked():
    plain, packed = (activation_bytes(slice_of_the_model(kind), 0) for kind in (None, "int4"))
    assert (plain, packed) == (0, 3 << 30)
    assert 1.5 * GIB < activation_bytes(slice_of_the_model(), 8192) < 2 * GIB


@pytest.mark.parametrize(("free", "tokens"), [(60, 32_768), (40, 16_384), (8, 4096), (0.1, 1024)])
def test_steps_are_as_long_as_the_memory_allows(monkeypatch, free, tokens):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (int(free * GIB), 140 * GIB))
    assert largest_step(slice_of_the_model()) == tokens
