"""A decoder spread over gloo ranks for inference equals one process: prefill in groups, chunks, decode, in fp64.

The ranks run `cases`, which writes one JSON object, case -> largest error.
"""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from mmvl.kernels.lightning_attention import lightning_attention
from mmvl.text_backbone.config import TextConfig
from mmvl.text_backbone.decoder import Decoder
from mmvl.text_backbone.moe import QuantizedStack
from mmvl.text_backbone.packed import Packed
from mmvl.text_backbone.sequence_prefill import SequenceParts
from mmvl.text_backbone.tensor_parallel import FEW, Shard, TokenShares
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
STEPS = [  # (sequence, new tokens), by call
    [(0, 5), (1, 3)], [(0, 1), (1, FEW + 40)], [(0, 1), (1, 1)], [(0, FEW + 1)], [(1, FEW - 50), (0, 55)],
    [(0, 1), (1, 2)],
]  # fmt: skip


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
    cache = decoder.new_cache(max_sequences=2, max_tokens=4096, page_size=16, device="cpu", dtype=torch.float64)
    slots, at, out = [cache.allocate(), cache.allocate()], 0, []
    for step in STEPS:
        packed = cache.pack([(slots[s], n) for s, n in step])
        out.append(decoder(x[at : at + packed.num_tokens], packed, cache).hidden_TD)
        at += packed.num_tokens
    draft = cache.pack([(slots[0], FEW + 88)], draft=True)  # of which the states take what holds
    out.append(decoder(x[at : at + draft.num_tokens], draft, cache).hidden_TD)
    cache.accept(draft, [5])
    out.append(decoder(x[:3], cache.pack([(slots[0], 3)]), cache).hidden_TD)
    return out


def worst(got: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    """The largest relative error of any rank."""
    errors = [None] * dist.get_world_size()
    error = max(
        float((a - b).abs().max() / b.abs().max()) if len(b) else 0.0 for a, b in zip(got, expected, strict=True)
    )
    dist.all_gather_object(errors, error)
    return max(errors)


def error_of_parts(lengths: tuple[int, ...], rank: int, world: int) -> float:
    """Of `SequenceParts.attend`; of five tokens the last of four ranks has none."""
    generator, S, T, H, K = torch.Generator().manual_seed(2), len(lengths), sum(lengths), 8, 4
    qkv_TC = torch.randn(T, H * 3 * K, generator=generator, dtype=torch.float64)
    states_SHKK = torch.randn(S, H, K, K, generator=generator, dtype=torch.float64)
    slopes_H = torch.linspace(0.01, 0.9, H, dtype=torch.float64)
    o_THK, after_SHKK = lightning_attention(qkv_TC, slopes_H, None, states_SHKK, lengths=lengths)
    rows, own = -(-T // world), slice(rank * H // world, (rank + 1) * H // world)
    mine = slice(rank * rows, (rank + 1) * rows)
    parts = SequenceParts(Packed.from_lengths(lengths, "cpu"), rank, world, rows)
    padded_LC = torch.nn.functional.pad(qkv_TC[mine], (0, 0, 0, rows - len(qkv_TC[mine])))
    got_LHK, got_SGKK = parts.attend(padded_LC, slopes_H, states_SHKK[:, own])
    return worst([got_LHK[: len(o_THK[mine])], got_SGKK], [o_THK[mine], after_SHKK[:, own]])


def cases(out: Path) -> None:
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    x = torch.randn(2500, 24, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    results = {}
    for name, config in CASES.items():
        whole = make_whole(config)
        expected = outputs(whole, x)
        for by_sequence in (False, True):
            got = outputs(part_of(whole, Shard(config, rank, world, by_sequence=by_sequence)), x)
            results[f"{name}{', by sequence' * by_sequence}"] = worst(got, expected)
    for lengths in ((5,), (1, 1, 3), (9, 2, 6), (16,)):
        results[f"parts of {lengths}"] = error_of_parts(lengths, rank, world)
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
    assert len(errors) == 2 * len(CASES) + 4 and max(errors.values()) < 1e-12, errors


def test_sequences_are_parted_where_states_are_less_than_tokens():
    shard = Shard(CONFIG, 1, 2, by_sequence=True)
    cache = Decoder(CONFIG).new_cache(max_sequences=9, max_tokens=9999, device="cpu", dtype=torch.float32)
    one, many = cache.pack([(cache.allocate(), 300)]), cache.pack([(cache.allocate(), 40) for _ in range(8)])
    assert TokenShares(shard, one).parts.num_tokens == 150
    assert TokenShares(shard, replace(one, draft=True)).parts is None
    assert TokenShares(shard, many).parts is None and TokenShares(Shard(CONFIG, 1, 2), one).parts is None
    assert TokenShares(shard, Packed.from_lengths([300], "cpu")).parts is None  # no cache to take the states from


def test_what_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="over 3 ranks: 8 attention heads, 2 key/value heads, 8 experts, 8 channels"):
        Shard(CONFIG, 0, 3)


def test_parts_make_up_the_whole():
    whole = make_whole(CONFIG)
    part = part_of(whole, Shard(CONFIG, 1, 2, by_sequence=True)).state_dict()
    for name in ("qkv_proj", "output_gate", "norm", "out_proj"):  # the second layer alone has softmax attention
        assert torch.equal(part[f"model.layers.2.self_attn.{name}.weight"],
                           whole.state_dict()[f"model.layers.2.self_attn.{name}.weight"])  # fmt: skip
    assert len(part["model.layers.1.self_attn.q_proj.weight"]) == 32
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
