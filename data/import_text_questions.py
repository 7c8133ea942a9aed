"""Conversations about a text without any picture: facts put into prose, forms, lists, tables; some asked in vain."""

import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from mmvl.data.corpus import Phrases
from mmvl.data.order import derive
from mmvl.data.parallel import write_shards
from mmvl.data.text_facts import ATTRIBUTES, Fact, attribute_fact, attribute_question, person_fact, thing
from mmvl.data.text_forms import Form, labelled_lines, listing, table
from mmvl.data.turns import assistant, user

NOT_IN_TEXT = "I can't see that in the text."

_ORDERS = (
    "{text}\n\n{question}", "{text}\n\n{question}", "{text}\n\n{question}", "{text}\n{question}",
    "{question}\n\n{text}", "Text:\n{text}\n\nQuestion: {question}", "Here is a text.\n\n{text}\n\n{question}",
    "Read this and answer.\n\n{text}\n\n{question}", '"{text}"\n\n{question}',
    "Answer from the text: {question}\n\n{text}",
)  # fmt: skip


def import_text_questions(
    out_dir: str | Path,
    count: int,
    seed: int = 0,
    workers: int = 0,
    *,
    corpus: str | Path,
    shortest: int = 100,
    longest: int = 3000,
    forms: float = 0.4,
    unanswerable: float = 0.15,
    fewest_questions: int = 2,
    most_questions: int = 8,
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Write `count` conversations about a text, which the first turn holds; returns the shards.

    corpus: directory of .jsonl.gz files, of which the prose is taken (without the held-out sources). shortest, longest:
    characters of that prose. forms: share of the texts that are forms, lists and tables; the others are prose with
    invented facts in it. unanswerable: share of the questions that the text does not answer. A conversation has
    fewest_questions to most_questions, fewer where a text has no more.

    Raises:
        ValueError: a range that is none. FileNotFoundError: no corpus.
    """
    if not 1 <= shortest <= longest:
        raise ValueError(f"text-questions: shortest ({shortest}) and longest ({longest}) are characters, in order")
    if not 1 <= fewest_questions <= most_questions:
        raise ValueError("text-questions: fewest_questions and most_questions are at least 1, in order")
    for name, share in (("forms", forms), ("unanswerable", unanswerable)):
        if not 0 <= share <= 1:
            raise ValueError(f"text-questions: {name} is {share}; it is a share, from 0 to 1")
    phrases = Phrases(corpus)

    def make(index: int) -> tuple[dict, dict[str, bytes]]:
        rng = random.Random(derive("text-questions", seed, index))
        number = rng.randint(fewest_questions, most_questions)
        if rng.random() < forms:
            what = rng.choice((labelled_lines, labelled_lines, listing, table))
            form = what(rng, phrases)
        else:
            what, form = prose, prose(rng, phrases, round(shortest * (longest / shortest) ** rng.random()), number)
        vain = sum(rng.random() < unanswerable for _ in range(number))
        asked = [(question, NOT_IN_TEXT) for question in _some(rng, form.absent, vain)]
        asked += _some(rng, form.pairs, number - len(asked))
        rng.shuffle(asked)
        order = rng.choice(_ORDERS)
        messages = []
        for question, answer in asked:
            said = question if messages else order.format(text=form.text, question=question)
            messages += [user(said), assistant(answer)]
        record = {"source": f"text-questions/{what.__name__}", "kind": "conversation", "messages": messages}
        return record | {"meta": {"characters": len(form.text)}}, {}

    return write_shards(out_dir, "text-questions", count, make, workers, per_shard=5000, progress=progress)


def _some(rng: random.Random, questions: Sequence, number: int) -> list:
    """`number` of the questions, none twice, or all where there are fewer."""
    questions = list(dict.fromkeys(questions))
    return rng.sample(questions, min(number, len(questions)))


def prose(rng: random.Random, phrases: Phrases, characters: int, number: int) -> Form:
    """About so many characters of the corpus, at least, with up to `number` facts put between its sentences."""
    pieces, size = [], 0
    while size < characters:
        pieces.append(phrases.fragment(rng, max(8, (characters - size) // 6)))
        size += len(pieces[-1]) + 1
    sentences = [s for piece in pieces for s in re.split(r"(?<=[.;!?]) ", piece)]
    prose_text = " ".join(sentences)
    facts = _facts(rng, phrases, rng.randint(1, min(number, 2 + characters // 200)), prose_text)
    for fact in facts:
        sentences.insert(rng.randint(0, len(sentences)), fact.sentence)
    text = sentences[0]
    for sentence in sentences[1:]:
        text += ("\n" if rng.random() < 0.05 else " ") + sentence
    # What is told of one thing is asked of another, and another thing of the same one: both have to be read.
    other = [(rng.choice(sorted(ATTRIBUTES)), thing(rng, phrases)) for _ in range(4)]
    for fact in facts:
        attribute, _, of = fact.subject.partition(" of ")
        if of:
            other += [(attribute, thing(rng, phrases)), (rng.choice(sorted(ATTRIBUTES)), of)]
    # Who paid for the lamp may own it, and what they paid be its price: such things are not asked about in vain.
    people = " ".join(fact.sentence for fact in facts if " of " not in fact.subject)
    other = [(a, of) for a, of in other if of.split()[-1] not in people and not _told(a, of, facts)]
    absent = [attribute_question(rng, attribute, of) for attribute, of in other]
    return Form(text, [pair for fact in facts for pair in fact.pairs], absent)


def _told(attribute: str, of: str, facts: Sequence[Fact]) -> bool:
    """Whether a fact could be meant: "lamp" is where the text tells of an "old lamp", "number" of a "serial number"."""
    for fact in facts:
        have, _, whose = fact.subject.partition(" of ")
        if (have.endswith(attribute) or attribute.endswith(have)) and (whose.endswith(of) or of.endswith(whose)):
            return True
    return False


def _facts(rng: random.Random, phrases: Phrases, number: int, text: str) -> list[Fact]:
    """Facts that cannot be taken for one another, with answers that do not stand elsewhere in the text."""
    facts: list[Fact] = []
    same = rng.choice(sorted(ATTRIBUTES)) if rng.random() < 0.4 else ""
    for _ in range(20 * number):
        if len(facts) == number:
            break
        fact = person_fact(rng, phrases) if rng.random() < 0.35 else attribute_fact(rng, phrases, same)
        told = " ".join([text, *(each.sentence for each in [*facts, fact])])
        attribute, _, of = fact.subject.partition(" of ")
        pairs = [pair for each in [*facts, fact] for pair in each.pairs]
        once = all(told.count(answer) == 1 and answer not in question for question, answer in pairs)
        if once and not _told(attribute, of, facts):
            facts.append(fact)
    return facts or [attribute_fact(rng, phrases, "phone number")]
