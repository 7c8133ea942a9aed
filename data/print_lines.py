"""Writes the evaluation set print-lines: lines of print in fonts and words that no training picture has.

It is made once and shipped; this file is how. Fonts: the Debian packages named in FONTS, unpacked into one directory.
Words: The Devil's Dictionary (Debian dict-devil, public domain), held out of every training text.
"""

import json
import os
from pathlib import Path

from mmvl.data.fonts import held_out_fonts
from mmvl.data.manifest import FILE, make_manifest
from mmvl.data.render_text_lines import render_text_lines

SETTINGS = {
    "count": 400, "seed": 2026, "min_chars": 10, "max_chars": 45, "min_size": 12, "max_size": 28, "max_width": 560,
    "jpeg": 0.9,
}  # fmt: skip

# Debian package of each held-out family, and its terms.
FONTS = {
    "Linux Libertine, Linux Biolinum": ("fonts-linuxlibertine", "GPL-2 with font exception or OFL-1.1"),
    "Carlito": ("fonts-crosextra-carlito", "OFL-1.1"),
    "Lato": ("fonts-lato", "OFL-1.1"),
    "Comic Neue": ("fonts-comic-neue", "OFL-1.1"),
    "Courier Prime": ("fonts-courier-prime", "OFL-1.1"),
    "Vollkorn": ("fonts-vollkorn", "OFL-1.1"),
}


def write_print_lines(out_dir: str | Path, fonts: str, corpus: str) -> dict:
    """Write `out_dir/print-lines.tar` and `print-lines.json` (its manifest), which is returned.

    fonts: directory with the packages of FONTS; corpus: directory with `devil.jsonl.gz` from `text.build_corpus`.
    """
    out_dir = Path(out_dir)
    settings = dict(SETTINGS)
    count, seed = settings.pop("count"), settings.pop("seed")
    work = out_dir / "print-lines.part"
    [shard] = render_text_lines(work, count, seed, 1, fonts=fonts, corpus=corpus, held_out=True, prefix="print-lines",
                                **settings)  # fmt: skip
    os.replace(shard, work / "print-lines.tar")
    notes = {
        "settings": SETTINGS,
        "fonts": {family: {"package": package, "licence": terms} for family, (package, terms) in FONTS.items()},
        "families": sorted({font.family for font in held_out_fonts(fonts)}),
        "command": "python -c 'from mmvl.data.print_lines import write_print_lines as w; "
        'w("mmvl/evaluation/sets", FONTS_DIR, CORPUS_DIR)\'',
    }
    words = "The Devil's Dictionary (Debian dict-devil): public domain; pictures: made by mmvl, Apache-2.0"
    manifest = make_manifest(work, {"text-lines": words}, notes)
    os.replace(work / "print-lines.tar", out_dir / "print-lines.tar")
    os.unlink(work / FILE)
    work.rmdir()
    (out_dir / "print-lines.json").write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
    return manifest
