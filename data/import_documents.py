"""Importers of questions about documents and charts: SROIE receipts, ChartQA, DocVQA.

SROIE: Huang et al., "ICDAR2019 Competition on Scanned Receipt OCR and Information Extraction", 2019. ChartQA: Masry et
al., 2022 (GPL-3.0). DocVQA: Mathew et al., 2021. Each in the layout that it is published in; SROIE and ChartQA also as
tars of a picture and a .json a key, with `fields` and `lines`, or `qa`. Pictures are read one at a time, and one
that is missing or damaged is skipped and named; keys, and so splits, are those of `public_formats`, which evaluation
reads with.
"""

import csv
import io
import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from mmvl.data.files import Files, read_json
from mmvl.data.find_pictures import Pictures
from mmvl.data.import_captions import IMAGES
from mmvl.data.importing import Item, import_items, picture
from mmvl.data.turns import Made, asked

FIELDS = {
    "company": ("Who issued the receipt?", "Which company is the receipt from?", "What is the name of the shop?"),
    "date": ("What is the date?", "When was the receipt issued?", "What is the date of the receipt?"),
    "address": ("What is the address?", "Where is the shop?", "What is the address of the company?"),
    "total": ("What is the total?", "How much was paid in all?", "What is the total amount?"),
}
READ = ("Read the receipt.", "What does the receipt say?", "Write down all of the text.")


