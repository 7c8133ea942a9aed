"""Writes the example pictures of `mmvl demo` and the chat page (app/assets/examples). Made once and shipped."""

import json
import random
from pathlib import Path
from tempfile import TemporaryDirectory

from mmvl.data.documents import Document, Line
from mmvl.data.easy_vqa import read_easy_vqa
from mmvl.data.fonts import held_out_fonts
from mmvl.data.render_documents import draw_document
from mmvl.data.render_pages import render_pages
from mmvl.data.render_receipts import render_receipts
from mmvl.data.shards import read_shard
from mmvl.data.stamps import find_stamps, load_stamp

# Of the test split, which no training shard holds.
_SHAPE = 31

# Of the held-out sets that mmvl-tiny's card speaks of: their seed, and numbers of pictures.
_SEED, _RECEIPT, _INVOICE = 9100, 0, 4
_ASKED = {"unanswerable": 0.12, "whole": 0.5}
_NOT_THERE = "What is the phone number?"  # not on the invoice: the right answer is to say so

_NOTE = ("14 March 2027", "Hi Marta,", "Please come to the library", "at 16:30.", "Bring the blue folder.", "Thanks,",
         "Jonas")  # fmt: skip


def write_examples(
    out_dir: str | Path, fonts: str, corpus: str, packages: str | Path, wheel: str | Path | None = None
) -> list[dict]:
    """Write five pictures and examples.json (returned: one row a question) into out_dir.

    fonts: directory with the held-out families, Comic Neue among them; corpus: as for `render_text_lines`; packages:
    directory of unpacked Debian packages; wheel: see `read_easy_vqa`.
    """
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)

    _, png, questions = read_easy_vqa("test", wheel)[_SHAPE]
    (out_dir / "shapes.png").write_bytes(png)

    [face] = [f for f in held_out_fonts(fonts) if (f.family, f.style) == ("Comic Neue", "Regular")]
    note = Document("note", [Line(text) for text in _NOTE])
    draw_document(note, face, random.Random(4), 450, 22, 22, clean=True).save(out_dir / "note.png", optimize=True)

    for name, render, number in (("receipt.jpg", render_receipts, _RECEIPT), ("invoice.jpg", render_pages, _INVOICE)):
        (out_dir / name).write_bytes(_held_out(render, number, fonts, corpus))

    [stamp] = [path for path, _ in find_stamps(packages) if path.as_posix().endswith("animals/fish/seahorse.png")]
    load_stamp(stamp).save(out_dir / "stamp.png", optimize=True)

    shapes = {"file": "shapes.png", "source": f"easy-vqa, test split, picture {_SHAPE}", "licence": "MIT",
              "trained_on": False}  # fmt: skip
    page = {"file": "note.png", "source": "rendered by mmvl in Comic Neue, a family held out of training",
            "licence": "Apache-2.0", "trained_on": False}  # fmt: skip
    layout = {"source": "rendered by mmvl in a layout and with words held out of training", "licence": "Apache-2.0",
              "trained_on": False}  # fmt: skip
    animal = {
        "file": "stamp.png",
        "source": "Tux Paint stamp animals/fish/seahorse.png, a photograph of the US National Oceanic and Atmospheric "
        "Administration (http://www.photolib.noaa.gov/)",
        "licence": "public domain (named so in the changelog of Debian's tuxpaint-stamps-default)",
        "trained_on": True,
    }
    rows = [layout | {"file": "receipt.jpg", "question": q} for q in ("What is the total?", "What is the address?")]
    rows += [page | {"question": question} for question in ("Read the text.", "Who wrote the note?")]
    rows += [layout | {"file": "invoice.jpg", "question": q} for q in ("What is the invoice number?", _NOT_THERE)]
    rows += [shapes | {"question": questions[2][0]}, animal | {"question": "What is this?"}]
    rows = [{"file": row["file"], "question": row["question"]} | row for row in rows]
    (out_dir / "examples.json").write_text(json.dumps(rows, indent=1) + "\n")
    return rows


def _held_out(render, number: int, fonts: str, corpus: str) -> bytes:
    """The picture of sample `number` of a renderer's held-out set, as it lies in the shard."""
    with TemporaryDirectory() as folder:
        shards = render(folder, number + 1, _SEED, 1, fonts=fonts, corpus=corpus, held_out=True, **_ASKED)
        sample = [s for shard in shards for s in read_shard(shard)][number]
        return next(iter(sample.members.values()))
