"""Readers of public sets that people bring as files: scanned receipts, charts, document questions, tables.

Each reads what its publisher gives out, and a WebDataset tar of `key.webp` (or .png, .jpg) beside `key.json`. They
yield in a fixed order. FileNotFoundError where nothing is there, ValueError with one line where a file is not of the
format.
"""

import csv
import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from webdataset.tariterators import base_plus_ext

from mmvl.data.find_pictures import Pictures, annotation_file
from mmvl.data.tar import TarDamage, members

PICTURES = ("webp", "png", "jpg", "jpeg")
FIELDS = ("company", "date", "address", "total")


@dataclass(frozen=True)
class Receipt:
    """A scan (bytes of a file), its fields by name (those of FIELDS it has), its lines as ((x0, y0, x1, y1), text)."""

    key: str
    image: bytes
    fields: dict[str, str]
    lines: list[tuple[tuple[float, float, float, float], str]]


@dataclass(frozen=True)
class Asked:
    """A picture and its questions, each with every answer that counts as right.

    kinds: for each question what the set says of it (ChartQA: "human" or "augmented"); none where it says nothing.
    """

    key: str
    image: bytes
    qa: list[tuple[str, list[str]]]
    kinds: tuple[str, ...] = ()


@dataclass(frozen=True)
class RealTable:
    """A table as text, and its questions; several answers of a question are all asked for (a list)."""

    key: str
    header: list[str]
    rows: list[list[str]]
    qa: list[tuple[str, list[str]]]


def read_receipts(path: str | Path) -> Iterator[Receipt]:
    """SROIE (Huang et al., ICDAR 2019): a tar whose JSON has `fields` and `lines`, or a release's folder: `img/X.jpg`;
    `box/X.csv` or `box/X.txt` (eight coordinates, then the text, which may hold commas); the fields as JSON in
    `key/X.json` (the corrected release) or `entities/X.txt` (SROIE2019/train and SROIE2019/test, each by itself).
    """
    path = _there(path)
    if path.is_dir():
        for picture in _pictures(path / "img", path):
            box = _either(path, f"box/{picture.stem}.csv", f"box/{picture.stem}.txt")
            fields = _either(path, f"key/{picture.stem}.json", f"entities/{picture.stem}.txt")
            yield Receipt(picture.stem, picture.read_bytes(), _fields(_json(fields), fields), _boxes(box))
        return
    for key, image, record in _tar(path):
        where = f"{path}: sample '{key}'"
        try:
            lines = [(tuple(float(x) for x in line["box"]), str(line["text"])) for line in record.get("lines", [])]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{where}: a line without 'box' and 'text'") from error
        yield Receipt(key, image, _fields(record.get("fields"), where), lines)


def read_charts(path: str | Path) -> Iterator[Asked]:
    """ChartQA (Masry et al. 2022): a tar whose JSON has `qa`, or a folder of its release: `png/` and the questions in
    `*.json` files of {imgname, query, label}, whose names say which questions people asked and which were made
    ("human", "augmented"; in a tar each of `qa` may have a `kind`).
    """
    path = _there(path)
    if not path.is_dir():
        yield from _asked_tar(path)
        return
    by_picture: dict[str, list] = {}
    files = _some(sorted(path.glob("*.json")), path, "*.json")
    for file in files:
        kind = next((kind for kind in ("human", "augmented") if kind in file.stem), "")
        try:
            for row in _json(file):
                by_picture.setdefault(row["imgname"], []).append((row["query"], [str(row["label"])], kind))
        except (KeyError, TypeError) as error:
            raise ValueError(f"{file} is not a list of imgname, query, label") from error
    pictures = Pictures(files[0])
    for name, rows in sorted(by_picture.items()):
        qa, kinds = [(question, answers) for question, answers, _ in rows], tuple(kind for *_, kind in rows)
        yield Asked(Path(name).stem, pictures.read(name), qa, kinds if any(kinds) else ())


def read_documents(path: str | Path) -> Iterator[Asked]:
    """DocVQA (Mathew et al. 2021): its JSON file ({"data": [{question, image, answers}]}) with the pictures where
    `find_pictures` looks for them, a folder that has such files (see `annotation_file`), or a tar whose JSON has `qa`.
    """
    path = annotation_file(path, "*_v1.0*.json")
    if path.suffix != ".json":
        yield from _asked_tar(path)
        return
    by_picture: dict[str, list] = {}
    try:
        for row in _json(path)["data"]:
            by_picture.setdefault(str(row["image"]), []).append((row["question"], [str(a) for a in row["answers"]]))
            if not row["answers"]:
                raise KeyError("answers")
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} has no 'data' of question, image, answers (test sets have none)") from error
    pictures = Pictures(path)
    for name, qa in sorted(by_picture.items()):
        yield Asked(Path(name).stem, pictures.read(name), qa)


