"""Compact copies of fonts and stamps: smaller, and drawing the same."""

import shutil
from pathlib import Path

import matplotlib
import pytest
from PIL import Image, ImageFont

from mmvl.data.compact import compact_fonts, compact_stamps
from mmvl.data.fonts import find_fonts
from mmvl.data.render_emoji import find_emoji
from mmvl.data.stamps import TREE, find_stamps

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


def test_compact_stamps_are_those_for_training(tmp_path):
    folder = tmp_path / "packages" / "tuxpaint-stamps-default" / TREE / "animals"
    folder.mkdir(parents=True)
    for number in range(30):
        Image.effect_noise((300, 200), 90).convert("RGB").save(folder / f"thing{chr(97 + number % 26)}{number}x.png")
        caption = f"Thing {number}.\nde.utf8=Ding"
        (folder / f"thing{chr(97 + number % 26)}{number}x.txt").write_text(caption, encoding="utf-8")
    seen = []
    written = compact_stamps(tmp_path / "out", packages=tmp_path / "packages", progress=lambda *at: seen.append(at))
    stamps = find_stamps(tmp_path / "packages")
    assert 0 < len(stamps) < 30 and seen[-1] == (len(stamps), len(stamps))
    assert find_stamps(tmp_path / "out") == list(zip(written, [caption for _, caption in stamps], strict=True))
    with pytest.raises(FileNotFoundError):
        find_stamps(tmp_path / "out", held_out=True)
    assert all(Image.open(path).mode == "P" and Image.open(path).size == (224, 149) for path in written)


def test_emoji_fonts_keep_the_emoji_that_are_drawn(tmp_path):
    (tmp_path / "in").mkdir()
    shutil.copy(FONTS / "DejaVuSans.ttf", tmp_path / "in" / "DejaVuSans.ttf")
    original = Path(shutil.copy(FONTS / "DejaVuSans.ttf", tmp_path / "in" / "NotoColorEmoji.ttf"))
    copy = compact_fonts(tmp_path / "out", packages=tmp_path / "in")[-1]
    assert copy.name == "NotoColorEmoji.ttf" and copy.stat().st_size < original.stat().st_size / 2
    assert find_emoji(str(copy)) == find_emoji(str(original))
