"""Conversations over several pictures, put together from other shards: each question names the picture it is about."""

import io
import itertools
import random
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from mmvl.data.album_turns import ORDINALS, Pair, arrivals, ask, by_topic
from mmvl.data.conversation import CANNOT_SEE
from mmvl.data.order import derive
from mmvl.data.parallel import write_shards
from mmvl.data.shards import Sample, ShardSource
from mmvl.data.turns import assistant

# A sample about one picture, with the questions that can be taken over.
Drawn = tuple[Sample, list[Pair]]

_TRIES = 50


def import_albums(
    out_dir: str | Path,
    count: int,
    seed: int = 0,
    workers: int = 0,
    *,
    shards: str,
    fewest: int = 2,
    most: int = 6,
    fewest_questions: int = 4,
    most_questions: int = 10,
    alike: float = 0.6,
    later: float = 0.35,
    counted: float = 0.1,
    most_pixels: int = 500_000,
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Write `count` conversations over `fewest` to `most` pictures; returns the shards.

    shards: folders of questions or captions, with commas between; every one is drawn equally often. Questions of one
    line, answers as they are there; those for texts of several lines are left out.
    alike: share of the albums whose pictures come from one folder, chosen so that one question can be asked of all of
    them. later: share of those that show a part of their pictures in later turns. counted: share of the questions for
    the number of pictures. most_pixels: of all pictures of an album together, each has an equal part of them at most;
    the default keeps an album of mmvl-tiny under 5,120 tokens.

    Raises:
        ValueError: a range that is none, or shards without questions about a picture.
    """
    if not 2 <= fewest <= most <= len(ORDINALS):
        raise ValueError(f"albums: fewest and most are numbers of pictures from 2 to {len(ORDINALS)}, in order")
    if not 1 <= fewest_questions <= most_questions:
        raise ValueError("albums: fewest_questions and most_questions are at least 1, in order")
    for name, share in (("alike", alike), ("later", later), ("counted", counted)):
        if not 0 <= share <= 1:
            raise ValueError(f"albums: {name} is {share}; it is a share, from 0 to 1")
    sources = [ShardSource.from_dir(folder.strip()) for folder in shards.split(",")]

    def choose(rng: random.Random) -> list[Drawn]:
        for _ in range(_TRIES):
            number = rng.randint(fewest, most)
            limit = most_pixels // number
            if rng.random() < alike:
                chosen = _alike(rng, rng.choice(sources), number, limit)
            else:
                chosen = [d for _ in range(number) for d in _draw(rng, rng.choice(sources), 1, limit)]
            if len(chosen) == number:
                return chosen
        raise ValueError(
            f"{shards}: hardly a sample has one picture of at most {most_pixels // most:,} pixels and a question with "
            "an answer of a line"
        )

    def make(index: int) -> tuple[dict, dict[str, bytes]]:
        rng = random.Random(derive("albums", seed, index))
        chosen = choose(rng)
        members, parts = {}, []
        for number, (sample, _) in enumerate(chosen):
            [(name, data)] = sample.members.items()
            file = f"{number}.{name.rpartition('.')[2]}"
            members[file] = data
            parts.append({"type": "image", "file": file})
        shown = arrivals(rng, len(chosen), later)
        wanted = rng.randint(fewest_questions, most_questions)
        messages, before = [], 0
        for upto, pairs in zip(shown, ask(rng, [p for _, p in chosen], shown, wanted, counted), strict=True):
            for question, answer in pairs:
                content = [*parts[before:upto], {"type": "text", "text": question}]
                messages += [{"role": "user", "content": content}, assistant(answer)]
                before = upto
        meta = {"from": [sample.key for sample, _ in chosen], "shown": shown}
        return {"source": "albums", "kind": "conversation", "messages": messages, "meta": meta}, members

    return write_shards(out_dir, "albums", count, make, workers, per_shard=500, progress=progress)


def _draw(rng: random.Random, source: ShardSource, number: int, limit: int) -> list[Drawn]:
    """`number` different samples with questions and a picture of up to `limit` pixels; fewer where they are rare."""
    found: list[Drawn] = []
    tries = min(_TRIES + 4 * number, len(source))
    for index in rng.sample(range(len(source)), tries):
        sample = source[index]
        if (pairs := questions(sample)) and _pixels(sample) <= limit:
            found.append((sample, pairs))
            if len(found) == number:
                break
    return found


def _alike(rng: random.Random, source: ShardSource, number: int, limit: int) -> list[Drawn]:
    """`number` samples of one source, all with an answer on one topic where there is such, not all the same one."""
    pool = _draw(rng, source, 8 + 6 * number, limit)
    answered = [[(question, answer) for question, answer in pairs if answer != CANNOT_SEE] for _, pairs in pool]
    topics = {name: of for name, of in by_topic(answered).items() if len(of) >= number}
    if not topics:
        return pool[:number]
    answers = {place: answer for place, (_, answer) in topics[rng.choice(sorted(topics))].items()}
    places = rng.sample(sorted(answers), len(answers))
    other = next(place for place in places if answers[place] != answers[places[0]])
    chosen = [places[0], other, *(place for place in places[1:] if place != other)][:number]
    rng.shuffle(chosen)
    return [pool[place] for place in chosen]


def _pixels(sample: Sample) -> int:
    [data] = sample.members.values()
    with Image.open(io.BytesIO(data)) as picture:
        return picture.width * picture.height


def questions(sample: Sample) -> list[Pair]:
    """(question, answer of one line) of a sample about one picture; none of another."""
    messages = sample.json.get("messages", [])
    pictures = [p["file"] for m in messages for p in m["content"] if p["type"] == "image"]
    if len(pictures) != 1 or len(sample.members) != 1 or sample.json["kind"] == "preference":
        return []
    said = [(m["role"], " ".join(p["text"] for p in m["content"] if p["type"] == "text")) for m in messages]
    pairs = [(q, a) for (one, q), (other, a) in itertools.pairwise(said) if (one, other) == ("user", "assistant")]
    return [(q, a) for q, a in pairs if q and a and "\n" not in a]
