"""`mmvl data`: make shards by name, look at them, notice damage."""

import io
import json
import re
import shutil

import pytest
from PIL import Image

from mmvl.app.data import parse_settings
from mmvl.data.shards import ShardSource, ShardWriter
from mmvl.processor import Processor
from mmvl.training.loader import encode_sample
from mmvl.vlm import MMVL_TINY


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


def test_manifest_keeps_what_was_noted_before_and_counts_tokens(run_cli, shards, tmp_path):
    folder = shutil.copytree(shards, tmp_path / "copy")
    before = json.loads((folder / "manifest.json").read_text())
    result = run_cli("data", "manifest", folder, "--no-tokens")
    assert (result.code, result.err) == (0, "")
    assert json.loads((folder / "manifest.json").read_text()) == before
    result = run_cli("data", "manifest", folder)
    after = json.loads((folder / "manifest.json").read_text())
    [counted] = after["shards"]
    assert counted["tokens"] == after["tokens"] and after["notes"]["tokens counted by"] == "mmvl-tiny"
    counts = after["tokens"]["conversation"]
    processor = Processor.from_pretrained(MMVL_TINY)
    ids = [i for s in ShardSource.from_dir(folder) for i in encode_sample(s, processor).token_ids]
    assert counts == {"image": ids.count(processor.image_id), "text": len(ids) - ids.count(processor.image_id)}
    for output in (result.out, run_cli("data", "inspect", folder).out):
        assert f"tokens of kind conversation: {counts['text']:,} text, {counts['image']:,} image" in output


@pytest.fixture
def every_kind(tmp_path):
    """A folder with an interleaved document, a preference pair, and a caption whose picture is damaged."""
    picture = io.BytesIO()
    Image.new("RGB", (30, 20), "red").save(picture, "PNG")
    image, text = {"type": "image", "file": "0.png"}, {"type": "text", "text": "left"}
    asked = [{"role": "user", "content": [image, {"type": "text", "text": "where?"}]}]
    pair = {"kind": "preference", "messages": asked, "chosen": [text], "rejected": [{"type": "text", "text": "right"}]}
    said = {"kind": "caption", "messages": [*asked, {"role": "assistant", "content": [text]}]}
    with ShardWriter(tmp_path / "kinds", "a") as writer:
        for record in ({"kind": "interleaved", "content": [text, image]}, pair):
            writer.write({"source": "t", **record}, {"0.png": picture.getvalue()})
        writer.write({"source": "t", **said}, {"0.png": b"no picture"})
    return tmp_path / "kinds"


def test_inspect_shows_every_kind_and_draws_it(run_cli, every_kind, tmp_path):
    result = run_cli("data", "inspect", every_kind, "--picture", tmp_path / "sheet.png")
    assert result.code == 0
    for line in ("  left\n  [0.png, 30x20]", "user: where?", "chosen: left", "rejected: right", "[0.png, damaged]"):
        assert line in result.out
    sheet = Image.open(tmp_path / "sheet.png").convert("RGB")
    assert sum(sheet.getpixel((x, y)) == (255, 0, 0) for x in range(60) for y in range(sheet.height)) == 2 * 30 * 20
    missing = run_cli("data", "inspect", every_kind, "--picture", tmp_path / "no" / "sheet.png")
    assert missing.code == 1 and "no folder" in missing.err


def test_a_damaged_picture_stops_the_manifest_and_is_named(run_cli, every_kind):
    result = run_cli("data", "manifest", every_kind)
    assert (result.code, result.err.count("\n")) == (1, 1)
    assert "a-00000-0000002" in result.err and "1 problems" in result.err
    assert run_cli("data", "manifest", every_kind, "--no-tokens").code == 0


def test_inspect_holds_a_folder_to_its_manifest(run_cli, shards, tmp_path):
    folder = shutil.copytree(shards, tmp_path / "copy")
    (folder / "more.tar").write_bytes(next(folder.glob("*.tar")).read_bytes())
    result = run_cli("data", "inspect", folder, "--limit", "0")
    assert result.code == 3 and "more.tar: not in the manifest" in result.out


def test_what_an_importer_skips_is_told_with_exit_code_3(run_cli, tmp_path):
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("black")
    (tmp_path / "b.png").write_bytes(b"damaged")
    (tmp_path / "b.txt").write_text("nothing")
    result = run_cli("data", "import", "folder", "-o", tmp_path / "out", "--set", f"images={tmp_path}")
    assert result.code == 3 and "skipped: b.png: a picture of 7 bytes is damaged" in result.err
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["samples"] == 1 and manifest["notes"]["folder"]["items skipped"] == "1"


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

    written = []
    monkeypatch.setattr(datasets, "fetch", lambda packages, folder: [folder / package for package in packages])
    monkeypatch.setattr(datasets, "write_bible", written.append)
    result = run_cli("data", "import", "debian", "-o", tmp_path)
    count = int(re.search(r"(\d+) files? in", result.err)[1])
    assert result.code == 0 and count > 50 and f"{count}/{count}" in result.err
    assert written == [tmp_path] and not (tmp_path / "manifest.json").exists()


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
