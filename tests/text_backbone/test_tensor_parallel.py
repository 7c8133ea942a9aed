"""A decoder spread over gloo ranks for inference equals one process: prefill in groups, chunks, decode, in fp64.

The ranks run `cases`, which writes one JSON object, case -> largest error.
"""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from mmvl.text_backbone.config import TextConfig
from mmvl.text_backbone.decoder import Decoder
from mmvl.text_backbone.moe import QuantizedStack
from mmvl.text_backbone.tensor_parallel import FEW, Shard
from tests.processes import run_ranks

CONFIG = TextConfig(
    hidden_size=24, num_hidden_layers=3, num_attention_heads=8, num_key_value_heads=2, head_dim=8, rotary_dim=4,
    vocab_size=61, intermediate_size=16, num_local_experts=8, num_experts_per_tok=2, attn_type_list=(0, 1, 0),
    rope_theta=1000.0, postnorm=True, layernorm_full_attention_alpha=1.8, layernorm_linear_attention_alpha=1.7,
    layernorm_mlp_alpha=1.6, shared_intermediate_size=8,
)  # fmt: skip
CASES = {  # without a shared expert many tokens are sent to their experts
    "plain": CONFIG,
    "pre-norm": replace(CONFIG, shared_intermediate_size=0, postnorm=False),
    "few experts": replace(CONFIG, shared_intermediate_size=0, num_local_experts=4),
}
STEPS = [[(0, 5), (1, 3)], [(0, 1), (1, FEW + 40)], [(0, 1), (1, 1)], [(0, FEW + 1)]]  # (sequence, new tokens), by call


def make_whole(config: TextConfig) -> Decoder:
    decoder = Decoder(config)
    decoder.init_weights(0)
    with torch.no_grad():
        for name, p in decoder.named_parameters():
            if name.endswith("gate.weight"):
                p.mul_(20)
                p[-2:] -= 1  # the last rank's experts may get nothing
            if name.endswith("self_attn.norm.weight"):
                p.copy_(torch.linspace(0.5, 1.5, len(p)))
    return decoder.double().requires_grad_(False)


def part_of(whole: Decoder, shard: Shard) -> Decoder:
    part = Decoder(shard.config, shard).double().requires_grad_(False)
    state = {}
    for name, t in whole.state_dict().items():
        box = shard.box(name, tuple(t.shape))
        if box is not None:
            state[name] = t[box]
    part.load_state_dict(state)
    return part


@torch.no_grad()
def outputs(decoder: Decoder, x: torch.Tensor) -> list[torch.Tensor]:
    cache = decoder.new_cache(max_sequences=2, max_tokens=2048, page_size=16, device="cpu", dtype=torch.float64)
    slots, at, out = [cache.allocate(), cache.allocate()], 0, []
    for step in STEPS:
        packed = cache.pack([(slots[s], n) for s, n in step])
        out.append(decoder(x[at : at + packed.num_tokens], packed, cache).hidden_TD)
        at += packed.num_tokens
    return out


def cases(out: Path) -> None:
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    x = torch.randn(2000, 24, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    results = {}
    for name, config in CASES.items():
        whole, shard = make_whole(config), Shard(config, rank, world)
        pairs = list(zip(outputs(part_of(whole, shard), x), outputs(whole, x), strict=True))
        errors = [None] * world
        dist.all_gather_object(errors, max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs))
        results[name] = max(errors)
    if rank == 0:
        out.write_text(json.dumps(results))
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_together_equal_one_process(tmp_path, world):
    """With 4 ranks two of them share a key/value head."""
    out = tmp_path / "results.json"
    run_ranks(cases, world, out)
    errors = json.loads(out.read_text())
    assert set(errors) == set(CASES) and max(errors.values()) < 1e-12, errors


def test_what_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="over 3 ranks: 8 attention heads, 2 key/value heads, 8 experts, 8 channels"):
        Shard(CONFIG, 0, 3)


def test_parts_make_up_the_whole():
    whole = make_whole(CONFIG)
    for world in (2, 4, 8):
        seen = {name: torch.zeros_like(t) for name, t in whole.state_dict().items()}
        for rank in range(world):
            shard = Shard(CONFIG, rank, world)
            for name, t in part_of(whole, shard).state_dict().items():
                assert torch.equal(t, whole.state_dict()[name][shard.box(name, tuple(seen[name].shape))])
                seen[name][shard.box(name, tuple(seen[name].shape))] += 1
        assert all(t.min() >= 1 for t in seen.values())
        once = ("qkv_proj", "out_proj", "experts", "q_proj", "o_proj")
        assert all(t.max() == 1 for name, t in seen.items() if any(f".{part}" in name for part in once))


def test_quantised_experts_keep_their_dtypes():
    stack = QuantizedStack(CONFIG, "fp8")
    before = {name: t.dtype for name, t in stack.state_dict().items()}
    assert {name: t.dtype for name, t in stack.to(torch.bfloat16).state_dict().items()} == before
    assert stack.to("meta").w1.is_meta
