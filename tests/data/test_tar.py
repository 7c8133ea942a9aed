"""The strict tar reader agrees with Python's tarfile on whole tars, and names the damage of others."""

import io
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmvl.data.tar import TarDamage, members


def tar_of(files, format=tarfile.PAX_FORMAT, **fields) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as tar:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for field, value in fields.items():
                setattr(info, field, value)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


names = st.text("abcdefgh./_-0123456789", min_size=1, max_size=90).filter(lambda name: not name.endswith("/"))


@settings(max_examples=60, deadline=None)
@given(
    files=st.lists(st.tuples(names, st.binary(max_size=1500)), max_size=8),
    format=st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
)
def test_agrees_with_tarfile(files, format):
    data = tar_of(files, format)
    ours = [(m.name, data[m.offset : m.offset + m.size]) for m in members(data)]
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert ours == [(m.name, tar.extractfile(m).read()) for m in tar]


def test_extended_times_are_passed_over_and_long_names_refused():
    assert [m.name for m in members(tar_of([("a.json", b"1")], mtime=1.5))] == ["a.json"]
    for format in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        with pytest.raises(TarDamage, match="not for shards|neither a file nor a folder"):
            list(members(tar_of([("x" * 150, b"1")], format)))


def test_folders_are_passed_over_and_links_refused():
    assert list(members(tar_of([("folder", b"")], type=tarfile.DIRTYPE))) == []
    with pytest.raises(TarDamage, match="'link' is neither a file nor a folder"):
        list(members(tar_of([("link", b"")], type=tarfile.SYMTYPE, linkname="/etc/passwd")))


def test_a_changed_header_is_noticed():
    data = bytearray(tar_of([("a.json", b"1"), ("b.json", b"2")]))
    data[1024 + 3] ^= 4
    seen = []
    with pytest.raises(TarDamage, match="not a tar header at byte 1024"):
        for member in members(bytes(data)):
            seen.append(member.name)
    assert seen == ["a.json"]
