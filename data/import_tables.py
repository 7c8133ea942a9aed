"""Importer of WikiTableQuestions (Pasupat and Liang 2015, CC BY-SA 4.0): tables drawn as pictures, with questions.

Fonts: by default DejaVu Sans, Serif and Mono, which come with matplotlib; with fonts=DIR those of
`fonts.training_fonts`. The renderer `tables` makes more of the same tables: questions of its own, parts, wear.
"""

import csv
import io
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import matplotlib

from mmvl.data.drawing import encode
from mmvl.data.files import Files, read_jsonl
from mmvl.data.fonts import find_fonts, training_fonts
from mmvl.data.import_documents import read_tsv
from mmvl.data.importing import Item, import_items
from mmvl.data.page import Faces
from mmvl.data.public_formats import RealTable
from mmvl.data.tables import LAYOUTS, draw_table, part_of
from mmvl.data.turns import Made, asked

LICENCE = "CC BY-SA 4.0"
MATPLOTLIB_FONTS = ("DejaVuSans.ttf", "DejaVuSerif.ttf", "DejaVuSansMono.ttf")


def import_wikitablequestions(
    out_dir: str | Path,
    count: int = 0,
    seed: int = 0,
    workers: int = 0,
    *,
    tables: str | Path,
    file: str | Path | None = None,
    fonts: str | Path | None = None,
    questions: int = 6,
    max_rows: int = 24,
    max_columns: int = 8,
    split: str = "train",
    problems: list[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """One sample a table, at most `questions` of its questions, drawn anew (as is the picture's look) in every turn.

    tables: the release's folder (or zip) with csv/..., and `file` its data/training.tsv; or .jsonl(.gz) of {"id",
    "header", "rows", "qa": [{"question", "answers"}]}. Larger tables than max_rows x max_columns are skipped and named.
    Several answers are joined by ", ".
    """
    known = _from_jsonl(tables) if file is None else _from_release(Files(tables), file)
    if fonts is None:
        folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
        faces = Faces([font for font in find_fonts(folder) if Path(font.path).name in MATPLOTLIB_FONTS])
    else:
        faces = Faces(training_fonts(fonts))

    def item(key: str, read: Callable[[], tuple[list, list]], qa: list[tuple[str, list[str]]]) -> Item:
        def make(rng) -> Made:
            header, rows = read()
            if not header or not rows:
                raise ValueError("the table is empty")
            if len(rows) > max_rows or len(header) > max_columns:
                raise ValueError(f"the table has {len(rows)} rows and {len(header)} columns, more than max_rows or "
                                 "max_columns")  # fmt: skip
            page, _ = draw_table(rng, part_of(RealTable(key, header, rows, []), rng, max_rows)[0], LAYOUTS, faces)
            image = encode(page.image, rng)
            turns = [(question, ", ".join(answers)) for question, answers in qa if answers]
            rng.shuffle(turns)
            return asked("wikitablequestions", image, turns[:questions], table=key)

        return Item(key, make)

    items = [item(*entry) for entry in known]
    return import_items(
        out_dir, "wtq", items, count, seed, workers, split=split, progress=progress, problems=problems, per_shard=500
    )


def _from_jsonl(path: str | Path):
    for number, row in read_jsonl(path):
        try:
            qa = [(q["question"], [str(a) for a in q["answers"]]) for q in row["qa"]]
            table = [str(c) for c in row["header"]], [[str(c) for c in cells] for cells in row["rows"]]
            yield str(row["id"]), lambda table=table: table, qa
        except (KeyError, TypeError):
            raise ValueError(f"{path}: line {number} is not a table with header, rows and qa") from None


def _from_release(files: Files, tsv: str | Path):
    from mmvl.data.files import read_text

    questions = defaultdict(list)
    try:
        for row in read_tsv(read_text(tsv)):
            # several answers are joined by |, and a | within one is written \p
            answers = [a.replace("\\p", "|").replace("\\n", " ") for a in row["targetValue"].split("|")]
            questions[row["context"]].append((row["utterance"], answers))
    except (KeyError, AttributeError) as error:
        raise ValueError(f"{tsv}: not a table of questions ({error} is missing)") from None

    def read(name: str) -> tuple[list, list]:
        text = files.read(name).decode("utf-8", errors="replace")
        rows = list(csv.reader(io.StringIO(text), doublequote=False, escapechar="\\"))
        return (rows[0], rows[1:]) if rows else ([], [])

    for name in sorted(questions):
        yield name, lambda name=name: read(name), questions[name]
