"""Real receipts with other words in their fields: a line's box is cleared and printed anew.

Shops come back in a few hundred scans with other dates and sums, and a model that knows the shop by its look answers
with a date that it has seen. Here date, total and company are other ones in every view; paper, layout and all else
stay, so that nothing can be recalled.
"""

import random
import re
from dataclasses import replace

import numpy as np
from PIL import Image, ImageDraw

from mmvl.data.corpus import Phrases
from mmvl.data.drawing import load_font
from mmvl.data.invented import company_name, money
from mmvl.data.page import Faces
from mmvl.data.public_formats import Receipt

_MONTHS = "JAN FEB MAR APR MAY JUN JUL AUG SEP OCT NOV DEC".split()
_AMOUNT = re.compile(r"\d+\.\d\d(?!\d)")
_DATE = re.compile(r"(\d{1,2})(\s*[/. -]\s*)(\d{1,2}|[A-Za-z]{3})(\s*[/. ,-]\s*)(\d{4}|\d{2})(?!\d)")
_YEAR_FIRST = re.compile(r"(\d{4})([/.-])(\d{1,2})([/.-])(\d{1,2})(?!\d)")


def other_date(text: str, rng: random.Random) -> str | None:
    """Another date in the same form; None where the form is not known."""
    day, month, year = rng.randint(1, 28), rng.randint(1, 12), rng.randint(2012, 2024)

    def like(number: int, example: str) -> str:
        return f"{number:02d}" if len(example) > 1 else str(number)

    if found := _YEAR_FIRST.search(text):
        new = f"{year}{found[2]}{like(month, found[3])}{found[4]}{like(day, found[5])}"
    elif found := _DATE.search(text):
        name = _MONTHS[month - 1] if found[3].isupper() else _MONTHS[month - 1].capitalize()
        middle = like(month, found[3]) if found[3].isdigit() else name
        new = f"{like(day, found[1])}{found[2]}{middle}{found[4]}{year if len(found[5]) == 4 else f'{year % 100:02d}'}"
    else:
        return None
    return text[: found.start()] + new + text[found.end() :]


def other_total(text: str, rng: random.Random) -> str | None:
    """Another amount of about as many digits, with what stands around it; None where there is none."""
    found = _AMOUNT.search(text)
    if not found:
        return None
    most = 10 ** len(found[0].replace(".", ""))
    return text[: found.start()] + money(rng.randint(max(50, most // 12), most - 1)) + text[found.end() :]


def rewritten(
    receipt: Receipt, scan: Image.Image, rng: random.Random, faces: Faces, phrases: Phrases
) -> tuple[Receipt, Image.Image]:
    """(receipt, scan) with another date, total and, in half of the cases, company; lines that say them are reprinted.

    scan: mode "L". A field that stands in no line word for word, or in a form that is not known, stays as it is.
    """
    changes: list[tuple[str, str, str]] = []  # field, what it said, what it says
    for name, other in (("date", other_date), ("total", other_total)):
        old = receipt.fields.get(name, "").strip()
        if old and (new := other(old, rng)) and new != old:
            changes.append((name, old, new))
    if rng.random() < 0.5 and (old := receipt.fields.get("company", "").strip()):
        changes.append(("company", old, company_name(rng, phrases).upper()))
    scan, lines, fields = scan.copy(), list(receipt.lines), dict(receipt.fields)
    face = faces.pick(rng, mono=0.5)
    for name, old, new in changes:
        bare = _AMOUNT.search(old)
        what, instead = (bare[0], _AMOUNT.search(new)[0]) if name == "total" and bare else (old, new)
        whole = re.compile(rf"(?<![\w.]){re.escape(what)}(?![\w]|\.\d)")
        at = [n for n, (_, text) in enumerate(lines) if whole.search(text)]
        if not at:
            continue
        for n in at:
            box, text = lines[n]
            said = whole.sub(lambda _: instead, text)  # noqa: B023 - used at once
            lines[n] = _reprint(scan, box, text, said, face, rng), said
        fields[name] = new
    return replace(receipt, lines=lines, fields=fields), scan


def _reprint(scan: Image.Image, box, old: str, new: str, face, rng: random.Random):
    """Clear the box, print `new` in it as high as what stood there; the new box (the left edge stays)."""
    left, top, right, bottom = (round(v) for v in box)
    left, top = max(0, left), max(0, top)
    right, bottom = min(scan.width, max(left + 4, right)), min(scan.height, max(top + 4, bottom))
    pixels = np.asarray(scan.crop((left, top, right, bottom)))
    paper, ink = int(np.percentile(pixels, 85)), int(np.percentile(pixels, 4))
    ImageDraw.Draw(scan).rectangle((left, top, right - 1, bottom - 1), fill=paper)
    if any(c.isalpha() for c in new) and rng.random() < 0.3:  # the truth is in capitals whatever is printed
        new = new.title()
    font = load_font(face(24, rng.random() < 0.3).path, 48)
    inked = font.getbbox(new, anchor="ls")
    mask = Image.new("L", (max(1, inked[2] - inked[0]), max(1, inked[3] - inked[1])), 0)
    ImageDraw.Draw(mask).text((-inked[0], -inked[1]), new, font=font, fill=255, anchor="ls")
    wide = (right - left) * len(new) / max(1, len(old))
    size = (
        max(2, min(round(wide * rng.uniform(0.94, 1.02)), scan.width - left)),
        max(2, round((bottom - top) * rng.uniform(0.7, 0.9))),
    )
    mask = mask.resize(size, Image.Resampling.LANCZOS)
    y = top + (bottom - top - size[1]) // 2
    scan.paste(min(ink, paper - 40) if paper > 40 else 0, (left, y, left + size[0], y + size[1]), mask)
    return (float(left), float(top), float(left + size[0]), float(bottom))
