"""The manifest of a directory of shards: what is in it and where it is from, so that damage or loss is noticed."""

import hashlib
import json
from collections import Counter
from pathlib import Path

from mmvl.data.shards import ReadReport, ShardError, read_shard

FILE = "manifest.json"


def make_manifest(dir: str | Path, licences: dict[str, str] | None = None, notes: dict | None = None) -> dict:
    """Read every `*.tar` of a directory, write `manifest.json` into it, and return what was written.

    Per shard: name, bytes, sha256, samples, kinds, sources (counts). In all: totals, `licences` (source -> terms),
    `notes` (anything JSON-able, such as the command). A damaged shard raises ShardError.
    """
    dir = Path(dir)
    paths = sorted(dir.glob("*.tar"))
    if not paths:
        raise FileNotFoundError(f"{dir}: no shards (*.tar) to make a manifest of")
    shards, kinds, sources = [], Counter(), Counter()
    for path in paths:
        report = ReadReport()
        shard_kinds, shard_sources = Counter(), Counter()
        for sample in read_shard(path, report=report):
            shard_kinds[sample.json["kind"]] += 1
            shard_sources[sample.json["source"]] += 1
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
        )
    manifest = {
        "format": 1,
        "samples": sum(shard["samples"] for shard in shards),
        "bytes": sum(shard["bytes"] for shard in shards),
        "kinds": dict(sorted(kinds.items())),
        "sources": dict(sorted(sources.items())),
        "licences": licences or {},
        "notes": notes or {},
        "shards": shards,
    }
    (dir / FILE).write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
    return manifest


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
