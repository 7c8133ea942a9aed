"""Importer of plain English documents from unpacked Debian packages: manuals, dictionaries, fortunes, the Bible.

Two steps: `build_corpus` turns package trees into `<source>.jsonl.gz` (a document a line), which the renderers also
take their words from; `import_text` writes documents of such files as shards of kind "text".
"""

import gzip
import html.parser
import json
import random
import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mmvl.data.order import derive
from mmvl.data.shards import ShardWriter

SHORTEST, LONGEST = 200, 4000

_OBSCENE = re.compile(r"\b(fuck|shit|cunt|faggot|nigger|whore|slut|bitch|rap(e|ist)\b)", re.IGNORECASE)

_PLAIN = str.maketrans({
    "‘": "'", "’": "'", "“": '"', "”": '"', "–": "-", "—": "-", "‐": "-", "‑": "-", "…": "...", "\u00a0": " ",
    "\u00ad": "", "\u200b": "", "¶": "", "•": "-", "→": "->", "−": "-", "×": "x",
})  # fmt: skip


@dataclass(frozen=True)
class TextSource:
    """Where one package keeps its English text, how to read it, and under which terms it comes."""

    package: str
    pattern: str
    reader: str
    licence: str
    drop: str = ""  # blocks that match this go


SOURCES = {
    "bible-kjv": TextSource("bible-kjv", "kjv.txt", "verses", "public domain"),
    "debian-handbook": TextSource("debian-handbook", "**/html/en-US/*.html", "html", "GPL-2+ or CC-BY-SA-3.0"),
    "debian-reference": TextSource("debian-reference-en", "**/*.en.html", "html", "GPL-2+"),
    "developers-reference": TextSource("developers-reference", "**/developers-reference/*.html", "html", "GPL-2+"),
    "debian-policy": TextSource("debian-policy", "**/policy.html/*.html", "html", "GPL-2+"),
    "debian-faq": TextSource("debian-faq", "**/*.en.html", "html", "GPL-2+"),
    "harden-doc": TextSource("harden-doc", "**/html/en-US/*.html", "html", "GPL-2+"),
    "maint-guide": TextSource("maint-guide", "**/html/*.en.html", "html", "GPL-2+"),
    "aptitude-doc": TextSource("aptitude-doc-en", "**/html/en/*.html", "html", "GPL-2+"),
    "libreoffice-help": TextSource("libreoffice-help-en-us", "**/text/*/**/*.html", "html", "MPL-2.0"),
    "python-doc": TextSource("python3.11-doc", "**/html/**/*.html", "html", "PSF-2.0"),
    "linux-doc": TextSource("linux-doc-6.1", "**/html/**/*.html", "html", "GPL-2"),
    "fortunes": TextSource("fortunes", "**/games/fortunes/*", "fortunes", "BSD-style collection (Debian main)",
                           "Bierce|Devil's Dictionary"),
    "foldoc": TextSource("dict-foldoc", "**/foldoc.dict.dz", "dict", "GFDL-1.2+"),
    "jargon": TextSource("dict-jargon", "**/jargon.dict.dz", "dict", "public domain"),
    "gcide": TextSource("dict-gcide", "**/gcide.dict.dz", "dict", "GPL-3+"),
    "wordnet": TextSource("dict-wn", "**/wn.dict.dz", "wordnet", "WordNet (BSD-style)"),
    # Held out: only evaluation sets take words from it (see corpus.HELD_OUT_SOURCES).
    "devil": TextSource("dict-devil", "**/devil.dict.dz", "dict", "public domain",
                        # Satire of 1906: what mocks a people, a faith or women is not for pictures that we ship.
                        r"Jew|Muss?ulm|Christian|Moham|Hebrew|[Nn]egro|Africa|Indian|Irish|Chin|[Ss]avage|[Hh]eathen"
                        r"|[Ww]om[ae]n|[Ff]emale|[Ww]i(f|v)e|[Gg]irl|[Ll]ad(y|ies)|[Mm]urder|[Hh]ang|[Ss]uicid"),
}  # fmt: skip


