"""What a job has done so far, and how it is told: a bar on a terminal, else a line on stderr every half minute."""

import sys
import time
from dataclasses import dataclass, field

from mmvl.app.batch.results import succeeded, tokens_of

_EVERY = 30.0  # seconds between lines where there is no terminal


def counted(number: int, noun: str) -> str:
    """ "1 row", "2,000 rows"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


@dataclass
class Tally:
    """Items of this run: good and failed rows written; done: had a row before; repeated: had an id of an earlier item;
    left: a file of somebody else's was there. tokens: generated. fraction: of the source, done, if that is known."""

    good: int = 0
    failed: int = 0
    done: int = 0
    repeated: int = 0
    left: int = 0
    tokens: int = 0
    fraction: float | None = None
    first_repeated: str = ""
    start: float = field(default_factory=time.monotonic)
    start_fraction: float = 0.0

    def begin(self) -> None:
        """The model is open: from here on time counts, and what is read of the source by now was done before."""
        self.start, self.start_fraction = time.monotonic(), self.fraction or 0.0

    def add(self, result: dict) -> None:
        """Count the result of an item whose row was kept."""
        if succeeded(result):
            self.good += 1
            self.tokens += tokens_of(result)
        else:
            self.failed += 1

    @property
    def rows(self) -> int:
        return self.good + self.failed

    @property
    def skipped(self) -> int:
        """Items that got no row now."""
        return self.done + self.repeated + self.left

    def speed(self) -> str:
        seconds = max(time.monotonic() - self.start, 1e-9)
        return f"{self.rows / seconds:.1f} images/s, {self.tokens / seconds:.0f} tokens/s"

    def remaining(self) -> float | None:
        """Seconds to go, if the rest of the source goes as what is done has gone."""
        read = (self.fraction or 0.0) - self.start_fraction
        if read <= 0 or not self.rows:
            return None
        return (time.monotonic() - self.start) * (1 - self.fraction) / read


class Told:
    """Context manager that shows a `Tally`; call it after each row."""

    def __init__(self, tally: Tally, what: str):
        self._tally, self._what = tally, what
        self._bar = self._task = None
        self._next = time.monotonic() + _EVERY

    def __enter__(self) -> "Told":
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

            columns = (TextColumn(self._what), BarColumn(), TextColumn("{task.fields[told]}"), TimeElapsedColumn())
            self._bar = Progress(*columns, console=Console(stderr=True))
            self._task = self._bar.add_task("", total=None, told="")
            self._bar.start()
        return self

    def __call__(self) -> None:
        tally = self._tally
        now = time.monotonic()
        if self._bar is not None:
            known = {} if tally.fraction is None else {"total": 1.0, "completed": tally.fraction}
            self._bar.update(self._task, told=self._line(), **known)
        elif now >= self._next:
            self._next = now + _EVERY
            print(f"{self._what}: {self._line()}", file=sys.stderr)

    def __exit__(self, *_) -> None:
        if self._bar is not None:
            self._bar.stop()

    def _line(self) -> str:
        left = self._tally.remaining()
        if left is None:
            eta = ""
        else:
            minutes, seconds = divmod(round(left), 60)
            eta = f", ETA {minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
        tally = self._tally
        return f"{counted(tally.rows, 'row')}, {tally.failed:,} failed, {tally.speed()}{eta}"
