"""What decides a job's answers, as one record with a short hash; rows of different hashes are never mixed."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import mmvl

_SAMPLED = 256  # values of each tensor that its fingerprint takes
_READ_BY_PROCESSOR = (".json", ".jinja", ".txt", ".model")  # files of a model that are no weights


@dataclass(frozen=True)
class Settings:
    """task: "caption" or "vqa". model: its name, for people; weights: `fingerprint` of it, which is what counts.

    prompt: the template. sampling: the settings of `SamplingParams` that were given. dtype, device: what the model
    computes in and on ("cpu", "cuda"). version: of mmvl.

    The hash is of all that changes answers by design: not of the model's name (a folder may be moved), and of the
    version only its first two numbers, since later ones are for repairs. The kind of device is told but not hashed:
    what is different there is the dtype, which is.
    """

    task: str
    model: str
    weights: str
    prompt: str
    system: str
    sampling: dict
    quantize: str | None = None
    dtype: str = "float32"
    device: str = "cpu"
    version: str = mmvl.__version__

    @property
    def hash(self) -> str:
        """Twelve hexadecimal digits."""
        record = {name: value for name, value in asdict(self).items() if name not in ("model", "device")}
        record["version"] = _release(self.version)
        text = json.dumps(record, sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def record(self) -> dict:
        return {"settings": self.hash, **asdict(self)}


def differences(before: dict, now: dict) -> str:
    """What differs between two `Settings.record`s of different hashes, in words."""
    before, now = ({**record, **record.get("sampling", {})} for record in (before, now))
    names = [name for name in now if name not in ("settings", "sampling") and before.get(name) != now[name]]
    return "; ".join(f"{name} was {before.get(name)!r}, now {now[name]!r}" for name in names) or "the settings differ"


def remarks(before: dict, now: dict) -> list[str]:
    """What to tell of two records of the same hash whose answers may still differ in a word here and there."""
    told = {"version": "another version of mmvl", "device": "another kind of device"}
    return [
        f"goes on with {what} ({before[name]} before, {now[name]} now): an answer may differ in a word here and there"
        for name, what in told.items()
        if name in before and before[name] != now[name]
    ]


def fingerprint(model: Path) -> str:
    """A hash of a model directory that is quick for any size: its configuration and tokenizer whole, of every tensor
    its name, shape and dtype and its first values, which no step of training leaves as they are.

    Raises FileNotFoundError or ValueError with one line if it holds no model.
    """
    import torch

    from mmvl.weight_files import StoredTensors

    if not model.is_dir():
        raise FileNotFoundError(f"no model directory {model}")
    digest = hashlib.sha256()
    for path in sorted(model.iterdir()):
        if path.suffix in _READ_BY_PROCESSOR:
            digest.update(f"{path.name}\n".encode() + path.read_bytes())
    with StoredTensors(model) as tensors:
        for name in sorted(tensors):
            tensor = tensors[name]
            digest.update(f"{name} {tensor.dims} {tensor.dtype}\n".encode())
            digest.update(tensor[:_SAMPLED].view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:12]


def _release(version: str) -> str:
    """ "0.4.2" -> "0.4"."""
    return ".".join(version.split(".")[:2])
