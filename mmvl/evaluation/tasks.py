"""The evaluation tasks by name. easy-vqa and print-lines are here, the others in the `task_*.py` beside it."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from mmvl.data.easy_vqa import read_easy_vqa
from mmvl.evaluation import (
    metrics,
    task_captions,
    task_needle,
    task_questions,
    task_receipts,
    task_refusals,
    task_rendered,
    task_turns,
    task_vqa,
    tesseract,
)
from mmvl.evaluation.task import Example, Score, Task, always_commonest, shard_examples, without_images
from mmvl.vlm import user_turn

__all__ = ["SETS", "TASKS", "Example", "Score", "Task", "shard_examples", "without_images"]

SETS = Path(__file__).parent / "sets"


# easy-vqa: https://github.com/vzhou842/easy-VQA, MIT, in PyPI's easy-vqa 1.0.


def _easy_vqa_examples() -> list[Example]:
    questions = [(number, png, *qa) for number, png, pairs in read_easy_vqa("test") for qa in pairs]
    return [
        Example(
            key=f"{n:05d}",
            messages=user_turn(png, question),
            reference=answer,
            meta={"image": f"test/images/{number}.png", "answer_type": _answer_type(answer)},
        )
        for n, (number, png, question, answer) in enumerate(questions)
    ]


def _answer_type(answer: str) -> str:
    if answer in ("yes", "no"):
        return "yes or no"
    return "shape" if answer in ("circle", "rectangle", "triangle") else "colour"


def _easy_vqa_score(examples: Sequence[Example], predictions: Sequence[str]) -> list[Score]:
    correct = [metrics.exact_match(p, e.reference) for e, p in zip(examples, predictions, strict=True)]
    rows = [Score("accuracy", metrics.accuracy(correct), len(correct))]
    for kind in sorted({e.meta["answer_type"] for e in examples}):
        part = [c for e, c in zip(examples, correct, strict=True) if e.meta["answer_type"] == kind]
        rows.append(Score(f"accuracy, {kind}", metrics.accuracy(part), len(part)))
    return rows


def _easy_vqa_baselines(examples: Sequence[Example]) -> list[Score]:
    """Always the commonest answer of the train split, which has not seen these questions."""
    train_answers = [answer for _, _, pairs in read_easy_vqa("train") for _, answer in pairs]
    [(commonest, _)] = Counter(train_answers).most_common(1)
    correct = [metrics.exact_match(commonest, e.reference) for e in examples]
    return [Score(f"accuracy, always {commonest!r}", metrics.accuracy(correct), len(correct))]


# print-lines: single lines of print in fonts that the training data does not have.


def _print_lines_examples() -> list[Example]:
    return shard_examples(SETS / "print-lines.tar")


def _print_lines_score(examples: Sequence[Example], predictions: Sequence[str]) -> list[Score]:
    pairs = list(zip(predictions, [e.reference for e in examples], strict=True))
    characters = [metrics.character_errors(prediction, reference) for prediction, reference in pairs]
    words = [metrics.word_errors(prediction, reference) for prediction, reference in pairs]
    exact = [errors.edits == 0 for errors in characters]
    rows = [
        Score("character error rate", metrics.error_rate(characters), len(pairs)),
        Score("word error rate", metrics.error_rate(words), len(pairs)),
        Score("lines without an error", metrics.accuracy(exact), len(pairs)),
    ]
    fonts = [str(e.meta.get("font", "unknown")) for e in examples]
    for font in sorted(set(fonts)):
        part = [errors for errors, of in zip(characters, fonts, strict=True) if of == font]
        rows.append(Score(f"character error rate, {font}", metrics.error_rate(part), len(part)))
    return rows


TASKS = {
    task.name: task
    for task in (
        Task(
            name="easy-vqa",
            description="9,673 test questions about one coloured shape (PyPI easy-vqa), one question a request",
            load=_easy_vqa_examples,
            score=_easy_vqa_score,
            max_tokens=16,
            baselines=_easy_vqa_baselines,
            blind=True,
            right=lambda example, answer: float(metrics.exact_match(answer, example.reference)),
        ),
        Task(
            name="print-lines",
            description="transcribe 400 lines of print, each in a font and of a text that training never saw",
            load=_print_lines_examples,
            score=_print_lines_score,
            max_tokens=128,
            always=always_commonest,
            rivals=lambda examples, data: tesseract.readings(examples, tesseract.LINE),
            tesseract=True,
            headline=3,
            right=lambda example, answer: float(metrics.character_errors(answer, example.reference).edits == 0),
        ),
        *task_receipts.TASKS,
        *task_questions.TASKS,
        *task_vqa.TASKS,
        *task_captions.TASKS,
        *task_needle.TASKS,
        *task_refusals.TASKS,
        *task_rendered.TASKS,
        *task_turns.TASKS,
    )
}
