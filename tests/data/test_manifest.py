"""The manifest says what is there, and notices what is not."""

import pytest

from mmvl.data.manifest import check_manifest, load_manifest, make_manifest
from mmvl.data.shards import ShardError, ShardWriter


@pytest.fixture
def shards(tmp_path):
    with ShardWriter(tmp_path, "t", max_bytes=6000) as writer:
        for i in range(10):
            writer.write({"source": "odd" if i % 2 else "even", "kind": "text", "text": "word " * 100})
    return writer.shards


def test_counts_and_round_trip(tmp_path, shards):
    manifest = make_manifest(tmp_path, {"odd": "CC0"}, {"command": "x"})
    assert manifest == load_manifest(tmp_path)
    assert manifest["samples"] == 10 and manifest["kinds"] == {"text": 10} and manifest["sources"]["odd"] == 5
    assert [s["name"] for s in manifest["shards"]] == [p.name for p in shards]
    assert sum(s["samples"] for s in manifest["shards"]) == 10 and manifest["licences"] == {"odd": "CC0"}
    assert check_manifest(tmp_path) == []


def test_loss_surplus_and_change_are_named(tmp_path, shards):
    make_manifest(tmp_path)
    changed = bytearray(shards[1].read_bytes())
    changed[600] ^= 1
    shards[1].write_bytes(changed)
    shards[0].rename(tmp_path / "new.tar")
    with open(shards[2], "ab") as file:
        file.write(b"more")
    missing, surplus, content, size = check_manifest(tmp_path)
    assert "t-00000.tar: in the manifest but missing" in missing and "new.tar: not in the manifest" in surplus
    assert "SHA-256" in content and "bytes where the manifest says" in size
    assert len(check_manifest(tmp_path, content=False)) == 3


def test_damaged_shards_are_not_vouched_for(tmp_path, shards):
    shards[0].write_bytes(shards[0].read_bytes()[:3000])
    with pytest.raises(ShardError, match="t-00000.tar: 1 problems"):
        make_manifest(tmp_path)


def test_missing_and_corrupt_manifests(tmp_path):
    with pytest.raises(FileNotFoundError, match="mmvl data manifest"):
        load_manifest(tmp_path)
    with pytest.raises(FileNotFoundError, match="no shards"):
        make_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(ShardError, match="corrupt"):
        load_manifest(tmp_path)
