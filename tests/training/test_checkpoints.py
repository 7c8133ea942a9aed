"""The checkpoint's format: any cut is put together from any other; at no moment does half of one pass for a whole."""

import errno
import itertools
import pathlib
import random
import shutil

import pytest
import torch
from safetensors.torch import save_file

import mmvl.training.checkpoints as checkpoints
from mmvl.safetensors_stream import write_safetensors
from mmvl.training.checkpoints import MANIFEST, Checkpoint, Piece, Writer, commit, complete, remove, write_rank_file
from mmvl.training.fragments import Box, copy_overlap


def cut(tensor, box):
    return tensor[tuple(slice(o, o + s) for o, s in zip(box.offset, box.size, strict=True))]


def random_box(shape, rng):
    offset = tuple(rng.randrange(n) for n in shape)
    return Box(offset, tuple(rng.randint(1, n - o) for n, o in zip(shape, offset, strict=True)))


@pytest.mark.parametrize("shape", [(), (7,), (5, 4), (4, 3, 6)])
def test_what_two_fragments_share_is_copied(shape):
    """Random ranges of random boxes against indexing with the places of the elements."""
    rng = random.Random(len(shape))
    whole = torch.arange(max(1, torch.Size(shape).numel()), dtype=torch.float32).reshape(shape)
    for _ in range(60):
        ends = []
        for _ in range(2):
            box = random_box(shape, rng) if rng.random() < 0.7 else Box.whole(shape)
            flat = cut(whole, box).reshape(-1)
            start = rng.randrange(len(flat))
            ends.append((box, start, flat[start : rng.randint(start + 1, len(flat))]))
        (src_box, src_start, src), (box, start, wanted) = ends
        out = torch.full_like(wanted, -1)
        copied = copy_overlap(src, src_box, src_start, out, box, start)
        shared = torch.isin(wanted, src)
        assert copied == shared.sum()
        assert torch.equal(out, torch.where(shared, wanted, -1))