class _Blocks(html.parser.HTMLParser):
    """Collects the text of paragraphs, list items and headings; drops code listings, tables, navigation."""

    BLOCK = {"p", "li", "dt", "dd", "h1", "h2", "h3", "h4", "blockquote", "div", "section", "td", "br"}
    DROP = {"script", "style", "pre", "nav", "table", "head", "button", "select", "footer"}
    DROP_CLASS = ("sphinxsidebar", "related", "toc", "navheader", "navfooter", "footer", "headerlink", "docnav")

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.blocks: list[str] = []
        self._text: list[str] = []
        self._dropped: list[str] = []

    def handle_starttag(self, tag, attrs):
        if self._dropped:
            self._dropped += [tag] if tag == self._dropped[0] else []
            return
        classes = dict(attrs).get("class") or ""
        if tag in self.DROP or any(name in classes for name in self.DROP_CLASS):
            self._dropped.append(tag)
        elif tag in self.BLOCK:
            self.end_block()

    def handle_endtag(self, tag):
        if self._dropped:
            if tag == self._dropped[0]:
                self._dropped.pop()
        elif tag in self.BLOCK:
            self.end_block()

    def handle_data(self, data):
        if not self._dropped:
            self._text.append(data)

    def end_block(self) -> None:
        text = " ".join("".join(self._text).split())
        self._text = []
        if text:
            self.blocks.append(text)


def _read_html(path: Path, drop: str) -> Iterator[str]:
    parser = _Blocks()
    parser.feed(path.read_text(errors="replace"))
    parser.end_block()
    # Short blocks are menus and captions; a heading is kept when a paragraph follows.
    kept = [b for i, b in enumerate(parser.blocks) if len(b) > 60 or (i + 1 < len(parser.blocks) and len(b) > 12
            and len(parser.blocks[i + 1]) > 60)]  # fmt: skip
    yield from join_blocks(kept, drop=drop)


def _read_fortunes(path: Path, drop: str) -> Iterator[str]:
    if path.suffix or path.name.endswith(".u8"):
        return
    entries = re.split(r"^%+\s*$", path.read_text(errors="replace"), flags=re.M)
    yield from join_blocks([re.sub(r"[ \t]+", " ", e).strip() for e in entries], between="\n\n", drop=drop)


def _dict_entries(path: Path) -> list[str]:
    """Entries of a dictd database: the index has, per headword, offset and length in its own base 64."""
    digits = {c: i for i, c in enumerate("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/")}

    def number(text: str) -> int:
        value = 0
        for char in text:
            value = value * 64 + digits[char]
        return value

    body = gzip.open(path).read()
    index = path.with_name(path.name.replace(".dict.dz", ".index")).read_text(errors="replace")
    spans = set()
    for line in index.splitlines():
        word, offset, length = line.split("\t")[:3]
        if not word.startswith("00"):
            spans.add((number(offset), number(length)))
    return [body[o : o + n].decode(errors="replace") for o, n in sorted(spans)]


def _read_dict(path: Path, drop: str) -> Iterator[str]:
    entries = []
    for entry in _dict_entries(path):
        entry = re.sub(r"\{([^}]*)\}", r"\1", entry)
        entry = re.sub(r"\[[^\]]{0,20}(?:Webster|PJC|WordNet)[^\]]{0,20}\]", "", entry)
        entry = re.sub(r"\s+", " ", entry).strip()
        if len(entry) > 40:
            entries.append(entry)
    yield from join_blocks(entries, target=900, drop=drop)


def _read_wordnet(path: Path, drop: str) -> Iterator[str]:
    entries = []
    for entry in _dict_entries(path):
        head, _, body = entry.partition("\n")
        gloss = re.sub(r"\s+", " ", re.sub(r"\[(?:syn|ant|also)[^\]]*\]", "", body)).strip()
        gloss = re.sub(r"^(n|v|adj|adv|s|r) (\d+: |: )?", "", gloss)
        if gloss and "{" not in gloss:
            entries.append(f"{head.strip()}: {gloss}")
    yield from join_blocks(entries, target=700, drop=drop)


def _read_verses(path: Path, drop: str) -> Iterator[str]:
    yield from join_blocks(path.read_text(errors="replace").split("\n"), target=1200, drop=drop)


