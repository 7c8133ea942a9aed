"""`mmvl bench data`: the loader and plain webdataset take turns over the same shards."""

import io
import json

import pytest
from PIL import Image

from mmvl.data.drawing import assistant, user
from mmvl.data.shards import ShardWriter


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
