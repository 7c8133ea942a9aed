"""The King James text, printed by a stand-in for the program `bible`."""

import pytest

from mmvl.data.bible import VERSES, write_bible


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Unpacked packages with a `bible` that reads its data where it runs and prints half of the verses."""
    program, text = tmp_path / "bible-kjv/usr/bin/bible", tmp_path / "bible-kjv-text/usr/lib"
    program.parent.mkdir(parents=True)
    text.mkdir(parents=True)
    (text / "bible.data").write_text("In the beginning.")
    script = 'verse=$(cat bible.data) || exit 1\nyes "Ge1:1 $verse" | head -n ${VERSES:-15551}\necho " Genesis"'
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return tmp_path


def test_it_is_written_once(packages):
    path = write_bible(packages)
    assert path == packages / "bible-kjv" / "kjv.txt"
    assert path.read_text().splitlines() == ["In the beginning."] * VERSES
    path.write_text("as it was")
    assert write_bible(packages).read_text() == "as it was"


def test_it_is_whole_or_refused(packages, monkeypatch):
    monkeypatch.setenv("VERSES", "9")
    with pytest.raises(ValueError, match="printed 18 verses where there are 31,102"):
        write_bible(packages)
    (packages / "bible-kjv-text/usr/lib/bible.data").unlink()
    with pytest.raises(ValueError, match="printed 0 verses.*No such file"):
        write_bible(packages)
    assert not (packages / "bible-kjv" / "kjv.txt").exists()
    (packages / "bible-kjv/usr/bin/bible").unlink()
    with pytest.raises(FileNotFoundError, match="unpack Debian's bible-kjv"):
        write_bible(packages)
