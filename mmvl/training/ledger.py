"""The token ledger: what a stage has consumed, by source and kind.

The rule:

1. Every position of every packed document counts once, when the optimizer step that used it is done, on whichever rank
   it was. A step that is taken back (a resume from an older checkpoint) is taken back here too.
2. A position that holds an image token counts as image: the thumbnail's, the tiles' and the newlines of the grid. Every
   other one counts as text: template, question, answer, end of document. Whether it is a target makes no difference.
3. A preference pair is two documents, and its prompt, image included, counts in both.
4. A sample that comes again in a later epoch counts again. One that was skipped or left out never counts.
5. Nothing is padded, so nothing else could count.

`mmvl data manifest` counts a source by the same rule, once through. A stage ends with the first step after which
`tokens` has reached its budget: it overshoots by less than a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass
class Ledger:
    """Tokens and samples consumed, a row per source in the recipe's order."""

    sources: list[str]
    text: list[int] = field(default_factory=list)
    image: list[int] = field(default_factory=list)
    samples: list[int] = field(default_factory=list)

    def __post_init__(self):
        for name in ("text", "image", "samples"):
            if not getattr(self, name):
                setattr(self, name, [0] * len(self.sources))

    @property
    def tokens(self) -> int:
        return sum(self.text) + sum(self.image)

    def add(self, text: Sequence[int], image: Sequence[int], samples: Sequence[int]) -> None:
        for mine, more in ((self.text, text), (self.image, image), (self.samples, samples)):
            for i, n in enumerate(more):
                mine[i] += n

    def to_dict(self) -> dict:
        rows = {
            source: {"text": t, "image": i, "samples": n}
            for source, t, i, n in zip(self.sources, self.text, self.image, self.samples, strict=True)
        }
        return {"sources": rows, "text": sum(self.text), "image": sum(self.image), "tokens": self.tokens}

    @classmethod
    def from_dict(cls, d: dict, sources: list[str]) -> Ledger:
        """Restore; a source that the recipe has newly gained starts at zero, one that it lost is refused.

        Raises:
            ValueError
        """
        rows = d["sources"]
        if lost := sorted(rows.keys() - set(sources)):
            raise ValueError(f"the checkpoint counts tokens of {', '.join(lost)}, which the recipe no longer names")
        rows = [rows.get(s, {"text": 0, "image": 0, "samples": 0}) for s in sources]
        return cls(sources, [r["text"] for r in rows], [r["image"] for r in rows], [r["samples"] for r in rows])
