"""Metrics of single answers: ANLS, relaxed accuracy, VQA accuracy, a name within the first words, refusals.

Each gives one question's score in [0, 1] (or a bool); `metrics.mean` takes the mean over questions, with its interval.
"""

import re
import unicodedata
from collections.abc import Sequence

from mmvl.evaluation.metrics import character_errors, normalise_answer


def anls(prediction: str, answers: Sequence[str], threshold: float = 0.5) -> float:
    """Average normalised Levenshtein similarity of one question (Biten et al. 2019), the best over its answers.

    1 - NL if NL < threshold, else 0; NL is the edit distance over the longer length, both casefolded with white space
    collapsed. Implementations disagree: at NL of exactly 0.5 lmms-eval and VLMEvalKit keep 0.5, the paper's text and we
    give 0; they divide by the length before white space is collapsed, we by the one after it; two empty texts
    are 1 here and a division by zero elsewhere.
    """
    if not answers:
        raise ValueError("a question without an answer cannot be scored")
    return max(_similarity(prediction, answer, threshold) for answer in answers)


def _similarity(prediction: str, answer: str, threshold: float) -> float:
    a, b = (" ".join(text.casefold().split()) for text in (prediction, answer))
    longer = max(len(a), len(b))
    if longer == 0:
        return 1.0
    distance = character_errors(a, b).edits / longer
    return 1.0 - distance if distance < threshold else 0.0


def relaxed_match(prediction: str, answer: str, *, forgive_units: bool = False, tolerance: float = 0.05) -> bool:
    """ChartQA (Methani et al. 2020; Masry et al. 2022): a number within 5% of the answer, else equal without case.

    As the public implementations have it: a trailing % divides by 100 on the side that has it, so "22%" is not "22"; a
    thousands comma or a unit makes a text, which must be equal; an answer of 0 is compared as a text. Ours besides:
    white space at the ends does not count, the bounds of the 5% are inside, "nan" and "inf" are texts.

    forgive_units: for what a reader would call right: commas in thousands, currency signs and % are taken off both
    sides, outer punctuation too, and 0 equals 0.0. Never to be compared with published numbers.
    """
    if forgive_units:
        prediction, answer = (
            re.sub(r"(?<=\d),(?=\d{3})|[$€£¥%]", "", normalise_answer(t)) for t in (prediction, answer)
        )
    got, wanted = _number(prediction), _number(answer)
    if got is not None and wanted is not None and (wanted or forgive_units):
        # The smallest of slacks, so that 105 against 100 is within 5% in binary too.
        return abs(got - wanted) <= tolerance * abs(wanted) * (1 + 1e-9)
    return prediction.strip().lower() == answer.strip().lower()


def _number(text: str) -> float | None:
    text = text.strip()
    if not re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?%?", text):
        return None
    return float(text[:-1]) / 100 if text.endswith("%") else float(text)


_NUMBERS = {"none": "0"} | {
    word: str(n) for n, word in enumerate("zero one two three four five six seven eight nine ten".split())
}
_CONTRACTED = (
    "ain't aren't can't couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's i'm i've "
    "isn't it'd it'll let's mightn't mustn't needn't oughtn't shan't she's shouldn't someone's that'd that's "
    "there'd there's they'd they're they've wasn't we've weren't what'll what're what's what've when's where's who'd "
    "who'll who's why's won't wouldn't y'all you'd you'll you're you've"
)
_CONTRACTIONS = {word.replace("'", ""): word for word in _CONTRACTED.split()}


def normalise_vqa(text: str) -> str:
    """VQA v2's normalisation (Antol et al. 2015): lower case, punctuation out, number words to digits, no articles.

    Punctuation becomes a space, or nothing where it stands beside a space; a full stop stays between digits only, a
    comma between digits goes; contractions get their apostrophe back. The official list of contractions is longer and
    has slips, which we do not repeat; so rare answers may differ from the official script.
    """
    text = re.sub(r"(?<=\d),(?=\d)", "", " ".join(text.lower().split()))
    text = re.sub(r"(?<=\s)[;/\[\]\"{}()=+\\_><@`?!-]|[;/\[\]\"{}()=+\\_><@`?!-](?=\s|$)", "", text)
    text = re.sub(r"[;/\[\]\"{}()=+\\_><@`,?!-]", " ", text)
    text = re.sub(r"(?<!\d)\.|\.(?!\d)", "", text)
    words = [_NUMBERS.get(word, word) for word in text.split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in ("a", "an", "the"))


def vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """VQA accuracy of one question with several people's answers (10 in VQA v2), all through `normalise_vqa`.

    Official, and so here: the mean over all ways to leave one person out of min(matches among the others / 3, 1). The
    short form min(matches / 3, 1) gives 1.0 where this gives 0.9 (3 of 10). One answer alone: equal or not.
    """
    if not answers:
        raise ValueError("a question without an answer cannot be scored")
    wanted = normalise_vqa(prediction)
    same = [normalise_vqa(answer) == wanted for answer in answers]
    if len(same) == 1:
        return float(same[0])
    return sum(min((sum(same) - own) / 3, 1.0) for own in same) / len(same)


def name_within(prediction: str, name: str, words: int = 5) -> bool:
    """Whether `name` stands, whole words in order, within the first `words` words of the prediction.

    Words are runs of letters and digits, casefolded, without accents; articles count neither in the name nor among
    the first words, and a plural -s of the last word is forgiven on either side. A name that is itself longer than
    `words` must be the beginning.
    """
    wanted, got = _words(name), _words(prediction)
    if not wanted:
        raise ValueError(f"the name {name!r} has no words")
    got = got[: max(words, len(wanted))]
    wanted[-1] = _singular(wanted[-1])
    for start in range(len(got) - len(wanted) + 1):
        part = got[start : start + len(wanted)]
        if [*part[:-1], _singular(part[-1])] == wanted:
            return True
    return False


def _words(text: str) -> list[str]:
    plain = "".join(c for c in unicodedata.normalize("NFKD", text.casefold()) if not unicodedata.combining(c))
    return [word for word in re.findall(r"[^\W_]+", plain) if word not in ("a", "an", "the")]


def _singular(word: str) -> str:
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


_REFUSALS = re.compile(
    r"\b(?:can ?not|can't|could not|couldn't|unable to|do not|don't)\s+(?:\w+\s+)?(?:see|find|tell|read|know|answer|"
    r"determine|say)\b"
    r"|\b(?:is|are|was|were|does|do|did)(?: not|n't)\s+(?:\w+\s+){0,2}(?:in|on|shown|visible|given|there|mentioned|say|"
    r"show|present|stated|legible|readable)\b"
    r"|\bnot (?:in|on) the (?:image|picture|page|document|receipt|chart|table|note|text)\b"
    r"|\bnot (?:shown|visible|given|mentioned|stated|legible|readable|available|present)\b"
    r"|\bno (?:such|image|picture)\b|\bthere (?:is|are) no\b|\bunanswerable\b"
    r"|\b(?:doesn't|does not) (?:say|show|contain)\b"
)


def is_refusal(prediction: str) -> bool:
    """Whether an answer says that the image does not tell it ("I can't see that.", "That is not in the picture.").

    By phrases in its first sentence, without case; an empty answer is none. Benchmarks do not agree on this; a fixed
    list can be read and argued with, a judging model cannot. Only to be used where no right answer looks like one.
    """
    text = " ".join(prediction.casefold().replace("\u2019", "'").split())
    return bool(_REFUSALS.search(re.split(r"(?<=[.!?])\s", text)[0]))
