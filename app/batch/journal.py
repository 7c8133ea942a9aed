"""What a job has done before and with which settings: whether a row may be added to its destination, and how."""

import fcntl
import json
import os
from pathlib import Path

from mmvl.app.batch.ids import Ids
from mmvl.app.batch.items import Item
from mmvl.app.batch.settings import Settings, differences, remarks
from mmvl.app.batch.sinks import ABOUT, Sink
from mmvl.app.errors import UsageError

ON_EXISTING = ("skip", "overwrite", "retry-failed")


class Journal:
    """A sink with its past. Rows are the truth; `x.jsonl.settings.json` beside them, or `_settings.json` in their
    folder, says for people what the hash in each row stands for, and is locked while a job writes.

    on_existing: "skip" keeps every row that is there, "retry-failed" all but the failures, "overwrite" none.
    ids: which are done; `failures`: how many failures are kept; `remarks`: lines about how this run differs from those
    before it without being refused.
    Raises UsageError when the rows there were made with other settings, ValueError when they are not ours or another
    job is at work,
    OSError when the destination cannot be written.
    """

    def __init__(self, sink: Sink, settings: Settings, on_existing: str):
        if on_existing not in ON_EXISTING:
            raise ValueError(f"--on-existing is one of {', '.join(ON_EXISTING)}, not {on_existing}")
        self.sink, self._settings, self._on_existing = sink, settings, on_existing
        self._hash = settings.hash
        self.ids, self.failures = Ids(), 0
        self.remarks: list[str] = []
        folder = sink.path.suffix != ".jsonl"
        self._about = sink.path / ABOUT if folder else Path(f"{sink.path}.settings.json")
        if folder:
            sink.path.mkdir(exist_ok=True)
        self._begun = self._locked = False
        self._file = self._about.open("a+b")
        try:
            self._lock()
            self._locked = True
            if on_existing != "overwrite":
                self._read_past()
        except BaseException:
            self.close()
            raise

    def begin(self) -> None:
        """Clear what is to go, and be ready for `record`. Until then nothing that is there has been changed."""
        if self._on_existing != "skip":
            self.sink.clear(failed_only=self._on_existing == "retry-failed")
        self._file.truncate(0)
        self._file.write(json.dumps(self._settings.record(), indent=1, ensure_ascii=False).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._begun = True

    def record(self, item: Item, row: dict) -> bool:
        """Keep the row of an item with the hash of the settings; False if the id has a row already."""
        if not self.ids.write(item.id):
            return False
        self.sink.write(item, row | {"settings": self._hash})
        return True

    def close(self) -> None:
        """Finish the rows and let go of the destination; what was made only to hold nothing is removed."""
        try:
            if self._begun:
                self.sink.close()
            elif self._locked and not self._file.seek(0, os.SEEK_END):
                self._about.unlink()
                if self._about.name == ABOUT and not any(self.sink.path.iterdir()):
                    self.sink.path.rmdir()
        finally:
            self._file.close()
            self.ids.close()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another job is writing to {self.sink.path}: wait for it, or name another one") from None

    def _read_past(self) -> None:
        self._file.seek(0)
        try:
            before = json.loads(self._file.read())
        except ValueError:  # new, or cut off by a kill: the hashes in the rows are what counts
            before = {}
        now = self._settings.record()
        for row in self.sink.known():
            if row.settings != now["settings"]:
                what = differences(before, now) if before.get("settings") == row.settings else "the settings differ"
                raise UsageError(
                    f"{self.sink.path} has rows that were made otherwise ({what}): name another destination, or start "
                    "afresh with --on-existing overwrite"
                )
            if row.failed and self._on_existing == "retry-failed":
                continue
            self.failures += row.failed
            if not self.ids.add_before(row.id):
                raise ValueError(f"{self.sink.path} holds {row.id!r} twice: it was not made by one command")
        if self.ids.before and before.get("settings") == now["settings"]:
            self.remarks = remarks(before, now)
