"""What stands around a chart on a statistics page: buttons beside it, credits and links below it."""

import random

from mmvl.data.page import Page, Type

Box = tuple[float, float, float, float]  # top, bottom, left, right in pixels

_PUBLISHERS = ("Statista", "Datarum", "OurNumbers", "Stat Desk", "Kelmore Data", "Norrland Research")
_CREDITS = ("\u00a9 {name} {year}", "\u00a9 {name}", "{name} {year}", "Source: {name}")
_LINKS = (("Additional Information", "Show source"), ("Details", "Source"), ("More on this topic", "Download"))
_LINK = (20, 110, 200)
_PALE, _LINE = (246, 247, 249), (226, 229, 233)


def draw_frame(page: Page, rng: random.Random, face: Type, size: int, ink, box: Box) -> Box:
    """Draw it into the right and the lower edge of box, in letters of `size` pixels; what is left is the chart's."""
    top, bottom, left, right = box
    edge = round(size * 2.2)
    for button in range(rng.randint(4, 7)):
        y = top + button * edge * 1.25
        if y + edge > bottom - 5 * size:
            break
        _button(page, rng, (right - edge, y, right, y + edge))
    font = face(size)
    ways = _CREDITS if face.covers("\u00a9") else _CREDITS[2:]
    credit = rng.choice(ways).format(name=rng.choice(_PUBLISHERS), year=rng.randint(2015, 2024))
    more, source = rng.choice(_LINKS)
    page.row()
    page.print(right, bottom - 1.6 * size, credit, font, "r", ink)
    page.row()
    page.print(left + 1.2 * size, bottom, more, font, "l", _LINK)
    page.draw.ellipse((left, bottom - 0.8 * size, left + 0.8 * size, bottom), fill=_LINK)
    page.print(right, bottom, source, font, "r", _LINK)
    return top, bottom - 4 * size, left, right - edge - size


def _button(page: Page, rng: random.Random, box: tuple[float, float, float, float]) -> None:
    """A pale square with a sign on it."""
    x0, y0, x1, y1 = box
    inner = (x0 + (x1 - x0) * 0.32, y0 + (y1 - y0) * 0.32, x0 + (x1 - x0) * 0.68, y0 + (y1 - y0) * 0.68)
    page.draw.rectangle(box, fill=_PALE, outline=_LINE)
    sign = rng.choice((page.draw.ellipse, page.draw.rectangle))
    sign(inner, fill=(150, 160, 172))