def pieces_of(whole, layout, zero, step):
    """A parameter as ranks keep it: boxes by `layout` (pieces along each dim), each split into `zero` ranges."""
    ranks = []
    edges = [[round(i * n / parts) for i in range(parts + 1)] for n, parts in zip(whole.shape, layout, strict=True)]
    for corner in itertools.product(*(range(parts) for parts in layout)):
        offset = tuple(e[i] for e, i in zip(edges, corner, strict=True))
        box = Box(offset, tuple(e[i + 1] - e[i] for e, i in zip(edges, corner, strict=True)))
        flat = cut(whole, box).reshape(-1)
        for z in range(zero):
            first, last = (len(flat) * k // zero for k in (z, z + 1))
            values = flat[first:last].clone()
            ranks.append([Piece("w", what, whole.shape, box, first, values, step) for what in ("weight", "exp_avg")])
    return ranks


@pytest.mark.parametrize(("layout", "zero"), [((1, 1, 1), 3), ((4, 1, 1), 1), ((2, 1, 2), 2), ((2, 3, 1), 1)])
def test_experts_cut_one_way_are_read_cut_another_way(tmp_path, layout, zero):
    """Expert-parallel (first dim), expert-tensor (another dim) and ZeRO sizes, each into each."""
    whole = torch.randn(8, 6, 10, generator=torch.Generator().manual_seed(1))
    ranks = pieces_of(whole, layout, zero, 5.0)
    files = [f"rank-{r}.safetensors" for r in range(len(ranks))]
    for file, pieces in zip(files, ranks, strict=True):
        write_rank_file(tmp_path, file, pieces, {"cpu_rng": torch.arange(5, dtype=torch.uint8)})
    commit(tmp_path, files, {"step": 5})
    with Checkpoint(tmp_path) as saved:
        assert saved.state == {"step": 5} and saved.shapes == {"w": (8, 6, 10)} and saved.world == len(ranks)
        for other, parts in [((1, 1, 1), 1), ((2, 1, 1), 2), ((8, 1, 1), 1), ((1, 2, 1), 3), ((2, 1, 5), 1)]:
            for wanted in itertools.chain(*pieces_of(whole, other, parts, None)):
                out = torch.empty_like(wanted.values)
                assert saved.read("w", wanted.what, wanted.box, wanted.start, out) == 5.0
                assert torch.equal(out, wanted.values)
        with pytest.raises(ValueError, match="0 of 3 elements of weight of unknown"):
            saved.read("unknown", "weight", Box.whole((3,)), 0, torch.empty(3))


def test_streamed_files_are_those_of_the_library(tmp_path):
    tensors = {
        "b": torch.randn(3, 4),
        "a": torch.randn(2, 5).bfloat16(),
        "ü": torch.arange(6),
        "e": torch.empty(0, 3),
        "c": torch.zeros((), dtype=torch.uint8),
    }
    save_file(tensors, tmp_path / "theirs", metadata={"format": "pt"})
    layout = {name: (t.dtype, tuple(t.shape)) for name, t in tensors.items()}
    size = write_safetensors(tmp_path / "ours", layout, tensors.__getitem__, {"format": "pt"})
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    assert size == (tmp_path / "ours").stat().st_size


class Killed(BaseException):
    pass


def save_step(root, step, files=2):
    """What the ranks and then the first rank do, in one thread."""
    directory, names = root / f"step-{step:09d}", [f"rank-{r}.safetensors" for r in range(files)]
    whole = torch.full((6,), float(step))
    for name, pieces in zip(names, pieces_of(whole, (1,), files, float(step)), strict=True):
        write_rank_file(directory, name, pieces, {})
    commit(directory, names, {"step": step})
    for old in complete(root)[:-1]:
        remove(old)


def test_killed_at_any_operation_there_is_one_whole_checkpoint(tmp_path, monkeypatch):
    """The run is cut off at its first touch of the disk, at its second, and so on to the last."""
    left = [None]

    def counted(function):
        def call(*args, **kwargs):
            if left[0] is not None:
                if not left[0]:
                    raise Killed
                left[0] -= 1
            return function(*args, **kwargs)

        return call

    for name in ("open", "replace", "unlink", "mkdir", "rmdir"):
        monkeypatch.setattr(pathlib.Path, name, counted(getattr(pathlib.Path, name)))
    for name in ("fsync", "unlink", "rmdir"):
        monkeypatch.setattr(f"os.{name}", counted(getattr(__import__("os"), name)))
    seen = []
    for moment in itertools.count():
        root = tmp_path / str(moment)
        save_step(root, 1)
        left[0] = moment
        try:
            save_step(root, 2)
            done = True
        except Killed:
            done = False
        left[0] = None
        newest = complete(root)[-1]
        with Checkpoint(newest) as saved:
            out = torch.empty(6)
            saved.read("w", "weight", Box.whole((6,)), 0, out)
            assert torch.equal(out, torch.full((6,), float(saved.state["step"])))
            seen.append(saved.state["step"])
        shutil.rmtree(root)
        if done:
            break
    assert seen == sorted(seen) and {1, 2} == set(seen) and len(seen) > 12


class Alone:
    rank, world, first = 0, 1, True

    def gather(self, value):
        return [value]


def begin(writer, step):
    pieces = pieces_of(torch.full((6,), float(step)), (1,), 1, float(step))[0]
    writer.begin(step, pieces, {}, {"step": step}, lambda d: d.mkdir())


@pytest.mark.parametrize("keep", [1, 2])
def test_old_ones_go_once_a_new_one_is_whole(tmp_path, keep):
    writer = Writer(tmp_path, Alone(), keep, print)
    assert writer.latest() is None
    for step in range(1, 5):
        begin(writer, step)
        assert writer.finish()
    assert [d.name for d in complete(tmp_path)] == [f"step-{s:09d}" for s in range(5 - keep, 5)]
    (tmp_path / "step-000000009").mkdir()
    assert writer.latest() == tmp_path / "step-000000004", "one without a manifest is none"
    assert not (tmp_path / "step-000000009").exists()
    (tmp_path / "latest").write_text("step-000000004")
    with pytest.raises(ValueError, match="in DeepSpeed's format"):
        writer.latest()


def test_a_full_disk_is_one_line_and_the_old_one_stays(tmp_path, monkeypatch):
    lines = []
    writer = Writer(tmp_path, Alone(), 1, lines.append)
    begin(writer, 1)
    assert writer.finish()
    write = checkpoints.write_safetensors

    def full(path, *args):
        write(path, *args)
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(checkpoints, "write_safetensors", full)
    begin(writer, 2)
    assert not writer.finish()
    assert len(lines) == 1 and "\n" not in lines[0]
    assert "step-000000002 could not be written (No space left on device: " in lines[0]
    assert "step-000000001 stays the newest" in lines[0]
    assert [d.name for d in tmp_path.iterdir()] == ["step-000000001"], "the rest of the failed one gives its room back"
    monkeypatch.undo()

    def tokenizer_full(directory):
        raise Exception("No space left on device (os error 28)")  # as tokenizers raises it

    writer.begin(2, [], {}, {"step": 2}, tokenizer_full)
    assert not writer.finish() and "(No space left on device (os error 28))" in lines[1]
    begin(writer, 3)
    assert writer.finish() and writer.latest().name == "step-000000003"


def test_damage_is_named(tmp_path):
    save_step(tmp_path, 1)
    directory = complete(tmp_path)[0]
    file = directory / "rank-1.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-3])
    with pytest.raises(ValueError, match="rank-1.safetensors has .* bytes where .* were written; remove"):
        Checkpoint(directory)
    file.write_bytes(b"\xff" * len(whole))
    with Checkpoint(directory) as saved, pytest.raises(ValueError, match="is not a safetensors file .*; remove"):
        saved.read("w", "weight", Box.whole((6,)), 0, torch.empty(6))
    (directory / MANIFEST).unlink()
    with pytest.raises(FileNotFoundError, match="no whole checkpoint"):
        Checkpoint(directory)
