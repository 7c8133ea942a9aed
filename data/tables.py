"""Tables as pictures, in several layouts: real ones from files, mixed of their columns, invented ones."""

import random
import unicodedata
from collections.abc import Sequence

from mmvl.data.charts import number
from mmvl.data.corpus import Phrases
from mmvl.data.invented import date_text, goods_name, proper
from mmvl.data.page import Faces, Page, length, wrap
from mmvl.data.public_formats import RealTable
from mmvl.data.text import clean

LAYOUTS = ("ruled", "striped", "head-rule", "boxed", "encyclopedia", "plain", "dark-head")
HELD_OUT_LAYOUTS = ("booktabs", "cards")

_COLUMNS = {
    "Name": lambda r, p: f"{proper(r, p)} {proper(r, p)}",
    "City": proper,
    "Team": proper,
    "Age": lambda r, p: str(r.randint(18, 80)),
    "Year": lambda r, p: str(r.randint(1950, 2024)),
    "Score": lambda r, p: str(r.randint(0, 100)),
    "Points": lambda r, p: f"{r.randint(1, 2000):,}",
    "Price": lambda r, p: f"${r.randint(1, 500)}.{r.randint(0, 99):02d}",
    "Product": goods_name,
    "Stock": lambda r, p: str(r.randint(0, 500)),
    "Date": lambda r, p: date_text(r),
    "Country": lambda r, p: r.choice(("France", "Italy", "Kenya", "Japan", "Peru", "Canada", "Norway", "India")),
    "Rank": lambda r, p: str(r.randint(1, 40)),
    "Population": lambda r, p: f"{r.randint(1000, 9_000_000):,}",
    "Weight": lambda r, p: f"{r.randint(1, 900) / 10} kg",
    "Result": lambda r, p: f"{r.randint(0, 9)}-{r.randint(0, 9)}",
    "Time": lambda r, p: f"{r.randint(0, 2)}:{r.randint(0, 59):02d}:{r.randint(0, 59):02d}",
    "Code": lambda r, p: f"{r.choice('ABCDEFGH')}{r.randint(100, 9999)}",
    "Share": lambda r, p: f"{r.randint(0, 1000) / 10}%",
    "Department": lambda r, p: r.choice(("Sales", "Finance", "Research", "Legal", "Support", "Design")),
    "Notes": lambda r, p: p.fragment(r, r.randint(1, 4)),
}


def invent_table(rng: random.Random, phrases: Phrases, most_rows: int = 12, most_columns: int = 6) -> RealTable:
    """2 columns and rows or more; the first column names the rows."""
    first = rng.choice(("Name", "City", "Team", "Product", "Code"))
    header = [first, *rng.sample([c for c in _COLUMNS if c != first], rng.randint(1, most_columns - 1))]
    rows, seen = [], set()
    for _ in range(rng.choice((rng.randint(2, min(5, most_rows)), rng.randint(2, most_rows)))):
        row = [" ".join(_COLUMNS[c](rng, phrases).split())[:28] for c in header]
        if row[0] not in seen:
            seen.add(row[0])
            rows.append(row)
    return RealTable("", header, rows, [])


def mix_table(rng: random.Random, known: Sequence[RealTable], most_rows: int = 12, most_columns: int = 6) -> RealTable:
    """Columns of several real tables side by side, each in an order of its own: real words, facts that nobody knows.

    2 columns and rows or more; the first column names the rows. Cells of more than 40 characters are left out. No rows
    at all where the tables do not have that much.
    """
    wanted = rng.randint(2, most_columns)
    most = rng.choice((rng.randint(2, min(5, most_rows)), rng.randint(2, most_rows)))
    header: list[str] = []
    columns: list[list[str]] = []
    for _ in range(60):
        if len(columns) == wanted:
            break
        table = rng.choice(known)
        c = rng.randrange(len(table.header))
        name = " ".join(table.header[c].split())
        cells = [" ".join(row[c].split()) for row in table.rows if c < len(row)]
        cells = [cell for cell in cells if len(cell) <= 40 and (cell or columns)]
        if not columns:
            cells = list({cell.lower(): cell for cell in cells}.values())
        if not name or len(name) > 28 or name.lower() in map(str.lower, header) or len(cells) < 2:
            continue
        rng.shuffle(cells)
        header.append(name)
        columns.append(cells)
    number_of_rows = max(2, min(most, *map(len, columns))) if len(columns) > 1 else 0
    return RealTable("", header, [list(row) for row in list(zip(*columns, strict=False))[:number_of_rows]], [])


def shuffle_columns(table: RealTable, rng: random.Random) -> RealTable:
    """The table with each column's cells in an order of its own, and its columns too at times: facts that nobody knows.

    What is asked about it has to be read; a few hundred real tables that come again and again would be known by heart.
    """
    rows = [[*row, *[""] * (len(table.header) - len(row))][: len(table.header)] for row in table.rows]
    columns = [list(column) for column in zip(*rows, strict=True)]
    for column in columns:
        rng.shuffle(column)
    order = list(range(len(columns)))
    if rng.random() < 0.3:
        rng.shuffle(order)
    rows = [list(row) for row in zip(*(columns[c] for c in order), strict=True)]
    return RealTable(table.key, [table.header[c] for c in order], rows, [])


def plain(table: RealTable) -> RealTable:
    """The table in printable ASCII: accents are dropped, dashes and quotes become straight."""

    def fold(text: str) -> str:
        text = unicodedata.normalize("NFKD", clean(text))
        return "".join(c for c in text if " " <= c <= "~")

    rows = [[fold(c) for c in row] for row in table.rows]
    qa = [(q, [fold(a) for a in answers]) for q, answers in table.qa]
    return RealTable(table.key, [fold(c) for c in table.header], rows, qa)


