"""`--engine ray`: a job over two local actors equals a job without Ray; one whose engine broke is started anew."""

import importlib
import re
from contextlib import closing
from pathlib import Path

import pytest
from PIL import Image

from mmvl.app.batch.journal import Journal
from mmvl.app.batch.settings import Settings
from mmvl.app.batch.sinks import open_sink
from mmvl.app.batch.sources import open_source
from mmvl.app.batch.templates import Template

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


def test_an_actor_whose_engine_is_broken_is_started_anew(tmp_path, monkeypatch):
    from mmvl.app.batch.cluster import joined, run_on_ray

    here = str(Path(__file__).parent)
    monkeypatch.setenv("PYTHONPATH", here)  # of the actor
    monkeypatch.syspath_prepend(here)
    broken_once = importlib.import_module("stub_answerers").Stub(1, str(tmp_path), "broken once")
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f'{{"id": "{n}", "image": "none.png"}}\n' for n in range(40)))
    sink = open_sink(tmp_path / "answers.jsonl", "vqa", [rows], overwrite=False)
    with joined(), closing(Journal(sink, Settings("vqa", "m", "w", "?", "", {}), "skip")) as journal:
        tally = run_on_ray(open_source([rows], None), journal, Template("?"), broken_once, task="vqa", workers=1)
    assert (tally.good, tally.failed) == (40, 0) and len([*tmp_path.glob("opened-*")]) == 2
