"""A page to look through the answers of an evaluation: one HTML file, pictures inside, no script, nothing fetched.

Whatever a data set or a model wrote is escaped; the page's own policy forbids scripts and every address but `data:`.
Wrong and right are filtered by radio buttons and CSS alone.
"""

import base64
import html
import io
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from mmvl.media import load_media

SIDE, QUALITY, MOST_PICTURES = 560, 45, 4
_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; --good: #2a8a4a; --bad: #c0392b; --half: #b07a10 }
body { font: 15px/1.45 system-ui, sans-serif; margin: 0 auto; max-width: 70rem; padding: 1.5rem }
h1 { font-size: 1.4rem; margin: 0 } .quiet { opacity: .7; font-size: .9em; overflow-wrap: anywhere }
table { border-collapse: collapse; margin: 1rem 0 } td, th { border-bottom: 1px solid var(--line);
  padding: .2rem .8rem } th { text-align: left }
td:not(:first-child), th:not(:first-child) { text-align: right; font-variant-numeric: tabular-nums }
.filter { position: sticky; top: 0; background: Canvas; padding: .6rem 0; z-index: 1;
  border-bottom: 1px solid var(--line) }
.filter label { margin-right: 1.2rem; cursor: pointer }
.thing { display: grid; grid-template-columns: minmax(10rem, 2fr) 3fr; gap: 1.2rem; padding: 1.2rem 0;
  border-bottom: 1px solid var(--line) }
.thing img { max-width: 100%; border: 1px solid var(--line); margin-bottom: .3rem }
.answer { border-left: 4px solid var(--half); background: var(--soft); padding: .4rem .8rem; margin-bottom: .6rem }
.answer.right { border-color: var(--good) } .answer.wrong { border-color: var(--bad) }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0 .8rem; margin: .2rem 0 0 } dt { opacity: .7 }
dd { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere } .question { font-weight: 600; white-space: pre-wrap }
body:has(#right:checked) .answer:not(.right), body:has(#wrong:checked) .answer:not(.wrong),
body:has(#part:checked) .answer:not(.part) { display: none }
body:has(#right:checked) .thing:not(:has(.right)),
body:has(#wrong:checked) .thing:not(:has(.wrong)), body:has(#part:checked) .thing:not(:has(.part)) { display: none }
@media (max-width: 45rem) { .thing { grid-template-columns: 1fr } }
"""


@dataclass(frozen=True)
class Shown:
    """An answered question. score: its own, in [0, 1]; None if the task has none. others: name -> answer."""

    key: str
    group: str
    images: list
    question: str
    reference: str
    prediction: str
    score: float | None
    others: dict[str, str]
    error: str = ""


def write_page(path: Path, title: str, about: Sequence[str], rows: Sequence[tuple], shown: Sequence[Shown], of: int):
    """Write the page. about: lines under the title; rows: (metric, value, interval, n) as text; of: how many questions
    there were, if fewer are shown. Questions on one thing stand beside its picture.
    """
    kinds = [_kind(s.score) for s in shown]
    things: dict[str, list[int]] = {}
    for n, s in enumerate(shown):
        things.setdefault(s.group, []).append(n)
    counts = [("all", "All", len(shown)), ("wrong", "Wrong", kinds.count("wrong")),
              ("part", "Partly", kinds.count("part")), ("right", "Right", kinds.count("right"))]  # fmt: skip
    filters = "".join(
        f'<label><input type="radio" name="f" id="{name}"{" checked" * (name == "all")}> {label} ({count:,})</label>'
        for name, label, count in counts
        if name != "part" or count
    )
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    head = "".join(f"<tr>{''.join(f'<td>{_escaped(cell)}</td>' for cell in row)}</tr>" for row in rows)
    fewer = [f"{len(shown):,} of {of:,} questions are shown, spread evenly."] if len(shown) < of else []
    with path.open("w", encoding="utf-8") as file:
        file.write(
            '<!doctype html><html lang="en"><head><meta charset="utf-8">'
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
            '<meta name="viewport" content="width=device-width">'
            f"<title>{_escaped(title)}</title><style>{_STYLE}</style></head><body><h1>{_escaped(title)}</h1>"
            + "".join(f'<p class="quiet">{_escaped(line)}</p>' for line in [*about, *fewer])
            + f"<table><tr><th>metric</th><th>value</th><th>95% interval</th><th>n</th></tr>{head}</table>"
            + f'<div class="filter">{filters}</div>\n'
        )
        for group, members in things.items():
            pictures, left = [], ""
            for image in shown[members[0]].images[:MOST_PICTURES]:
                pictures.append(_picture(image))
            if (more := len(shown[members[0]].images) - MOST_PICTURES) > 0:
                left = f'<p class="quiet">and {more} more pictures</p>'
            name = f'<p class="quiet">{_escaped(group)}</p>'
            file.write(f'<section class="thing"><div>{"".join(pictures)}{left}{name}</div><div>')
            file.writelines(_answer(shown[n], kinds[n]) for n in members)
            file.write("</div></section>\n")
        file.write("</body></html>\n")


def _kind(score: float | None) -> str:
    return "part" if score is None or 0 < score < 1 else "right" if score >= 1 else "wrong"


def _answer(s: Shown, kind: str) -> str:
    fields = [("answer", s.prediction), ("reference", s.reference)]
    fields += [("score", f"{s.score:.2f}")] if kind == "part" and s.score is not None else []
    fields += [*s.others.items(), *([("error", s.error)] if s.error else [])]
    rows = "".join(f"<dt>{_escaped(name)}</dt><dd><bdi>{_escaped(text)}</bdi></dd>" for name, text in fields)
    question = f'<div class="question"><bdi>{_escaped(_short(s.question))}</bdi></div>'
    return f'<div class="answer {kind}">{question}<dl>{rows}</dl></div>'


def _short(text: str, most: int = 1500) -> str:
    return (
        text
        if len(text) <= most
        else f"{text[: most // 2]} [... {len(text) - most:,} characters ...] {text[-most // 2 :]}"
    )


def _escaped(text) -> str:
    """HTML of a text; control and direction characters become visible, so that they rearrange nothing."""
    plain = "".join(
        c if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Co") else f"\\u{ord(c):04x}"
        for c in str(text)
    )
    return html.escape(plain, quote=True)


def _picture(image) -> str:
    """An <img> of a smaller copy; a note in its place if the picture cannot be opened."""
    try:
        page = load_media(image)[0].image
    except (ValueError, OSError) as error:
        return f'<p class="quiet">{_escaped(error)}</p>'
    page = page.convert("RGB")
    page.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    page.save(out, "WEBP", quality=QUALITY)
    return f'<img loading="lazy" alt="" src="data:image/webp;base64,{base64.b64encode(out.getvalue()).decode()}">'