def part_of(table: RealTable, rng: random.Random, most_rows: int) -> tuple[RealTable, bool]:
    """The table with at most most_rows rows, cells trimmed of spaces; whether it is whole."""
    rows = [[" ".join(c.split()) for c in row] + [""] * (len(table.header) - len(row)) for row in table.rows]
    header = [" ".join(c.split()) for c in table.header]
    whole = len(rows) <= most_rows
    if not whole:
        start = rng.randint(0, len(rows) - most_rows)
        rows = rows[start : start + most_rows]
    return RealTable(table.key, header, [row[: len(header)] for row in rows], table.qa if whole else []), whole


def draw_table(
    rng: random.Random, table: RealTable, layouts, faces: Faces, max_side: int = 800
) -> tuple[Page, RealTable]:
    """The table on an RGB page of at most max_side pixels; its type is reduced down to 10 pixels to get there.

    Returned with the table as printed: in plain letters where no font at hand has all of its characters.
    """
    layout = rng.choice(layouts)
    strange = "".join(sorted({c for row in [table.header, *table.rows] for cell in row for c in cell if c > "~"}))
    for _ in range(20):
        face = faces.pick(rng, mono=0.1, fancy=0.04)
        if not strange or face.covers(strange):
            break
    else:
        table = plain(table)
    size = rng.randint(12, 20)
    title = ""
    if rng.random() < 0.3:
        title = (
            rng.choice(("Table {n}. {a} and {b}", "{a} by {b}", "{a}, {b}", "Table {n}"))
            .format(n=rng.randint(1, 30), a=table.header[-1], b=table.header[0])
            .strip(" ,")
        )
    while True:
        font, head = face(size), face(size, True)
        pad_x, pad_y = round(size * 0.5), round(size * (0.2 if layout == "plain" else 0.32))
        limit = max(size * 7, max_side / len(table.header) * 1.1)
        cells = [
            [wrap(c, head if i == 0 else font, limit) for c in row] for i, row in enumerate([table.header, *table.rows])
        ]
        widths = [
            max(length(head if i == 0 else font, line) for i, row in enumerate(cells) for line in row[c]) + 2 * pad_x
            for c in range(len(table.header))
        ]
        step = round(size * 1.2)
        heights = [max(len(c) for c in row) * step + 2 * pad_y for row in cells]
        width, height = sum(widths) + 2 * size, sum(heights) + 2 * size + (2 * size if title else 0)
        if max(width, height) <= max_side or size <= 10:
            break
        size = max(10, min(size - 1, int(size * max_side / max(width, height)) + 1))
    if title and length(head, title) > width - 2 * size:
        title, height = "", height - 2 * size
    grey = rng.choice((225, 235, 242))
    paper, ink, rule = (255, 255, 255), (rng.randint(0, 40),) * 3, (rng.choice((0, 90, 170)),) * 3
    band = (grey, grey, min(255, grey + rng.randint(0, 8)))
    if layout == "encyclopedia":
        paper, band, rule = (248, 249, 250), (234, 236, 240), (162, 169, 177)
    elif layout == "cards":
        paper = (238, 242, 246)
    page = Page.blank(round(width), round(height), "table", layout, paper)
    draw = page.draw
    y, left = float(size), float(size)
    if title:
        page.row()
        page.print(left, y + size, title, head, "l", ink)
        page.values["title"] = title
        y += 2 * size
    numeric = [
        sum(number(row[c]) is not None for row in table.rows) > len(table.rows) / 2 for c in range(len(table.header))
    ]
    to_right = rng.random() < 0.5
    top = y
    for i, (row, tall) in enumerate(zip(cells, heights, strict=True)):
        page.row()
        x = left
        right = left + sum(widths)
        colour = ink
        if layout == "cards":
            draw.rounded_rectangle((left, y + 2, right, y + tall - 2), 5, fill=(255, 255, 255))
        elif layout == "dark-head" and i == 0:
            draw.rectangle((left, y, right, y + tall), fill=(40, 60, 90))
            colour = (255, 255, 255)
        elif (i == 0 and layout in ("boxed", "encyclopedia")) or (
            layout in ("striped", "dark-head") and i % 2 == 0 and i
        ):
            draw.rectangle((left, y, right, y + tall), fill=band)
        for c, lines in enumerate(row):
            for j, line in enumerate(lines):
                if line:
                    flush = to_right and numeric[c]
                    page.print(
                        x + widths[c] - pad_x if flush else x + pad_x,
                        y + pad_y + (j + 0.85) * step,
                        line,
                        head if i == 0 else font,
                        "r" if flush else "l",
                        colour,
                    )
            if layout in ("ruled", "boxed", "encyclopedia"):
                draw.rectangle((x, y, x + widths[c], y + tall), outline=rule)
            x += widths[c]
        y += tall
        if (layout in ("head-rule", "booktabs", "striped") and i == 0) or (
            layout == "booktabs" and i == len(cells) - 1
        ):
            draw.line((left, y, right, y), fill=ink, width=2 if layout == "booktabs" else 1)
    if layout == "booktabs":
        draw.line((left, top, left + sum(widths), top), fill=ink, width=2)
    # A cell of several lines is read as a whole, so the rows are noted by cells rather than by printed lines.
    page.read_rows = False
    return page, table
