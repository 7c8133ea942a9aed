"""The benchmark over ranks, on one rank and a toy shape: every measurement is there, and weights have natural sizes."""

import json

import pytest
import torch
import torch.distributed as dist

from mmvl.app.bench_ranks import bench_ranks
from mmvl.app.errors import UsageError
from mmvl.app.options import whole_numbers
from mmvl.benchmark import ranks
from mmvl.benchmark.shapes import random_decoder, shape_of
from mmvl.text_backbone.sequence_prefill import SequenceParts
from tests.processes import run_ranks


@pytest.mark.parametrize("experts", [None, "int8", "int4", "fp8"])
def test_everything_is_measured_and_written(experts, tmp_path, monkeypatch):
    monkeypatch.setattr(ranks, "CONTEXT", 16)
    said = []
    ranks.run("tiny", experts, (20,), (1, 3), tmp_path / "out.json", said.append)
    found = json.loads((tmp_path / "out.json").read_text())
    assert [row["tokens"] for row in found["prefill"]] == [20] and [r["sequences"] for r in found["decode"]] == [1, 3]
    assert all(row["ms"] > 0 and row["floor_ms"] > 0 and row["of_roofline"] > 0 for row in found["decode"])
    assert found["commit"] and said[-1] == "done"
    here = torch.device("cpu")
    decoder = random_decoder(here, config=shape_of("tiny"), experts=experts, dtype=torch.float32)
    bench = ranks._Bench(decoder, torch.float32, here)
    with torch.inference_mode():
        out = bench.decoder.model.layers[0].block_sparse_moe(bench._embeddings(50))[0]
    assert 0.1 < out.std() < 2


def measure_parts(out) -> None:
    """What each of two ranks runs."""
    attend, parted = SequenceParts.attend, []
    SequenceParts.attend = lambda *args: parted.append(args) or attend(*args)
    dist.init_process_group("gloo")
    ranks.run("tiny", None, (600,), (2,), out, lambda what: None, sequence_parallel=True)
    assert parted, "the prompt of 600 tokens was not parted"
    dist.destroy_process_group()


def test_prompts_in_parts_are_measured_over_ranks(tmp_path):
    run_ranks(measure_parts, 2, tmp_path / "out.json")
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["ranks"] == 2 and found["sequence_parallel"] and found["prefill"][0]["ms"] > 0


def test_layers_that_are_whole_on_every_rank_are_not_read_whole():
    here, read = torch.device("cpu"), []
    for by_sequence in (False, True):
        spread = {"rank": 0, "ranks": 2, "sequence_parallel": by_sequence}
        decoder = random_decoder(here, config=shape_of("tiny"), experts=None, dtype=torch.float32, **spread)
        bench = ranks._Bench(decoder, torch.float32, here)
        read.append((bench.weight_bytes, bench.decode_bytes(3)))
    assert read[0][0] < read[1][0] and read[0][1] == read[1][1]


def test_the_experts_chosen_stay_where_tokens_change():
    here = torch.device("cpu")
    bench = ranks._Bench(
        random_decoder(here, config=shape_of("tiny"), experts=None, dtype=torch.float32), torch.float32, here
    )

    @torch.inference_mode()
    def pairs(x_TD: torch.Tensor) -> torch.Tensor:
        cache = bench._cache(1, len(x_TD))
        return bench.decoder(x_TD, cache.pack([(cache.allocate(), len(x_TD))]), cache).expert_counts_LE

    x_TD = bench._embeddings(9)
    first, other = pairs(x_TD), pairs(-x_TD)
    found = bench.routings(lambda: pairs(x_TD))
    assert len(found) == len(first) and not torch.equal(other, first)
    with ranks.chosen(found):
        for _ in range(2):
            assert torch.equal(pairs(-x_TD), first)
    assert torch.equal(pairs(-x_TD), other)


def test_lists_of_numbers():
    assert whole_numbers("--lengths", "1,8,64") == [1, 8, 64]
    for wrong in ("", "1,x", "0", "-1"):
        with pytest.raises(UsageError, match="--lengths takes whole numbers"):
            whole_numbers("--lengths", wrong)


@pytest.mark.parametrize("asked", [("nope", None), ("tiny", "int9")])
def test_what_is_not_there_is_wrong_usage(asked):
    with pytest.raises(UsageError, match="there (is no shape 'nope'|are no 'int9' experts)"):
        bench_ranks(*asked)
