"""Questions about several pictures, some of which come in later turns: each says which picture it is about."""

import random
import re
from collections import defaultdict
from collections.abc import Sequence

from mmvl.data.conversation import CANNOT_SEE

# (question, answer) about one picture.
Pair = tuple[str, str]

ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth")
_NUMBERS = ("one", "two", "three", "four", "five", "six")
_COUNTS = (
    "How many images are there?", "How many pictures are there?", "How many pictures do you see?",
    "How many images do you see?", "How many images did I send?", "How many pictures have I shown you?",
    "What is the number of images?", "Count the pictures.",
)  # fmt: skip
# {lower}: the question without its capital; {stem}: without its question mark too.
_WAYS = (
    "In the {ordinal} image: {question}", "In the {ordinal} picture: {question}", "Image {number}: {question}",
    "Picture {number}: {question}", "{question} (image {number})", "About the {ordinal} image: {question}",
    "In image {number}: {question}", "The {ordinal} picture: {question}", "{question} (the {ordinal} image)",
    "Look at the {ordinal} picture. {question}",
)  # fmt: skip
_WAYS_OF_MANY = ("In the {ordinal} of the {count} images: {question}", "{ordinal} of {count} pictures: {question}")
_WAYS_OF_QUESTIONS = (
    "In the {ordinal} image, {lower}", "In picture {number}, {lower}", "{stem} in the {ordinal} image?",
    "{stem} in image {number}?",
)  # fmt: skip
_LAST = ("In the last image: {question}", "In the last picture: {question}", "The last image: {question}")
_NEW = ("{question}", "In this image: {question}", "In the new picture: {question}", "And here: {question}")
_ASKS = re.compile(r"(what|which|who|whose|when|where|how|is|are|does|do) [^?]*\?", re.IGNORECASE)

_PICTURE = re.compile(r"\b(image|picture)\b", re.IGNORECASE)

_TOPICS = re.compile(
    r'what is written for "(?P<a>.+)"|what is the value of (?:the )?(?P<b>.+)|what is the (?P<c>.+)|'
    r"which (?P<d>.+) is given|what (?P<e>.+) is stated"
)


def topic(question: str) -> str:
    """What a question asks for: "total" of "Which total is given?" as of the other ways of asking for a label."""
    plain = question.lower().strip(" ?.")
    found = _TOPICS.fullmatch(plain)
    return found[found.lastgroup] if found else plain


def by_topic(pictures: Sequence[Sequence[Pair]]) -> dict[str, dict[int, Pair]]:
    """Topics on which at least two pictures have an answer, not all the same one: topic -> {picture: its pair}."""
    found: dict[str, dict[int, Pair]] = defaultdict(dict)
    for place, pairs in enumerate(pictures):
        for question, answer in pairs:
            found[topic(question)].setdefault(place, (question, answer))
    return {name: of for name, of in found.items() if len({a for _, a in of.values() if a != CANNOT_SEE}) > 1}


def arrivals(rng: random.Random, count: int, later: float) -> list[int]:
    """Pictures shown so far, once for every turn that shows some: [count], or with chance `later` several turns."""
    if count == 1 or rng.random() >= later:
        return [count]
    shown = [1 if rng.random() < 0.6 else rng.randint(1, count - 1)]
    while shown[-1] < count:
        shown.append(min(count, shown[-1] + rng.choice((1, 1, 1, 2))))
    return shown


def ask(
    rng: random.Random, pictures: Sequence[Sequence[Pair]], shown: Sequence[int], number: int, counted: float
) -> list[list[Pair]]:
    """About `number` different questions with answers: a list for every entry of `shown` (see `arrivals`), none empty.

    counted: share of the questions for the number of pictures. Of the others about half come in runs: the same
    thing is asked of every picture that was shown and has it.
    """
    parts = [1] * len(shown)
    for _ in range(number - len(shown)):
        parts[rng.randrange(len(shown))] += 1
    seen: set[tuple[int, str]] = set()
    turns = []
    for part, (wanted, count) in enumerate(zip(parts, shown, strict=True)):
        new = count - shown[part - 1] if part else count
        shared = by_topic(pictures[:count])
        here: list[Pair] = []
        run: list[tuple[int, Pair]] = []
        for _ in range(8 * wanted):
            if len(here) == wanted:
                break
            if rng.random() < counted:
                asked, pair = (-1, str(count)), (rng.choice(_COUNTS), str(count))
            else:
                if not run and shared and rng.random() < 0.4:
                    run = list(rng.choice(list(shared.values())).items())
                    rng.shuffle(run)
                if run:
                    place, (question, answer) = run.pop()
                else:
                    # What was just shown is asked about first, as people do.
                    fresh = part and not here and rng.random() < 0.7
                    place = rng.randrange(count - new if fresh else 0, count)
                    question, answer = rng.choice(pictures[place])
                asked = (place, topic(question))
                pair = (named(rng, question, place, count, alone=new == 1 and not here), answer)
            if asked not in seen:
                seen.add(asked)
                here.append(pair)
        turns.append(here or [(_COUNTS[0], str(count))])
    return turns


def named(rng: random.Random, question: str, place: int, count: int, alone: bool) -> str:
    """The question with the name of the picture that it is about: number `place` of `count`, counted from 0.

    alone: this turn shows the last picture and no other, so that "this image" is the last one too.
    """
    if count == 1 and rng.random() < 0.7:
        return question
    ways = list(_WAYS)
    if count > 1:
        ways += _WAYS_OF_MANY
    if _ASKS.fullmatch(question) and not _PICTURE.search(question):
        ways += _WAYS_OF_QUESTIONS
    if place == count - 1 and count > 1:
        ways += _LAST + 2 * _NEW if alone else _LAST
    lower = question[:1].lower() + question[1:]
    text = rng.choice(ways).format(
        ordinal=ORDINALS[place], number=place + 1, count=_NUMBERS[count - 1], question=question, lower=lower,
        stem=question.rstrip("?"),
    )  # fmt: skip
    return text[:1].upper() + text[1:]
