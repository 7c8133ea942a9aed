"""Preference pairs out of other shards: a sample's answer is chosen, another sample's to the same question rejected.

Of plain text, a document's own continuation is chosen and another document's rejected. Such pairs teach to look at the
picture (or at the text before) instead of giving a likely answer.
"""

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from mmvl.data.drawing import user
from mmvl.data.importing import Item, Made, import_items
from mmvl.data.shards import Sample, ShardSource

BEFORE, AFTER = 24, 10  # words of a document that are shown, and that are the answer
CONTINUE = "Continue: "


def import_pairs(
    out_dir: str | Path,
    count: int = 0,
    seed: int = 0,
    workers: int = 0,
    *,
    shards: str | Path,
    problems: list[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """One pair a sample of the folder `shards`: of kind vqa, conversation or caption, or text.

    Of a conversation one question is drawn; what was said before it is part of the prompt. Samples whose questions have
    no other answer in these shards, and documents too short to be continued, are left out.
    """
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
            other = answer
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
