"""`mmvl eval`: ask a model the questions of a task, score the answers, print a table, keep every answer in a file.

Baselines are measured in the same run, on the same questions.
"""

import hashlib
import random
import shlex
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import mmvl
from mmvl.data.splits import SPLITS
from mmvl.evaluation.again import read_saved, score_again
from mmvl.evaluation.page import Shown, write_page
from mmvl.evaluation.result import Result, baselines, notes_of, prediction_row, score_all, write_result
from mmvl.evaluation.task import WITHOUT_IMAGE, Example, Task, groups, without_images
from mmvl.evaluation.tasks import TASKS
from mmvl.vlm import VLM, Answer

MOST_SHOWN = 600  # questions on a page; about 15 KB each with its picture


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
    data=None,
    split: str | None = None,
    page=None,
    engine: dict | None = None,
    predictions=None,
) -> Result:
    """Run a task, greedy, `batch_size` questions at a time.

    model: a model directory (None is mmvl-tiny). limit: only that many questions, a fixed random choice that does not
    depend on the model. json_path: file for the scores and every prediction, compressed if it ends in .gz. progress: a
    bar on stderr and the table on stdout. data: the set of a task that the user brings. split: "development" (see
    data/splits.py), "train" or "all" of it; None is the task's own. page: file for an HTML page to look through the
    answers. engine: settings of `mmvl.engine.Engine`. predictions: a file that `json_path` wrote before; its answers
    are scored again, no model is asked, and data is wanted only for baselines that look at it or at pictures.

    Raises:
        ValueError: unknown task or split, limit below 1, data that is missing, not wanted or not of the format;
            predictions of another task or other questions, or a model or limit beside them.
        FileNotFoundError: no model, no such data, or no folder for json_path or page.
    """
    if task not in TASKS:
        raise ValueError(f"unknown task {task!r}; there are: {', '.join(TASKS)}")
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}")
    json_path, page = (_writable(path) for path in (json_path, page))
    chosen = TASKS[task]
    if predictions is not None:
        if model is not None or limit is not None:
            raise ValueError("saved predictions are scored again as they are: leave out the model and the limit")
        saved = read_saved(predictions, task)
        split = split or (saved.get("data", {}).get("split") if data else None)
    data = _data_of(chosen, data, split, needed=predictions is None)
    split = split or chosen.split
    if predictions is not None:
        return _again(chosen, saved, data, split, json_path, page, progress)
    whole = chosen.load(data, split) if chosen.data else chosen.load()
    if not whole:
        raise ValueError(f"{data} has no questions in its split {split!r}; --split all takes everything")
    examples = choose(whole, limit)
    vlm = VLM(model, device=device, max_sequences=batch_size, engine=engine)
    about = {"data": {"name": data.resolve().name, "split": split, "examples": len(whole)}} if data else {}
    result = _run(chosen, examples, vlm, limit, batch_size, progress, data, about)
    _hand_out(chosen, examples, result, json_path, page, progress)
    return result


def _again(task: Task, saved: dict, data: Path | None, split: str, json_path, page, progress: bool) -> Result:
    whole = None
    if data or not task.needs_data and "data" not in saved:
        whole = task.load(data, split) if task.data else task.load()
    with Console(stderr=True, quiet=not progress).status(f"{task.name}: baselines"):
        examples, result = score_again(task, saved, whole, data)
    _hand_out(task, examples, result, json_path, page, progress)
    return result


def _hand_out(task: Task, examples: list[Example], result: Result, json_path, page, progress: bool) -> None:
    if json_path is not None:
        write_result(json_path, result)
    if page is not None:
        _draw_page(page, task, examples, result)
    if progress:
        Console().print(result.table())


def _writable(path) -> Path | None:
    """Asked now, not after minutes of work."""
    if path is None:
        return None
    path = Path(path)
    if not path.parent.is_dir() or path.is_dir():
        raise FileNotFoundError(f"cannot write {path}: give a file in a folder that exists")
    return path


