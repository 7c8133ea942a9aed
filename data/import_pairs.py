"""Preference pairs out of other shards: a sample's answer is chosen, another sample's to the same question rejected.

Of plain text, a document's own continuation is chosen and another document's rejected. Such pairs teach to look at the
picture (or at the text before) instead of giving a likely answer. Nearer misses come from the sample itself: another
thing that stands in the picture, the answer with a character misread, a refusal where there is an answer.
"""

import random
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from mmvl.data.conversation import CANNOT_SEE
from mmvl.data.importing import Item, import_items
from mmvl.data.shards import Sample, ShardSource
from mmvl.data.turns import Made, user

BEFORE, AFTER = 24, 10  # words of a document that are shown, and that are the answer
CONTINUE = "Continue: "
LONGEST = 60  # characters of an answer that near misses are made of
# Digits for digits, letters for letters: 1O is a word that nobody would print.
_ALIKE = (
    "08",
    "069",
    "17",
    "27",
    "38",
    "35",
    "56",
    "68",
    "49",
    "cea",
    "uv",
    "nmh",
    "rt",
    "Il",
    "OQD",
    "EF",
    "PR",
    ".,",
)


def import_pairs(
    out_dir: str | Path,
    count: int = 0,
    seed: int = 0,
    workers: int = 0,
    *,
    shards: str | Path,
    near: float = 0.0,
    problems: list[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """One pair a sample of the folder `shards`: of kind vqa, conversation or caption, or text.

    Of a conversation one question is drawn; what was said before it is part of the prompt. Samples whose questions have
    no other answer in these shards, and documents too short to be continued, are left out. near: share of the answers
    of one line for which the rejected one is a near miss (see above), in 0 to 1.
    """
    if not 0 <= near <= 1:
        raise ValueError(f"pairs: near is {near}; it is a share from 0 to 1")
    source = ShardSource.from_dir(shards)
    answers: dict[str, set[str]] = defaultdict(set)
    asked: list[list[str]] = []  # the questions of every sample
    long: list[int] = []  # texts that can be continued
    for index in range(len(source)):
        record = source[index].json
        if record["kind"] in ("preference", "interleaved"):
            raise ValueError(f"{shards}: pairs are made of questions or plain text, not of kind {record['kind']}")
        if record["kind"] == "text" and len(record["text"].split()) >= BEFORE + AFTER:
            long.append(index)
        turns = _turns(record)
        asked.append([question for question, _, _ in turns])
        for question, answer, _ in turns:
            answers[question].add(answer)
    choices = {question: sorted(said) for question, said in answers.items() if len(said) > 1}
    usable = [index for index, questions in enumerate(asked) if any(question in choices for question in questions)]

    def item(index: int) -> Item:
        def make(rng) -> Made:
            sample = source[index]
            if sample.json["kind"] == "text":
                other = index
                while other == index:
                    other = rng.choice(long)
                return _continued(sample, source[other], rng)
            question, answer, place = rng.choice([turn for turn in _turns(sample.json) if turn[0] in choices])
            other = _near_miss(sample, answer, rng) if rng.random() < near else answer
            while other == answer:
                other = rng.choice(choices[question])
            prompt = sample.json["messages"][:place]
            names = {part["file"] for message in prompt for part in message["content"] if part["type"] == "image"}
            return _pair(sample, prompt, answer, other), {name: sample.members[name] for name in names}

        return Item(f"sample {index}", make)

    items = [item(index) for index in sorted(usable + long if len(long) > 1 else usable)]
    return import_items(
        out_dir, "pairs", items, count, seed, workers, progress=progress, problems=problems, per_shard=2000
    )


def _turns(record: dict) -> list[tuple[str, str, int]]:
    """(question, answer, number of the answer's message) of every plain answer to a question."""
    turns = []
    messages = record.get("messages", [])
    for number, message in enumerate(messages[1:], 1):
        if message["role"] == "assistant" and messages[number - 1]["role"] == "user":
            if len(message["content"]) == 1 and message["content"][0]["type"] == "text":
                question = " ".join(p["text"] for p in messages[number - 1]["content"] if p["type"] == "text")
                turns.append((question, message["content"][0]["text"], number))
    return turns


def _near_miss(sample: Sample, answer: str, rng: random.Random) -> str:
    """A wrong answer that is close at hand; the answer itself where there is none, as for a refusal or a long text."""
    if answer == CANNOT_SEE or "\n" in answer or len(answer) > LONGEST:
        return answer
    draw = rng.random()
    if draw < 0.1:
        return CANNOT_SEE
    said = {a for _, a, _ in _turns(sample.json)} - {answer, CANNOT_SEE}
    beside = sorted(a for a in said if "\n" not in a and len(a) <= LONGEST)
    return rng.choice(beside) if beside and draw < 0.55 else misread(answer, rng)


def misread(text: str, rng: random.Random) -> str:
    """The text with one character taken for one that looks like it, or, where none does, doubled."""
    places = [(at, c, group) for at, c in enumerate(text) for group in _ALIKE if c in group]
    if not places:
        at = rng.randrange(len(text))
        return text[:at] + text[at] + text[at:]
    at, char, group = rng.choice(places)
    return text[:at] + rng.choice(group.replace(char, "")) + text[at + 1 :]


def _continued(sample: Sample, other: Sample, rng) -> Made:
    words, strange = sample.json["text"].split(), other.json["text"].split()
    at = rng.randrange(len(words) - BEFORE - AFTER + 1)
    answer = " ".join(words[at + BEFORE : at + BEFORE + AFTER])
    start = rng.randrange(len(strange) - AFTER + 1)
    prompt = [user(CONTINUE + " ".join(words[at : at + BEFORE]))]
    return _pair(sample, prompt, answer, " ".join(strange[start : start + AFTER])), {}


def _pair(sample: Sample, prompt: list[dict], chosen: str, rejected: str) -> dict:
    said = {name: [{"type": "text", "text": text}] for name, text in (("chosen", chosen), ("rejected", rejected))}
    meta = {"from": sample.key}
    return {"source": f"pairs/{sample.json['source']}", "kind": "preference", "messages": prompt, **said, "meta": meta}
