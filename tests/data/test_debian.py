"""Fetching Debian packages, with stand-ins for apt-get and dpkg on the PATH."""

import pytest

from mmvl.data.debian import fetch


@pytest.fixture
def tools(tmp_path, monkeypatch):
    """apt-get that knows one package, and dpkg that unpacks a file."""
    scripts = {
        "apt-get": '[ "$2" = fonts-nice ] || { echo "E: Unable to locate package $2" >&2; exit 100; }\n'
        'touch "$2_1.0_all.deb"; echo x >> "$LOG"',
        "dpkg": 'mkdir -p "$3/usr/share"; cp "$2" "$3/usr/share/"',
    }
    bin = tmp_path / "bin"
    bin.mkdir()
    for name, script in scripts.items():
        (bin / name).write_text(f"#!/bin/sh\n{script}\n")
        (bin / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin}:/usr/bin:/bin")
    monkeypatch.setenv("LOG", str(tmp_path / "log"))
    return tmp_path


def test_a_package_is_unpacked_once(tools):
    for _ in range(2):
        assert fetch(["fonts-nice"], tools / "packages") == [tools / "packages/fonts-nice"]
    assert (tools / "packages/fonts-nice/usr/share/fonts-nice_1.0_all.deb").exists()
    assert [p.name for p in (tools / "packages").iterdir()] == ["fonts-nice"]
    assert (tools / "log").read_text() == "x\n"


def test_what_cannot_be_fetched_is_said_clearly(tools, monkeypatch):
    with pytest.raises(ValueError, match="Unable to locate package fonts-gone.*apt-get update"):
        fetch(["fonts-gone"], tools / "packages")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(FileNotFoundError, match="apt-get is not there"):
        fetch(["fonts-nice"], tools / "packages")
