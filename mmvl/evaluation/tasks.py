"""The evaluation tasks: where the questions come from, how answers are scored, what else stands beside the score."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mmvl.data.easy_vqa import read_easy_vqa
from mmvl.data.shards import read_shard
from mmvl.evaluation import metrics
from mmvl.evaluation.metrics import Interval
from mmvl.vlm import user_turn

SETS = Path(__file__).parent / "sets"


@dataclass(frozen=True)
class Example:
    """One question: a conversation that ends with the user's turn, and the answer that counts as right."""

    key: str
    messages: list[dict]
    reference: str
    meta: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Score:
    """One row of the result: a metric over `n` examples, in [0, 1] unless it is an error rate."""

    metric: str
    interval: Interval
    n: int


@dataclass(frozen=True)
class Task:
    """`load` gives all examples; `score` and `baselines` see the same chosen ones.

    blind: ask every question once more without its images, to show how much of the score the images give.
    """

    name: str
    description: str
    load: Callable[[], list[Example]]
    score: Callable[[Sequence[Example], Sequence[str]], list[Score]]
    max_tokens: int
    baselines: Callable[[Sequence[Example]], list[Score]] = lambda examples: []
    blind: bool = False


def without_images(messages: list[dict]) -> list[dict]:
    """The same conversation, its image parts left out."""
    return [m | {"content": [part for part in m["content"] if part["type"] != "image"]} for m in messages]


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


def shard_examples(path: Path) -> list[Example]:
    """One example a sample: its turns up to the last, which is the assistant's and the reference.

    Raises:
        FileNotFoundError: no such set. ValueError: a damaged one.
    """
    if not path.is_file():
        raise FileNotFoundError(f"the evaluation set {path} is missing; install mmvl again")
    examples = []
    for sample in read_shard(path):
        *turns, last = sample.json["messages"]
        if last["role"] != "assistant" or not turns:
            raise ValueError(f"{path}: sample {sample.key} does not end with an assistant's turn")
        examples.append(
            Example(
                key=sample.key,
                messages=[turn | {"content": _with_bytes(turn["content"], sample.members)} for turn in turns],
                reference="".join(p["text"] for p in last["content"] if p["type"] == "text")
                if isinstance(last["content"], list)
                else last["content"],
                meta=sample.json.get("meta", {}),
            )
        )
    return examples


def _with_bytes(content, members: dict[str, bytes]) -> list[dict]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return [{"type": "image", "image": members[p["file"]]} if p["type"] == "image" else p for p in content]


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
        ),
        Task(
            name="print-lines",
            description="transcribe 400 lines of print, each in a font and of a text that training never saw",
            load=_print_lines_examples,
            score=_print_lines_score,
            max_tokens=128,
        ),
    )
}