def _data_of(task: Task, data, split: str | None, needed: bool) -> Path | None:
    if split is not None and split not in SPLITS:
        raise ValueError(f"there is no split {split!r}; there are: {', '.join(SPLITS)}")
    if data is None:
        if task.needs_data and needed:
            raise ValueError(f"{task.name} needs --data: {task.data}")
        if split is not None:
            raise ValueError("--split is of --data, which is not given")
        return None
    if not task.data:
        raise ValueError(f"{task.name} brings its own questions and takes no --data")
    if not Path(data).exists():
        raise FileNotFoundError(f"no such file or folder: {data}")
    return Path(data)


def choose(examples: list[Example], limit: int | None) -> list[Example]:
    """`limit` of the examples, drawn with a fixed seed, in their old order; all for None."""
    if limit is None or limit >= len(examples):
        return examples
    return [examples[i] for i in sorted(random.Random(0).sample(range(len(examples)), limit))]


def _run(
    task: Task, examples: list[Example], vlm: VLM, limit, batch_size: int, progress: bool, data=None, about=None
) -> Result:
    started, begun = datetime.now(UTC), time.perf_counter()
    answers = _answers([e.messages for e in examples], vlm, task.max_tokens, task.name, progress)
    texts = [_text(a) for a in answers]
    answered = time.perf_counter() - begun
    others: dict[str, list[str]] = {}
    if task.blind:
        blind = [without_images(e.messages) for e in examples]
        label = f"{task.name} {WITHOUT_IMAGE}"
        others[WITHOUT_IMAGE] = [_text(a) for a in _answers(blind, vlm, task.max_tokens, label, progress)]
    with Console(stderr=True, quiet=not progress).status(f"{task.name}: baselines"):
        others |= baselines(task, examples, data)
    failed = sum(isinstance(a, Exception) for a in answers)
    predictions = []
    for n, (example, answer) in enumerate(zip(examples, answers, strict=True)):
        row = prediction_row(task, example, texts[n], {name: theirs[n] for name, theirs in others.items()})
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
        "seconds_answering": round(answered, 1),
        "failed": failed,
        "notes": notes_of(task, failed, len(examples)),
        **(about or {}),
    }
    return Result(task.name, score_all(task, examples, texts, others), predictions, run)


def _draw_page(path: Path, task: Task, examples: list[Example], result: Result) -> None:
    things = groups(examples)
    step = max(1.0, len(examples) / MOST_SHOWN)
    shown = []
    for n in dict.fromkeys(int(i * step) for i in range(min(len(examples), MOST_SHOWN))):
        row = result.predictions[n]
        images = [p["image"] for m in examples[n].messages for p in m["content"] if p["type"] == "image"]
        start = "prediction_"
        others = {k.removeprefix(start).replace("_", " "): v for k, v in row.items() if k.startswith(start)}
        shown.append(
            Shown(row["key"], things[n], images, row["question"], row["reference"], row["prediction"], row.get("score"),
                  others, row.get("error", ""))
        )  # fmt: skip
    run = result.run
    model = f"{run['model']['name']} ({run['model']['digest'][:12]}), {run['device']}, {run['dtype']}"
    about = [*result.about(), model, run["command"], run["started"]]
    title = f"mmvl eval {task.name}: {task.description}"
    write_page(path, title, about, result.rows(), shown, len(examples))


def _answers(
    conversations: Sequence[list[dict]], vlm: VLM, max_tokens: int, label: str, progress: bool
) -> list[Answer | Exception]:
    answers: list[Answer | Exception | None] = [None] * len(conversations)
    bar = Progress(
        TextColumn(label),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not progress,
    )
    with bar:
        for index, answer in bar.track(vlm.batch(conversations, max_tokens=max_tokens), total=len(conversations)):
            answers[index] = answer
    return answers


def _text(answer: Answer | Exception) -> str:
    """A question that could not be asked counts as answered with nothing; the file says why."""
    return "" if isinstance(answer, Exception) else answer.text


def model_digest(directory) -> str:
    """SHA-256 of a model directory: over the names and the contents of its JSON and safetensors files, by name."""
    digest = hashlib.sha256()
    for path in sorted(p for p in Path(directory).iterdir() if p.suffix in (".json", ".safetensors")):
        with path.open("rb") as file:
            digest.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()
