"""What a run of a task leaves: its scores with those of its baselines, every prediction, how it was made; as a file."""

import gzip
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.table import Table

from mmvl.evaluation import tesseract
from mmvl.evaluation.task import ALWAYS, Example, Score, Task, question_of


@dataclass(frozen=True)
class Result:
    """What a run found. `scores` in the order of the table; `predictions` one a question; `run` how it was made."""

    task: str
    scores: list[Score]
    predictions: list[dict]
    run: dict

    def score(self, metric: str) -> Score:
        """The row called `metric`."""
        return next(score for score in self.scores if score.metric == metric)

    def table(self) -> Table:
        table = Table(title=f"{self.task}, {self.run['model']['name']}", title_justify="left")
        for column, justify in (("metric", "left"), ("value", "right"), ("95% interval", "right"), ("n", "right")):
            table.add_column(column, justify=justify)
        for row in self.rows():
            table.add_row(*row)
        table.caption, table.caption_justify = "\n".join(self.about()), "left"
        return table

    def rows(self) -> list[tuple[str, str, str, str]]:
        """Metric, value, interval and number of questions, as they are read."""
        rows = []
        for score in self.scores:
            i = score.interval
            value, low, high = (
                f"{100 * x:.2f}%" if score.unit == "%" else f"{x:.2f}{score.unit}" for x in (i.value, i.low, i.high)
            )
            rows.append((score.metric, value, f"{low} to {high}", f"{score.n:,}"))
        return rows

    def about(self) -> list[str]:
        """What has to be said beside the numbers: on which data they are, what a metric leaves out."""
        data = self.run.get("data")
        lines = [f"data: {data['name']}, split: {data['split']}, {data['examples']:,} questions"] if data else []
        return lines + self.run.get("notes", [])

    def to_json(self) -> dict:
        scores = [{"metric": s.metric, **asdict(s.interval), "n": s.n, **_unit(s)} for s in self.scores]
        return {"task": self.task, "scores": scores, **self.run, "predictions": self.predictions}


def baselines(task: Task, examples: Sequence[Example], data: Path | None) -> dict[str, list[str]]:
    """Name of a baseline -> its answers: those that need no model. data: the set that the examples are of."""
    found = {} if task.always is None else {ALWAYS: [task.always(examples)] * len(examples)}
    return found | task.rivals(examples, data)


def score_all(
    task: Task, examples: Sequence[Example], texts: Sequence[str], others: dict[str, list[str]]
) -> list[Score]:
    """The scores of a model's `texts`, then of the baselines' answers (the task's `headline` rows)."""
    scores = task.score(examples, texts)
    for name, theirs in others.items():
        rows = task.score(examples, theirs)
        if isinstance(task.headline, int):
            rows = rows[: task.headline]
        else:
            rows = [score for score in rows if score.metric in task.headline]
        scores += [Score(f"{score.metric}, {name}", score.interval, score.n, score.unit) for score in rows]
    return scores + task.baselines(examples)


def prediction_row(task: Task, example: Example, text: str, others: dict[str, str]) -> dict:
    """A question with its answer and the baselines', as result files have it."""
    row = {"key": example.key, "question": question_of(example), "reference": example.reference}
    row |= {"prediction": text, "meta": example.meta, "group": example.group}
    if task.right is not None:
        row["score"] = round(task.right(example, text), 4)
    return row | {column(name): theirs for name, theirs in others.items()}


def column(baseline: str) -> str:
    """The key of a baseline's answers in a prediction."""
    return "prediction_" + baseline.lower().replace(" ", "_")


def notes_of(task: Task, failed: int, asked: int) -> list[str]:
    """What is to be known beside the scores. failed: how many of the `asked` questions could not be asked."""
    notes = [task.notes] if task.notes else []
    if task.tesseract:
        found = tesseract.version()
        notes.append(f"Tesseract {found}" if found else "Tesseract is not installed: its rows are left out.")
    if failed:
        notes.append(f"{failed:,} of {asked:,} questions could not be asked and count as answered with nothing.")
    return notes


def write_result(path: Path, result: Result) -> None:
    """As JSON, a prediction a line, compressed if `path` ends in .gz; the same result gives the same bytes."""
    whole = result.to_json()
    rows = [json.dumps(row, ensure_ascii=False) for row in whole.pop("predictions")]
    head = json.dumps(whole, indent=1, ensure_ascii=False).removesuffix("\n}")
    text = head + ',\n "predictions": [\n  ' + ",\n  ".join(rows) + "\n ]\n}\n"
    data = text.encode("utf-8")
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)


def _unit(score: Score) -> dict:
    return {} if score.unit == "%" else {"unit": score.unit}
