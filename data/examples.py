"""Writes the example pictures of `mmvl demo` and the chat page (app/assets/examples). Made once and shipped."""

import json
import random
from pathlib import Path

from mmvl.data.documents import Document, Line
from mmvl.data.easy_vqa import read_easy_vqa
from mmvl.data.fonts import held_out_fonts
from mmvl.data.render_documents import draw_document
from mmvl.data.stamps import find_stamps, load_stamp

# Of the test split, which no training shard holds.
_SHAPE = 31

_NOTE = ("14 March 2027", "Hi Marta,", "Please come to the library", "at 16:30.", "Bring the blue folder.", "Thanks,",
         "Jonas")  # fmt: skip


def write_examples(
    out_dir: str | Path, fonts: str, packages: str | Path, wheel: str | Path | None = None
) -> list[dict]:
    """Write shapes.png, note.png, stamp.png and examples.json (returned: one row a question) into out_dir.

    fonts: directory with Comic Neue, a held-out family; packages: directory of unpacked Debian packages; wheel: see
    `read_easy_vqa`.
    """
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)

    number, png, questions = read_easy_vqa("test", wheel)[_SHAPE]
    (out_dir / "shapes.png").write_bytes(png)

    [face] = [f for f in held_out_fonts(fonts) if (f.family, f.style) == ("Comic Neue", "Regular")]
    note = Document("note", [Line(text) for text in _NOTE])
    draw_document(note, face, random.Random(4), 450, 22, 22, clean=True).save(out_dir / "note.png", optimize=True)

    [stamp] = [path for path, _ in find_stamps(packages) if path.as_posix().endswith("animals/fish/seahorse.png")]
    load_stamp(stamp).save(out_dir / "stamp.png", optimize=True)

    shapes = {"file": "shapes.png", "source": f"easy-vqa, test split, picture {number}", "licence": "MIT",
              "trained_on": False}  # fmt: skip
    page = {"file": "note.png", "source": "rendered by mmvl in Comic Neue, a family held out of training",
            "licence": "Apache-2.0", "trained_on": False}  # fmt: skip
    animal = {
        "file": "stamp.png",
        "source": "Tux Paint stamp animals/fish/seahorse.png, a photograph of the US National Oceanic and Atmospheric "
        "Administration (http://www.photolib.noaa.gov/)",
        "licence": "public domain (named so in the changelog of Debian's tuxpaint-stamps-default)",
        "trained_on": True,
    }
    rows = [shapes | {"question": question} for question, _ in (questions[0], questions[2])]
    rows += [page | {"question": question} for question in ("Who wrote the note?", "At what time?", "Read the text.")]
    rows += [animal | {"question": "What is this?"}]
    rows = [{"file": row["file"], "question": row["question"]} | row for row in rows]
    (out_dir / "examples.json").write_text(json.dumps(rows, indent=1) + "\n")
    return rows
