"""Saved predictions scored again, without the model: what a repaired metric or a new baseline needs."""

import gzip
import json
from collections.abc import Sequence
from pathlib import Path

import mmvl
from mmvl.benchmark.run import commit
from mmvl.evaluation.result import Result, baselines, column, notes_of, prediction_row, score_all
from mmvl.evaluation.task import ALWAYS, TESSERACT, WITHOUT_IMAGE, Example, Task, question_of
from mmvl.vlm import user_turn

_NAMES = {column(name): name for name in (WITHOUT_IMAGE, ALWAYS, TESSERACT)}
_OF_A_RESULT = ("task", "scores", "predictions")


def read_saved(path, task: str) -> dict:
    """What `mmvl eval TASK --json` wrote. ValueError: not such a file, of another task, or without predictions."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    data = path.read_bytes()
    try:
        saved = json.loads(gzip.decompress(data) if path.suffix == ".gz" else data)
        of, predictions = saved["task"], saved["predictions"]
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not what mmvl eval --json writes ({error})") from error
    if of != task:
        raise ValueError(f"{path} has the predictions of the task {of!r}, not of {task!r}")
    if not predictions:
        raise ValueError(f"{path} has scores but no predictions: ask the model again")
    return saved


def score_again(
    task: Task, saved: dict, whole: Sequence[Example] | None, data: Path | None
) -> tuple[list[Example], Result]:
    """The examples and the result of `saved`, with this version's metrics and baselines.

    whole: the examples of the set, if it is at hand, which have the pictures; the saved ones are looked up by key.
    None: questions and references are taken from the file, and of the baselines only the one that needs neither `data`
    nor pictures is made anew; the others' answers are those saved. The result's `scored_again` says by which commit.

    Raises ValueError where the set has another question or reference under a key, or none.
    """
    rows = saved["predictions"]
    examples = [_example(row) for row in rows] if whole is None else _looked_up(rows, whole)
    texts = [row["prediction"] for row in rows]
    others = {
        _NAMES.get(key, key.removeprefix("prediction_").replace("_", " ")): [row[key] for row in rows]
        for key in rows[0]
        if key.startswith("prediction_")
    }
    if whole is not None:
        others |= baselines(task, examples, data)
    elif task.always is not None:
        others[ALWAYS] = [task.always(examples)] * len(rows)
    predictions = [
        row | prediction_row(task, example, row["prediction"], {name: theirs[n] for name, theirs in others.items()})
        for n, (row, example) in enumerate(zip(rows, examples, strict=True))
    ]
    run = {key: value for key, value in saved.items() if key not in _OF_A_RESULT}
    notes = notes_of(task, saved.get("failed", 0), len(rows))
    if whole is None:  # Tesseract's answers are the saved ones, if there are any
        said = [note for note in saved.get("notes", []) if note.startswith(TESSERACT)]
        notes = [note for note in notes if not note.startswith(TESSERACT)] + said
    run |= {"notes": notes, "scored_again": {"commit": commit(), "mmvl_version": mmvl.__version__}}
    return examples, Result(task.name, score_all(task, examples, texts, others), predictions, run)


def _example(row: dict) -> Example:
    """Without its picture. Older files have no group: there it is what stands before the last slash of a key."""
    group = row.get("group", row["key"].rpartition("/")[0])
    return Example(row["key"], user_turn(None, row["question"]), row["reference"], row["meta"], group)


def _looked_up(rows: Sequence[dict], whole: Sequence[Example]) -> list[Example]:
    by_key = {example.key: example for example in whole}
    for row in rows:
        found = by_key.get(row["key"])
        if found is None or (question_of(found), found.reference) != (row["question"], row["reference"]):
            raise ValueError(
                f"the set is not the one that was asked: {row['key']} "
                + ("is not in it" if found is None else "has another question or reference")
            )
    return [by_key[row["key"]] for row in rows]
