"""The JSON files of a model directory, read with one clear line for what is wrong, written the same way every time."""

import json
from pathlib import Path


def read_json(path: Path) -> dict:
    """A JSON object from a file of a model directory.

    Raises:
        FileNotFoundError: no such file. ValueError: not JSON, or not an object.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no {path.name} in {path.parent}: not a model directory in Hugging Face layout")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as e:
        raise ValueError(f"{path} is not valid JSON ({e}); fetch or save the model again") from e
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a {type(value).__name__} where a JSON object is needed")
    return value


def write_json(path: Path, value: dict) -> None:
    """Keys in alphabetical order, so that the same settings give the same bytes."""
    path.write_text(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
