"""`mmvl bench training` on two processes, small: every part measures, and a row over two ranks is the row on one.

This file is also the program that forks them, so that what is slow to import is imported once.
"""

import json
import multiprocessing
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from mmvl.benchmark.communication import overlap, union
from mmvl.benchmark.training import run


def test_two_ranks_measure_every_part(tmp_path):
    out = tmp_path / "result.json"
    done = subprocess.run(
        [sys.executable, __file__, str(out)],
        capture_output=True, text=True, timeout=200, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(out.read_text())
    assert result["ranks"] == 2 and result["command"] and result["torch"]
    parts = {part: [r for r in result["results"] if r["part"] == part] for part in ("experts", "layer", "row")}
    assert [(r["token_groups"], r["sent"]) for r in parts["experts"]] == [(g, s) for g in (2, 1, 4) for s in (1, 0)]
    for row in parts["experts"] + parts["layer"]:
        assert "failed" not in row, row
        assert row["steps"] >= 3 and row["low_ms"] <= row["step_ms"] <= row["high_ms"]
        assert row["forward_backward_ms"] < row["step_ms"] and row["tokens_per_second"] > 0
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


def rank(number: int, port: int, path: str) -> None:
    os.environ |= {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    from mmvl.app.bench_training import training

    training([], layers=None, tokens=None, seconds=0.1, json_path=Path(path))


def main(path: str) -> None:
    import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401  imported before the fork
    from transformers import MiniMaxForCausalLM  # noqa: F401

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    fork = multiprocessing.get_context("fork")
    ranks = [fork.Process(target=rank, args=(number, port, path)) for number in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    sys.exit(max(abs(process.exitcode) for process in ranks))


if __name__ == "__main__":
    main(sys.argv[1])
