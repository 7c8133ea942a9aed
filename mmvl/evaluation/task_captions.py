"""Captions: shards of captioned pictures, or COCO's JSON. CIDEr-D, and the right name within the first five words."""

import json
from collections.abc import Sequence
from pathlib import Path

from mmvl.data.find_pictures import Pictures, annotation_file
from mmvl.data.splits import in_split
from mmvl.evaluation import metrics
from mmvl.evaluation.answers import name_within
from mmvl.evaluation.cider import SCALE, cider
from mmvl.evaluation.metrics import Interval
from mmvl.evaluation.task import Example, Score, Task, always_commonest, groups, shard_examples, shard_files
from mmvl.vlm import user_turn

WORDS = 5
QUESTION = "What is in the picture?"


def _load(path: Path, split: str) -> list[Example]:
    if path.is_dir() and not any(path.glob("*.tar")):
        path = annotation_file(path, "captions_*.json")
    if path.suffix == ".json":
        found = _coco(path)
    else:
        found = [e for shard in shard_files(path) for e in shard_examples(shard)]
    chosen = [e for e in found if in_split(e.key, split)]
    return [Example(e.key, e.messages, e.reference, _named(e)) for e in chosen]


def _named(example: Example) -> dict:
    """meta with `references` (several people's captions, if there are) and `name` (else the whole caption)."""
    more = example.meta.get("captions") or []
    references = list(dict.fromkeys([example.reference, *more]))
    return example.meta | {"references": references, "name": example.meta.get("name") or example.reference}


def _coco(path: Path) -> list[Example]:
    """`captions_*.json` of COCO (Chen et al. 2015): images with file_name, annotations with caption.

    Its pictures are looked for as `data/find_pictures.py` says (`../val2017` among others).
    """
    pictures = Pictures(path)
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        names = {image["id"]: Path(image["file_name"]).name for image in record["images"]}
        captions: dict = {}
        for row in record["annotations"]:
            captions.setdefault(row["image_id"], []).append(str(row["caption"]).strip())
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not COCO's captions: images and annotations") from error
    examples = []
    for number, several in captions.items():
        name = names.get(number, f"image {number}, which is not among its images")
        meta = {"captions": several}
        examples.append(Example(Path(name).stem, user_turn(str(pictures.find(name)), QUESTION), several[0], meta))
    return examples


def _right(example: Example, prediction: str) -> float:
    return float(name_within(prediction, example.meta["name"], WORDS))


def _score(examples: Sequence[Example], predictions: Sequence[str]) -> list[Score]:
    right = [bool(_right(e, p)) for e, p in zip(examples, predictions, strict=True)]
    values = cider(predictions, [e.meta["references"] for e in examples])
    i = metrics.mean([min(value / SCALE, 1.0) for value in values], groups(examples))
    points = Interval(SCALE * i.value, SCALE * i.low, SCALE * i.high)
    return [
        Score(f"right name within {WORDS} words", metrics.mean(right, groups(examples)), len(right)),
        Score("CIDEr-D, of 10", points, len(right), unit=""),
    ]


TASKS = (
    Task(
        name="captions",
        description="name what a picture shows: the right name within 5 words, and CIDEr-D",
        load=_load, score=_score, max_tokens=48, right=_right, blind=True, needs_data=True, headline=2,
        always=always_commonest,
        data="shards of captioned pictures (mmvl data render emoji, import stamps) or COCO's JSON, or their folder",
        notes="Always the commonest is of these references, for want of others. CIDEr-D is not comparable across sets.",
    ),
)  # fmt: skip
