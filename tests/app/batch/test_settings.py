"""The settings of a job: what changes their hash and so is refused, what is only told, and what marks a model."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch

import mmvl
from mmvl.app.batch.settings import Settings, differences, fingerprint, remarks

SETTINGS = Settings("caption", "m", "w", "Describe.", "", {"max_tokens": 5}, version="0.4.1")


@pytest.mark.parametrize(
    "change",
    [
        {"task": "vqa"},
        {"weights": "v"},
        {"prompt": "Name it."},
        {"system": "Be brief."},
        {"sampling": {"max_tokens": 6}},
        {"quantize": "int4"},
        {"dtype": "bfloat16"},
        {"version": "0.5.0"},
        {"version": "1.4.1"},
    ],
)
def test_what_changes_answers_changes_the_hash_and_is_named(change):
    other = replace(SETTINGS, **change)
    assert other.hash != SETTINGS.hash
    name, value = next(iter((change.get("sampling") or change).items()))
    assert f"{name} was " in differences(SETTINGS.record(), other.record())
    assert f"now {value!r}" in differences(SETTINGS.record(), other.record())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model": "moved"}, []),
        ({"version": "0.4.2"}, ["0.4.1 before, 0.4.2 now"]),
        ({"device": "mps"}, ["cpu before"]),
    ],
)
def test_what_may_change_a_word_is_told_and_goes_on(change, says):
    other = replace(SETTINGS, **change)
    assert other.hash == SETTINGS.hash
    told = remarks(SETTINGS.record(), other.record())
    assert len(told) == len(says) and all(words in line for words, line in zip(says, told, strict=True))


def test_a_job_goes_on_under_a_repaired_version_and_not_under_another(batch, many_pictures, tmp_path):
    folder, dest = many_pictures(3), tmp_path / "rows.jsonl"
    batch.run(folder, dest, version="0.4.1")
    Path(folder / "pic0009.png").write_bytes((folder / "pic0000.png").read_bytes())
    assert batch.run(folder, dest, version="0.4.2").good == 1
    with pytest.raises(ValueError, match=r"version was '0\.4\.2', now '0\.5\.0'"):
        batch.run(folder, dest, version="0.5.0")
    with pytest.raises(ValueError, match=r"dtype was 'float32', now 'bfloat16'"):
        batch.run(folder, dest, version="0.4.2", dtype="bfloat16")


def test_the_command_tells_of_another_device_and_refuses_another_dtype(run_cli, tiny_model_dir, picture_path, tmp_path):
    dest = tmp_path / "rows.jsonl"
    options = ["caption", picture_path, "-o", dest, "--model", tiny_model_dir, "--max-tokens", "2", "--device", "cpu"]
    assert run_cli(*options).code == 0
    about = tmp_path / "rows.jsonl.settings.json"
    was = about.read_text()
    assert f'"version": "{mmvl.__version__}"' in was and '"dtype": "float32"' in was
    about.write_text(was.replace('"cpu"', '"mps"'))
    again = run_cli(*options)
    assert again.code == 0 and "another kind of device (mps before, cpu now)" in again.err


def test_a_model_is_known_by_every_tensor_and_by_its_templates(tiny_model_dir, tmp_path):
    before = fingerprint(tiny_model_dir)
    moved = shutil.copytree(tiny_model_dir, tmp_path / "moved")
    assert fingerprint(moved) == before
    tensors = safetensors.torch.load_file(moved / "model.safetensors")
    middle = sorted(tensors)[len(tensors) // 2]
    tensors[middle].view(-1)[0] += 1
    safetensors.torch.save_file(tensors, moved / "model.safetensors")
    assert fingerprint(moved) != before
    other = shutil.copytree(tiny_model_dir, tmp_path / "other")
    (other / "chat_template.jinja").write_text("{{ messages }}")
    assert fingerprint(other) != before
