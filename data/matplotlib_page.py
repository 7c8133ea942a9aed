"""A figure of matplotlib with one pair of axes, in one of its style sheets and in our fonts, that becomes a `Page`.

Sizes are pixels unless they are called points. matplotlib's settings are one for the whole process: they hold within
`styled` alone, one figure at a time.
"""

import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import matplotlib
import matplotlib.style
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.legend import Legend
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from PIL import Image

from mmvl.data.page import Page, Piece, Type, wrap

_LOCK = threading.Lock()


class NoRoomError(Exception):
    """Something would be cut off, or print would lie on print."""


@functools.cache
def _settings(style: str) -> dict:
    """matplotlib's own defaults, then the style sheet; nothing of the user's."""
    sheet = matplotlib.style.library[style] if style != "default" else {}
    look = {
        key: value
        for key, value in (dict(dict.items(matplotlib.rcParamsDefault)) | dict(dict.items(sheet))).items()
        if not key.startswith("backend")
    }
    if look["savefig.facecolor"] != "auto":  # the grey of some windows, which their files do not have
        look["figure.facecolor"] = look["savefig.facecolor"]
    return look | {"text.parse_math": False, "text.usetex": False, "axes.unicode_minus": False}


@contextmanager
def styled(style: str) -> Iterator[None]:
    """Within it a style sheet of matplotlib holds ("default": none). Other threads wait for its end."""
    with _LOCK, matplotlib.rc_context(_settings(style)):
        yield


class FigurePage:
    """A figure of width x height pixels, whose print is of one face at `size`. To be used within `styled`."""

    def __init__(self, width: int, height: int, dpi: int, face: Type, size: int):
        self.width, self.height, self.dpi, self.size = width, height, dpi, size
        self._face = face
        matplotlib.rcParams["font.size"] = self.points(size)
        self.figure = Figure(((width + 0.01) / dpi, (height + 0.01) / dpi), dpi)
        self._canvas = FigureCanvasAgg(self.figure)
        self.axes = self.figure.add_subplot()
        self._head = 0.5 * size
        self._title: Text | None = None
        self.legend: Legend | None = None
        self.values: list[Text] = []  # printed at marks
        self.tilted = False  # names below the axis, whose boxes may overlap

    def points(self, pixels: float) -> float:
        return pixels * 72 / self.dpi

    def type(self, size: float | None = None, bold: bool = False) -> FontProperties:
        return FontProperties(fname=self._face(12, bold).path, size=self.points(size or self.size))

    def title(self, text: str, size: int, bold: bool) -> str:
        """Print the title at the top, above all else; returns it with single spaces."""
        lines = wrap(text, self._face(size, bold), self.width - 3 * self.size)
        colour = matplotlib.rcParams["axes.titlecolor"]
        self._title = self.figure.text(
            0.5, 1 - 0.5 * self.size / self.height, "\n".join(lines), va="top", ha="center", linespacing=1.15,
            color=matplotlib.rcParams["text.color"] if colour == "auto" else colour,
            fontproperties=self.type(size, bold),
        )  # fmt: skip
        self._head += len(lines) * size * 1.25 + 0.4 * self.size
        return " ".join(lines)

    def fit(self) -> None:
        """Lay the axes out so that all around them is inside, and a legend inside them covers nothing."""
        axes, renderer = self.axes, self._canvas.get_renderer()
        axes.apply_aspect()
        boxes = [t.get_window_extent(renderer) for t in axes.texts]
        if axes.axison:
            boxes += [b for axis in (axes.xaxis, axes.yaxis) if (b := axis.get_tightbbox(renderer))]
        if self.legend:
            boxes.append(self.legend.get_window_extent(renderer))
        plot, around = axes.bbox.frozen(), Bbox.union([axes.bbox, *boxes])
        pad = 0.5 * self.size
        left, right = plot.x0 - around.x0 + pad, self.width - (around.x1 - plot.x1) - pad
        bottom, top = plot.y0 - around.y0 + pad, self.height - (around.y1 - plot.y1) - self._head
        if right - left < 8 * self.size or top - bottom < 8 * self.size:
            raise NoRoomError
        axes.set_position(
            (left / self.width, bottom / self.height, (right - left) / self.width, (top - bottom) / self.height)
        )
        axes.apply_aspect()
        if self._title:  # above the middle of the plot, where it has room there
            half = self._title.get_window_extent(renderer).width / 2 + pad
            self._title.set_x(min(max((left + right) / 2, half), self.width - half) / self.width)
        if self.legend and axes.axison:
            taken = self.legend.get_window_extent(renderer)
            inside = min(taken.y1, top) - max(taken.y0, bottom) if left < taken.x1 and taken.x0 < right - pad else 0
            if inside > 0:
                if inside > 0.4 * (top - bottom):
                    raise NoRoomError
                low, high = axes.get_ylim()
                axes.set_ylim(low, low + (high - low) * (top - bottom) / (top - bottom - inside - pad))

    def names(self) -> list[Text]:
        """All print but that at marks."""
        axes = self.axes
        found = [self._title] if self._title else []
        if axes.axison:
            found += [*axes.get_xticklabels(), *axes.get_yticklabels(), axes.xaxis.label, axes.yaxis.label]
        found += self.legend.get_texts() if self.legend else []
        found += [text for text in axes.texts if text not in self.values]
        return [text for text in found if text.get_text()]

    def boxes(self, texts: list[Text]) -> np.ndarray:
        """(texts, 4): left, top, right, bottom in pixels from the top left."""
        renderer = self._canvas.get_renderer()
        boxes = np.array([text.get_window_extent(renderer).extents for text in texts]).reshape(-1, 4)
        return np.stack([boxes[:, 0], self.height - boxes[:, 3], boxes[:, 2], self.height - boxes[:, 1]], 1)

    def page(self, kind: str, layout: str) -> Page:
        """The drawn figure with its print as one row. Raises NoRoomError where print is cut off or lies on print."""
        self._canvas.draw()
        texts = self.names() + self.values
        boxes = self.boxes(texts)
        if (boxes[:, :2] < 0).any() or (boxes[:, 2:] > (self.width, self.height)).any():
            raise NoRoomError
        below = set(self.axes.get_xticklabels()) if self.tilted else set()
        if any(not (texts[i] in below and texts[j] in below) for i, j in overlaps(boxes)):
            raise NoRoomError
        page = Page(Image.fromarray(np.asarray(self._canvas.buffer_rgba())).convert("RGB"), kind, layout)
        page.read_rows = False
        page.rows = [
            [
                Piece(" ".join(text.get_text().split()), tuple(map(round, box)))
                for text, box in zip(texts, boxes.tolist(), strict=True)
            ]
        ]
        return page


def overlaps(boxes: np.ndarray, most: float = 1.0) -> list[tuple[int, int]]:
    """Pairs of boxes (N, 4) that overlap by more than `most` pixels both ways."""
    starts = np.maximum(boxes[:, None, :2], boxes[None, :, :2])
    ends = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    first, second = np.nonzero(np.triu(((ends - starts) > most).all(-1), 1))
    return list(zip(first.tolist(), second.tolist(), strict=True))