_READERS: dict[str, Callable[[Path, str], Iterator[str]]] = {
    "html": _read_html, "fortunes": _read_fortunes, "dict": _read_dict, "wordnet": _read_wordnet,
    "verses": _read_verses,
}  # fmt: skip


def clean(text: str) -> str:
    """Plain ASCII-leaning text: straight quotes, single spaces within lines, no control characters."""
    text = unicodedata.normalize("NFC", text).translate(_PLAIN)
    text = "".join(c for c in text if c == "\n" or unicodedata.category(c)[0] != "C")
    text = "\n".join(re.sub(r"[ \t]+", " ", line).strip() for line in text.split("\n"))
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def join_blocks(blocks: list[str], target: int = 2000, between: str = "\n", drop: str = "") -> Iterator[str]:
    """Documents of SHORTEST to LONGEST characters out of consecutive blocks, about `target` long; other sizes go.

    So do blocks that are not mostly English prose, hold an e-mail address, an obscenity, or match `drop`.
    """
    document, size = [], 0
    for block in blocks:
        block = clean(block)
        # Tables, code and other scripts read as noise: demand mostly letters and spaces, nearly all ASCII.
        letters = sum(c.isalpha() or c == " " for c in block)
        if not block or letters < 0.8 * len(block) or sum(ord(c) > 126 for c in block) > 0.02 * len(block):
            continue
        # People's addresses (lists of maintainers) have no place in a model's memory.
        if re.search(r"\S+@\S+\.\w", block) or _OBSCENE.search(block) or (drop and re.search(drop, block)):
            continue
        if document and size + len(block) > target:
            if SHORTEST <= size:
                yield between.join(document)
            document, size = [], 0
        if len(block) + size <= LONGEST:
            document.append(block)
            size += len(block) + len(between)
    if SHORTEST <= size:
        yield between.join(document)


def build_corpus(
    packages: str | Path, out_dir: str | Path, sources: list[str] | None = None, max_chars: int | None = None,
    seed: int = 0,
) -> dict[str, dict]:  # fmt: skip
    """Write `out_dir/<source>.jsonl.gz` for every source found under `packages/<package>/` (from `dpkg -x`).

    Duplicate documents go; over `max_chars` a seeded part is kept. Returns {source: {documents, chars, licence}}.
    """
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    totals = {}
    for name in sources or SOURCES:
        source = SOURCES[name]
        root = Path(packages) / source.package
        if not root.exists():
            continue
        seen: set[int] = set()
        documents = []
        for path in sorted(p for p in root.glob(source.pattern) if p.is_file() and not p.is_symlink()):
            for document in _READERS[source.reader](path, source.drop):
                digest = derive(document)
                if digest not in seen:
                    seen.add(digest)
                    documents.append(document)
        if max_chars is not None and sum(map(len, documents)) > max_chars:
            random.Random(derive("corpus", seed, name)).shuffle(documents)
            size, kept = 0, []
            for document in documents:
                size += len(document)
                if size > max_chars:
                    break
                kept.append(document)
            documents = kept
        with gzip.GzipFile(out_dir / f"{name}.jsonl.gz", "wb", mtime=0) as file:
            for document in documents:
                line = {"source": name, "text": document}
                file.write((json.dumps(line, ensure_ascii=False) + "\n").encode())
        chars = sum(map(len, documents))
        totals[name] = {"documents": len(documents), "chars": chars, "licence": source.licence}
    if not totals:
        raise FileNotFoundError(f"{packages}: none of the packages {', '.join(s.package for s in SOURCES.values())}")
    return totals


def import_text(
    out_dir: str | Path,
    count: int,
    seed: int = 0,
    workers: int = 1,
    *,
    corpus: str | Path,
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Documents of the corpus files in `corpus` (without the held-out sources) as shards; count 0 means all."""
    from mmvl.data.corpus import documents

    lines = list(documents(corpus))
    random.Random(derive("text", seed)).shuffle(lines)
    lines = lines[:count] if count else lines
    with ShardWriter(out_dir, "text", max_bytes=64 << 20) as writer:
        for done, line in enumerate(lines, 1):
            writer.write({"source": f"text/{line['source']}", "kind": "text", "text": line["text"]})
            if progress and (done % 1000 == 0 or done == len(lines)):
                progress(done, len(lines))
    return writer.shards
