"""The compact copy of fonts: smaller, and drawing the same."""

from pathlib import Path

import matplotlib
import pytest
from PIL import ImageFont

from mmvl.data.compact import compact_fonts
from mmvl.data.fonts import find_fonts

FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"


def test_compact_fonts_draw_the_same(tmp_path):
    seen = []
    written = compact_fonts(tmp_path, count=4, packages=FONTS, progress=lambda done, of: seen.append((done, of)))
    assert len(written) == 4 and seen == [(n, 4) for n in range(1, 5)]
    assert [f.path for f in find_fonts(tmp_path)] and len(find_fonts(tmp_path)) == 4
    for copy in written:
        original = FONTS / copy.relative_to(tmp_path)
        assert copy.stat().st_size < original.stat().st_size / 3
        old, new = (ImageFont.truetype(str(path), 31) for path in (original, copy))
        assert new.getname() == old.getname()
        for text in ("The quick brown fox, 0123456789!", "AV To f(x) {}|~"):
            assert bytes(new.getmask(text)) == bytes(old.getmask(text)), copy.name


def test_held_out_families_are_not_copied(tmp_path, monkeypatch):
    monkeypatch.setattr("mmvl.data.fonts.HELD_OUT_FAMILIES", ("DejaVu",))
    written = compact_fonts(tmp_path, packages=FONTS)
    assert written and not [path for path in written if "DejaVu" in path.name]
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="no training fonts"):
        compact_fonts(tmp_path / "x", packages=tmp_path / "none")
