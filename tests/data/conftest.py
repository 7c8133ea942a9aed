"""Small material for the renderers: matplotlib's DejaVu and STIX fonts, a corpus of a few documents."""

import gzip
import json
import random
import shutil
from pathlib import Path

import matplotlib
import pytest
from fontTools.ttLib import TTFont

FONT_DIR = Path(matplotlib.get_data_path()) / "fonts" / "ttf"

WORDS = "the quick brown fox jumps over a lazy dog while seven ships sail past Norway; yes, (really) they do!".split()


def write_corpus(path: Path, source: str, words: list[str], documents: int = 30) -> None:
    rng = random.Random(source)
    with gzip.open(path / f"{source}.jsonl.gz", "wt") as file:
        for _ in range(documents):
            file.write(json.dumps({"source": source, "text": " ".join(rng.choices(words, k=60))}) + "\n")


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """Two training sources, and the held-out source with words that no other has."""
    path = tmp_path_factory.mktemp("corpus")
    write_corpus(path, "manual", WORDS)
    write_corpus(path, "stories", WORDS)
    write_corpus(path, "devil", [f"unseen{word}" for word in "abcdefghij"])
    return path


@pytest.fixture(scope="session")
def fonts(tmp_path_factory):
    """Three families for training, one that calls itself Lato, and fonts that are not for text."""
    path = tmp_path_factory.mktemp("fonts")
    for name in ("DejaVuSans", "DejaVuSerif-Bold", "STIXGeneral", "STIXSizOneSymReg", "cmsy10", "LastResortHE-Regular"):
        shutil.copy(FONT_DIR / f"{name}.ttf", path)
    lato = TTFont(FONT_DIR / "DejaVuSansMono.ttf")
    for record in lato["name"].names:
        if record.nameID in (1, 4, 16):
            record.string = "Lato Medium"
    (path / "deeper").mkdir()
    lato.save(path / "deeper" / "held.ttf")
    (path / "broken.ttf").write_bytes(b"no font")
    return path
