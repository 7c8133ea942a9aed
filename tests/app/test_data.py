"""`mmvl data`: make shards by name, look at them, notice damage."""

import json
import re

import pytest

from mmvl.app.data import parse_settings


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    from mmvl import datasets

    folder = tmp_path_factory.mktemp("shards")
    datasets.make("import", "easy-vqa", folder, count=6, workers=1, settings={"split": "test"})
    return folder


def test_import_writes_shards_and_a_manifest_with_the_licence(run_cli, tmp_path):
    result = run_cli("data", "import", "easy-vqa", "-o", tmp_path / "vqa", "-n", "4", "--set", "split=test")
    assert result.code == 0 and "1 file in" in result.err
    manifest = json.loads((tmp_path / "vqa" / "manifest.json").read_text())
    assert manifest["samples"] == 4
    assert manifest["licences"] == {"easy-vqa": "MIT"}
    assert manifest["notes"]["easy-vqa"]["split"] == "test"
    assert "4/4" in result.err


def test_inspect_prints_counts_and_the_first_samples(run_cli, shards):
    result = run_cli("data", "inspect", shards, "--limit", "1")
    assert result.code == 0
    assert "1 shard, " in result.out and "6 samples" in result.out and "easy-vqa/test 6" in result.out
    assert result.out.count("[0.png, 64x64]") == 1
    assert "assistant: " in result.out


def test_damage_is_told_with_exit_code_3(run_cli, shards, tmp_path):
    whole = next(shards.glob("*.tar")).read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[: len(whole) // 2])
    result = run_cli("data", "inspect", tmp_path, "--limit", "0")
    assert result.code == 3
    assert "damaged: " in result.out and "cut.tar" in result.out
    result = run_cli("data", "manifest", tmp_path)
    assert (result.code, result.err.count("\n")) == (1, 1)
    assert "cut.tar" in result.err


def test_manifest_keeps_what_was_noted_before(run_cli, shards):
    before = json.loads((shards / "manifest.json").read_text())
    result = run_cli("data", "manifest", shards)
    assert (result.code, result.err) == (0, "")
    assert json.loads((shards / "manifest.json").read_text()) == before


@pytest.mark.parametrize(
    ("settings", "says"),
    [([], "needs the setting 'fonts'"), (["--set", "font=x"], "no setting 'font'"), (["--set", "fonts"], "key=value")],
)
def test_wrong_settings_of_a_renderer(run_cli, tmp_path, settings, says):
    result = run_cli("data", "render", "text-lines", "-o", tmp_path / "out", *settings)
    assert (result.code, result.err.count("\n")) == (1, 1)
    assert says in result.err
    assert not (tmp_path / "out").exists()


def test_debian_packages_are_fetched_with_a_bar_and_without_a_manifest(run_cli, monkeypatch, tmp_path):
    from mmvl import datasets

    monkeypatch.setattr(datasets, "fetch", lambda packages, folder: [folder / package for package in packages])
    result = run_cli("data", "import", "debian", "-o", tmp_path)
    count = int(re.search(r"(\d+) files? in", result.err)[1])
    assert result.code == 0 and count > 50 and f"{count}/{count}" in result.err
    assert not (tmp_path / "manifest.json").exists()


def test_shards_left_by_a_longer_run_are_not_mixed_in(run_cli, tmp_path):
    arguments = ["data", "import", "easy-vqa", "-o", tmp_path, "-n", "4", "--set", "split=test"]
    assert run_cli(*arguments).code == 0 and run_cli(*arguments).code == 0  # again over the same is fine
    (tmp_path / "manifest.json").unlink()
    (tmp_path / "easy-vqa-00001.tar").write_bytes((tmp_path / "easy-vqa-00000.tar").read_bytes())
    (tmp_path / "another-00001.tar").write_bytes((tmp_path / "easy-vqa-00000.tar").read_bytes())
    result = run_cli(*arguments)
    assert result.code == 1 and "1 shards of an earlier run (easy-vqa-00001.tar" in result.err
    assert not (tmp_path / "manifest.json").exists()


def test_settings_are_typed_as_in_yaml():
    assert parse_settings(["a=1", "b=true", "c=x=y", "d=[1, 2]"]) == {"a": 1, "b": True, "c": "x=y", "d": [1, 2]}
