"""`mmvl quantize` and `mmvl bench quantize` end to end on a tiny model."""

import json

from mmvl.checkpoint import load_model


def test_a_model_is_quantised_and_compared(run_cli, tiny_model_dir, tmp_path):
    result = run_cli("quantize", tiny_model_dir, "-o", tmp_path / "q", "--experts", "int4", "--rest", "all",
                     "--check", "print-lines", "--questions", 2, "--json", tmp_path / "q.json")  # fmt: skip
    assert result.code == 0, result.err
    assert "GB) ->" in result.err and "quantised" in result.out
    rows = json.loads((tmp_path / "q.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["reference", "quantised"]
    assert rows[0]["kl_mean"] == 0 < rows[1]["kl_mean"]
    assert rows[1]["scores"][0]["metric"] == "character error rate"
    load_model(tmp_path / "q")


def test_a_wrong_kind_is_one_line(run_cli, tiny_model_dir, tmp_path):
    result = run_cli("quantize", tiny_model_dir, "-o", tmp_path / "q", "--experts", "int2")
    assert result.code == 2
    assert result.err == "mmvl: --experts: experts can be quantised to int8, int4, fp8, or none; not 'int2'\n"
    result = run_cli("ask", tmp_path / "x.png", "-q", "What?", "--quantize", "int2")
    assert result.code == 2 and result.err.count("\n") == 1


def test_a_model_that_is_there_is_not_written_over(run_cli, tiny_model_dir, tmp_path):
    for there in (tmp_path, tiny_model_dir):
        (tmp_path / "model.safetensors").write_text("of another model")
        before = {path: path.read_bytes() for path in there.iterdir()}
        result = run_cli("quantize", tiny_model_dir, "-o", there)
        assert result.code == 1 and result.err == f"mmvl: {there} is not empty; name a new directory\n"
        assert before == {path: path.read_bytes() for path in there.iterdir()}


def test_all_kinds_are_measured(run_cli, tiny_model_dir, tmp_path):
    out = tmp_path / "all.json"
    few = ("--questions", 1, "--new-tokens", 2)
    result = run_cli("bench", "quantize", "--model", tiny_model_dir, *few, "--json", out)
    assert result.code == 0, result.err
    found = json.loads(out.read_text())
    assert [row["name"] for row in found["rows"]] == [
        "reference", "bfloat16", "fp8 keys and values", "int8 keys and values",
        "int8 experts", "int4 experts", "fp8 experts", "int8 all",
    ]  # fmt: skip
    assert all(row["tokens_per_second_8"] > 0 for row in found["speed"]) and found["commit"]
