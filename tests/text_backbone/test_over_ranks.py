"""Experts and rows spread over 4 gloo ranks equal one process: outputs, balance, counts and all gradients, in fp64.

The ranks run `scenarios`, which writes one JSON object, scenario -> largest error relative to the largest value, where
that was, and how many pairs the least used expert and all experts got.
"""

import json
from itertools import accumulate
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from mmvl.text_backbone.config import TextConfig
from mmvl.text_backbone.decoder import Decoder
from mmvl.text_backbone.expert_parallel import ExpertLayout, drop_over_capacity, place_experts
from mmvl.text_backbone.moe import Experts
from mmvl.text_backbone.packed import Packed
from mmvl.text_backbone.sequence_parallel import RowPart
from tests.processes import run_ranks

WORLD = 4
CONFIG = TextConfig(
    hidden_size=24, num_hidden_layers=3, num_attention_heads=6, num_key_value_heads=2, head_dim=8, rotary_dim=4,
    vocab_size=61, intermediate_size=16, num_local_experts=8, num_experts_per_tok=2, attn_type_list=(0, 1, 0),
    rope_theta=1000.0, postnorm=True, layernorm_full_attention_alpha=1.8, layernorm_linear_attention_alpha=1.7,
    layernorm_mlp_alpha=1.6, shared_intermediate_size=8,
)  # fmt: skip
ROWS = {  # documents of the rows that the ranks share, one row for every `sequence` ranks
    4: {
        "one document": [(64,)],
        "cut on the borders": [(16, 16, 16, 16)],
        "cut on one border": [(16, 21, 27)],
        "cut off the borders": [(5, 40, 1, 3, 15)],
        "uneven parts": [(3, 30, 1, 2, 31)],
        "a rank in the middle": [(2, 61, 1)],
    },
    2: {"two rows": [(13, 19, 1), (64,)]},
    1: {"a row a rank": [(13,), (5, 4, 3), (1, 1), (30, 2)]},
}
SCENARIOS = {f"sequence 4, {name}": (dict(sequence=4), rows) for name, rows in ROWS[4].items()} | {
    f"{layout}": (layout, rows)
    for layout, rows in [
        (dict(sequence=1), ROWS[1]["a row a rank"]),
        (dict(sequence=2), ROWS[2]["two rows"]),
        (dict(experts=2), ROWS[1]["a row a rank"]),
        (dict(experts=4), ROWS[1]["a row a rank"]),
        (dict(tensor=2), ROWS[1]["a row a rank"]),
        (dict(experts=2, tensor=2), ROWS[1]["a row a rank"]),
        (dict(experts=4, token_groups=3), ROWS[1]["a row a rank"]),
        (dict(experts=4, starved=True), ROWS[1]["a row a rank"]),
        (dict(experts=2, sequence=2), ROWS[2]["two rows"]),
        (dict(experts=2, sequence=2, recomputed=(0, 2)), ROWS[2]["two rows"]),
        (dict(experts=2, tensor=2, sequence=4, token_groups=2, recomputed=(0, 1, 2)), ROWS[4]["cut off the borders"]),
        (dict(capacity=0.7), ROWS[1]["a row a rank"]),
        (dict(experts=4, sequence=2, capacity=0.7, token_groups=2), ROWS[2]["two rows"]),
    ]
}


def make_decoder(starved: bool) -> Decoder:
    decoder = Decoder(CONFIG)
    decoder.init_weights(0)
    with torch.no_grad():
        for name, p in decoder.named_parameters():
            if name.endswith("gate.weight"):
                p.mul_(20)
                if starved:  # every token chooses experts 0 and 1: three ranks of four have nothing to do
                    p.zero_()
    return decoder.double()


def run(decoder, x, weight, packed, balance):
    """Outputs and gradients of sum(hidden * weight) + balance loss."""
    x = x.clone().requires_grad_()
    out = decoder(x, packed)
    ((out.hidden_TD * weight).sum() * balance[0] + out.balance_loss * balance[1]).backward()
    return out, x.grad