def import_sroie(
    out_dir: str | Path,
    count: int = 0,
    seed: int = 0,
    workers: int = 0,
    *,
    files: str | Path,
    transcript: bool = True,
    longest: int = 0,
    split: str = "train",
    problems: list[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """One conversation a receipt: its fields, asked for in a drawn order, and (transcript) all its lines.

    files: a folder, tar or zip with NAME.json beside NAME's picture ({"fields", "lines"}), or with a release's folders
    img/, box/ (lines: eight coordinates and the text) and key/ or entities/ (fields, as JSON in .json or .txt).
    """
    found = Files(files)
    pictures = {PurePosixPath(n).stem: n for n in found.names if PurePosixPath(n).suffix.lower() in IMAGES}
    texts = [PurePosixPath(n) for n in found.names if n.endswith((".json", ".csv", ".txt"))]
    boxes = {path.stem: str(path) for path in texts if path.parent.name == "box"}
    described = {path.stem: str(path) for path in texts if path.suffix == ".json" or path.parent.name == "entities"}
    parts = sorted({str(path.parent.parent) for path in texts if path.parent.name == "entities"})
    if len(parts) > 1:
        raise ValueError(f"{files} has several parts, of which one may be for tests; name one: {', '.join(parts)}")

    def item(stem: str) -> Item:
        def make(rng) -> Made:
            if stem not in pictures:
                raise ValueError("no picture of that name")
            record = _object(found.read(described[stem]))
            fields = record.get("fields", record)
            if "lines" in record:
                lines = [line["text"] for line in record["lines"]]
            else:
                lines = _box_lines(found.read(boxes[stem])) if stem in boxes else []
            turns = [(rng.choice(FIELDS[f]), str(fields[f]).strip()) for f in FIELDS if str(fields.get(f, "")).strip()]
            rng.shuffle(turns)
            if transcript and lines:
                turns.append((rng.choice(READ), "\n".join(lines)))
            return asked("sroie", picture(found.read(pictures[stem]), longest), turns, id=stem)

        return Item(stem, make)

    if not described:
        raise FileNotFoundError(f"{files}: no receipts (NAME.json or entities/NAME.txt with the fields)")
    items = [item(stem) for stem in sorted(described)]
    return import_items(
        out_dir, "sroie", items, count, seed, workers, split=split, progress=progress, problems=problems
    )


def _object(data: bytes) -> dict:
    value = json.loads(data.decode("utf-8-sig", errors="replace"))
    if not isinstance(value, dict):
        raise ValueError("its JSON is not an object")
    return value


def _box_lines(data: bytes) -> list[str]:
    # eight coordinates, then the text with whatever commas it has
    rows = (line.split(",", 8) for line in data.decode("utf-8-sig", errors="replace").splitlines() if line.strip())
    return [row[8].strip() for row in rows if len(row) == 9]


def import_chartqa(
    out_dir: str | Path,
    count: int = 0,
    seed: int = 0,
    workers: int = 0,
    *,
    images: str | Path,
    file: str | Path | None = None,
    longest: int = 0,
    split: str = "train",
    problems: list[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """One sample a chart, all its questions in a drawn order.

    file: train_human.json or the like, a list of {"imgname", "query", "label"}, with `images` its png folder (or tar
    or zip). Without it, `images` holds NAME.json beside NAME's picture: {"qa": [{"question", "answer"}, ...]}.
    """
    files, questions = Files(images), defaultdict(list)
    if file is not None:
        for row in _rows(read_json(file), file, "imgname", "query", "label"):
            questions[row["imgname"]].append((row["query"], row["label"]))
    return import_items(
        out_dir, "chartqa", _chart_items(files, questions, longest), count, seed, workers, split=split,
        progress=progress, problems=problems,
    )  # fmt: skip


def _chart_items(files: Files, questions: dict[str, list], longest: int) -> list[Item]:
    pictures = {PurePosixPath(n).stem: n for n in files.names if PurePosixPath(n).suffix.lower() in IMAGES}

    def item(stem: str, described: str | None) -> Item:
        def make(rng) -> Made:
            if described is None:
                turns = list(questions[stem])
            else:
                turns = [(qa["question"], qa["answer"]) for qa in _object(files.read(described)).get("qa", [])]
            rng.shuffle(turns)
            key = PurePosixPath(stem).stem if described is None else stem
            image = picture(files.read(pictures.get(key, stem)), longest)
            return asked("chartqa", image, [(str(q), str(a)) for q, a in turns], id=key)

        return Item(PurePosixPath(stem).stem if described is None else stem, make)

    if questions:
        return [item(name, None) for name in sorted(questions)]
    described = {PurePosixPath(n).stem: n for n in files.names if n.endswith(".json")}
    if not described:
        raise FileNotFoundError(f"{files.path}: no NAME.json with questions beside the charts; give them with file=")
    return [item(stem, name) for stem, name in sorted(described.items())]


def import_docvqa(
    out_dir: str | Path,
    count: int = 0,
    seed: int = 0,
    workers: int = 0,
    *,
    file: str | Path,
    images: str | Path | None = None,
    longest: int = 0,
    split: str = "train",
    problems: list[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """DocVQA's train_v1.0*.json `file` and its `images` (folder, tar or zip; without it see `find_pictures`).

    One sample a page with all its questions in a drawn order; of several accepted answers the first is learned, all
    are in "meta". Questions without an answer (those of the test set) are left out.
    """
    pictures, pages = Pictures(file, images), defaultdict(list)
    content = read_json(file)
    for row in _rows(content.get("data") if isinstance(content, dict) else None, file, "image", "question"):
        pages[row["image"]].append((row["question"], row.get("answers") or []))

    def item(page: str) -> Item:
        def make(rng) -> Made:
            known = [(question, answers) for question, answers in pages[page] if answers]
            rng.shuffle(known)
            turns = [(question, answers[0]) for question, answers in known]
            accepted = [answers for _, answers in known]
            return asked("docvqa", picture(pictures.read(page), longest), turns, image=page, answers=accepted)

        return Item(PurePosixPath(page).stem, make)

    items = [item(page) for page in sorted(pages)]
    return import_items(
        out_dir, "docvqa", items, count, seed, workers, split=split, progress=progress, problems=problems
    )


def _rows(rows, file: str | Path, *keys: str) -> list[dict]:
    """The rows of an annotation file, each with the keys that it must have. ValueError otherwise."""
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{file}: holds no list of questions")
    for number, row in enumerate(rows):
        if gone := [key for key in keys if not isinstance(row, dict) or key not in row]:
            raise ValueError(f"{file}: question {number} has no {gone[0]!r}")
    return rows


def read_tsv(text: str) -> list[dict[str, str]]:
    """Rows of a tab-separated table with a header line, as dictionaries; no quoting."""
    return list(csv.DictReader(io.StringIO(text), delimiter="\t", quoting=csv.QUOTE_NONE))
