"""`mmvl eval`: ask a model the questions of a task, score the answers, print a table, keep every answer in a file."""

import hashlib
import json
import random
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

import mmvl
from mmvl.evaluation.tasks import TASKS, Example, Score, Task, without_images
from mmvl.vlm import VLM, Answer

WITHOUT_IMAGE = "without the image"


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
        for score in self.scores:
            i = score.interval
            bounds = f"{100 * i.low:.2f}% to {100 * i.high:.2f}%"
            table.add_row(score.metric, f"{100 * i.value:.2f}%", bounds, f"{score.n:,}")
        return table

    def to_json(self) -> dict:
        scores = [{"metric": s.metric, **asdict(s.interval), "n": s.n} for s in self.scores]
        return {"task": self.task, "scores": scores, **self.run, "predictions": self.predictions}


def list_tasks() -> dict[str, str]:
    """Name -> what the task is."""
    return {name: task.description for name, task in TASKS.items()}


def evaluate(
    task: str,
    model=None,
    limit: int | None = None,
    json_path=None,
    device=None,
    batch_size: int = 32,
    progress: bool = True,
) -> Result:
    """Run a task, greedy, `batch_size` questions at a time.

    model: a model directory (None is mmvl-tiny). limit: only that many questions, a fixed random choice that does not
    depend on the model. json_path: file for the scores and every prediction. progress: a bar on stderr and the table
    on stdout.

    Raises:
        ValueError: unknown task, limit below 1. FileNotFoundError: no model, or no folder for json_path.
    """
    if task not in TASKS:
        raise ValueError(f"unknown task {task!r}; there are: {', '.join(TASKS)}")
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}")
    if json_path is not None:
        json_path = Path(json_path)
        # Asked now, not after minutes of work.
        if not json_path.parent.is_dir() or json_path.is_dir():
            raise FileNotFoundError(f"cannot write {json_path}: give a file in a folder that exists")
    chosen = TASKS[task]
    examples = choose(chosen.load(), limit)
    vlm = VLM(model, device=device, max_sequences=batch_size)
    result = _run(chosen, examples, vlm, limit, batch_size, progress)
    if json_path is not None:
        json_path.write_text(json.dumps(result.to_json(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if progress:
        Console().print(result.table())
    return result


def choose(examples: list[Example], limit: int | None) -> list[Example]:
    """`limit` of the examples, drawn with a fixed seed, in their old order; all for None."""
    if limit is None or limit >= len(examples):
        return examples
    return [examples[i] for i in sorted(random.Random(0).sample(range(len(examples)), limit))]


def _run(task: Task, examples: list[Example], vlm: VLM, limit, batch_size: int, progress: bool) -> Result:
    started, begun = datetime.now(UTC), time.perf_counter()
    answers = _answers([e.messages for e in examples], vlm, task.max_tokens, task.name, progress)
    texts = [_text(a) for a in answers]
    scores = task.score(examples, texts)
    blind_texts = None
    if task.blind:
        blind = [without_images(e.messages) for e in examples]
        label = f"{task.name} {WITHOUT_IMAGE}"
        blind_texts = [_text(a) for a in _answers(blind, vlm, task.max_tokens, label, progress)]
        first = task.score(examples, blind_texts)[0]
        scores.append(Score(f"{first.metric}, {WITHOUT_IMAGE}", first.interval, first.n))
    scores += task.baselines(examples)
    failed = sum(isinstance(a, Exception) for a in answers)
    predictions = []
    for n, (example, answer) in enumerate(zip(examples, answers, strict=True)):
        row = {"key": example.key, "question": _question(example), "reference": example.reference}
        row |= {"prediction": texts[n], "meta": example.meta}
        if blind_texts is not None:
            row["prediction_" + WITHOUT_IMAGE.replace(" ", "_")] = blind_texts[n]
        if isinstance(answer, Exception):
            row["error"] = str(answer)
        else:
            row["finish_reason"] = answer.finish_reason
        predictions.append(row)
    run = {
        "model": {"name": vlm.directory.resolve().name, "digest": model_digest(vlm.directory)},
        "mmvl_version": mmvl.__version__,
        "torch_version": torch.__version__,
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "decoding": {"temperature": 0.0, "max_tokens": task.max_tokens},
        "limit": limit,
        "batch_size": batch_size,
        "device": str(vlm.device),
        "dtype": str(vlm.dtype).removeprefix("torch."),
        "started": started.isoformat(timespec="seconds"),
        "seconds": round(time.perf_counter() - begun, 1),
        "failed": failed,
    }
    return Result(task.name, scores, predictions, run)


def _answers(
    conversations: Sequence[list[dict]], vlm: VLM, max_tokens: int, label: str, progress: bool
) -> list[Answer | Exception]:
    answers: list[Answer | Exception | None] = [None] * len(conversations)
    bar = Progress(
        TextColumn(label), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        console=Console(stderr=True), disable=not progress,
    )
    with bar:
        for index, answer in bar.track(vlm.batch(conversations, max_tokens=max_tokens), total=len(conversations)):
            answers[index] = answer
    return answers


def _text(answer: Answer | Exception) -> str:
    """A question that could not be asked counts as answered with nothing; the file says why."""
    return "" if isinstance(answer, Exception) else answer.text


def _question(example: Example) -> str:
    return " ".join(p["text"] for p in example.messages[-1]["content"] if p["type"] == "text")


def model_digest(directory) -> str:
    """SHA-256 of a model directory: over the names and the contents of its JSON and safetensors files, by name."""
    digest = hashlib.sha256()
    for path in sorted(p for p in Path(directory).iterdir() if p.suffix in (".json", ".safetensors")):
        with path.open("rb") as file:
            digest.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()
