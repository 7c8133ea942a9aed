"""Questions whose answer is not in the image: are they refused, and are only they?

The set that comes with the task is drawn from a fixed seed: notes of labelled lines; half the questions ask for a label
that is there, half for one that is not. With `--data`, shards whose samples say `answerable` (true or false) in their
meta; where they do not, a reference that reads as a refusal is of a question without an answer.
"""

import random
from collections.abc import Sequence
from pathlib import Path

from mmvl.data.splits import in_split
from mmvl.evaluation import metrics
from mmvl.evaluation.answers import is_refusal
from mmvl.evaluation.draw import draw_lines
from mmvl.evaluation.task import Example, Score, Task, shard_examples, shard_files
from mmvl.vlm import user_turn

COUNT = 200
REFUSAL = "That is not in the image."
_LABELS = {
    "Name": ("Anna Weber", "Peter Lund", "Mary Price", "Omar Haddad"),
    "Date": ("3 May 2026", "17 June 2027", "2026-09-14", "01/12/2025"),
    "Total": ("12.50", "109.00", "7.35", "48.20"),
    "Phone": ("555-0142", "020 7946 0018", "0171 555 019", "03-7785 1200"),
    "Address": ("12 Mill Lane", "4 Station Road", "88 High Street", "7 Park Avenue"),
    "City": ("Leeds", "Porto", "Uppsala", "Kuala Lumpur"),
    "Time": ("10:30", "16:45", "8:15", "19:00"),
    "Colour": ("blue", "dark green", "red", "white"),
    "Weight": ("2.4 kg", "350 g", "12 kg", "900 g"),
    "Room": ("B 12", "204", "C 7", "31"),
    "Price": ("4.99", "15.00", "0.80", "230.00"),
    "Email": ("info@example.com", "anna@example.org", "shop@example.net", "desk@example.com"),
}


def _load(path: Path | None, split: str) -> list[Example]:
    if path is None:
        return _notes()
    found = [e for shard in shard_files(path) for e in shard_examples(shard)]
    chosen = [e for e in found if in_split(e.key, split)]
    return [
        Example(e.key, e.messages, e.reference,
                e.meta | {"answerable": bool(e.meta.get("answerable", not is_refusal(e.reference)))})
        for e in chosen
    ]  # fmt: skip


def _notes() -> list[Example]:
    rng = random.Random(20261125)
    examples = []
    for n in range(COUNT):
        labels = rng.sample(sorted(_LABELS), rng.randint(4, 7))
        *shown, absent = labels
        values = {label: rng.choice(_LABELS[label]) for label in shown}
        asked = rng.choice(shown) if n % 2 else absent
        picture = draw_lines([f"{label}: {value}" for label, value in values.items()], size=20)
        question = f"What is the {asked.lower()}?"
        meta = {"answerable": asked in values}
        examples.append(Example(f"{n:03d}", user_turn(picture, question), values.get(asked, REFUSAL), meta))
    return examples


def _right(example: Example, prediction: str) -> float:
    if not example.meta["answerable"]:
        return float(is_refusal(prediction))
    return float(metrics.exact_match(prediction, example.reference))


def _score(examples: Sequence[Example], predictions: Sequence[str]) -> list[Score]:
    pairs = list(zip(examples, predictions, strict=True))
    without = [is_refusal(p) for e, p in pairs if not e.meta["answerable"]]
    with_answer = [(is_refusal(p), bool(_right(e, p))) for e, p in pairs if e.meta["answerable"]]
    rows = []
    if without:
        rows.append(Score("refused where the answer is not in the image", metrics.accuracy(without), len(without)))
    if with_answer:
        refused, right = zip(*with_answer, strict=True)
        rows.append(Score("false refusals", metrics.accuracy(refused), len(refused)))
        rows.append(Score("exact match where it is", metrics.accuracy(right), len(right)))
    return rows


TASKS = (
    Task(
        name="refusals",
        description="say so where the answer is not in the image, and only there",
        load=_load, score=_score, max_tokens=32, right=_right, blind=True, headline=3,
        data="shards with meta.answerable (default: 200 drawn notes)",
        rivals=lambda examples, data: {"always refusing": [REFUSAL] * len(examples)},
    ),
)  # fmt: skip
