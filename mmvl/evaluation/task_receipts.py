"""Tasks over scanned receipts (SROIE): the four fields of a receipt, and its lines one by one."""

import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from mmvl.data.public_formats import FIELDS, Receipt, read_receipts
from mmvl.data.splits import split_of
from mmvl.evaluation import metrics, tesseract
from mmvl.evaluation.answers import is_refusal
from mmvl.evaluation.fields import FieldCount, f1, field_match
from mmvl.evaluation.task import ALWAYS, TESSERACT, Example, Score, Task, commonest, groups, held_out
from mmvl.vlm import user_turn

DATA = "a tar of SROIE receipts (key.webp, key.json with fields, lines), or a folder of img/, box/, key/ or entities/"
QUESTIONS = {
    "company": "What is the name of the company?",
    "date": "What is the date?",
    "address": "What is the address?",
    "total": "What is the total?",
}
READ = "Read the text."


def _receipts(path: Path, split: str) -> list[Receipt]:
    return held_out(read_receipts(path), split, lambda receipt: receipt.image)


def _fields(path: Path, split: str) -> list[Example]:
    return [
        Example(f"{receipt.key}/{name}", user_turn(receipt.image, QUESTIONS[name]), receipt.fields[name],
                {"field": name}, receipt.key)
        for receipt in _receipts(path, split)
        for name in FIELDS
        if name in receipt.fields
    ]  # fmt: skip


def _right(example: Example, prediction: str) -> float:
    return float(field_match(example.meta["field"], prediction, example.reference))


def _score_fields(examples: Sequence[Example], predictions: Sequence[str]) -> list[Score]:
    right = [bool(_right(e, p)) for e, p in zip(examples, predictions, strict=True)]
    counts = [
        FieldCount(True, bool(p.strip()) and not is_refusal(p), r) for p, r in zip(predictions, right, strict=True)
    ]
    rows = [
        Score("fields right", metrics.mean(right, groups(examples)), len(right)),
        Score("field F1", f1(counts, groups(examples)), len(right)),
    ]
    for name in FIELDS:
        part = [r for e, r in zip(examples, right, strict=True) if e.meta["field"] == name]
        if part:
            rows.append(Score(f"{name} right", metrics.accuracy(part), len(part)))
    return rows


def _rival_fields(examples: Sequence[Example], path: Path) -> dict[str, list[str]]:
    train = [receipt.fields for receipt in read_receipts(path) if split_of(receipt.key) == "train"]
    common = {name: commonest(f[name] for f in train if name in f) for name in FIELDS}
    rivals = {ALWAYS: [common[e.meta["field"]] for e in examples]}
    if tesseract.version():
        found: dict[str, dict[str, str]] = {}
        for e in examples:
            if e.group not in found:
                text = tesseract.read(e.messages[0]["content"][0]["image"], tesseract.PAGE)
                found[e.group] = tesseract.receipt_fields(text)
        rivals[TESSERACT] = [found[e.group][e.meta["field"]] for e in examples]
    return rivals


def _lines(path: Path, split: str) -> list[Example]:
    examples = []
    for receipt in _receipts(path, split):
        with Image.open(io.BytesIO(receipt.image)) as scan:
            scan = scan.convert("RGB")
        for n, (box, text) in enumerate(receipt.lines):
            if text.strip() and (crop := crop_line(scan, box)) is not None:
                key = f"{receipt.key}/{n:03d}"
                examples.append(Example(key, user_turn(crop, READ), text, {"box": list(box)}, group=receipt.key))
    return examples


def crop_line(scan: Image.Image, box: Sequence[float], margin: float = 0.15) -> bytes | None:
    """PNG of a line: its box in pixels (x0, y0, x1, y1) and `margin` of its height around it; None if it is empty."""
    x0, y0, x1, y1 = box
    edge = max(2.0, margin * (y1 - y0))
    x0, y0 = max(0, round(x0 - edge)), max(0, round(y0 - edge))
    x1, y1 = min(scan.width, round(x1 + edge)), min(scan.height, round(y1 + edge))
    if x1 - x0 < 4 or y1 - y0 < 4:
        return None
    out = io.BytesIO()
    scan.crop((x0, y0, x1, y1)).save(out, "PNG")
    return out.getvalue()


def line_scores(examples: Sequence[Example], predictions: Sequence[str]) -> list[Score]:
    """CER as the texts are and without case, WER without case, whole lines without case."""
    pairs = [(p, e.reference) for e, p in zip(examples, predictions, strict=True)]
    folded = [(p.casefold(), r.casefold()) for p, r in pairs]
    of, n = groups(examples), len(pairs)
    exact = [metrics.character_errors(p, r) for p, r in pairs]
    caseless = [metrics.character_errors(p, r) for p, r in folded]
    words = [metrics.word_errors(p, r) for p, r in folded]
    return [
        Score("character error rate", metrics.error_rate(exact, of), n),
        Score("character error rate without case", metrics.error_rate(caseless, of), n),
        Score("word error rate without case", metrics.error_rate(words, of), n),
        Score("lines right without case", metrics.mean([e.edits == 0 for e in caseless], of), n),
    ]


def _rival_lines(examples: Sequence[Example], path: Path) -> dict[str, list[str]]:
    train = (receipt for receipt in read_receipts(path) if split_of(receipt.key) == "train")
    common = commonest(text for receipt in train for _, text in receipt.lines if text.strip())
    return {ALWAYS: [common] * len(examples)} | tesseract.readings(examples, tesseract.LINE)


def _line_right(example: Example, prediction: str) -> float:
    errors = metrics.character_errors(prediction.casefold(), example.reference.casefold())
    return max(0.0, 1 - errors.edits / max(errors.length, 1))


TASKS = (
    Task(
        name="receipts",
        description="company, date, address and total of real receipts (SROIE), exact after normalisation",
        load=_fields, score=_score_fields, max_tokens=96, rivals=_rival_fields, right=_right, blind=True, headline=6,
        data=DATA, needs_data=True, split="development", tesseract=True,
        notes="Case, spaces, punctuation do not count in company and address; dates and totals are compared as values.",
    ),
    Task(
        name="receipt-lines",
        description="transcribe lines of real receipts (SROIE), cut out by their boxes",
        load=_lines, score=line_scores, max_tokens=96, rivals=_rival_lines, right=_line_right, headline=4,
        data=DATA, needs_data=True, split="development", tesseract=True,
        notes="SROIE's ground truth is upper case whatever is printed, so the rates without case are the fair ones.",
    ),
)  # fmt: skip
