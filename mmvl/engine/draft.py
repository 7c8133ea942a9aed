"""Drafts for speculative decoding by prompt look-up: what followed the last time the answer's last tokens came up.

Answers about documents copy a lot; such a draft costs nothing to make. It is exact whatever it says: a token of it is
kept only if it is the one that would have been sampled. Idea: Prompt Lookup Decoding (A. Saxena, 2023).
To verify it costs a longer step, more so where steps without drafts are CUDA graphs: `Worth` sees whether that pays.
"""

from collections.abc import Sequence


class PromptLookup:
    """Drafts for one request. `most`: tokens of the longest draft; `skip_id`: a token that no match may contain.

    A draft is as long as the last ones held: twice as long after one that was right to its end, half as long after one
    that was not, and after one that was all wrong there is a pause, each time a longer one.
    """

    MATCH = 3  # tokens that have to be equal: fewer match by chance
    LONGEST_PROMPT = 65_536  # tokens that are looked through

    def __init__(self, prompt_ids: Sequence[int], skip_id: int, most: int):
        self._ids = list(prompt_ids[-self.LONGEST_PROMPT :])
        self._skip_id, self._most = skip_id, most
        self._followers: dict[tuple[int, ...], int] = {}  # where what follows the last such match begins
        self._indexed = self.MATCH - 1
        self._length, self._pause, self._silent = min(4, most), 1, 0

    def push(self, token_id: int) -> None:
        """The answer goes on with this token."""
        self._ids.append(token_id)
        self._silent = max(self._silent - 1, 0)

    @property
    def hot(self) -> bool:
        """Whether there is an idea."""
        return bool(self.propose(1))

    def propose(self, limit: int) -> list[int]:
        """At most `limit` tokens that may follow; [] if there is no idea."""
        limit = min(limit, self._length)
        if limit < 1 or self._silent or len(self._ids) < self.MATCH:
            return []
        self._index()
        at = self._followers.get(tuple(self._ids[-self.MATCH :]))
        if at is None:
            return []
        draft = self._ids[at : at + limit]
        while len(draft) < limit:  # the match overlaps the end: what repeats goes on repeating
            draft += draft[: limit - len(draft)]
        return draft if self._skip_id not in draft else []

    def learn(self, drafted: int, accepted: int) -> None:
        """How many tokens of a draft held."""
        if accepted == drafted:
            self._length, self._pause = min(2 * drafted, self._most), 1
        elif accepted:
            self._length, self._pause = max(drafted // 2, 2), 1
        else:
            self._length, self._pause = max(drafted // 2, 2), min(2 * self._pause, 64)
            self._silent = self._pause

    def _index(self) -> None:
        """Index all but the last match, whose follower is not known."""
        ids, width = self._ids, self.MATCH
        for end in range(max(self._indexed, width), len(ids)):
            match = tuple(ids[end - width : end])
            if self._skip_id not in match:
                self._followers[match] = end
        self._indexed = len(ids)


class Worth:
    """Whether steps with drafts bring more tokens in a second than steps without, as measured while they run.

    Judged every `TRIAL` steps with drafts, against steps without for as many requests; where they bring less there are
    none for a while, each time for twice as long.
    """

    TRIAL = 8
    FIRST_PAUSE, LONGEST_PAUSE = 64, 4096  # steps

    def __init__(self):
        self._plain: dict[int, float] = {}  # seconds of a step by the number of requests, recent ones count most
        self._steps, self._tokens, self._would = 0, 0, 0.0  # of a trial: tokens made, and tokens without drafts
        self._next, self._left = self.FIRST_PAUSE, 0

    @property
    def it(self) -> bool:
        return not self._left

    def took(self, requests: int, tokens: int, drafted: bool, seconds: float) -> None:
        """A step in which nobody else took part gave `requests` requests `tokens` tokens."""
        before = self._plain.get(requests)
        if not drafted:
            self._plain[requests] = seconds if before is None else 0.8 * before + 0.2 * seconds
            self._left = max(self._left - 1, 0)
        elif before is not None:
            self._steps, self._tokens = self._steps + 1, self._tokens + tokens
            self._would += requests * seconds / before
            if self._steps == self.TRIAL:
                self._judge()

    def _judge(self) -> None:
        if self._tokens < self._would:
            self._left, self._next = self._next, min(2 * self._next, self.LONGEST_PAUSE)
        else:
            self._next = self.FIRST_PAUSE
        self._steps, self._tokens, self._would = 0, 0, 0.0
