"""Tables as pictures: real ones from files or invented, in several layouts, with look-ups, counts and comparisons."""

import random
import unicodedata
from collections import Counter
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


def invent_table(rng: random.Random, phrases: Phrases) -> RealTable:
    """2 to 6 columns, 2 to 12 rows; the first column names the rows."""
    first = rng.choice(("Name", "City", "Team", "Product", "Code"))
    header = [first, *rng.sample([c for c in _COLUMNS if c != first], rng.randint(1, 5))]
    rows, seen = [], set()
    for _ in range(rng.randint(2, 12)):
        row = [" ".join(_COLUMNS[c](rng, phrases).split())[:28] for c in header]
        if row[0] not in seen:
            seen.add(row[0])
            rows.append(row)
    return RealTable("", header, rows, [])


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


def ask_table(page: Page, table: RealTable, rng: random.Random, others: Sequence[str] = ()) -> None:
    """People's questions on the table, and look-ups, counts, sums and comparisons; rows and the whole to transcribe.

    others: names of rows of another table, asked for in vain.
    """
    header, rows, fact = table.header, table.rows, page.fact
    for question, answers in table.qa:
        page.facts.append(((question,), ", ".join(answers)))
    columns = list(zip(*rows, strict=True))
    used = [c for c in range(len(header)) if header[c] and header.count(header[c]) == 1]
    keys = [c for c in used if sum(v == 1 for v in Counter(columns[c]).values()) >= max(1, len(rows) * 0.7)]
    looks = []
    for _ in range(8 if keys and len(used) > 1 else 0):
        k = keys[0] if rng.random() < 0.7 else rng.choice(keys)
        c = rng.choice([c for c in used if c != k])
        row = rng.choice(rows)
        if columns[k].count(row[k]) != 1 or not row[k] or not row[c]:
            continue
        key, name = row[k], header[c]
        looks.append(
            (
                row[c],
                f"What is the {name.lower()} of {key}?",
                f"What is the {name} for {key}?",
                f"In the row of {key}, what is the {name}?",
                f"What {name.lower()} does {key} have?",
            )
        )
        if columns[c].count(row[c]) == 1:
            looks.append(
                (
                    key,
                    f"Which {header[k].lower()} has {row[c]} as {name.lower()}?",
                    f"What is the {header[k]} where the {name} is {row[c]}?",
                )
            )
    for look in looks:
        fact(*look)
    for c in used:
        values = [number(v) for v in columns[c]]
        counts = Counter(v for v in columns[c] if v)
        if counts and counts.most_common(1)[0][1] > 1:
            value, times = counts.most_common(rng.randint(1, min(3, len(counts))))[-1]
            fact(
                str(times),
                f'How many rows have "{value}" as {header[c]}?',
                f"How many times does {value} appear under {header[c]}?",
            )
        if None in values or len(rows) < 2 or not keys or c in keys[:1]:
            continue
        k = keys[0]
        for best, word in ((max(values), "highest"), (min(values), "lowest")):
            if values.count(best) == 1 and rows[values.index(best)][k]:
                fact(
                    rows[values.index(best)][k],
                    f"Which {header[k].lower()} has the {word} {header[c].lower()}?",
                    f"Who or what has the {word} {header[c]}?",
                )
                fact(columns[c][values.index(best)], f"What is the {word} {header[c].lower()}?")
        a, b = rng.sample(range(len(rows)), 2)
        if (
            rows[a][k] != rows[b][k]
            and values[a] != values[b]
            and not header[c].lower().startswith(("year", "rank", "no"))
        ):
            difference = f"{abs(values[a] - values[b]):.2f}".rstrip("0").rstrip(".")
            fact(difference, f"What is the difference in {header[c].lower()} between {rows[a][k]} and {rows[b][k]}?")
            more = a if values[a] > values[b] else b
            fact(rows[more][k], f"Which has the higher {header[c].lower()}, {rows[a][k]} or {rows[b][k]}?")
        if "year" not in header[c].lower() and "rank" not in header[c].lower() and len(rows) <= 10:
            fact(
                f"{sum(values):.2f}".rstrip("0").rstrip("."),
                f"What is the sum of {header[c].lower()}?",
                f"What is the total {header[c].lower()}?",
            )
    fact(str(len(rows)), "How many rows are there, without the head?", "How many entries does the table have?")
    fact(str(len(header)), "How many columns does the table have?", "How many columns are there?")
    at = rng.randrange(len(rows))
    ordinals = ("first", "second", "third", "fourth", "fifth", "sixth")
    if at < len(ordinals):
        fact(" | ".join(rows[at]), f"Read the {ordinals[at]} row.", f"What does the {ordinals[at]} row say?")
    fact(" | ".join(rows[-1]), "Read the last row.", "What is in the last row?")
    fact(" | ".join(header), "What are the names of the columns?", "Read the head of the table.")
    if rows[at][0] and columns[0].count(rows[at][0]) == 1:
        fact(" | ".join(rows[at]), f"Read the row of {rows[at][0]}.")
        if at + 1 < len(rows) and rows[at + 1][0]:
            fact(
                rows[at + 1][0],
                f"What comes after {rows[at][0]}?",
                f"Which {header[0].lower() or 'entry'} is listed below {rows[at][0]}?",
            )
    c = rng.choice(used or [0])
    fact("\n".join(columns[c]), f"Read the column {header[c]}.", f"List all entries under {header[c]}.") if len(
        rows
    ) <= 12 else None
    whole = "\n".join(" | ".join(row) for row in [header, *rows])
    page.whole = ("Transcribe the table.", "Read the whole table.", "Write the table as text."), whole
    if len(whole) <= 900:
        fact(whole, *page.whole[0])
    page.caption = f"A table of {len(rows)} rows: " + ", ".join(h for h in header if h) + "."
    page.absent = [
        f"What is the {name.lower()} of {rows[at][0]}?"
        for name in rng.sample(list(_COLUMNS), 6)
        if rows[at][0] and not any(name.lower() in h.lower() for h in header)
    ]
    page.absent += [
        f"What is the {header[c].lower()} of {name}?" for name in others if name and name.lower() not in whole.lower()
    ]
