"""Shards: written once and the same, read by webdataset too, and no damage goes unnoticed."""

import io
import json
import pickle
import tarfile

import pytest
import webdataset

from mmvl.data.shards import ReadReport, SampleError, ShardError, ShardSource, ShardWriter, index_shard, read_shard


def record(i: int, files=("0.png",)) -> dict:
    parts = [{"type": "image", "file": file} for file in files] + [{"type": "text", "text": f"Question {i}? \u00e9"}]
    turns = [{"role": "user", "content": parts}, {"role": "assistant", "content": [{"type": "text", "text": str(i)}]}]
    return {"source": "test", "kind": "vqa", "messages": turns, "meta": {"i": i}}


def write(dir, count=12, max_bytes=1 << 20, prefix="a"):
    with ShardWriter(dir, prefix, max_bytes=max_bytes) as writer:
        for i in range(count):
            writer.write(record(i), {"0.png": bytes([i]) * (100 + 50 * i)})
    return writer.shards


def tar_of(path, members: list[tuple[str, bytes]]):
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


GOOD = json.dumps({"source": "t", "kind": "text", "text": "words"}).encode()


def test_round_trip_and_rolling_over(tmp_path):
    shards = write(tmp_path, 12, max_bytes=8000)
    assert len(shards) > 2 and [p.name for p in shards] == [f"a-{n:05d}.tar" for n in range(len(shards))]
    samples = [sample for path in shards for sample in read_shard(path)]
    assert [s.json for s in samples] == [record(i) for i in range(12)]
    assert [s.members["0.png"] for s in samples] == [bytes([i]) * (100 + 50 * i) for i in range(12)]
    assert len({s.key for s in samples}) == 12


def test_the_same_samples_give_the_same_bytes(tmp_path):
    [one], [two] = write(tmp_path / "one"), write(tmp_path / "two")
    assert one.read_bytes() == two.read_bytes()


def test_plain_webdataset_reads_them(tmp_path):
    [shard] = write(tmp_path)
    samples = list(webdataset.WebDataset(str(shard), shardshuffle=False))
    assert [json.loads(s["json"]) for s in samples] == [record(i) for i in range(12)]
    assert samples[3]["0.png"] == bytes([3]) * 250


def test_an_error_while_writing_leaves_no_shard(tmp_path):
    with pytest.raises(SampleError, match="'0.png' is named but missing"), ShardWriter(tmp_path, "a") as writer:
        writer.write(record(0), {"0.png": b"x"})
        writer.write(record(1), {})
    assert list(tmp_path.iterdir()) == []


def test_a_shard_cut_anywhere_is_noticed_and_no_partial_sample_comes_out(tmp_path):
    [shard] = write(tmp_path)
    whole = shard.read_bytes()
    complete = {s.key: s for s in read_shard(shard)}
    ends = [span.end for span in index_shard(shard)]
    cut = tmp_path / "cut.tar"
    for at in [*range(0, ends[-1], 97), *(-(-end // 512) * 512 for end in ends)]:
        cut.write_bytes(whole[:at])
        report = ReadReport()
        got = list(read_shard(cut, report=report))
        assert report.problems, f"cut at {at} went unnoticed"
        assert all(sample == complete[sample.key] for sample in got)
        assert report.samples == len(got) < 12
        with pytest.raises(ShardError, match="cut.tar"):
            list(read_shard(cut))


def said(part) -> bytes:
    return json.dumps({**record(0), "messages": [{"role": "user", "content": [part]}]}).encode()


BAD = {
    "no .json member": [("x.png", b"1")],
    "corrupt JSON": [("x.json", b"{nope")],
    "needs 'source' and a 'kind'": [("x.json", b'{"kind": "song", "source": "t"}')],
    "kind 'text' without text": [("x.json", b'{"kind": "text", "source": "t", "text": ""}')],
    "'1.png' is named but missing": [("x.json", json.dumps(record(0, ("0.png", "1.png"))).encode()), ("x.0.png", b"1")],
    "without a known role": [("x.json", json.dumps({**record(0), "messages": [{"role": "cat"}]}).encode())],
    "a part that is neither image nor text": [("x.json", said("not a part"))],
    "neither image nor text": [("x.json", said({"type": "image", "file": ["0.png"]}))],
}


@pytest.mark.parametrize("reason", BAD)
def test_a_bad_sample_is_named_and_the_others_come_out(tmp_path, reason):
    path = tar_of(tmp_path / "s.tar", [("a.json", GOOD), *BAD[reason], ("z.json", GOOD)])
    report = ReadReport()
    assert [s.key for s in read_shard(path, report=report)] == ["a", "z"]
    [problem] = report.problems
    assert reason in problem and "s.tar" in problem and "'x'" in problem
    with pytest.raises(SampleError, match="s.tar"):
        list(read_shard(path))


def test_too_many_bad_ones_in_a_row_stop_the_reading(tmp_path):
    path = tar_of(tmp_path / "s.tar", [(f"{i}.json", b"{") for i in range(9)])
    assert list(read_shard(path, report=ReadReport(), max_bad_in_row=9)) == []
    with pytest.raises(ShardError, match="over 8 bad samples in a row"):
        list(read_shard(path, report=ReadReport(), max_bad_in_row=8))


def test_a_repeated_key_and_a_wrong_count_are_noticed(tmp_path):
    path = tar_of(tmp_path / "s.tar", [("a.json", GOOD), ("b.json", GOOD), ("a.json", GOOD)])
    problems = []
    assert [e.key for e in index_shard(path, problems=problems, expected=3)] == ["a", "b"]
    assert "'a' occurs twice" in problems[0] and "2 samples where the manifest says 3" in problems[1]


def test_what_is_not_a_tar(tmp_path):
    (tmp_path / "s.tar").write_bytes(b"this is no tar" * 100)
    with pytest.raises(ShardError, match="s.tar: not a tar header at byte 0"):
        list(read_shard(tmp_path / "s.tar"))


def test_random_access_over_shards_also_after_pickling(tmp_path):
    write(tmp_path, 12, max_bytes=8000)
    source = ShardSource.from_dir(tmp_path)
    assert source[7].json == record(7)  # a file is open now
    again = pickle.loads(pickle.dumps(source))
    assert len(source) == 12
    for i in (11, 0, 5, 4, 11):
        assert source[i].json == again[i].json == record(i)


def test_a_source_holds_its_shards_to_the_manifest(tmp_path):
    from mmvl.data.manifest import make_manifest

    shards = write(tmp_path, 12, max_bytes=8000)
    make_manifest(tmp_path)
    assert ShardSource.from_dir(tmp_path).problems == []
    write(tmp_path / "other", 1)[0].rename(shards[0])
    assert "1 samples where the manifest says" in ShardSource.from_dir(tmp_path).problems[0]
    shards[1].unlink()
    with pytest.raises(ShardError, match="missing: a-00001.tar"):
        ShardSource.from_dir(tmp_path)


def test_a_damaged_manifest_is_one_clear_error(tmp_path):
    write(tmp_path)
    for damage in ("{", "[]", "{}"):
        (tmp_path / "manifest.json").write_text(damage)
        with pytest.raises(ShardError, match="manifest.json: (corrupt|not a manifest)"):
            ShardSource.from_dir(tmp_path)


def test_an_empty_directory_is_one_clear_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="no shards .*mmvl data"):
        ShardSource.from_dir(tmp_path)