def scenario(
    groups, rows, sequence=1, experts=1, tensor=1, token_groups=1, capacity=None, recomputed=(), starved=False
):
    rank = dist.get_rank()
    lengths = [n for row in rows for n in row]
    generator = torch.Generator().manual_seed(len(lengths))
    x, weight = torch.randn(2, sum(lengths), 24, generator=generator, dtype=torch.float64)
    alone = make_decoder(starved)
    if capacity is not None:
        alone.spread(ExpertLayout(capacity=capacity))
    expected, expected_dx = run(alone, x, weight, Packed.from_lengths(lengths, "cpu"), (1.0, 3.0))

    size = experts * tensor
    layout = ExpertLayout(
        world=WORLD, rank=rank, group=groups[size], experts=experts, tensor=tensor, token_groups=token_groups,
        capacity=capacity, balance_ranks=WORLD,
    )  # fmt: skip
    spread = make_decoder(starved)
    spread.spread(layout)
    spread.recomputed = frozenset(recomputed)
    part = RowPart(tuple(rows[rank // sequence]), rank % sequence, sequence, groups[sequence])
    begin = (0, *accumulate(sum(row) for row in rows))[rank // sequence]
    here = slice(begin + part.begin, begin + part.end)
    out, dx = run(spread, x[here], weight[here], part.pack("cpu"), (WORLD, 3.0))

    pairs = {"hidden": (out.hidden_TD, expected.hidden_TD[here]), "dx": (dx, WORLD * expected_dx[here])}
    pairs["balance"] = (out.balance_loss, expected.balance_loss)
    pairs["counts"] = (out.expert_counts_LE.double(), expected.expert_counts_LE.double())
    whole = dict(alone.named_parameters())
    for name, p in spread.named_parameters():
        if name.startswith(("model.embed", "lm_head")):
            continue
        gathered = [torch.empty_like(p) for _ in range(WORLD)]
        dist.all_gather(gathered, p.grad)
        grad = whole[name].grad
        placement = getattr(p, "placement", None)
        if placement is not None:
            assert placement.shape == grad.shape
            for dim, (start, n) in enumerate(zip(placement.offset, p.shape, strict=True)):
                grad = grad.narrow(dim, start, n)
            gathered = gathered[rank % size :: size]
        pairs[name] = (sum(gathered) / WORLD, grad)
    errors = {name: float((a - b).abs().max() / b.abs().max().clamp(min=1e-3)) for name, (a, b) in pairs.items()}
    worst = max(errors, key=errors.get)
    return errors[worst], worst, expected.expert_counts_LE.min().item(), expected.expert_counts_LE.sum().item()


def scenarios(out: Path) -> None:
    dist.init_process_group("gloo")
    rank, groups = dist.get_rank(), {1: None}
    for size in (2, 4):
        for first in range(0, WORLD, size):
            group = dist.new_group(list(range(first, first + size)))
            if first <= rank < first + size:
                groups[size] = group
    results = {}
    for name, (settings, rows) in SCENARIOS.items():
        everyones = [None] * WORLD
        dist.all_gather_object(everyones, scenario(groups, rows, **settings))
        results[name] = max(everyones)
    if rank == 0:
        out.write_text(json.dumps(results))
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What rank 0 wrote: all scenarios in one start of 4 processes."""
    out = tmp_path_factory.mktemp("ranks") / "results.json"
    run_ranks(scenarios, WORLD, out)
    return json.loads(out.read_text())


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_equals_one_process(results, scenario):
    error, where, fewest, pairs = results[scenario]
    assert error < 1e-12, where
    settings, rows = SCENARIOS[scenario]
    assert (fewest == 0) == settings.get("starved", False), "an expert is starved where that is the point"
    assert pairs == 3 * 2 * sum(n for row in rows for n in row), "dropped pairs count as chosen"


def test_capacity_keeps_the_first_pairs_of_every_expert():
    generator = torch.Generator().manual_seed(0)
    indices_Tk = torch.rand(40, 4, generator=generator).topk(2).indices
    indices_Tk[:20, 0] = 3  # a crowd
    counts_E = torch.bincount(indices_Tk.flatten(), minlength=4)
    kept_Tk = drop_over_capacity(indices_Tk, counts_E, ExpertLayout(capacity=1.1))
    room = 22  # 1.1 x 80 pairs / 4 experts
    seen = [0] * 4
    for before, after in zip(indices_Tk.flatten().tolist(), kept_Tk.flatten().tolist(), strict=True):
        seen[before] += 1
        assert after == (before if seen[before] <= room else 4)
    assert max(seen) > room
    assert torch.equal(drop_over_capacity(indices_Tk, counts_E, ExpertLayout(capacity=4.0)), indices_Tk)


def test_parts_of_the_experts_make_up_the_whole():
    whole = Experts(CONFIG)
    for p in whole.parameters():
        torch.nn.init.normal_(p)
    again = {name: torch.full_like(p, torch.nan) for name, p in whole.named_parameters()}
    for rank in range(8):
        part = Experts(CONFIG)
        part.load_state_dict(whole.state_dict())
        place_experts(part, ExpertLayout(world=8, rank=rank, experts=2, tensor=2))
        for name, p in part.named_parameters():
            assert (p.placement.replica, p.placement.replicas) == (rank // 4, 2)
            box = tuple(slice(o, o + n) for o, n in zip(p.placement.offset, p.shape, strict=True))
            again[name][box] = p.detach()
    for name, p in whole.named_parameters():
        assert torch.equal(again[name], p), name


def test_what_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="8 experts of width 16 cannot be spread over 3 expert-parallel ranks"):
        place_experts(Experts(CONFIG), ExpertLayout(world=3, experts=3))
    with pytest.raises(ValueError, match="a row of 3 tokens cannot be spread over 4 ranks"):
        RowPart((1, 2), 0, 4)


def test_positions_go_on_across_ranks():
    lengths = (3, 30, 1, 2, 31)
    parts = [RowPart(lengths, rank, 4) for rank in range(4)]
    positions = torch.cat([part.pack("cpu").positions_T for part in parts])
    assert positions.tolist() == [i for n in lengths for i in range(n)]
    assert [p.past for p in parts] == [0, 13, 0, 14]
    assert RowPart((16, 16), 1, 2).pack("cpu").part is None, "no document is cut: nothing to exchange"
