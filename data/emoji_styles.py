"""Emoji in further drawing styles, out of npm packages, as the pictures that `render_emoji` takes: STYLE/1f600.png.

A style is a package of Iconify (icons.json: SVG bodies by name; chars.json: names by code point, empty in some), or
Google's black Noto Emoji as web fonts. SVG is drawn by resvg (extra `material`).
"""

import importlib.util
import io
import multiprocessing
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from fontTools.ttLib import TTFont
from PIL import Image, ImageDraw, ImageFont

from mmvl.data.emoji_names import Names, character
from mmvl.data.files import read_json
from mmvl.data.render_emoji import HELD_OUT_STYLES, find_emoji, find_font

SIZE = 72  # pixels: the height of a drawing, or the size of a font

_FONT_FILES = "*-400-normal.woff"  # of regular weight


def import_emoji_styles(
    out_dir: str | Path,
    count: int = 0,
    seed: int = 0,
    workers: int = 0,
    *,
    packages: str | Path,
    fonts: str | Path,
    held_out: bool = False,
    progress: Callable[[int, int], None] | None = None,
    problems: list[str] | None = None,
) -> list[Path]:
    """Write out_dir/<style>/<code point>.png, palette PNGs with transparency, of every package found; returns them.

    packages: directory of unpacked npm packages (`npm.fetch_npm`). fonts: directory with NotoColorEmoji.ttf, whose
    emoji are the ones drawn. held_out: the styles kept out of training, otherwise the others. `count` > 0 draws the
    first so many of each style; `seed` changes nothing; workers: processes, 0 is one a core.

    An icon that cannot be drawn becomes a line in `problems`, or a ValueError without it. FileNotFoundError where there
    is no package of a wanted style, ModuleNotFoundError without resvg.
    """
    known = dict(find_emoji(find_font(fonts)))
    sets, webfonts = _styles(Path(packages), held_out)
    listed = {folder.name: read_json(folder / "chars.json") for folder in _styles(Path(packages), None)[0]}
    names = Names(known, listed.values())
    jobs: list[tuple[Path, str | Path]] = []  # where a picture goes, and its SVG or the web font with its glyph
    for folder in sets:
        icons = read_json(folder / "icons.json")
        chosen = listed_icons(listed[folder.name], known) or named_icons(icons, names, folder.name)
        drawn = [(char, body) for char, name in sorted(chosen.items()) if (body := svg(icons, name))]
        jobs += [(_target(out_dir, folder.name, char), body) for char, body in drawn[: count or None]]
    if sets and importlib.util.find_spec("resvg_py") is None:
        raise ModuleNotFoundError("emoji in SVG are drawn by resvg: pip install 'mmvl[material]' (or resvg_py)")
    for folder in webfonts:
        glyphs = sorted(_glyphs(folder, known).items())[: count or None]
        jobs += [(_target(out_dir, folder.name, char), font) for char, font in glyphs]
    written = []
    # fork, as everywhere in this folder: a font loaded once by a process serves all of its glyphs.
    with multiprocessing.get_context("fork").Pool(workers or os.cpu_count()) as pool:
        for done, (path, problem) in enumerate(pool.imap(_draw, jobs, chunksize=50), 1):
            if problem and problems is None:
                raise ValueError(problem)
            if problem:
                problems.append(problem)
            else:
                written.append(path)
            if progress:
                progress(done, len(jobs))
    return written


def listed_icons(chars: Mapping[str, str], known: Mapping[str, str]) -> dict[str, str]:
    """Character -> icon, of a set's own list of code points; what is there with and without U+FE0F, without."""
    found = {}
    for code, name in sorted(chars.items(), key=lambda item: "fe0f" in item[0].lower()):
        if (char := character(code)) in known:
            found.setdefault(char, name)
    return found


