"""Fetching the Debian packages of training material: fonts, texts, stamps, clip art. Needs apt-get and dpkg.

Packages are downloaded and unpacked into a directory, one folder each; nothing is installed.
"""

import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from mmvl.data.text import SOURCES

# Latin text fonts of many designers: what mmvl-tiny's lines and documents are set in.
FONT_PACKAGES = [f"fonts-{name}" for name in """3270 adf-accanthis adf-baskervald adf-berenis adf-gillius adf-ikarius
    adf-irianis adf-libris adf-mekanus adf-oldania adf-romande adf-solothurn adf-switzera adf-tribun adf-universalis
    adf-verana anonymous-pro arkpandora averia-sans-gwf averia-serif-gwf b612 beteckna breip cabin cantarell cardo
    century-catalogue croscore crosextra-caladea dejavu-core dejavu-extra dkg-handwriting dosis dustin ebgaramond
    essays1743 fanwood femkeklaver firacode freefont-ttf georgewilliams gfs-didot goudybookletter hack inconsolata
    inter jetbrains-mono junicode jura karla klaudia-berenika league-spartan leckerli-one liberation2 lindenhill linex
    lmodern lobster monofur mononoki noto-core noto-mono ocr-a ocr-b okolaks oldstandard open-sans opendyslexic play
    prociono quattrocento quicksand roboto-slab roboto-unhinted rufscript sil-andika sil-charis sil-gentium sjfonts
    sora stix texgyre tiresias tuffy urw-base35 yanone-kaffeesatz""".split()]  # fmt: skip

HELD_OUT_FONT_PACKAGES = [
    "fonts-linuxlibertine", "fonts-crosextra-carlito", "fonts-lato", "fonts-comic-neue", "fonts-courier-prime",
    "fonts-vollkorn",
]  # fmt: skip

EMOJI_PACKAGES = ["fonts-noto-color-emoji"]
STAMP_PACKAGES = ["tuxpaint-stamps-default"]
CLIP_ART_PACKAGES = ["openclipart-png"]
TEXT_PACKAGES = sorted({source.package for source in SOURCES.values()} | {"bible-kjv-text"})


def fetch(packages: Iterable[str], dir: str | Path) -> list[Path]:
    """Download and unpack packages into dir/<package>/; those already there are left alone. Returns the folders.

    Raises FileNotFoundError without apt-get or dpkg, ValueError when apt-get does not know or cannot get a package.
    """
    for tool in ("apt-get", "dpkg"):
        if not shutil.which(tool):
            raise FileNotFoundError(f"{tool} is not there: Debian packages can be fetched on Debian and Ubuntu only")
    dir = Path(dir)
    folders = []
    for package in packages:
        folder = dir / package
        folders.append(folder)
        if folder.exists():
            continue
        work = dir / f"{package}.part"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        _run(["apt-get", "download", package], work)
        [archive] = work.glob("*.deb")
        _run(["dpkg", "-x", archive.name, "tree"], work)
        (work / "tree").rename(folder)
        shutil.rmtree(work)
    return folders


def _run(command: list[str], dir: Path) -> None:
    done = subprocess.run(command, cwd=dir, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip() or done.stdout.strip() or "no reason given").splitlines()[-1]
        raise ValueError(f"{' '.join(command)} failed: {reason} (is `apt-get update` done?)")
