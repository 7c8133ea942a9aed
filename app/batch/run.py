"""A batch job: items of a source that are not done yet, asked, and their rows kept, each id once.

Nothing grows with the job: items come one by one as the answerer takes them, what is done is a table on disk.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import chain
from typing import Protocol

from mmvl.app.batch.answers import Keep
from mmvl.app.batch.ids import Ids
from mmvl.app.batch.items import Item
from mmvl.app.batch.journal import Journal
from mmvl.app.batch.progress import Tally, Told, counted
from mmvl.app.batch.results import failure, row_of
from mmvl.app.batch.sinks import Sink
from mmvl.app.batch.sources import Source
from mmvl.app.batch.templates import Template


class Answerer(Protocol):
    def answer(self, items: Iterator[Item], keep: Keep) -> None:
        """Calls keep(item, result) once for every item, on the calling thread."""


def to_ask(source: Source, template: Template, ids: Ids, sink: Sink | None, tally: Tally) -> Iterator[Item]:
    """The items that have no row yet, with their prompts; or with the `error` for which they cannot be asked.

    sink: asked for each whether its place is taken; None: no.
    """
    for item in source:
        state = ids.claim(item.id)
        if state == "done":
            tally.done += 1
        elif state == "repeat":
            tally.repeated += 1
            tally.first_repeated = tally.first_repeated or item.id
        elif sink is not None and sink.has(item):
            tally.left += 1
        elif item.error is None and item.chat is None:
            yield _prompted(item, template)
        else:
            yield item
        tally.fraction = source.fraction


def _prompted(item: Item, template: Template) -> Item:
    try:
        return replace(item, prompt=template.fill(item.fields))
    except ValueError as error:
        return replace(item, error=str(error))


def run(
    source: Source,
    journal: Journal,
    template: Template,
    open_answerer: Callable[[], AbstractContextManager[Answerer]],
    *,
    task: str,
) -> Tally:
    """Answer what is not done yet; the answerer is opened only if there is something. Returns what was done.

    Whatever the answerer raises is raised; the rows until then are kept.
    """
    tally = Tally()
    pending = to_ask(source, template, journal.ids, journal.sink, tally)
    first = next(pending, None)
    with nullcontext() if first is None else open_answerer() as answerer:
        journal.begin()
        tally.begin()
        with Told(tally, task) as told:

            def keep(item: Item, result: dict) -> None:
                if journal.record(item, row_of(item, result, task)):
                    tally.add(result)
                    told()

            def items() -> Iterator[Item]:
                for item in pending if first is None else chain([first], pending):
                    if item.error is None:
                        yield item
                    else:
                        keep(item, failure(item, item.error))

            if answerer is not None:
                answerer.answer(items(), keep)
    return tally


def report(tally: Tally, journal: Journal) -> bool:
    """Tell on stderr what a job did. True if a row failed, now or before, or an item has none."""
    where = journal.sink.path
    lines = []
    if tally.done:
        lines.append(f"{counted(tally.done, 'item')} had a row in {where} already")
    if tally.left:
        lines.append(f"{counted(tally.left, 'item')} had a text of somebody else's, which was left alone")
    if tally.repeated:
        lines.append(
            f"{counted(tally.repeated, 'item')} had an id that an item before had, and got no row; the first: "
            f"{tally.first_repeated}"
        )
    if journal.failures:
        kept = f"{counted(journal.failures, 'row')} of earlier failures kept"
        lines.append(f"{kept} (--on-existing retry-failed tries again)")
    lines.append(
        f"{counted(tally.rows, 'row')} written to {where}, {tally.failed:,} failed, {tally.skipped:,} skipped; "
        f"{tally.speed()}"
    )
    print("\n".join(lines), file=sys.stderr)
    return bool(tally.failed or journal.failures or tally.repeated)
