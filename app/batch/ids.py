"""Which ids of a job are done, claimed or written: a table on disk, so that a hundred million take no memory."""

import hashlib
import sqlite3

_BEFORE, _PASSED, _CLAIMED, _WRITTEN = range(4)


class Ids:
    """Kept in an unnamed temporary file, which is gone with the process however it ends; 24 bytes an id or so.

    The table is an index of the output, made anew by each run: what is done is what the output holds.
    """

    def __init__(self):
        self._rows = sqlite3.connect("", isolation_level=None)  # "": unnamed, on disk once it outgrows the cache
        self._rows.execute("PRAGMA cache_size = -2048")  # KiB
        self._rows.execute("PRAGMA journal_mode = OFF")
        self._rows.execute("CREATE TABLE ids (id BLOB PRIMARY KEY, state INTEGER) WITHOUT ROWID")
        self._rows.execute("BEGIN")
        self.before = 0

    def add_before(self, id: str) -> bool:
        """Note an id that an earlier run has written; False if it was noted already."""
        if not self._new(id, _BEFORE):
            return False
        self.before += 1
        return True

    def claim(self, id: str) -> str:
        """What to do with an item of the source: "new": ask it; "done": an earlier run did; "repeat": the source had
        this id before."""
        if self._new(id, _CLAIMED):
            return "new"
        return "done" if self._changed(id, _BEFORE, _PASSED) else "repeat"

    def write(self, id: str) -> bool:
        """True the first time that a row of this id is to be written, else False: it must not be written again."""
        return self._changed(id, _CLAIMED, _WRITTEN) or self._new(id, _WRITTEN)

    def __contains__(self, id: str) -> bool:
        return self._rows.execute("SELECT 1 FROM ids WHERE id = ?", (_digest(id),)).fetchone() is not None

    def save(self, path: str) -> None:
        """Write the table to a file, for `load` in another process."""
        self._rows.execute("COMMIT")
        self._rows.execute("VACUUM INTO ?", (path,))
        self._rows.execute("BEGIN")

    @classmethod
    def load(cls, path: str) -> "Ids":
        """A table of its own with what `save` wrote."""
        ids = cls()
        ids._rows.execute("COMMIT")
        ids._rows.execute("ATTACH ? AS saved", (path,))
        ids._rows.execute("INSERT INTO main.ids SELECT * FROM saved.ids")
        ids._rows.execute("DETACH saved")
        ids._rows.execute("BEGIN")
        return ids

    def close(self) -> None:
        self._rows.close()

    def _new(self, id: str, state: int) -> bool:
        return self._rows.execute("INSERT OR IGNORE INTO ids VALUES (?, ?)", (_digest(id), state)).rowcount == 1

    def _changed(self, id: str, before: int, state: int) -> bool:
        change = "UPDATE ids SET state = ? WHERE id = ? AND state = ?"
        return self._rows.execute(change, (state, _digest(id), before)).rowcount == 1


def _digest(id: str) -> bytes:
    return hashlib.blake2b(id.encode("utf-8", "surrogatepass"), digest_size=16).digest()
