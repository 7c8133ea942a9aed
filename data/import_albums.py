"""Conversations over several pictures, put together from other shards: each question names the picture it is about."""

import random
from collections.abc import Callable
from pathlib import Path

from mmvl.data.order import derive
from mmvl.data.parallel import write_shards
from mmvl.data.shards import Sample, ShardSource
from mmvl.data.turns import assistant

ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth")
_WAYS = (
    "In the {ordinal} image: {question}", "In the {ordinal} picture: {question}", "Image {number}: {question}",
    "Picture {number}: {question}", "{question} (image {number})", "About the {ordinal} image: {question}",
)  # fmt: skip
_COUNTS = ("How many images are there?", "How many pictures do you see?", "How many images did I send?")


def import_albums(
    out_dir: str | Path,
    count: int,
    seed: int = 0,
    workers: int = 0,
    *,
    shards: str,
    fewest: int = 2,
    most: int = 4,
    fewest_questions: int = 3,
    most_questions: int = 7,
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Write `count` conversations over `fewest` to `most` pictures, all shown in the first turn; returns the shards.

    shards: folders of questions or captions, with commas between; every one is drawn equally often. Questions of one
    line, answers as they are there; those for texts of several lines are left out.

    Raises:
        ValueError: a range that is none, or shards without questions about a picture.
    """
    if not 2 <= fewest <= most <= len(ORDINALS):
        raise ValueError(f"albums: fewest and most are numbers of pictures from 2 to {len(ORDINALS)}, in order")
    if not 1 <= fewest_questions <= most_questions:
        raise ValueError("albums: fewest_questions and most_questions are at least 1, in order")
    sources = [ShardSource.from_dir(folder.strip()) for folder in shards.split(",")]

    def drawn(rng: random.Random) -> tuple[Sample, list[tuple[str, str]]]:
        source = rng.choice(sources)
        for _ in range(50):
            sample = source[rng.randrange(len(source))]
            if pairs := questions(sample):
                return sample, pairs
        raise ValueError(f"{source.shards[0]}: hardly a sample has one picture and a question with an answer of a line")

    def make(index: int) -> tuple[dict, dict[str, bytes]]:
        rng = random.Random(derive("albums", seed, index))
        chosen = [drawn(rng) for _ in range(rng.randint(fewest, most))]
        members, parts = {}, []
        for number, (sample, _) in enumerate(chosen):
            [(name, data)] = sample.members.items()
            file = f"{number}.{name.rpartition('.')[2]}"
            members[file] = data
            parts.append({"type": "image", "file": file})
        asked: dict[str, str] = {}
        for _ in range(rng.randint(fewest_questions, most_questions)):
            if rng.random() < 0.06:
                asked.setdefault(rng.choice(_COUNTS), str(len(chosen)))
                continue
            number = rng.randrange(len(chosen))
            question, answer = rng.choice(chosen[number][1])
            way = rng.choice((*_WAYS, "In the last image: {question}") if number == len(chosen) - 1 else _WAYS)
            asked.setdefault(way.format(ordinal=ORDINALS[number], number=number + 1, question=question), answer)
        messages = []
        for question, answer in asked.items():
            content = [*([] if messages else parts), {"type": "text", "text": question}]
            messages += [{"role": "user", "content": content}, assistant(answer)]
        meta = {"from": [sample.key for sample, _ in chosen]}
        return {"source": "albums", "kind": "conversation", "messages": messages, "meta": meta}, members

    return write_shards(out_dir, "albums", count, make, workers, per_shard=500, progress=progress)


def questions(sample: Sample) -> list[tuple[str, str]]:
    """(question, answer of one line) of a sample about one picture; none of another."""
    messages = sample.json.get("messages", [])
    pictures = [p["file"] for m in messages for p in m["content"] if p["type"] == "image"]
    if len(pictures) != 1 or len(sample.members) != 1 or sample.json["kind"] == "preference":
        return []
    texts = [" ".join(p["text"] for p in m["content"] if p["type"] == "text") for m in messages]
    return [(q, a) for q, a in zip(texts[::2], texts[1::2], strict=False) if q and a and "\n" not in a]
