"""`mmvl bench training` on two processes, small: every part measures, and a row over two ranks is the row on one."""

import json
from pathlib import Path

import pytest

from mmvl.app.bench_training import training
from mmvl.benchmark.communication import overlap, union
from mmvl.benchmark.training import run
from tests.processes import run_ranks


def measure(out: Path) -> None:
    training([], layers=None, tokens=None, seconds=0.1, json_path=out)


def test_two_ranks_measure_every_part(tmp_path):
    out = tmp_path / "result.json"
    run_ranks(measure, 2, out)
    result = json.loads(out.read_text())
    assert result["ranks"] == 2 and result["command"] and result["torch"]
    parts = {part: [r for r in result["results"] if r["part"] == part] for part in ("experts", "layer", "row")}
    assert [(r["token_groups"], r["sent"]) for r in parts["experts"]] == [(g, s) for g in (2, 1, 4) for s in (1, 0)]
    for row in parts["experts"] + parts["layer"]:
        assert "failed" not in row, row
        assert row["steps"] >= 3 and row["low_ms"] <= row["step_ms"] <= row["high_ms"]
        assert row["forward_backward_ms"] < row["step_ms"] and row["tokens_per_second"] > 0
    for part in ("experts", "layer"):  # the learning rate is zero: token groups change nothing but rounding
        sent = [row for row in parts[part] if row.get("sent")]
        assert len({row["busiest_expert"] for row in sent}) == 1, sent
        assert max(row["loss"] for row in sent) - min(row["loss"] for row in sent) < 1e-5
    # the same layer: as many weights on every rank as the peer has, but for half of the experts
    ours, peer = parts["layer"][0], parts["layer"][-1]
    text = result["size"]["text"]
    half = text["num_local_experts"] // 2 * 3 * text["hidden_size"] * text["intermediate_size"]
    assert peer["name"] == "transformers, ZeRO 2" and peer["weights_a_rank"] - ours["weights_a_rank"] == half
    assert len(parts["row"]) == 3
    for row in parts["row"]:
        assert max(row["output_error"], row["gradient_error"], row["weights_error"]) < 1e-5, row


def test_what_no_other_kernel_runs_beside():
    sending = union([(0, 4), (3, 6), (10, 12)])
    assert sending == [(0, 6), (10, 12)]
    assert overlap(sending, union([(5, 11)])) == 2


def test_an_unknown_part_is_refused():
    with pytest.raises(ValueError, match="bench training rows: the parts are experts, layer, row"):
        run(["rows"], None)
