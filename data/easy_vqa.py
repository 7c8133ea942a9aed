"""Importer of easy-vqa (V. Zhou, MIT): 5,000 pictures of one coloured shape, 48,248 questions with 13 answers.

The pictures and questions lie inside the PyPI wheel `easy-vqa`. All questions on a picture become one conversation.
"""

import importlib.util
import io
import json
import random
import zipfile
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from mmvl.data.order import derive
from mmvl.data.parallel import write_shards
from mmvl.data.turns import assistant, user

LICENCE = "MIT"


def read_easy_vqa(split: str = "train", wheel: str | Path | None = None) -> list[tuple[int, bytes, list]]:
    """[(picture number, PNG bytes, [(question, answer), ...])] of split "train" (4,000) or "test" (1,000).

    From the installed package, or from a wheel file. FileNotFoundError when there is neither.
    """
    if split not in ("train", "test"):
        raise ValueError(f"easy-vqa has the splits train and test, not '{split}'")
    if wheel is not None:
        if not Path(wheel).exists():
            raise FileNotFoundError(f"{wheel}: no such wheel of easy-vqa")
        root = zipfile.Path(wheel) / "easy_vqa" / "data" / split
    else:
        spec = importlib.util.find_spec("easy_vqa")
        if spec is None:
            raise FileNotFoundError("the package easy-vqa is not installed: pip install easy-vqa")
        root = Path(spec.origin).parent / "data" / split
    questions: dict[int, list[tuple[str, str]]] = {}
    for question, answer, image in json.loads((root / "questions.json").read_text()):
        questions.setdefault(image, []).append((question, answer))
    return [(n, (root / "images" / f"{n}.png").read_bytes(), questions[n]) for n in sorted(questions)]


def import_easy_vqa(
    out_dir: str | Path,
    count: int = 0,
    seed: int = 0,
    workers: int = 1,
    *,
    split: str = "train",
    wheel: str | Path | None = None,
    prefix: str = "easy-vqa",
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """One conversation a picture, its questions in an order drawn by seed; returns the shards.

    count: conversations; 0 means one for every picture. More than there are pictures means further turns: other orders
    of the same questions, the picture mirrored or rotated by right angles (no answer depends on place or direction).
    Train on split "train" only; "test" is for evaluation.
    """
    images = read_easy_vqa(split, wheel)

    def make(index: int) -> tuple[dict, dict[str, bytes]]:
        turn, position = divmod(index, len(images))
        number, png, questions = images[position]
        questions = questions[:]
        random.Random(derive("easy-vqa", seed, turn, number)).shuffle(questions)
        messages = []
        for i, (question, answer) in enumerate(questions):
            messages += [user(question, None if i else "0.png"), assistant(answer)]
        record = {
            "source": f"easy-vqa/{split}",
            "kind": "vqa" if len(questions) == 1 else "conversation",
            "messages": messages,
            "meta": {"image": number, "turn": turn},
        }
        return record, {"0.png": turned(png, turn % 8)}

    return write_shards(out_dir, prefix, count or len(images), make, workers, per_shard=4000, progress=progress)


def turned(png: bytes, way: int) -> bytes:
    """The picture in one of the 8 positions of a square: `way` % 4 quarter turns, mirrored first if `way` >= 4."""
    if way == 0:
        return png
    image = Image.open(io.BytesIO(png))
    if way >= 4:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    image = image.rotate(90 * (way % 4), expand=True)
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()
