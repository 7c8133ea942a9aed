"""`mmvl data`: the renderers and importers of `mmvl.data` by name, manifests, and a look into shards."""

import functools
import importlib
import inspect as signatures
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mmvl.data.shards import ReadReport, Sample, read_shard

# name -> (module of mmvl.data, function, what it makes)
RENDERERS = {
    "text-lines": ("render_text_lines", "render_text_lines", "one line of print a picture"),
    "documents": ("render_documents", "render_documents", "short documents: notes, receipts, labels"),
    "emoji": ("render_emoji", "render_emoji", "emoji and their Unicode names"),
}
IMPORTERS = {
    "easy-vqa": ("easy_vqa", "import_easy_vqa", "coloured shapes and questions about them (PyPI's easy-vqa)"),
    "stamps": ("stamps", "import_stamps", "Tux Paint's captioned stamps (Debian)"),
    "text": ("text", "import_text", "plain text of a corpus"),
}
# Parameters of every one of them; whatever else one takes is its own setting.
_COMMON = ("out_dir", "count", "seed", "workers", "progress")


def maker(kinds: Mapping[str, tuple[str, str, str]], name: str, settings: Mapping) -> Callable[..., list[Path]]:
    """The renderer or importer `name` of `kinds` (`RENDERERS` or `IMPORTERS`) with its own settings filled in.

    It is called as maker(out_dir, count, seed, workers, progress=None), writes shards into out_dir and returns them.
    count: samples; of importers 0 means all there are. workers: processes, 0 is one a core. progress(done, count) is
    called as it goes on. Raises ValueError for an unknown name or setting, and for one that is missing.
    """
    function = _function(kinds, name)
    parameters = signatures.signature(function).parameters
    own = [parameter for parameter in parameters if parameter not in _COMMON]
    for key in settings:
        if key not in own:
            raise ValueError(f"{name} has no setting {key!r}; there are: {', '.join(own)}")
    for key in own:
        if parameters[key].default is signatures.Parameter.empty and key not in settings:
            raise ValueError(f"{name} needs the setting {key!r}: give it with --set {key}=VALUE")
    return functools.partial(function, **settings)


def _function(kinds: Mapping[str, tuple[str, str, str]], name: str) -> Callable[..., list[Path]]:
    if name not in kinds:
        raise ValueError(f"unknown name {name!r}; there are: {', '.join(kinds)}")
    module, function, _ = kinds[name]
    return getattr(importlib.import_module(f"mmvl.data.{module}"), function)


@dataclass
class Look:
    """What shards hold. bytes: of the files; problems: one line a damaged sample or shard; first: the first samples."""

    shards: int = 0
    bytes: int = 0
    samples: int = 0
    kinds: Counter = field(default_factory=Counter)
    sources: Counter = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    first: list[Sample] = field(default_factory=list)


def look(path: str | Path, limit: int = 3) -> Look:
    """Reads a shard, or all shards of a folder, to the end; keeps the first `limit` samples.

    Raises FileNotFoundError if there is no shard.
    """
    path = Path(path)
    shards = sorted(path.glob("*.tar")) if path.is_dir() else [path]
    if not path.exists() or not shards:
        raise FileNotFoundError(f"no shard at {path}: name a .tar or a folder of them")
    found = Look()
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
