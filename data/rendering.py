"""What renderers have in common: the options that all of them take, and the way from numbered samples to shards.

`renderer` makes one of a function that says how sample number i is made. `page_renderer` makes one of a function that
says how a page is drawn, what is asked about it, and how it is worn and stored.
"""

import functools
import random
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, fields
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Any

from PIL import Image

from mmvl.data.conversation import converse
from mmvl.data.corpus import Phrases
from mmvl.data.fonts import Font, held_out_fonts, training_fonts
from mmvl.data.page import Faces, Page, Views
from mmvl.data.parallel import Make, Progress, write_shards
from mmvl.data.turns import Made, asked

# (out_dir, count, seed=0, workers=0, *, settings of its own, prefix, progress) -> shards
Renderer = Callable[..., list[Path]]


def material(fonts: str | Path, corpus: str | Path, held_out: bool) -> tuple[list[Font], Phrases]:
    """The fonts and words kept out of training, or all others. Raises ValueError or OSError where there are none."""
    return held_out_fonts(fonts) if held_out else training_fonts(fonts), Phrases(corpus, held_out=held_out)


def renderer(prefix: str, per_shard: int = 2000) -> Callable[[Callable[..., Make]], Renderer]:
    """Of a function (seed, *, settings) -> (number -> sample) a renderer, which takes its settings by name.

    It writes samples 0 to count - 1 as `out_dir/prefix-NNNNN.tar`, of per_shard samples each, and returns these paths;
    workers and progress: see `write_shards`.
    """

    def decorate(maker: Callable[..., Make]) -> Renderer:
        def render(
            out_dir: str | Path, count: int, seed: int = 0, workers: int = 0, *,
            prefix: str = prefix, progress: Progress | None = None, **settings,
        ) -> list[Path]:  # fmt: skip
            make = maker(seed, **settings)
            return write_shards(out_dir, prefix, count, make, workers, per_shard=per_shard, progress=progress)

        first = signature(render).parameters
        own = list(signature(maker).parameters.values())[1:]
        order = [first["out_dir"], first["count"], first["seed"], first["workers"], *own]
        return _named(render, maker, [*order, first["prefix"], first["progress"]])

    return decorate


@dataclass(frozen=True)
class Pages:
    """The settings of all renderers of pages.

    fonts, corpus: directories (see `fonts.find_fonts`, `text.build_corpus`). A conversation about a page has
    fewest_questions to most_questions; unanswerable: share of those that the page does not answer. whole: share of the
    conversations that end with a transcription of all of it (where it is not too long). views: samples of every page
    that is drawn, with other questions and wear. held_out: only held-out fonts, words and layouts (for evaluation);
    otherwise only the others.
    """

    fonts: str
    corpus: str
    fewest_questions: int = 3
    most_questions: int = 8
    unanswerable: float = 0.1
    whole: float = 0.0
    views: int = 1
    held_out: bool = False

    def material(self) -> tuple[Faces, Phrases]:
        """Faces and words to print with. Raises as `material` does."""
        fonts, phrases = material(self.fonts, self.corpus, self.held_out)
        return Faces(fonts), phrases

    def layouts(self, training: Sequence[str], held_out: Sequence[str]) -> Sequence[str]:
        """Those of the two that may be drawn."""
        return held_out if self.held_out else training

    @property
    def split(self) -> str:
        """Which part of real data may be drawn (see `splits`)."""
        return "development" if self.held_out else "train"


@dataclass(frozen=True)
class Plan:
    """How a renderer makes its pages.

    draw(rng): what is drawn once for all views of it, a page or a tuple with one. ask(drawn, rng) gives the page, its
    facts complete for one conversation, with a sample's source and what else its meta says (beside `shows`, the page's
    kind, its layout, and `kinds`, one of `conversation.KINDS` a question). store(image, rng): the
    picture worn and encoded, as (extension, bytes).
    """

    draw: Callable[[random.Random], Any]
    ask: Callable[[Any, random.Random], tuple[Page, str, dict]]
    store: Callable[[Image.Image, random.Random], tuple[str, bytes]]


def page_renderer(name: str, per_shard: int = 500, **defaults: float) -> Callable[[Callable[..., Plan]], Renderer]:
    """Of a function (`Pages`, *, settings of its own) -> `Plan` a renderer that takes the settings of both.

    name: seeds it, and is the prefix of its shards; defaults: of settings of `Pages`, where this kind has others.
    """

    def decorate(planner: Callable[..., Plan]) -> Renderer:
        def maker(seed: int, **settings) -> Make:
            common = {key: settings.pop(key) for key in shared if key in settings}
            pages = Pages(**(defaults | common))
            plan = planner(pages, **settings)
            views = Views(pages.views, plan.draw, name, seed, pages.held_out)

            def make(index: int) -> Made:
                drawn, rng = views(index)
                page, source, meta = plan.ask(drawn, rng)
                turns = converse(
                    page, rng, pages.fewest_questions, pages.most_questions, pages.unanswerable, whole=pages.whole
                )
                told = {"shows": page.kind, "layout": page.layout, "kinds": [kind for *_, kind in turns]} | meta
                return asked(source, plan.store(page.image, rng), [turn[:2] for turn in turns], **told)

            return make

        own = list(signature(planner).parameters.values())[1:]
        shared = {
            field.name: Parameter(
                field.name,
                Parameter.KEYWORD_ONLY,
                default=defaults.get(field.name, Parameter.empty if field.default is MISSING else field.default),
                annotation=field.type,
            )
            for field in fields(Pages)
        }
        fonts, corpus, *others = shared.values()
        order = [signature(maker).parameters["seed"], fonts, corpus, *own, *others]
        return renderer(name, per_shard)(_named(maker, planner, order))

    return decorate


def _named(function: Callable, model: Callable, parameters: Sequence[Parameter]) -> Callable:
    """The function under the model's name and docstring, its parameters told as these."""
    named = functools.wraps(model, assigned=("__module__", "__name__", "__qualname__", "__doc__"))(function)
    named.__signature__ = Signature(parameters)
    return named
