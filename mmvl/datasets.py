"""`mmvl data`: the renderers and importers of `mmvl.data` by name, manifests, and a look into shards."""

import inspect as signatures
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from mmvl.data.bible import write_bible
from mmvl.data.clip_art import compact_clip_art
from mmvl.data.compact import compact_fonts, compact_stamps
from mmvl.data.debian import (
    CLIP_ART_PACKAGES,
    EMOJI_PACKAGES,
    FONT_PACKAGES,
    HELD_OUT_FONT_PACKAGES,
    STAMP_PACKAGES,
    TEXT_PACKAGES,
    fetch,
)
from mmvl.data.emoji_styles import import_emoji_styles
from mmvl.data.manifest import FILE, check_manifest, load_manifest, make_manifest
from mmvl.data.npm import fetch_npm
from mmvl.data.registry import IMPORTERS, RENDERERS, Tool
from mmvl.data.shards import ReadReport, Sample, parts_of, read_shard
from mmvl.data.text import build_corpus
from mmvl.data.training_split import copy_training_split
from mmvl.processor import Processor
from mmvl.vision.images import open_image
from mmvl.vision.tiling import TiledImage, layout, relevant_part


def _debian(out_dir, count, seed, workers, *, progress=None) -> list[Path]:
    pictures = {*EMOJI_PACKAGES, *STAMP_PACKAGES, *CLIP_ART_PACKAGES}
    packages = sorted({*FONT_PACKAGES, *HELD_OUT_FONT_PACKAGES, *TEXT_PACKAGES, *pictures})
    folders = []
    for package in packages:
        folders += fetch([package], out_dir)
        if progress:
            progress(len(folders), len(packages))
    write_bible(out_dir)
    return folders


def _corpus(out_dir, count, seed, workers, *, packages, sources=None, max_chars=None, progress=None) -> list[Path]:
    build_corpus(packages, out_dir, sources, max_chars, seed)
    return sorted(Path(out_dir).glob("*.jsonl.gz"))


# What the others are made from. These write no shards.
MATERIAL = {
    "fonts": Tool(compact_fonts, "A compact copy of the training fonts, to take elsewhere (packages=DIR)."),
    "clip-art-pictures": Tool(compact_clip_art, "A compact copy of the clip art, to take elsewhere (packages=DIR)."),
    "debian": Tool(_debian, "Debian packages of fonts, texts, stamps and clip art, unpacked (needs apt-get)."),
    "corpus": Tool(_corpus, "Texts as .jsonl.gz, for `text` and the renderers (packages=DIR of unpacked packages)."),
    "stamp-pictures": Tool(compact_stamps, "A compact copy of the training stamps, to take elsewhere (packages=DIR)."),
    "npm": Tool(fetch_npm, "npm packages of emoji in further drawing styles, unpacked (over HTTPS, without npm)."),
    "emoji-styles": Tool(import_emoji_styles, "Emoji in these styles as PNG (packages=DIR, fonts=DIR)."),
    "training-split": Tool(copy_training_split, "A tar or .jsonl.gz without its development split (file=FILE)."),
}
KINDS = {"render": RENDERERS, "import": IMPORTERS | MATERIAL}
# Parameters of every renderer and importer; whatever else one takes is its own setting.
_COMMON = ("out_dir", "count", "seed", "workers", "progress", "problems")


def check_settings(verb: str, name: str, settings: Mapping) -> Tool:
    """The renderer (verb "render") or importer ("import") called `name`, if `settings` are right for it.

    Raises ValueError for an unknown name or setting, and for one that it needs and is not there.
    """
    if name not in KINDS[verb]:
        raise ValueError(f"nothing to {verb} is called {name!r}; there are: {', '.join(KINDS[verb])}")
    tool = KINDS[verb][name]
    parameters = signatures.signature(tool.run).parameters
    own = [parameter for parameter in parameters if parameter not in _COMMON]
    for key in settings:
        if key not in own:
            raise ValueError(f"{name} has no setting {key!r}; there are: {', '.join(own)}")
    for key in own:
        if parameters[key].default is signatures.Parameter.empty and key not in settings:
            raise ValueError(f"{name} needs the setting {key!r}: give it with --set {key}=VALUE")
    return tool


