"""What the tests of batch jobs share: an answerer without a model, jobs over it, and readers of every destination."""

import hashlib
import json
import tarfile
from contextlib import closing, nullcontext
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet
import pytest
from PIL import Image

from mmvl.app.batch.journal import Journal
from mmvl.app.batch.run import run
from mmvl.app.batch.settings import Settings
from mmvl.app.batch.sinks import open_sink
from mmvl.app.batch.sources import Reading, open_source
from mmvl.app.batch.templates import Template


class Hashing:
    """Answers with the prompt and a hash of what the pictures' files hold; a picture that is not there is an error."""

    def __init__(self):
        self.asked: list[str] = []

    def answer(self, items, keep) -> None:
        for item in items:
            self.asked.append(item.id)
            try:
                digest = hashlib.sha256(b"".join(picture.read()[1] for picture in item.pictures)).hexdigest()[:8]
            except (ValueError, OSError) as error:
                keep(item, {"error": str(error)})
            else:
                keep(item, answered(f"{item.prompt} {digest} ü"))


def answered(text: str) -> dict:
    return {"text": text, "finish_reason": "stop", "prompt_tokens": 9, "image_tokens": 4, "completion_tokens": 3}


def run_job(
    sources,
    dest,
    answerer=None,
    *,
    task="caption",
    prompt="Describe.",
    on_existing="skip",
    reading=None,
    max_tokens=5,
    sink=None,
    **settings,
):
    """A job as `mmvl.app.batch.job` runs it, with an answerer of the test's. Returns its `Tally`."""
    sources = [Path(source) for source in (sources if isinstance(sources, list) else [sources])]
    sink = sink or open_sink(Path(dest), task, sources, overwrite=on_existing == "overwrite")
    settings = Settings(task, "m", "w", prompt, "", {"max_tokens": max_tokens}, **settings)
    with closing(Journal(sink, settings, on_existing)) as journal:
        source = open_source(sources, reading)
        return run(source, journal, Template(prompt), lambda: nullcontext(answerer or Hashing()), task=task)


def read_rows(dest) -> dict[str, dict]:
    """Rows of any destination by id, failures too; no id may be there twice."""
    dest = Path(dest)
    if dest.suffix == ".jsonl":
        rows = _lines(dest)
    elif dest.suffix == ".parquet":
        rows = [
            row for part in sorted(dest.glob("part-*.parquet")) for row in pyarrow.parquet.read_table(part).to_pylist()
        ]
        rows = [{name: value for name, value in row.items() if value is not None} for row in rows]
    else:
        rows = _lines(dest / "_failed.jsonl") if (dest / "_failed.jsonl").exists() else []
        for shard in sorted(dest.glob("*.tar")):
            with tarfile.open(shard) as tar:
                rows += [json.load(tar.extractfile(name))["meta"] for name in tar.getnames() if name.endswith(".json")]
    by_id = {row.get("custom_id", row["id"]): row for row in rows}
    assert len(by_id) == len(rows), "an id has two rows"
    return by_id


def _lines(path: Path) -> list[dict]:
    text = path.read_text(encoding="utf-8")
    assert not text or text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture(scope="session")
def batch():
    """The helpers above (test modules cannot import a conftest)."""
    return SimpleNamespace(
        Hashing=Hashing, answered=answered, run=run_job, rows=read_rows, Reading=Reading, open_source=open_source
    )


@pytest.fixture
def many_pictures(tmp_path):
    """many_pictures(n) -> a folder of n different pictures."""

    def make(count: int) -> Path:
        folder = tmp_path / "many"
        folder.mkdir()
        for number in range(count):
            Image.new("L", (1 + number % 50, 1 + number // 50), number % 251).save(folder / f"pic{number:04d}.png")
        return folder

    return make
