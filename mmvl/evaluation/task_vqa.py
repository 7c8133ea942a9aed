"""Questions about photographs with ten people's answers each (VQA v2), scored by VQA accuracy."""

from collections.abc import Sequence
from pathlib import Path

from mmvl.data.find_pictures import Pictures, annotation_file
from mmvl.data.splits import in_split
from mmvl.data.vqa_v2 import read_vqa
from mmvl.evaluation import metrics
from mmvl.evaluation.answers import vqa_accuracy
from mmvl.evaluation.task import Example, Score, Task, always_commonest, groups
from mmvl.vlm import user_turn


def _load(path: Path, split: str) -> list[Example]:
    file = annotation_file(path, "*questions.json")
    pictures, examples = Pictures(file), []
    for photograph in read_vqa(file):
        if in_split(photograph.key, split):
            picture = str(pictures.find(photograph.name))
            for n, question in enumerate(photograph.questions):
                meta = {"answers": question.answers, "kind": question.kind}
                turn = user_turn(picture, question.text)
                examples.append(Example(f"{photograph.key}/{n}", turn, question.answer, meta, photograph.key))
    return examples


def _right(example: Example, prediction: str) -> float:
    return vqa_accuracy(prediction, example.meta["answers"])


def _score(examples: Sequence[Example], predictions: Sequence[str]) -> list[Score]:
    right = [_right(e, p) for e, p in zip(examples, predictions, strict=True)]
    of, kinds = groups(examples), [e.meta["kind"] for e in examples]
    rows = [Score("VQA accuracy", metrics.mean(right, of), len(right))]
    for kind in sorted(set(kinds)):
        part = [i for i, found in enumerate(kinds) if found == kind]
        interval = metrics.mean([right[i] for i in part], [of[i] for i in part])
        rows.append(Score(f"VQA accuracy, {kind}", interval, len(part)))
    return rows


TASKS = (
    Task(
        name="vqa-v2",
        description="questions about photographs (VQA v2), VQA accuracy over ten people's answers",
        load=_load, score=_score, max_tokens=16, right=_right, blind=True, needs_data=True,
        always=always_commonest,
        data="v2_OpenEnded_mscoco_val2014_questions.json, its annotations and val2014/ beside it, or their folder",
        notes="Always the commonest is of these references, for want of others.",
    ),
)  # fmt: skip