def make(
    verb: str,
    name: str,
    out_dir: str | Path,
    *,
    count: int,
    seed: int = 0,
    workers: int = 0,
    settings: Mapping | None = None,
    progress: Callable[[int, int], None] | None = None,
    problems: list[str] | None = None,
) -> list[Path]:
    """Writes shards and the manifest of `out_dir`, or `MATERIAL` for them; returns what was written.

    count: samples; of importers 0 means all there are. workers: processes, 0 is one a core. progress(done, count) is
    called as it goes on. problems gets a line for every item that an importer skips; without it
    the first such item is an error.

    Raises as `check_settings` does, and whatever the renderer or importer raises; ValueError, with no manifest written,
    when shards of an earlier and longer run would be taken for these.
    """
    settings = dict(settings or {})
    tool = check_settings(verb, name, settings)
    told = {"problems": problems} if "problems" in signatures.signature(tool.run).parameters else {}
    written = tool.run(out_dir, count, seed, workers, progress=progress, **told, **settings)
    if name in MATERIAL:
        return written
    prefixes = {path.name.rpartition("-")[0] for path in written}
    old = sorted(set(Path(out_dir).glob("*.tar")) - set(written))
    old = [path.name for path in old if path.name.rpartition("-")[0] in prefixes]
    if old:
        raise ValueError(
            f"{out_dir} still holds {len(old)} shards of an earlier run ({old[0]} to {old[-1]}): remove them, then run "
            f"`mmvl data manifest {out_dir}`"
        )
    licence = getattr(sys.modules[tool.run.__module__], "LICENCE", None)
    recipe = {"made by": f"mmvl data {verb} {name}", "count": count, "seed": seed, **settings}
    if problems:
        recipe |= {"items skipped": len(problems)}
    manifest(out_dir, {name: licence} if licence else {}, {name: {key: str(value) for key, value in recipe.items()}})
    return written


def manifest(
    folder: str | Path,
    licences: Mapping[str, str] | None = None,
    notes: Mapping | None = None,
    *,
    processor: Processor | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict:
    """Checks every shard of a folder and writes its manifest; licences and notes of an earlier one are kept.

    processor: counts the tokens by kind, and decodes every picture on the way. progress(done, total) counts samples.
    Raises FileNotFoundError if there is no shard, ValueError if one is damaged.
    """
    before = load_manifest(folder) if (Path(folder) / FILE).exists() else {}
    licences = before.get("licences", {}) | dict(licences or {})
    count = None if processor is None else lambda sample: count_tokens(sample, processor)
    return make_manifest(folder, licences, before.get("notes", {}) | dict(notes or {}), count, progress)


def count_tokens(sample: Sample, processor: Processor) -> tuple[int, int]:
    """(text tokens, image positions) that training would count for a sample; of a pair both documents.

    Pictures are decoded, which shows damage, but not tiled. Raises ValueError for a sample that training would skip.
    """
    from mmvl.training.loader import encode_pair, encode_sample

    members = {}
    for name in {part["file"] for part in parts_of(sample.json) if part["type"] == "image"}:
        size = relevant_part(open_image(sample.members[name], name=name), processor.tiling).size
        T = processor.tiling.tile
        members[name] = TiledImage(torch.empty(0, 3, T, T), *layout(*size, processor.tiling))
    untiled = Sample(sample.key, sample.json, members)
    if sample.json["kind"] == "preference":
        documents = encode_pair(untiled, processor)
    else:
        documents = (encode_sample(untiled, processor),)
    ids = [i for document in documents for i in document.token_ids]
    image = ids.count(processor.image_id)
    return len(ids) - image, image


@dataclass
class Look:
    """What shards hold. bytes: of the files; problems: one line a damaged sample or shard, or one that is not as the
    manifest says; first: the first samples; tokens: of the manifest, if it has them (kind -> {"text", "image"})."""

    shards: int = 0
    bytes: int = 0
    samples: int = 0
    kinds: Counter = field(default_factory=Counter)
    sources: Counter = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    first: list[Sample] = field(default_factory=list)
    tokens: dict[str, dict[str, int]] = field(default_factory=dict)


def look(path: str | Path, limit: int = 3) -> Look:
    """Reads a shard, or all shards of a folder, to the end; keeps the first `limit` samples.

    Raises FileNotFoundError if there is no shard.
    """
    path = Path(path)
    shards = sorted(path.glob("*.tar")) if path.is_dir() else [path]
    if not path.exists() or not shards:
        raise FileNotFoundError(f"no shard at {path}: name a .tar or a folder of them")
    found = Look()
    if path.is_dir() and (path / FILE).exists():
        found.tokens = load_manifest(path).get("tokens", {})
        found.problems += check_manifest(path, content=False)
    for shard in shards:
        found.shards += 1
        found.bytes += shard.stat().st_size
        report = ReadReport()
        for sample in read_shard(shard, report=report):
            found.kinds[sample.json["kind"]] += 1
            found.sources[sample.json["source"]] += 1
            if len(found.first) < limit:
                found.first.append(sample)
        found.samples += report.samples
        found.problems += report.problems
    return found
