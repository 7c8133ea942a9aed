"""Importer of WikiTableQuestions (Pasupat and Liang 2015, CC BY-SA 4.0): tables drawn as pictures, with questions.

Fonts: by default DejaVu Sans and Serif, which come with matplotlib; with fonts=DIR those of `fonts.training_fonts`.
"""

import csv
import io
import random
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw

from mmvl.data.drawing import encode, load_font, pick_colours
from mmvl.data.files import Files, read_jsonl
from mmvl.data.import_documents import read_tsv
from mmvl.data.importing import Item, Made, asked, import_items

LICENCE = "CC BY-SA 4.0"
MATPLOTLIB_FONTS = ("DejaVuSans.ttf", "DejaVuSerif.ttf", "DejaVuSansMono.ttf")
WIDEST_CELL = 28  # characters of a cell in one line


def draw_table(header: list[str], rows: list[list[str]], rng: random.Random, font_path: str) -> Image.Image:
    """A table as an RGB picture: a head, lines or stripes, cells of several lines where they are long."""
    font = load_font(font_path, rng.randint(13, 20))
    paper, ink = pick_colours(rng, inverted=0.05, coloured=0.25)
    stripe = tuple(int(0.93 * p + 0.07 * i) for p, i in zip(paper, ink, strict=True))
    pad_x, pad_y = rng.randint(4, 10), rng.randint(2, 6)
    lined, striped = rng.random() < 0.6, rng.random() < 0.4
    cells = [[_wrapped(cell) for cell in row] for row in [header, *rows]]
    columns = max(len(row) for row in cells)
    cells = [row + [[""]] * (columns - len(row)) for row in cells]
    high = sum(font.getmetrics()) + 2
    widths = [
        2 * pad_x + max(int(font.getlength(line)) for row in cells for line in row[column]) + 1
        for column in range(columns)
    ]
    heights = [2 * pad_y + high * max(len(cell) for cell in row) for row in cells]
    margin = rng.randint(4, 16)
    image = Image.new("RGB", (sum(widths) + 2 * margin, sum(heights) + 2 * margin), paper)
    draw = ImageDraw.Draw(image)
    y = margin
    for number, (row, height) in enumerate(zip(cells, heights, strict=True)):
        x = margin
        if number == 0 or striped and number % 2 == 0:
            draw.rectangle((x, y, x + sum(widths) - 1, y + height - 1), fill=stripe)
        for cell, width in zip(row, widths, strict=True):
            for place, line in enumerate(cell):
                draw.text((x + pad_x, y + pad_y + place * high), line, font=font, fill=ink)
                if number == 0:  # bold by drawing twice, a pixel apart
                    draw.text((x + pad_x + 1, y + pad_y + place * high), line, font=font, fill=ink)
            if lined:
                draw.rectangle((x, y, x + width, y + height), outline=ink)
            x += width
        y += height
    return image


def _wrapped(cell: str) -> list[str]:
    lines, line = [], ""
    for word in " ".join(cell.split()).split(" "):
        if line and len(line) + 1 + len(word) > WIDEST_CELL:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}".strip()
    return [*lines, line]


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
        paths = [str(folder / name) for name in MATPLOTLIB_FONTS]
    else:
        from mmvl.data.fonts import training_fonts

        paths = [font.path for font in training_fonts(fonts)]

    def item(key: str, read: Callable[[], tuple[list, list]], qa: list[tuple[str, list[str]]]) -> Item:
        def make(rng) -> Made:
            header, rows = read()
            if not header or not rows:
                raise ValueError("the table is empty")
            if len(rows) > max_rows or len(header) > max_columns:
                raise ValueError(f"the table has {len(rows)} rows and {len(header)} columns, more than max_rows or "
                                 "max_columns")  # fmt: skip
            image = encode(draw_table(header, rows, rng, rng.choice(paths)), rng)
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
