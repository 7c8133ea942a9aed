"""`mmvl data`: makes shards with a bar to watch, writes manifests, prints what shards hold."""

import sys
from pathlib import Path

from mmvl import datasets
from mmvl.app.safe_text import for_terminal
from mmvl.processor import Processor
from mmvl.samples import lines, sheet
from mmvl.shipped import MMVL_TINY

SHOWN = 10  # lines about what was skipped


def make(verb: str, name: str, dest: Path, *, count: int, seed: int, workers: int, settings: list[str]) -> bool:
    """verb: render or import. settings: "key=value", the value read as YAML. True if items had to be skipped.

    Raises ValueError or OSError.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    parsed = parse_settings(settings)
    datasets.check_settings(verb, name, parsed)  # before the bar appears
    problems: list[str] = []
    columns = (TextColumn(name), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=count or None)
        written = datasets.make(
            verb,
            name,
            dest,
            count=count,
            seed=seed,
            workers=workers,
            settings=parsed,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
            problems=problems,
        )
    for problem in problems[:SHOWN]:
        print(for_terminal(f"skipped: {problem}"), file=sys.stderr)
    if len(problems) > SHOWN:
        print(f"skipped: {len(problems) - SHOWN} more", file=sys.stderr)
    print(f"{_counted(len(written), 'file')} in {dest}", file=sys.stderr)
    return bool(problems)


def parse_settings(settings: list[str]) -> dict:
    """["a=1", "b=x"] -> {"a": 1, "b": "x"}. Raises ValueError for anything that is not key=value."""
    import yaml

    parsed = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key:
            raise ValueError(f"--set {setting}: write it as key=value")
        try:
            parsed[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ValueError(f"--set {setting}: the value cannot be read ({error})") from None
    return parsed


def manifest(folder: Path, model: Path | None, tokens: bool) -> None:
    """Checks all shards, writes the manifest and prints what it says in all."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    processor = Processor.from_pretrained(model or MMVL_TINY) if tokens else None
    columns = (TextColumn("samples"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("", total=None)
        notes = {"tokens counted by": str(model or MMVL_TINY.name)} if tokens else None
        written = datasets.manifest(
            folder,
            notes=notes,
            processor=processor,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    print(_size(len(written["shards"]), written["bytes"], written["samples"]))
    _print_tokens(written.get("tokens", {}))
    if not written["licences"]:
        print("no licence is noted: add one a source under \"licences\" in manifest.json", file=sys.stderr)


def inspect(path: Path, limit: int, picture: Path | None = None) -> bool:
    """Prints counts, damage and samples, and draws the samples into a PNG; True if there is damage."""
    if picture is not None and not picture.parent.is_dir():
        raise FileNotFoundError(f"no folder {picture.parent} for the picture")
    found = datasets.look(path, limit)
    print(_size(found.shards, found.bytes, found.samples))
    for title, counts in (("kinds", found.kinds), ("sources", found.sources)):
        listed = ", ".join(f"{name} {count}" for name, count in counts.most_common())
        print(for_terminal(f"{title}: {listed or 'none'}"))
    _print_tokens(found.tokens)
    for sample in found.first:
        print(f"\n{for_terminal(sample.key)} ({sample.json['kind']}, from {for_terminal(sample.json['source'])})")
        for line in lines(sample):
            print("  " + for_terminal(line).replace("\n", "\n  "))
    if picture is not None:
        if not found.first:
            raise ValueError(f"{path}: no sample to draw")
        sheet(found.first).save(picture)
        print(f"\nDrew {picture}")
    for problem in found.problems:
        print(for_terminal(f"damaged: {problem}"))
    return bool(found.problems)


def _print_tokens(tokens: dict[str, dict[str, int]]) -> None:
    for kind, count in tokens.items():
        print(f"tokens of kind {kind}: {count['text']:,} text, {count['image']:,} image")


def _counted(count: int, noun: str) -> str:
    """1, "file" -> "1 file"; 2, "file" -> "2 files"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _size(shards: int, size: int, samples: int) -> str:
    megabytes = f"{size / 1e6:.1f}" if size >= 1e5 else f"{size / 1e6:.3f}"
    return f"{_counted(shards, 'shard')}, {megabytes} MB, {_counted(samples, 'sample')}"
