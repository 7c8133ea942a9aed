"""`mmvl caption`: a text for every picture of some folders, as rows of a JSONL file, in bounded memory.

The engine pulls pictures from a generator as it has room for them, so only those in flight are ever open. A picture
that cannot be used becomes a row with the reason, and the rest goes on.
"""

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from mmvl.app.errors import one_line
from mmvl.app.pages import MEDIA_SUFFIXES, checked_question, open_pages, user_turn
from mmvl.app.rows import RowFile


def caption(sources, dest: Path, open_model, *, model_name: str, prompt: str, on_existing: str, **sampling) -> int:
    """Writes one row a picture or PDF page: {"file", "page" (PDF only), "text", "finish_reason", "tokens", "model",
    "prompt"}, or {"file", "error", "model", "prompt"}. Rows come in the order in which they are done.

    Names in rows are relative to the folder given, or as given for a single file. Returns the number of failed rows.
    Raises ValueError or OSError, before the model is opened, when a source or `dest` cannot be used.
    """
    prompt = checked_question(prompt)
    files = find_files(sources)
    rows = RowFile(dest, on_existing=on_existing, settings={"model": model_name, "prompt": prompt})
    try:
        run = _Run(rows, prompt)
        todo = [named for named in files if not run.is_done(named[1])]
        if len(todo) < len(files):
            print(f"{len(files) - len(todo)} of {len(files)} files are in {dest} already", file=sys.stderr)
        if todo:
            run.answer(todo, open_model(), sampling)
    finally:
        rows.close()
    print(f"{run.good} rows written to {dest}, {run.failed} failed, {run.speed()}", file=sys.stderr)
    return run.failed


def find_files(sources) -> list[tuple[Path, str]]:
    """(path, name in rows) of every picture and PDF, sorted within each folder; folders are walked to the bottom."""
    found = []
    for source in map(Path, sources):
        if source.is_dir():
            inside = (Path(folder, name) for folder, _, names in os.walk(source) for name in names)
            media = sorted(path for path in inside if path.suffix.lower() in MEDIA_SUFFIXES)
            found += [(path, path.relative_to(source).as_posix()) for path in media]
        elif source.exists():
            found.append((source, str(source)))
        else:
            raise FileNotFoundError(f"no such file or folder: {source}")
    if not found:
        kinds = " ".join(sorted(MEDIA_SUFFIXES))
        raise ValueError(f"no picture and no PDF in {', '.join(map(str, sources))} (looked for {kinds})")
    names = [name for _, name in found]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"two sources both hold {twice}: caption them into separate files")
    return found


class _Run:
    """One pass over the files: what is in flight, what has been counted."""

    def __init__(self, rows: RowFile, prompt: str):
        self.rows, self.prompt = rows, prompt
        self.good = self.failed = self.tokens = self.seconds = 0
        self._in_flight: dict[int, dict] = {}
        # A PDF is done only if all its pages are; that is known once it is open, so PDFs are always opened again.
        self._done_files = {file for file, page in rows.done if page is None}

    def is_done(self, name: str) -> bool:
        return name in self._done_files

    def answer(self, files: list[tuple[Path, str]], vlm, sampling: dict) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("captioning"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        start = time.perf_counter()
        with Progress(*columns, TextColumn("{task.fields[speed]}"), console=Console(stderr=True)) as progress:
            task = progress.add_task("", total=len(files), speed="")
            opened = self._messages(files, lambda: progress.advance(task))
            for index, answer in vlm.batch(opened, **sampling):
                self._keep(self._in_flight.pop(index), answer)
                self.seconds = time.perf_counter() - start
                progress.update(task, speed=self.speed())
        self.seconds = time.perf_counter() - start

    def _messages(self, files, opened_one) -> Iterator[list[dict]]:
        """The engine's questions, one at a time; what cannot be opened is written as a failed row at once."""
        number = 0
        for path, name in files:
            try:
                pages = open_pages([path])
            except (ValueError, OSError) as error:
                self._fail({"file": name}, error)
                pages = []
            for page in pages:
                key = {"file": name} if page.number is None else {"file": name, "page": page.number}
                if (name, key.get("page")) in self.rows.done:
                    continue
                self._in_flight[number] = key
                number += 1
                yield [user_turn([page], self.prompt)]
            opened_one()

    def _keep(self, key: dict, answer) -> None:
        if isinstance(answer, Exception):
            self._fail(key, answer)
            return
        self.good += 1
        self.tokens += answer.completion_tokens
        row = {"text": answer.text, "finish_reason": answer.finish_reason, "tokens": answer.completion_tokens}
        self.rows.write(key | row)

    def _fail(self, key: dict, error: Exception) -> None:
        self.failed += 1
        self.rows.write(key | {"error": one_line(error)})

    def speed(self) -> str:
        seconds = self.seconds or 1.0
        return f"{(self.good + self.failed) / seconds:.1f} pictures/s, {self.tokens / seconds:.0f} tokens/s"
