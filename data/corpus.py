"""Reading the text corpora that `text.build_corpus` wrote, and cutting words and phrases out of them for renderers."""

import gzip
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path

_PRINTABLE = re.compile("[ -~]*")

# Never part of training text, so that evaluation lines are made of sentences no model has seen.
HELD_OUT_SOURCES = ("devil",)


def corpus_files(dir: str | Path, held_out: bool = False) -> list[Path]:
    """`<source>.jsonl.gz` files of a corpus directory: those for training, or the held-out ones."""
    files = sorted(Path(dir).glob("*.jsonl.gz"))
    files = [f for f in files if (f.name.removesuffix(".jsonl.gz") in HELD_OUT_SOURCES) == held_out]
    if not files:
        raise FileNotFoundError(f"{dir}: no {'held-out ' if held_out else ''}corpus files (<source>.jsonl.gz)")
    return files


def documents(dir: str | Path, held_out: bool = False) -> Iterator[dict]:
    """{"source", "text"} of every document, file by file. ValueError names the file and line that cannot be read."""
    for path in corpus_files(dir, held_out):
        try:
            with gzip.open(path, "rt", encoding="utf-8") as file:
                for number, line in enumerate(file, 1):
                    try:
                        document = json.loads(line)
                        if not document["text"]:
                            raise KeyError("text")
                    except (ValueError, KeyError, TypeError) as error:
                        raise ValueError(f"{path}: line {number} is not a document ({error!r})") from error
                    yield document
        except (EOFError, gzip.BadGzipFile) as error:
            raise ValueError(f"{path}: damaged gzip file ({error})") from error


class Phrases:
    """Sentence fragments and words for rendering: `fragment(rng, words)`, `word(rng)`, `sentence(rng)`.

    Holds about `max_chars` of text spread evenly over the sources, as one list of words per document.
    """

    def __init__(self, dir: str | Path, held_out: bool = False, max_chars: int = 8_000_000, seed: int = 0):
        files = corpus_files(dir, held_out)
        rng = random.Random(seed)
        self._documents: list[list[str]] = []
        for path in files:
            texts = [json.loads(line)["text"] for line in gzip.open(path, "rt", encoding="utf-8")]
            rng.shuffle(texts)
            size = 0
            for text in texts:
                words = [w for w in text.split() if printable(w) and len(w) <= 24]
                if len(words) >= 8:
                    self._documents.append(words)
                    size += len(text)
                if size > max_chars / len(files):
                    break
        if not self._documents:
            raise ValueError(f"{dir}: the corpus has no document with eight printable words")

    def fragment(self, rng: random.Random, words: int) -> str:
        """`words` consecutive words of some document (fewer if it is shorter)."""
        document = self._documents[rng.randrange(len(self._documents))]
        start = rng.randrange(max(1, len(document) - words + 1))
        return " ".join(document[start : start + words])

    def word(self, rng: random.Random) -> str:
        """One word of letters, without the punctuation around it."""
        for _ in range(20):
            word = re.sub(r"^\W+|\W+$", "", self.fragment(rng, 1))
            if word.isalpha():
                return word
        return "word"

    def sentence(self, rng: random.Random, shortest: int = 20, longest: int = 60) -> str:
        """A fragment made to look like a sentence: capital first, full stop last."""
        for _ in range(20):
            text = self.fragment(rng, rng.randint(3, 12)).strip(" ,;:.-\"'()")
            if shortest <= len(text) <= longest:
                break
        text = text[:longest].strip()
        return text[:1].upper() + text[1:] + rng.choice("....!?")


def printable(text: str) -> bool:
    """Whether every character is printable ASCII: what every Latin font can show."""
    return _PRINTABLE.fullmatch(text) is not None
