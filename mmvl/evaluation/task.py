"""What an evaluation task is: examples with references, scores, baselines; and what the tasks share."""

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mmvl.data.shards import read_shard
from mmvl.data.splits import in_split
from mmvl.evaluation.metrics import Interval

ALWAYS, TESSERACT, WITHOUT_IMAGE = "always the commonest", "Tesseract", "without the image"


@dataclass(frozen=True)
class Example:
    """One question: a conversation that ends with the user's turn, and the answer that counts as right.

    group: the thing asked about (the receipt, the table); examples of one group are not independent. "" is its own.
    """

    key: str
    messages: list[dict]
    reference: str
    meta: dict = field(default_factory=dict)
    group: str = ""


@dataclass(frozen=True)
class Score:
    """One row of the result: a metric over `n` examples. unit "%": a share or an error rate, shown times 100."""

    metric: str
    interval: Interval
    n: int
    unit: str = "%"


@dataclass(frozen=True)
class Task:
    """`load` gives all examples; `score`, `baselines` and `rivals` see the same chosen ones.

    data: what `--data` has to be, for a task over a set that the user brings ("": it takes none). load and rivals then
    get the path (None where it may be left out, `needs_data` False), load the split too.
    always: the answer that the baseline "always the commonest" gives, where the questions' own references decide it.
    rivals: name of any other baseline -> its answers; tesseract: whether Tesseract is among them where it is installed.
    headline: the rows that baselines get too, by number (the first so many) or by name.
    right: an example's own score in [0, 1], for looking through the answers.
    blind: ask every question once more without its images, to show how much of the score the images give.
    """

    name: str
    description: str
    load: Callable[..., list[Example]]
    score: Callable[[Sequence[Example], Sequence[str]], list[Score]]
    max_tokens: int
    baselines: Callable[[Sequence[Example]], list[Score]] = lambda examples: []
    blind: bool = False
    data: str = ""
    needs_data: bool = False
    split: str = "all"
    always: Callable[[Sequence[Example]], str] | None = None
    rivals: Callable[[Sequence[Example], Path | None], dict[str, list[str]]] = lambda examples, data: {}
    tesseract: bool = False
    headline: int | tuple[str, ...] = 1
    right: Callable[[Example, str], float] | None = None
    notes: str = ""


def groups(examples: Sequence[Example]) -> list[str]:
    """The thing that each example is about."""
    return [e.group or e.key for e in examples]


def without_images(messages: list[dict]) -> list[dict]:
    """The same conversation, its image parts left out."""
    return [m | {"content": [part for part in m["content"] if part["type"] != "image"]} for m in messages]


def held_out(items: Iterable, split: str, fingerprint: Callable[[object], bytes]) -> list:
    """Those of a set (anything with a `key`) that are in `split`, one of each fingerprint.

    Of the development split also none that is in train under another key.
    """
    chosen, seen, other = [], set(), set()
    for item in items:
        mark = hashlib.sha256(fingerprint(item)).digest()
        if not in_split(item.key, split):
            other.add(mark)
        elif mark not in seen:
            seen.add(mark)
            chosen.append((mark, item))
    return [item for mark, item in chosen if split != "development" or mark not in other]


def question_of(example: Example) -> str:
    """The text of the last turn."""
    return " ".join(p["text"] for p in example.messages[-1]["content"] if p["type"] == "text")


def always_commonest(examples: Sequence[Example]) -> str:
    """The commonest of the questions' own references, for want of others; it flatters the baseline."""
    return commonest(e.reference for e in examples)


def commonest(answers: Iterable[str]) -> str:
    """The commonest answer without regard to case and space, as first written; "" for none."""
    counts, written = Counter(), {}
    for answer in answers:
        plain = " ".join(unicodedata.normalize("NFKC", answer).casefold().split())
        counts[plain] += 1
        written.setdefault(plain, answer)
    return written[counts.most_common(1)[0][0]] if counts else ""


def shard_files(path: Path) -> list[Path]:
    """A shard, or all shards of a folder. FileNotFoundError if there is none."""
    found = sorted(path.glob("*.tar")) if path.is_dir() else [path]
    if not found or not path.exists():
        raise FileNotFoundError(f"no shard at {path}: name a .tar or a folder of them")
    return found


def shard_examples(path: Path) -> list[Example]:
    """One example a sample: its turns up to the last, which is the assistant's and the reference.

    Raises:
        FileNotFoundError: no such set. ValueError: a damaged one.
    """
    if not path.is_file():
        raise FileNotFoundError(f"the evaluation set {path} is missing; install mmvl again")
    examples = []
    for sample in read_shard(path):
        *turns, last = sample.json.get("messages") or [{"role": "none"}]
        if last["role"] != "assistant" or not turns:
            raise ValueError(f"{path}: sample {sample.key} does not end with an assistant's turn")
        examples.append(
            Example(
                key=sample.key,
                messages=[turn | {"content": _with_bytes(turn["content"], sample.members)} for turn in turns],
                reference=text_of(last["content"]),
                meta=sample.json.get("meta", {}),
            )
        )
    return examples


def text_of(content) -> str:
    """The text of a message's content, a string or a list of parts."""
    return content if isinstance(content, str) else "".join(p["text"] for p in content if p["type"] == "text")


def _with_bytes(content, members: dict[str, bytes]) -> list[dict]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return [{"type": "image", "image": members[p["file"]]} if p["type"] == "image" else p for p in content]
