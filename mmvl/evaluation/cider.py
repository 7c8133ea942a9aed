"""CIDEr-D of captions (Vedantam et al. 2015), in plain Python.

The known implementation, pycocoevalcap, brings 104 MB of other metrics and calls Java for its tokenizer; this follows
its arithmetic (n-grams of 1 to 4 words, sigma 6, clipped counts, times 10).
"""

import math
import re
from collections import Counter
from collections.abc import Sequence

MAX_N, SIGMA, SCALE = 4, 6.0, 10.0


def words_of(text: str) -> list[str]:
    """Lower case, runs of letters and digits with inner apostrophes. PTB's tokenizer, which COCO's numbers use, splits
    contractions and keeps hyphens: a difference of a few tenths of a point on English captions.
    """
    return re.findall(r"[^\W_]+(?:['\u2019][^\W_]+)*", text.lower())


def cider(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """A score for every picture, 0 to 10; their mean is the corpus's CIDEr-D (often given times 100, of this tenth).

    Document frequencies come from these references, as everywhere: the score hangs on the set, sets under some hundred
    pictures give meaningless values, and one picture alone scores 0 (log 1). Not to be compared across sets.
    """
    if len(predictions) != len(references) or any(not several for several in references):
        raise ValueError("every prediction needs at least one reference")
    counted = [[_ngrams(words_of(text)) for text in several] for several in references]
    frequency = Counter(gram for several in counted for gram in set().union(*several))
    log_pictures = math.log(max(len(references), 1))

    def weigh(counts: Counter) -> tuple[list[dict], list[float], int]:
        weights: list[dict] = [{} for _ in range(MAX_N)]
        for gram, count in counts.items():
            weights[len(gram) - 1][gram] = count * (log_pictures - math.log(max(frequency[gram], 1)))
        norms = [math.sqrt(sum(w * w for w in of_n.values())) for of_n in weights]
        return weights, norms, sum(count for gram, count in counts.items() if len(gram) == 2)

    scores = []
    for prediction, several in zip(predictions, counted, strict=True):
        ours, our_norms, our_length = weigh(_ngrams(words_of(prediction)))
        total = 0.0
        for counts in several:
            theirs, their_norms, their_length = weigh(counts)
            penalty = math.exp(-((our_length - their_length) ** 2) / (2 * SIGMA**2))
            for n in range(MAX_N):
                overlap = sum(
                    min(w, theirs[n].get(gram, 0.0)) * theirs[n].get(gram, 0.0) for gram, w in ours[n].items()
                )
                if our_norms[n] and their_norms[n]:
                    total += overlap / (our_norms[n] * their_norms[n]) * penalty / MAX_N
        scores.append(SCALE * total / len(several))
    return scores


def _ngrams(words: list[str]) -> Counter:
    return Counter(tuple(words[i : i + n]) for n in range(1, MAX_N + 1) for i in range(len(words) - n + 1))
