"""Equal to transformers' MiniMaxForCausalLM in fp32, with the same weights under its own names.

It rotates whole heads, so rotary_dim = head_dim here; partial rotary is held to our oracle (test_oracle.py).
"""

import pytest
import torch
from transformers import MiniMaxConfig, MiniMaxForCausalLM

from mmvl.text_backbone.cache import HybridCache
from mmvl.text_backbone.config import TextConfig
from mmvl.text_backbone.names import from_native, to_native
from mmvl.text_backbone.packed import Packed


@pytest.fixture(scope="module")
def pair(make_config, make_decoder):
    config = make_config(
        rotary_dim=8, num_hidden_layers=6, attn_type_list=(0, 0, 1) * 2, num_attention_heads=4, num_key_value_heads=2
    )
    ours = make_decoder(config)
    theirs = MiniMaxForCausalLM(MiniMaxConfig(**config.to_native_dict())).eval()
    result = theirs.load_state_dict(to_native(ours.state_dict()), strict=False)
    derived = ("slope_rate", "query_decay", "key_decay", "diagonal_decay")
    assert not result.unexpected_keys and all(name.endswith(derived) for name in result.missing_keys)
    return ours, theirs


def test_logits_are_equal(pair, rmse_ratio):
    ours, theirs = pair
    ids = torch.randint(0, ours.config.vocab_size, (2, 300), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = theirs(ids).logits
        hidden = ours(ours.embed(ids.flatten()), Packed.from_lengths((300, 300), "cpu")).hidden_TD
        assert rmse_ratio(ours.logits(hidden), expected.flatten(0, 1)) < 1e-5


def test_gradients_are_equal(pair, rmse_ratio):
    ours, theirs = pair
    ids = torch.randint(0, ours.config.vocab_size, (70,), generator=torch.Generator().manual_seed(1))
    expected = torch.nn.functional.cross_entropy(theirs(ids[None]).logits[0, :-1], ids[1:])
    expected.backward()
    logits = ours.logits(ours(ours.embed(ids), Packed.from_lengths((70,), "cpu")).hidden_TD)
    loss = torch.nn.functional.cross_entropy(logits[:-1], ids[1:])
    loss.backward()
    assert rmse_ratio(loss, expected) < 1e-5
    theirs_by_name = from_native({name: p.grad for name, p in theirs.named_parameters()})
    for name, parameter in ours.named_parameters():
        assert rmse_ratio(parameter.grad, theirs_by_name[name]) < 1e-4, name


def test_greedy_generation_is_equal(pair):
    ours, theirs = pair
    prompt = torch.randint(0, ours.config.vocab_size, (20,), generator=torch.Generator().manual_seed(2))
    cache = HybridCache(ours.config, max_sequences=1, max_tokens=64, page_size=16, device="cpu", dtype=torch.float32)
    with torch.no_grad():
        expected = theirs.generate(prompt[None], max_new_tokens=25, do_sample=False, eos_token_id=None, pad_token_id=0)
        slot, ids = cache.allocate(), prompt
        for _ in range(25):
            new = ids[cache.length(slot) :]
            hidden = ours(ours.embed(new), cache.pack([(slot, len(new))]), cache).hidden_TD
            ids = torch.cat((ids, ours.logits(hidden[-1:]).argmax(-1)))
    assert ids.tolist() == expected[0].tolist()


def test_names_and_config_come_back(pair):
    ours, theirs = pair
    assert TextConfig.from_dict(theirs.config.to_dict()) == ours.config
    back = from_native(theirs.state_dict())
    assert back.keys() == ours.state_dict().keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in ours.state_dict().items())
