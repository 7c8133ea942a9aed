"""The manifest of a directory of shards: what is in it and where it is from, so that damage or loss is noticed."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from mmvl.data.shards import ReadReport, Sample, ShardError, index_shard, read_shard

FILE = "manifest.json"


# (text tokens, image positions) of a sample; ValueError if it cannot be used, say for a damaged picture.
CountTokens = Callable[[Sample], tuple[int, int]]


def make_manifest(
    dir: str | Path,
    licences: dict[str, str] | None = None,
    notes: dict | None = None,
    count: CountTokens | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict:
    """Read every `*.tar` of a directory, write `manifest.json` into it, and return what was written.

    Per shard: name, bytes, sha256, samples, kinds, sources (counts); with `count` tokens, kind -> {"text", "image"}.
    In all: totals, `licences` (source -> terms), `notes` (anything JSON-able, such as the command). progress(done,
    total) counts samples. A damaged shard raises ShardError, which says how many of its samples cannot be used.
    """
    dir = Path(dir)
    paths = sorted(dir.glob("*.tar"))
    if not paths:
        raise FileNotFoundError(f"{dir}: no shards (*.tar) to make a manifest of")
    total, done = sum(len(index_shard(path, problems=[])) for path in paths), 0
    shards, kinds, sources, tokens = [], Counter(), Counter(), {}
    for path in paths:
        report = ReadReport()
        shard_kinds, shard_sources, shard_tokens = Counter(), Counter(), {}
        for sample in read_shard(path, report=report):
            kind = sample.json["kind"]
            shard_kinds[kind] += 1
            shard_sources[sample.json["source"]] += 1
            if count is not None:
                try:
                    text, image = count(sample)
                except ValueError as error:
                    report.problems.append(f"{path}: sample '{sample.key}': {error}")
                else:
                    for counted in (shard_tokens, tokens):
                        counted.setdefault(kind, Counter()).update({"text": text, "image": image})
            done += 1
            if progress and (done % 500 == 0 or done == total):
                progress(done, total)
        if report.problems:
            raise ShardError(f"{path}: {len(report.problems)} problems, first: {report.problems[0]}")
        kinds += shard_kinds
        sources += shard_sources
        shards.append(
            {
                "name": path.name,
                "bytes": path.stat().st_size,
                "sha256": sha256(path),
                "samples": report.samples,
                "kinds": dict(sorted(shard_kinds.items())),
                "sources": dict(sorted(shard_sources.items())),
            }
            | ({"tokens": _plain(shard_tokens)} if count is not None else {})
        )
    manifest = {
        "format": 1,
        "samples": sum(shard["samples"] for shard in shards),
        "bytes": sum(shard["bytes"] for shard in shards),
        "kinds": dict(sorted(kinds.items())),
        "sources": dict(sorted(sources.items())),
        **({"tokens": _plain(tokens)} if count is not None else {}),
        "licences": licences or {},
        "notes": notes or {},
        "shards": shards,
    }
    part = dir / (FILE + ".part")
    part.write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
    os.replace(part, dir / FILE)
    return manifest


def _plain(tokens: dict[str, Counter]) -> dict[str, dict[str, int]]:
    return {kind: {"text": tokens[kind]["text"], "image": tokens[kind]["image"]} for kind in sorted(tokens)}


def load_manifest(dir: str | Path) -> dict:
    """The manifest of a directory. FileNotFoundError without one, ShardError if it is not one."""
    path = Path(dir) / FILE
    if not path.exists():
        raise FileNotFoundError(f"{path}: no manifest; write it with `mmvl data manifest {dir}`")
    try:
        manifest = json.loads(path.read_text())
    except ValueError as error:
        raise ShardError(f"{path}: corrupt ({error}); write it anew with `mmvl data manifest {dir}`") from error
    if not isinstance(manifest, dict) or manifest.get("format") != 1 or "shards" not in manifest:
        raise ShardError(f"{path}: not a manifest of format 1")
    return manifest


def check_manifest(dir: str | Path, content: bool = True) -> list[str]:
    """Differences between a directory and its manifest, one line each; [] when all is well.

    content False compares names and sizes only, which is quick; True compares the SHA-256 too.
    """
    dir = Path(dir)
    listed = {shard["name"]: shard for shard in load_manifest(dir)["shards"]}
    present = {path.name for path in dir.glob("*.tar")}
    problems = [f"{dir / name}: in the manifest but missing" for name in sorted(listed.keys() - present)]
    problems += [f"{dir / name}: not in the manifest" for name in sorted(present - listed.keys())]
    for name in sorted(listed.keys() & present):
        path, shard = dir / name, listed[name]
        size = path.stat().st_size
        if size != shard["bytes"]:
            problems.append(f"{path}: {size} bytes where the manifest says {shard['bytes']}")
        elif content and sha256(path) != shard["sha256"]:
            problems.append(f"{path}: content is not what the manifest says (SHA-256)")
    return problems


def sha256(path: str | Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
