"""`mmvl bench kernels` from the command line, on the CPU with tiny shapes."""

import json
import sys

import pytest
import torch
from PIL import Image

from mmvl.app import cli
from mmvl.app.bench import cells, milliseconds, verdict


@pytest.fixture
def mmvl(monkeypatch, capsys):
    """Runs `mmvl bench ...` in this process; gives the exit code, stdout and stderr."""

    def run(*arguments) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["mmvl", "bench", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return end.value.code or 0, *capsys.readouterr()

    return run


def test_every_operation_runs_on_the_cpu_and_is_right(mmvl, tmp_path):
    numbers, picture = tmp_path / "numbers.json", tmp_path / "picture.png"
    code, out, err = mmvl("kernels", "--device", "cpu", "--quick", "--json", numbers, "--picture", picture)
    assert code == 0, err
    assert "lightning forward" in out and "measured ceilings" in " ".join(out.split())
    result = json.loads(numbers.read_text())
    for row in result["results"]:
        ours = next(c for c in row["contestants"] if c["ours"])
        assert ours["status"] == "ok", (row["op"], ours)
        assert all(c["status"] != "wrong" for c in row["contestants"]), row
        assert all(c["status"] != "failed" for c in row["contestants"]), row
    assert result["command"].startswith("mmvl bench kernels --device cpu --quick")
    with Image.open(picture) as drawn:
        assert drawn.format == "PNG"


@pytest.mark.parametrize("how", ["--tune", "--quick"])
@pytest.mark.parametrize("commit", [None, "abc1234"])
def test_a_file_that_will_not_say_its_commit_is_told_of(mmvl, tmp_path, monkeypatch, commit, how):
    monkeypatch.setattr("mmvl.benchmark.run.commit", lambda: commit)
    code, out, err = mmvl("kernels", how, "--device", "cpu", "--op", "rope", "--json", tmp_path / "numbers.json")
    assert code == 0, err
    assert ("MMVL_COMMIT" in out) is (commit is None)


def test_a_small_decoder_runs_beside_transformers(mmvl, tmp_path):
    code, out, err = mmvl("decoder", "--device", "cpu", "--json", tmp_path / "decoder.json")
    assert code == 0, err
    result = json.loads((tmp_path / "decoder.json").read_text())
    assert "failed" not in result
    assert [(row["name"], row["tokens"]) for row in result["prefill"]] == [("mmvl", 32), ("transformers", 32)]
    assert [row["sequences"] for row in result["decode"]] == [1, 3, 1, 3]
    assert all(row["ms"] > 0 for row in result["prefill"] + result["decode"])
    assert "decode, 3 sequences, mmvl: " in out


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--op", "conv", "--device", "cpu"], "--op conv: there are"),
        (["--device", "tpu"], "unknown device 'tpu'"),
        (["--device", "cpu", "--json", "no/such/folder/x.json"], "no folder no/such/folder"),
        (["--device", "cpu", "--tune", "--op", "conv"], "--op conv: there are"),
    ]
    + ([] if torch.cuda.is_available() else [([], "no GPU is found")]),
)
def test_what_cannot_be_done_is_one_line(mmvl, arguments, said):
    code, _, err = mmvl("kernels", *arguments)
    assert code in (1, 2)
    assert said in err and err.count("\n") == 1


def test_lines_say_what_was_measured():
    good = {"name": "mmvl", "ours": True, "status": "ok", "ms": 0.05, "low": 0.04, "high": 0.06, "tb_s": 3.2,
            "tflop_s": 101.4, "of_roofline": 0.8, "error": 2e-3, "how": "graph"}  # fmt: skip
    assert cells(good, "bytes") == ["  mmvl", "0.0500", "40%", "3.20 TB/s", "80%", "2.0e-03", "graph"]
    assert cells(good, "flops")[3] == "101 TFLOP/s"
    wrong = {"name": "other", "ours": False, "status": "wrong", "error": 0.3}
    assert cells(wrong, "bytes") == ["  other", "wrong", "", "", "", "3.0e-01", ""]
    row = {"floor_ms": 0.04, "goal_ms": 0.06, "ms": 0.05, "times_faster": 1.5, "best_peer": "other"}
    assert verdict(row) == "floor 0.0400 ms, goal 0.0600 met, 1.50 times as fast as other"
    assert verdict({**row, "ms": 0.07}) == "floor 0.0400 ms, goal 0.0600 missed, 1.50 times as fast as other"
    assert verdict({**row, "goal_ms": None, "times_faster": None}) == "floor 0.0400 ms"
    assert [milliseconds(ms) for ms in (0.00512, 0.198, 3.456, 81.23)] == ["0.0051", "0.198", "3.456", "81.2"]
