"""Fetching Debian packages, with stand-ins for apt-get and dpkg on the PATH."""

import pytest

from mmvl.data.debian import fetch, write_bible


@pytest.fixture
def tools(tmp_path, monkeypatch):
    """apt-get that knows one package, dpkg that unpacks a file, bible that prints a range."""
    scripts = {
        "apt-get": '[ "$2" = fonts-nice ] || { echo "E: Unable to locate package $2" >&2; exit 100; }\n'
        'touch "$2_1.0_all.deb"; echo x >> "$LOG"',
        "dpkg": 'mkdir -p "$3/usr/share"; cp "$2" "$3/usr/share/"',
        "bible": 'i=0; while [ $i -lt ${VERSES:-15551} ]; do echo "Ge1:1 In the beginning."; i=$((i+1)); done',
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
    with pytest.raises(FileNotFoundError, match="apt-get install bible-kjv"):
        write_bible(tools)


def test_the_bible_is_whole_or_refused(tools, monkeypatch):
    lines = write_bible(tools).read_text().splitlines()
    assert len(lines) == 31_102 and set(lines) == {"In the beginning."}
    monkeypatch.setenv("VERSES", "9")
    with pytest.raises(ValueError, match="18 verses where there are 31,102"):
        write_bible(tools)
