"""What steps take of a GPU's memory, and how long they may be for it."""

import weakref
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mmvl.benchmark.decoder import SLICE
from mmvl.benchmark.shapes import WHOLE
from mmvl.engine import SamplingParams, sampler
from mmvl.engine.memory import activation_bytes, choose_sizes, largest_step, workspace_bytes
from mmvl.text_backbone.decoder import Decoder
from mmvl.text_backbone.moe import QuantizedStack
from mmvl.text_backbone.tensor_parallel import Shard

GIB = 1 << 30


def slice_of_the_model(kind=None):
    with torch.device("meta"):
        decoder = Decoder(SLICE)
        if kind:
            decoder.model.layers[0].block_sparse_moe.experts = QuantizedStack(SLICE, kind)
    return SimpleNamespace(
        config=SimpleNamespace(text=SLICE), language_model=decoder, dtype=torch.bfloat16, device=torch.device("cuda")
    )


def memory_is(monkeypatch, free):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (int(free * GIB), 140 * GIB))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a GPU")


class LiveBytes(TorchDispatchMode):
    """How much memory the tensors that are made inside take at once, at most: `peak`."""

    def __init__(self):
        super().__init__()
        self.peak, self._live = 0, {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        made = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            storage = tensor.untyped_storage() if isinstance(tensor, torch.Tensor) else None
            if storage is not None and storage._cdata not in given | self._live.keys():
                self._live[storage._cdata] = storage.nbytes()
                weakref.finalize(storage, self._live.pop, storage._cdata)
        self.peak = max(self.peak, sum(self._live.values()))
        return made


@pytest.mark.parametrize(("rows", "at_once"), [(24, 99), (24, 8), (3, 1)])
def test_sampling_takes_what_the_plan_says(monkeypatch, rows, at_once):
    """All that a request may ask for, as far as it can be seen without a GPU: not what a GPU takes to sort."""
    vocab = 5000
    monkeypatch.setattr(sampler, "AT_ONCE", at_once * vocab)
    monkeypatch.setattr(sampler, "SORTING", 0)
    asked = {"top_p": 0.9, "min_p": 0.01, "logprobs": 3, "repetition_penalty": 1.1, "frequency_penalty": 0.1}
    greedy = sampler.SamplerState(SamplingParams(**asked), [1, 2])
    drawn = [sampler.SamplerState(SamplingParams(temperature=1.0, **asked), [1, 2]) for _ in range(rows - 1)]
    all_rows = [sampler.Row(state, 0, torch.ones(vocab, dtype=torch.bool)) for state in (greedy, *drawn)]
    with LiveBytes() as live:
        sampler.Sampler(vocab, [3])(torch.randn(rows, vocab), all_rows)
    planned = sampler.sampling_bytes(rows, vocab)
    assert 0.85 * planned < live.peak <= planned


def test_what_is_sampled_is_in_the_plan():
    model = slice_of_the_model()
    layers, sampling = activation_bytes(model, 8192), sampler.sampling_bytes(256, SLICE.vocab_size)
    assert sampling < layers == activation_bytes(model, 8192, sampled=256)  # one after the other
    assert activation_bytes(model, 256, sampled=256) == sampling > 4 * 256 * SLICE.vocab_size
    assert activation_bytes(model, 256, sampled=256, in_graphs=8192) == sampling + layers  # a graph's is its own


def test_steps_need_room_for_activations():
    assert activation_bytes(slice_of_the_model(), 0) == 0 and activation_bytes(slice_of_the_model(), 0, 7) == 7
    assert 1.5 * GIB < activation_bytes(slice_of_the_model(), 8192) < 2 * GIB


EXPERT = 3 * SLICE.intermediate_size * SLICE.hidden_size * 2


@pytest.mark.parametrize(("kind", "free", "taken"), [("int8", 100, 3 * GIB), ("int4", 8, GIB), ("int4", 1, EXPERT),
                                                     ("fp8", 100, 0), (None, 100, 0)])  # fmt: skip
def test_experts_are_unpacked_where_there_is_room(monkeypatch, kind, free, taken):
    memory_is(monkeypatch, free)
    assert workspace_bytes(slice_of_the_model(kind)) == taken


def test_the_workspace_can_be_chosen(monkeypatch):
    memory_is(monkeypatch, 8)
    model = slice_of_the_model("int4")
    assert workspace_bytes(model, 2 * GIB) == 2 * GIB and workspace_bytes(model, 1 << 50) == 32 * EXPERT
    with pytest.raises(ValueError, match=r"expert_workspace is 0.10 GiB; one unpacked expert takes 0.32"):
        workspace_bytes(model, GIB // 10)
    decoder = model.language_model
    decoder.limit_workspace(5)
    assert decoder.model.layers[0].block_sparse_moe.experts.workspace == 5


def test_the_whole_model_in_int4_on_two_gpus_has_room_for_32_sequences(monkeypatch):
    """As its weights leave 8 GiB on each (8.6 GB were measured); with all of 3 GiB to unpack experts there were 24."""
    memory_is(monkeypatch, 8.0)
    model = slice_of_the_model("int4")
    config, steps = Shard(WHOLE, 0, 2).local, largest_step(model)

    def sizes(workspace, sequences):
        activations = activation_bytes(model, steps, workspace, sampled=144)  # with drafts
        return choose_sizes(config, model.device, model.dtype, max_sequences=sequences, prefix_cache="off",
                            activations=activations)  # fmt: skip

    assert sizes(workspace_bytes(model), 32).num_pages * 64 > 32 * 1024
    with pytest.raises(ValueError, match="too little for 32 sequences"):
        sizes(workspace_bytes(model, 3 * GIB), 32)
    assert sizes(workspace_bytes(model, 3 * GIB), 24).num_pages * 64 > 1024


@pytest.mark.parametrize(("free", "tokens"), [(60, 32_768), (40, 16_384), (8, 4096), (0.1, 1024)])
def test_steps_are_as_long_as_the_memory_allows(monkeypatch, free, tokens):
    memory_is(monkeypatch, free)
    assert largest_step(slice_of_the_model()) == tokens
