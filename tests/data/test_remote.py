"""Shards by address: fetched once, checked, and nothing but http(s) is taken."""

import json

import pytest

from mmvl.data.manifest import make_manifest
from mmvl.data.remote import fetch_shards
from mmvl.data.shards import ShardError, ShardSource, ShardWriter


@pytest.fixture
def served(tmp_path):
    folder = tmp_path / "served"
    with ShardWriter(folder, "a", max_bytes=3000) as writer:
        for i in range(8):
            writer.write({"source": "t", "kind": "text", "text": f"{i}" * 300})
    make_manifest(folder)
    return folder


def test_a_folder_is_fetched_once_and_goes_on_where_it_was(served, tmp_path, web):
    url, steps = web(served), []
    paths = fetch_shards(url, tmp_path / "here", lambda done, total: steps.append((done, total)))
    assert [p.read_bytes() for p in paths] == [p.read_bytes() for p in sorted(served.glob("*.tar"))]
    assert steps[0][0] == 0 and steps[-1][0] == steps[-1][1] > 0
    assert len(ShardSource.from_dir(tmp_path / "here")) == 8
    paths[0].unlink()
    for path in sorted(served.glob("*.tar"))[1:]:
        path.unlink()  # if it were asked for again, this would be noticed
    assert fetch_shards(url, tmp_path / "here") == paths and paths[0].exists()


@pytest.mark.parametrize("url", ["pipe:touch {}", "file://{}", "ssh://host/{}", "{}", "http:touch {}", "https://"])
def test_nothing_but_the_web_is_opened(url, tmp_path):
    with pytest.raises(ValueError, match="http:// and https:// addresses only"):
        fetch_shards(url.format(tmp_path / "ran"), tmp_path / "here")
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_as_the_manifest_says_is_refused(served, tmp_path, web):
    shard = sorted(served.glob("*.tar"))[0]
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    with pytest.raises(ShardError, match="a-00000.tar: .* of the manifest"):
        fetch_shards(web(served), tmp_path / "here")
    assert not list((tmp_path / "here").glob("*.tar*"))


@pytest.mark.parametrize("name", ["../evil.tar", "/etc/evil.tar", "pipe:x.tar", "evil.sh"])
def test_a_manifest_cannot_name_files_elsewhere(served, tmp_path, web, name):
    manifest = json.loads((served / "manifest.json").read_text())
    manifest["shards"][0]["name"] = name
    (served / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ShardError, match="not a file name of a shard"):
        fetch_shards(web(served), tmp_path / "here")


def test_an_address_with_nothing_behind_it_is_one_line(served, tmp_path, web):
    with pytest.raises(OSError, match="404"):
        fetch_shards(web(served) + "/nowhere", tmp_path / "here")
    with pytest.raises(OSError, match="cannot be fetched"):
        fetch_shards("http://127.0.0.1:9/x", tmp_path / "here")
