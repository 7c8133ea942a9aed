"""Emoji in further drawing styles: which icon is which character, and the pictures made of small packages."""

import json
import shutil
import sys

import pytest
from fontTools.ttLib import TTFont
from PIL import Image

from mmvl.data.emoji_names import Names, character, plain
from mmvl.data.emoji_styles import SIZE, import_emoji_styles, listed_icons, named_icons, svg
from mmvl.data.render_emoji import find_pictures

from .conftest import FONT_DIR

FACE, CAT_FACE, CAT, HEART, SNOWMAN = "\U0001f600", "\U0001f431", "\U0001f408", "\u2764", "\u2603"
KNOWN = {FACE: "grinning face", CAT_FACE: "cat face", CAT: "cat", HEART: "red heart", SNOWMAN: "snowman"}


@pytest.fixture(scope="module")
def names():
    return Names(KNOWN, [{"1f600": "grinning-face", "2764-fe0f": "red-heart", "1f600-200d-1f408": "cat-friend"}])


def test_code_points_and_plain_names():
    assert [character(code) for code in ("1F600", "2764-fe0f", "1f1e9-1f1ea")] == [FACE, HEART, None]
    assert plain("Piñata, 1st-Place") == "pinata1stplace"
    with pytest.raises(ValueError, match="grin"):
        character("grin")


@pytest.mark.parametrize(
    ("name", "style", "char"),
    [
        ("grinning-face", "noto-v1", FACE),  # a set lists it
        ("heavy-black-heart", "noto-v1", HEART),  # Unicode's name
        ("redheart", "fxemoji", HEART),  # without a hyphen
        ("cat", "noto-v1", CAT),
        ("cat", "fxemoji", CAT_FACE),  # a table for this set alone
        ("cat-friend", "noto-v1", None),  # a sequence
        ("moai", "noto-v1", None),  # not among those that are known
        ("thing", "noto-v1", None),
    ],
)
def test_an_icon_is_found_by_its_name(names, name, style, char):
    assert names.find(name, style) == char


def test_a_name_of_two_characters_is_left_out():
    assert Names(KNOWN, [{"1f600": "face", "1f431": "face"}]).find("face", "noto-v1") is None


def test_a_list_of_code_points_and_variants_of_a_name(names):
    listed = {"2764-fe0f": "heart-with-selector", "2764": "heart", "1f600": "face", "2049": "unknown"}
    assert listed_icons(listed, KNOWN) == {HEART: "heart", FACE: "face"}
    icons = {"icons": {"cat-1": {}, "cat": {}, "snowman-2": {}}, "aliases": {"snowman": {"parent": "snowman-2"}}}
    assert named_icons(icons, names, "streamline-emojis") == {CAT: "cat", SNOWMAN: "snowman-2"}
    assert named_icons(icons, names, "noto-v1") == {CAT: "cat", SNOWMAN: "snowman"}


def test_svg_of_icons_and_their_aliases():
    icons = {
        "icons": {"a": {"body": '<path fill="currentColor"/>'}, "b": {"body": "<g/>", "left": 2}},
        "aliases": {"c": {"parent": "b", "top": 1}, "turned": {"parent": "b", "rotate": 1}},
        "width": 32,
        "height": 24,
    }
    assert 'viewBox="0 0 32 24"' in svg(icons, "a") and 'fill="#000"' in svg(icons, "a")
    assert 'viewBox="2 1 32 24"' in svg(icons, "c")
    assert svg(icons, "turned") is None


def square(colour: str) -> dict:
    return {"body": f'<path fill="{colour}" d="M4 4h16v16H4z"/>'}


@pytest.fixture
def packages(tmp_path):
    """Two sets of icons, one of which is held out, web fonts, and a font with the emoji that are known."""
    root = tmp_path / "packages"
    sets = {
        "openmoji": (
            {"face": square("red"), "heart": square("red"), "x": {"body": ""}},
            {"1f600": "face", "2764": "x"},
        ),
        "twemoji": ({"face": square("blue")}, {"1f600": "face"}),
        "noto-v1": ({"grinning-face": square("lime"), "unknown": square("lime")}, {}),
    }
    for name, (icons, chars) in sets.items():
        folder = root / "@iconify-json" / name
        folder.mkdir(parents=True)
        (folder / "icons.json").write_text(json.dumps({"icons": icons, "width": 24, "height": 24}))
        (folder / "chars.json").write_text(json.dumps(chars))
    webfont = root / "@fontsource" / "noto-emoji"
    (webfont / "files").mkdir(parents=True)
    (webfont / "unicode.json").write_text("{}")
    with TTFont(FONT_DIR / "DejaVuSans.ttf") as font:
        font.flavor = "woff"
        font.save(webfont / "files" / "noto-emoji-0-400-normal.woff")
    shutil.copy(FONT_DIR / "DejaVuSans.ttf", tmp_path / "NotoColorEmoji.ttf")
    return root


def test_pictures_of_small_packages(packages, tmp_path):
    problems, seen = [], []
    settings = {"packages": packages, "fonts": tmp_path, "workers": 1, "problems": problems}
    made = import_emoji_styles(tmp_path / "out", progress=lambda *done: seen.append(done), **settings)
    styles = {path.parent.name for path in made}
    assert styles == {"openmoji", "noto-v1", "noto-emoji"} and seen[-1] == (len(seen), len(seen))
    assert problems == ["openmoji/2764: an empty picture"]
    for style, colour in (("openmoji", (255, 0, 0, 255)), ("noto-v1", (0, 255, 0, 255))):
        assert [path.name for path in made if path.parent.name == style] == ["1f600.png"]
        image = Image.open(tmp_path / "out" / style / "1f600.png")
        assert image.mode == "P" and image.size == (SIZE, SIZE)
        image = image.convert("RGBA")
        assert image.getpixel((36, 36)) == colour and image.getpixel((2, 2))[3] == 0
    black = Image.open(tmp_path / "out" / "noto-emoji" / "2603.png").convert("RGBA")
    assert max(black.size) > 0.9 * SIZE and {c[:3] for _, c in black.getcolors() if c[3]} == {(0, 0, 0)}
    found = find_pictures(tmp_path / "out", {FACE: "grinning face"}, held_out=False)
    assert {"openmoji", "noto-v1"} <= {style for style, *_ in found}

    [held] = import_emoji_styles(tmp_path / "held", held_out=True, **settings)
    assert held == tmp_path / "held" / "twemoji" / "1f600.png"
    with pytest.raises(ValueError, match="openmoji/2764: an empty picture"):
        import_emoji_styles(tmp_path / "strict", **settings | {"problems": None})


def test_what_is_missing_is_said_clearly(packages, tmp_path, monkeypatch):
    settings = {"fonts": tmp_path, "workers": 1}
    with pytest.raises(FileNotFoundError, match="mmvl data import npm"):
        import_emoji_styles(tmp_path / "out", packages=tmp_path / "none", **settings)
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'mmvl\[material\]'"):
        import_emoji_styles(tmp_path / "out", packages=packages, **settings)
