"""A sheet of an office, written from top to bottom: lines, paragraphs, rules, in one type and perhaps one hand."""

import random

from mmvl.data.page import Faces, Page, length, wrap


class Sheet:
    """A page being written from top to bottom. y is the next line's top."""

    def __init__(
        self,
        rng: random.Random,
        faces: Faces,
        layout: str,
        kind: str,
        max_side: int,
        mono: float = 0.12,
        fancy: float = 0.05,
    ):
        self.rng = rng
        self.size = rng.randint(13, 20)
        self.width = rng.randint(min(max_side - 20, 24 * self.size), min(max_side, 42 * self.size))
        paper = 255 if rng.random() < 0.7 else tuple(rng.randint(228, 255) for _ in range(3))
        self.page = Page.blank(self.width, 3 * max_side, kind, layout, paper)
        self.grey = isinstance(paper, int)
        self.face = faces.pick(rng, mono=mono, fancy=fancy)
        self.hand = faces.pick(rng, fancy=1.0) if rng.random() < 0.35 else self.face
        value = rng.randint(0, 70)
        self.ink = value if self.grey else (value, value, value)
        self.blue = self.ink if self.grey or rng.random() < 0.5 else (20, 40, rng.randint(90, 160))
        self.pale = rng.randint(200, 235) if self.grey else tuple(rng.randint(195, 235) for _ in range(3))
        self.left = rng.randint(self.size, 3 * self.size)
        self.right = self.width - self.left
        self.y = float(rng.randint(self.size, 3 * self.size))
        self.pitch = self.size * rng.uniform(1.25, 1.6)

    def font(self, bold: bool = False, scale: float = 1.0, hand: bool = False):
        return (self.hand if hand else self.face)(self.size * scale, bold)

    def put(self, x: float, text: str, anchor: str = "l", bold=False, scale: float = 1.0, ink=None, hand=False) -> str:
        font = self.font(bold, scale, hand)
        while text and length(font, text) > (
            self.width - 4 - x if anchor == "l" else x if anchor == "r" else self.width - 8
        ):
            text = text[:-1].rstrip()
        if text:
            self.page.print(x, self.y + self.size, text, font, anchor, self.ink if ink is None else ink)
        return text

    def next(self, share: float = 1.0) -> None:
        self.y += self.pitch * share
        self.page.row()

    def line(self, text: str, anchor: str = "l", bold=False, scale: float = 1.0, hand=False) -> str:
        x = {"l": self.left, "m": self.width / 2, "r": self.right}[anchor]
        if scale > 1:
            self.y += self.size * (scale - 1)
        text = self.put(x, text, anchor, bold, scale, hand=hand)
        self.next()
        return text

    def lines(self, texts, anchor: str = "l", bold=False, hand=False) -> list[str]:
        return [self.line(text, anchor, bold, hand=hand) for text in texts]

    def paragraph(self, text: str, hand=False) -> None:
        for line in wrap(text, self.font(hand=hand), self.right - self.left):
            self.line(line, hand=hand)

    def rule(self) -> None:
        self.page.draw.line((self.left, self.y + 2, self.right, self.y + 2), fill=self.ink)
        self.y += self.size * 0.5

    def done(self) -> Page:
        page = self.page
        page.cut(self.width, min(page.image.height, round(self.y + self.rng.randint(self.size, 3 * self.size))))
        page.rows = [row for row in page.rows if row]
        return page
