"""What decides a job's answers, as one record with a short hash; rows of different hashes are never mixed."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

_ENDS = 1 << 16  # bytes read at either end of a file of weights


@dataclass(frozen=True)
class Settings:
    """task: "caption" or "vqa". model: its name, for people; weights: `fingerprint` of it, which is what counts.

    prompt: the template. sampling: the settings of `SamplingParams` that were given.
    """

    task: str
    model: str
    weights: str
    prompt: str
    system: str
    sampling: dict
    quantize: str | None = None

    @property
    def hash(self) -> str:
        """Twelve hexadecimal digits. The model's name is not part of it: a folder may be moved."""
        record = {name: value for name, value in asdict(self).items() if name != "model"}
        text = json.dumps(record, sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def record(self) -> dict:
        return {"settings": self.hash, **asdict(self)}


def differences(before: dict, now: dict) -> str:
    """What differs between two `Settings.record`s, in words."""
    before, now = ({**record, **record.get("sampling", {})} for record in (before, now))
    names = [name for name in now if name not in ("settings", "sampling") and before.get(name) != now[name]]
    return "; ".join(f"{name} was {before.get(name)!r}, now {now[name]!r}" for name in names) or "the settings differ"


def fingerprint(model: Path) -> str:
    """A hash of a model directory that is quick for any size: its JSON files whole, of each file of weights its name,
    its size and both its ends (which hold trained numbers). Raises FileNotFoundError if there is no such directory."""
    if not model.is_dir():
        raise FileNotFoundError(f"no model directory {model}")
    digest = hashlib.sha256()
    for path in sorted(model.iterdir()):
        if path.suffix == ".json":
            digest.update(f"{path.name}\n".encode() + path.read_bytes())
        elif path.suffix == ".safetensors":
            size = path.stat().st_size
            digest.update(f"{path.name} {size}\n".encode())
            with path.open("rb") as file:
                digest.update(file.read(_ENDS))
                file.seek(max(0, size - _ENDS))
                digest.update(file.read(_ENDS))
    return digest.hexdigest()[:12]
