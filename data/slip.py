"""The paper of a till and its printer: lines, pairs of label and value, rules, one below the other."""

import random

from mmvl.data.page import Faces, Page, length


class Slip:
    """The printer: rows of a slip go down the paper; widths in pixels, `size` the height of type."""

    def __init__(self, page: Page, rng: random.Random, faces: Faces, width: int, size: int, margin: int):
        self.page, self.rng = page, rng
        self.face = faces.pick(rng, mono=0.62, fancy=0.06)
        self.other = faces.pick(rng, mono=0.3) if rng.random() < 0.2 else self.face
        self.left, self.right = margin, width - margin
        self.size = size
        self.pitch = size * rng.uniform(1.1, 1.45)
        self.y = margin + size
        self.upper = rng.random() < 0.45
        self.bold_sums = rng.random() < 0.4
        self.tall = rng.choice(((1, 1), (1, 1), (1, 1.5), (1.5, 1), (1.4, 1.5)))
        self.condense = rng.choice((1, 1, 1, 0.85, 0.92))
        self.ink = rng.choice((0, 0, rng.randint(0, 80)))

    @property
    def width(self) -> int:
        return self.right - self.left

    def say(self, text: str) -> str:
        return text.upper() if self.upper else text

    def measure(self, text: str, font, stretch: tuple[float, float]) -> float:
        return length(font, text) * stretch[0]

    def put(self, x: float, text: str, anchor: str = "l", bold: bool = False, stretch=None, face=None) -> str:
        """Print in the present line and return what was printed: a text too wide for the paper loses its end."""
        stretch = stretch or (self.condense, 1)
        font = (face or self.face)(self.size, bold)
        room = {"l": self.right - x, "r": x - self.left, "m": self.width}[anchor]
        while text and self.measure(text, font, stretch) > room + 1:
            if stretch[0] > 0.8:
                stretch = (max(0.8, room / max(1, self.measure(text, font, (1, 1)))), stretch[1])
                if self.measure(text, font, stretch) <= room + 1:
                    break
            text = text[:-1].rstrip()
        if text:
            self.page.print(x, self.y, text, font, anchor, self.ink, stretch)
        return text

    def next(self, share: float = 1.0) -> None:
        self.y += self.pitch * share
        self.page.row()

    def line(self, text: str, align: str = "l", bold: bool = False, stretch=None, face=None) -> str:
        if stretch and stretch[1] > 1:
            self.y += self.size * (stretch[1] - 1)
        x = {"l": self.left, "m": (self.left + self.right) / 2, "r": self.right}[align]
        text = self.put(x, text, align, bold, stretch, face)
        self.next()
        return text

    def rule(self, style: str) -> None:
        """A line across: drawn, or of dashes. It is not part of the transcription."""
        y = round(self.y - self.size * 0.3)
        if style in "-=*.":
            font = self.face(self.size)
            count = max(1, int(self.width / max(1.0, font.getlength(style * 8) / 8)))
            self.page.draw.text((self.left, self.y), style * count, font=font, fill=self.ink, anchor="ls")
        else:
            self.page.draw.line((self.left, y, self.right, y), fill=self.ink, width=1)
        self.next(0.9)

    def pair(self, label: str, value: str, bold: bool = False, stretch=None) -> str:
        """A label and, right-aligned, its value; the value in full, the label cut where there is no room."""
        if stretch and stretch[1] > 1:
            self.y += self.size * (stretch[1] - 1)
        chosen = stretch or (self.condense, 1)
        font = self.face(self.size, bold)
        need = self.measure(value, font, chosen)
        x = self.right - need
        keep, self.right = self.right, int(x - self.size * 0.5)
        self.put(self.left, label, "l", bold, chosen)
        self.right = keep
        self.put(x, value, "l", bold, chosen)
        self.next()
        return value
