"""The example files that come with mmvl: the demo asks about them, the chat page offers them."""

import json
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent / "assets" / "examples"


@dataclass(frozen=True)
class Example:
    """trained_on: the picture was in the training data of mmvl-tiny, so a right answer proves little."""

    file: Path
    question: str
    trained_on: bool = False


def load_examples(folder: Path = FOLDER) -> list[Example]:
    """The examples in the order of `folder`/examples.json. Raises FileNotFoundError if a picture is missing."""
    examples = [Example(folder / row["file"], row["question"], row.get("trained_on", False)) for row in _rows(folder)]
    for example in examples:
        if not example.file.is_file():
            raise FileNotFoundError(f"the example picture {example.file} is missing: install mmvl again")
    return examples


def _rows(folder: Path) -> list[dict]:
    return json.loads((folder / "examples.json").read_text(encoding="utf-8"))
