"""A needle in a long context: one sentence in a long text, one card among many pictures; made from a fixed seed."""

import random
import re
from collections.abc import Sequence

from mmvl.evaluation import metrics
from mmvl.evaluation.draw import draw_lines
from mmvl.evaluation.task import Example, Score, Task, always_commonest
from mmvl.vlm import user_turn

CHARACTERS = (500, 1000, 2000, 4000, 8000, 16000, 24000)
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
PICTURES = (1, 2, 4, 8, 16)
_EACH = 4
_WORDS = ("anchor", "basket", "candle", "dragon", "engine", "feather", "garden", "hammer", "island", "jacket", "kettle",
          "lemon", "mirror", "needle", "orange", "parrot")  # fmt: skip
_WHO = ("The old teacher", "A young sailor", "My neighbour", "The baker", "Her brother", "The doctor", "A tired farmer",
        "The painter")  # fmt: skip
_DID = ("walked to", "talked about", "forgot", "looked at", "wrote about", "went past", "remembered", "asked for")
_WHAT = ("the river", "the market", "the long winter", "a quiet street", "the green hill", "an empty house",
         "the train station", "the harvest")  # fmt: skip
_WHEN = ("in the morning", "before noon", "after the rain", "on a cold evening", "without a word", "with great care")


def _text() -> list[Example]:
    """The code of one thing, at a depth of a text in which no other number stands. Lengths are in characters."""
    rng = random.Random(20261123)
    examples = []
    for length in CHARACTERS:
        for depth in DEPTHS:
            for n in range(_EACH):
                thing, code = rng.choice(_WORDS), str(rng.randint(1000, 9999))
                sentences, size = [], 0
                while size < length:
                    parts = (rng.choice(_WHO), rng.choice(_DID), rng.choice(_WHAT), rng.choice(_WHEN))
                    sentences.append(" ".join(parts) + ".")
                    size += len(sentences[-1]) + 1
                sentences.insert(round(depth * len(sentences)), f"The code of the {thing} is {code}.")
                prompt = f"{' '.join(sentences)}\n\nWhat is the code of the {thing}?"
                meta = {"of": f"{length:,} characters", "depth": depth}
                examples.append(Example(f"{length}-{depth}-{n}", user_turn(None, prompt), code, meta))
    return examples


def _pictures() -> list[Example]:
    """Cards, a word and a number on each; asked is the number of one of them."""
    rng = random.Random(20261124)
    examples = []
    for count in PICTURES:
        for n in range(5 * _EACH):
            words = rng.sample(_WORDS, count)
            codes = [str(code) for code in rng.sample(range(1000, 10000), count)]
            at = n % count if count <= 5 * _EACH else rng.randrange(count)
            cards = [draw_lines([f"{word}: {code}"], size=24) for word, code in zip(words, codes, strict=True)]
            prompt = f"What is the number of the {words[at]}?"
            meta = {"of": f"{count} pictures" if count > 1 else "1 picture", "position": at}
            examples.append(Example(f"{count}-{n:02d}", user_turn(cards, prompt), codes[at], meta))
    return examples


def _right(example: Example, prediction: str) -> float:
    """1 if the code is the only number of four digits in the answer."""
    return float(set(re.findall(r"(?<!\d)\d{4}(?!\d)", prediction)) == {example.reference})


def _score(examples: Sequence[Example], predictions: Sequence[str]) -> list[Score]:
    right = [bool(_right(e, p)) for e, p in zip(examples, predictions, strict=True)]
    rows = [Score("found", metrics.accuracy(right), len(right))]
    for size in dict.fromkeys(e.meta["of"] for e in examples):
        part = [r for e, r in zip(examples, right, strict=True) if e.meta["of"] == size]
        rows.append(Score(f"found, in {size}", metrics.accuracy(part), len(part)))
    return rows


_LONG = "What is longer than the model's context cannot be asked and counts as not found."
TASKS = (
    Task(
        name="needle-text", description="find a code in a long text, by length", load=_text, score=_score,
        max_tokens=24, right=_right, notes=_LONG,
    ),
    Task(
        name="needle-images", description="find the number on one card among several pictures", load=_pictures,
        score=_score, max_tokens=24, right=_right, blind=True, always=always_commonest, notes=_LONG,
    ),
)  # fmt: skip
