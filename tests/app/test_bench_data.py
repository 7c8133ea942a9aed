"""`mmvl bench data`: the loader and plain webdataset take turns over the same shards."""

import io
import json
from pathlib import Path

import pytest
from PIL import Image

from mmvl.data.shards import ShardWriter
from mmvl.data.turns import assistant, user


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder, picture = tmp_path_factory.mktemp("bench"), io.BytesIO()
    Image.new("L", (60, 20), 200).save(picture, "PNG")
    with ShardWriter(folder, "a") as writer:
        for i in range(40):
            record = {"source": "t", "kind": "vqa", "messages": [user("Read.", "0.png"), assistant(f"number {i}")]}
            writer.write(record, {"0.png": picture.getvalue()})
    return folder


def test_a_measurement_names_what_was_measured(run_cli, shards, tmp_path):
    options = ["--workers", "1", "--seconds", "0.1", "--rounds", "1", "--json", tmp_path / "result.json"]
    result = run_cli("bench", "data", shards, *options)
    assert result.code == 0 and "40 samples, 1 processes on" in result.out and "times as fast as" in result.out
    written = json.loads((tmp_path / "result.json").read_text())
    assert [row["name"] for row in written["contestants"]] == [
        "mmvl loader", "webdataset + PIL", "webdataset + PIL, decoding only"]  # fmt: skip
    assert all(row["low"] > 0 for row in written["contestants"])


def test_fewer_shards_than_processes_are_one_clear_line(run_cli, shards):
    result = run_cli("bench", "data", shards, "--workers", "2")
    assert (result.code, result.err.count("\n")) == (1, 1)
    assert "1 shards for 2 processes" in result.err


def test_rows_of_a_recipe_are_full(run_cli, shards, tmp_path):
    recipe = Path(__file__).parents[2] / "mmvl" / "recipes" / "tiny" / "instruction.yaml"
    small = ["batch_tokens=600", "max_sample_tokens=600", "workers=0", "virtual_workers=1", "open_rows=4"]
    small += [f"sources=[{{path: {shards}, weight: 1}}]"]
    settings = [word for key in small for word in ("--set", f"data.{key}")]
    result = run_cli("bench", "packing", recipe, *settings, "--rows", "8", "--json", tmp_path / "result.json")
    assert result.code == 0, result.err
    written = json.loads((tmp_path / "result.json").read_text())
    assert written["rows"] * 600 * (1 - written["padding"]) == pytest.approx(written["tokens"])
    assert f"padding {written['padding']:.2%}" in result.out and written["padding"] < 0.2
    refused = run_cli("bench", "packing", recipe.with_name("tokenizer.yaml"))
    assert (refused.code, refused.err.count("\n")) == (1, 1) and "packs no rows" in refused.err
