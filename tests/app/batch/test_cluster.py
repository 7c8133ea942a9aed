"""`--engine ray`: a job over two local actors equals a job without Ray."""

import re

import pytest
from PIL import Image

pytest.importorskip("ray", reason="Ray is not installed: pip install 'mmvl[cluster]'")


@pytest.mark.timeout(400)  # three processes import torch
def test_two_workers_equal_one_process(run_cli, batch, picture_folder, tiny_model_dir, tmp_path, monkeypatch):
    for number in range(90):
        Image.new("RGB", (20 + number, 30), (3 * number, 0, 0)).save(picture_folder / f"x{number}.png")
    options = ["--model", tiny_model_dir, "--max-tokens", "3"]
    assert run_cli("caption", picture_folder, "-o", tmp_path / "one.jsonl", *options).code == 3
    monkeypatch.chdir(tmp_path)
    ray_options = ["--engine", "ray", "--workers", "2"]
    result = run_cli("caption", "pictures", "-o", "two.jsonl", *options, *ray_options)
    assert result.code == 3, result.err
    by_actor = re.search(r"rows by actor: (\d+), (\d+)\n", result.err)
    assert by_actor and min(map(int, by_actor.groups())) > 0, "one actor did it all"
    one, two = batch.rows(tmp_path / "one.jsonl"), batch.rows(tmp_path / "two.jsonl")
    assert one.pop("damaged.png").keys() == two.pop("damaged.png").keys()
    assert one == two and len(one) == 94
