"""The King James text as a plain file, printed by the program `bible` out of its own compressed form."""

import re
import subprocess
from pathlib import Path

VERSES = 31_102


def write_bible(packages: str | Path) -> Path:
    """Write packages/bible-kjv/kjv.txt, a verse a line, where `text.build_corpus` finds it; left alone if it is there.

    By the program of the unpacked packages bible-kjv and bible-kjv-text; neither has to be installed. OSError where one
    of them is not there or cannot run, ValueError where verses are missing.
    """
    packages = Path(packages).resolve()
    path = packages / "bible-kjv" / "kjv.txt"
    if path.exists():
        return path
    program, text = packages / "bible-kjv/usr/bin/bible", packages / "bible-kjv-text/usr/lib"
    for needed in (program, text):
        if not needed.exists():
            raise FileNotFoundError(f"{needed} is not there: unpack Debian's bible-kjv and bible-kjv-text")
    verses = []
    # The range is asked for by testament: the program ends badly when it reaches the last verse of all.
    for part in ("gen1:1-mal4:6", "mat1:1-rev22:21"):
        done = subprocess.run([program, "-f", part], cwd=text, capture_output=True, text=True, errors="replace")
        verses += [re.sub(r"^\S+:\d+ ", "", line) for line in done.stdout.splitlines() if re.match(r"^\S+:\d+ ", line)]
    if len(verses) != VERSES:
        said = f" ({done.stderr.strip().splitlines()[-1]})" if done.stderr.strip() else ""
        raise ValueError(f"{program} printed {len(verses)} verses where there are {VERSES:,}{said}")
    path.write_text("\n".join(verses) + "\n")
    return path