def named_icons(icons: Mapping, names: Names, style: str) -> dict[str, str]:
    """Character -> icon, by the icons' names: an icon before another name of it, "cat" before the variant "cat-1"."""
    found: dict[str, tuple[int, str]] = {}
    for rank, group in ((0, icons["icons"]), (2, icons.get("aliases", {}))):
        for name in group:
            stem = re.sub(r"-\d$", "", name) if style == "streamline-emojis" else name
            char = names.find(stem, style)
            if char and (char not in found or rank + (stem != name) < found[char][0]):
                found[char] = (rank + (stem != name), name)
    return {char: name for char, (_, name) in found.items()}


def svg(icons: Mapping, name: str) -> str | None:
    """The SVG of an icon, black where it takes the text's colour; None for an alias that turns or mirrors another."""
    icon = icons["icons"].get(name)
    if icon is None:
        alias = icons["aliases"][name]
        parent = icons["icons"].get(alias["parent"])
        if parent is None or {"hFlip", "vFlip", "rotate"} & alias.keys():
            return None
        icon = {**parent, **alias}
    default = {"left": 0, "top": 0, "width": 16, "height": 16} | icons  # as Iconify's format has it
    left, top, width, height = (icon.get(key, default[key]) for key in ("left", "top", "width", "height"))
    body = icon["body"].replace("currentColor", "#000")
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{left} {top} {width} {height}" width="{width}" height="{height}">{body}</svg>'
    )


def _styles(packages: Path, held_out: bool | None) -> tuple[list[Path], list[Path]]:
    """Folders of sets of icons and of web fonts, by name; held_out: the held-out ones, the others, or (None) all."""
    found = [sorted(path.parent for path in packages.glob(f"*/*/{file}")) for file in ("icons.json", "unicode.json")]
    sets, webfonts = ([f for f in group if held_out in (None, f.name in HELD_OUT_STYLES)] for group in found)
    if not sets and not webfonts:
        raise FileNotFoundError(f"{packages}: no emoji of {'a held-out' if held_out else 'any'} style there "
                                "(`mmvl data import npm` fetches them)")  # fmt: skip
    return sets, webfonts


def _target(out_dir: str | Path, style: str, char: str) -> Path:
    path = Path(out_dir) / style / f"{ord(char):x}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _glyphs(folder: Path, known: Mapping[str, str]) -> dict[str, Path]:
    """Character -> the first of a package's web fonts that has it."""
    found: dict[str, Path] = {}
    for path in sorted((folder / "files").glob(_FONT_FILES)):
        with TTFont(path) as font:
            for code in font.getBestCmap():
                if chr(code) in known:
                    found.setdefault(chr(code), path)
    return found


def _draw(job: tuple[Path, str | Path]) -> tuple[Path, str]:
    """The picture's path, and what was wrong ("" for nothing: it is written)."""
    path, what = job
    if isinstance(what, Path):
        image, colours = _draw_glyph(what, chr(int(path.stem, 16))), 32
    else:
        import resvg_py

        try:
            drawn = resvg_py.svg_to_bytes(svg_string=what, height=SIZE, skip_system_fonts=True)
        except (ValueError, RuntimeError) as error:
            return path, f"{path.parent.name}/{path.stem}: {error}"
        image, colours = Image.open(io.BytesIO(bytes(drawn))).convert("RGBA"), 128
    if image is None or image.getchannel("A").getbbox() is None:
        return path, f"{path.parent.name}/{path.stem}: an empty picture"
    image.quantize(colours, Image.Quantize.FASTOCTREE).save(path, optimize=True)
    return path, ""


def _draw_glyph(font_path: Path, char: str) -> Image.Image | None:
    """A glyph in black, cut to what is drawn; RGBA."""
    font = ImageFont.truetype(font_path, SIZE, layout_engine=ImageFont.Layout.BASIC)
    mask = Image.new("L", (2 * SIZE, 2 * SIZE))
    ImageDraw.Draw(mask).text((SIZE // 2, SIZE // 4), char, font=font, fill=255)
    box = mask.getbbox()
    if box is None:
        return None
    image = Image.new("RGBA", (box[2] - box[0], box[3] - box[1]))
    image.putalpha(mask.crop(box))
    return image