def read_tables(path: str | Path) -> Iterator[RealTable]:
    """WikiTableQuestions (Pasupat and Liang 2015): a JSON a line (.jsonl or .jsonl.gz) of `id`, `header`, `rows`, `qa`,
    or a folder in the layout of its release: `csv/`, and in `data/` the .tsv files whose questions are wanted.
    """
    path = _there(path)
    if path.is_dir():
        yield from _released_tables(path)
        return
    opened = gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8")
    with opened as file:
        number = 0
        try:
            for line in file:
                number += 1
                row = json.loads(line)
                qa = [(q["question"], [str(a) for a in q["answers"]]) for q in row["qa"]]
                rows = [[str(c) for c in r] for r in row["rows"]]
                yield RealTable(row["id"], [str(c) for c in row["header"]], rows, qa)
        except (KeyError, TypeError, ValueError, OSError, EOFError) as error:
            raise ValueError(f"{path}, line {number}: not a table of id, header, rows, qa ({error})") from error


def _released_tables(folder: Path) -> Iterator[RealTable]:
    questions: dict[str, list] = {}
    for file in _some(sorted((folder / "data").glob("*.tsv")), folder, "data/*.tsv"):
        for row in csv.DictReader(file.open(encoding="utf-8", newline=""), delimiter="\t", quoting=csv.QUOTE_NONE):
            try:
                answers = [_unescape(a) for a in row["targetValue"].split("|")]
                questions.setdefault(row["context"], []).append((_unescape(row["utterance"]), answers))
            except (KeyError, AttributeError) as error:
                raise ValueError(f"{file} has no columns utterance, context, targetValue") from error
    for name, qa in sorted(questions.items()):
        # The release writes a quote inside a cell as \".
        with (folder / name).open(encoding="utf-8", newline="") as file:
            header, *rows = list(csv.reader(file, doublequote=False, escapechar="\\"))
        yield RealTable(name, header, rows, qa)


def _unescape(text: str) -> str:
    """The release's .tsv: \\n is a line break, \\p is |, \\\\ is a backslash."""
    return text.replace("\\\\", "\0").replace("\\n", "\n").replace("\\p", "|").replace("\0", "\\")


def _asked_tar(path: Path) -> Iterator[Asked]:
    for key, image, record in _tar(path):
        qa = []
        for row in record.get("qa") or []:
            answers = row.get("answers", row.get("answer"))
            if answers is None or "question" not in row:
                raise ValueError(f"{path}: sample '{key}': a question without its answer")
            qa.append((row["question"], [str(a) for a in answers] if isinstance(answers, list) else [str(answers)]))
        kinds = tuple(str(row.get("kind", "")) for row in record.get("qa") or [])
        yield Asked(key, image, qa, kinds if any(kinds) else ())


def _tar(path: Path) -> Iterator[tuple[str, bytes, dict]]:
    """(key, picture, JSON) of every sample, in the tar's order; members of a sample lie together."""
    key, found = None, {}
    try:
        with path.open("rb") as file:
            data = file.read()
        for member in members(data):
            this, extension = base_plus_ext(member.name)
            if this != key:
                if key is not None:
                    yield _whole(path, key, found)
                key, found = this, {}
            if extension:
                found[extension.lower()] = data[member.offset : member.offset + member.size]
    except TarDamage as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if key is None:
        raise ValueError(f"{path} holds no samples")
    yield _whole(path, key, found)


def _whole(path: Path, key: str, found: dict[str, bytes]) -> tuple[str, bytes, dict]:
    picture = next((found[e] for e in PICTURES if e in found), None)
    if picture is None or "json" not in found:
        raise ValueError(f"{path}: sample '{key}' needs a .json and a picture ({', '.join(PICTURES)})")
    try:
        record = json.loads(found["json"])
    except ValueError as error:
        raise ValueError(f"{path}: sample '{key}': corrupt JSON ({error})") from error
    if not isinstance(record, dict):
        raise ValueError(f"{path}: sample '{key}': its JSON is no object")
    return key.rpartition("/")[2], picture, record


def _fields(record, where) -> dict[str, str]:
    if not isinstance(record, dict):
        raise ValueError(f"{where}: no fields")
    return {name: str(record[name]) for name in FIELDS if record.get(name)}


def _boxes(path: Path) -> list:
    lines = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig", errors="replace").splitlines(), 1):
        if not line.strip():
            continue
        *corners, text = line.split(",", 8)
        try:
            xs, ys = [float(x) for x in corners[0::2]], [float(y) for y in corners[1::2]]
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: not eight numbers and a text") from error
        if len(xs) != 4 or len(ys) != 4:
            raise ValueError(f"{path}, line {number}: not eight numbers and a text")
        lines.append(((min(xs), min(ys), max(xs), max(ys)), text))
    return lines


def _json(path: Path):
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error})") from error


def _either(folder: Path, *names: str) -> Path:
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(f"{folder} has neither {' nor '.join(names)}")


def _pictures(folder: Path, named: Path) -> list[Path]:
    found = sorted(p for p in folder.glob("*") if p.suffix.lower().lstrip(".") in PICTURES)
    parts = ", ".join(str(part.parent) for part in sorted(named.glob(f"*/{folder.name}")))
    return _some(found, named, f"{folder.name}/*.{PICTURES[2]}" + (f"; name one of: {parts}" if parts else ""))


def _some(found: list[Path], folder: Path, what: str) -> list[Path]:
    if not found:
        raise FileNotFoundError(f"{folder} has no {what}")
    return found


def _there(path: str | Path) -> Path:
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no such file or folder: {path}")
    return path
