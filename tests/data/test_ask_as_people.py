"""Questions about tables in people's words: the answers hold, read off the table by another way."""

import random
import re
from collections import Counter

from mmvl.data.ask_as_people import ask_as_people
from mmvl.data.page import Page
from mmvl.data.public_formats import RealTable
from mmvl.data.tables import shuffle_columns

TABLE = RealTable(
    "", ["Rank", "Nation", "Gold", "Coach", "Year"],
    [["1", "Ukraine", "3", "Ann Lee", "1996"], ["2", "Italy", "0", "Bo Roe", "2004"],
     ["3", "Peru", "12", "Cy Day", "1996"],
     ["4", "Norway", "7", "Di Fox", "1988"]],
    [("which nation came in after italy?", ["Peru"])],
)  # fmt: skip
OTHER = RealTable("", ["Rider", "Laps\nled"], [["Tom Boonen", "80"], ["Ada Falk", "64"]], [])
GOLD = {row[1].lower(): int(row[2]) for row in TABLE.rows}
NATIONS = [row[1].lower() for row in TABLE.rows]
MEDALS = r"golds?(?: medals)?"


def facts(seeds: int) -> list[tuple[str, str]]:
    found = []
    for seed in range(seeds):
        page = Page.blank(8, 8, "table", "")
        ask_as_people(page, TABLE, random.Random(seed), OTHER)
        found += [(way.lower().rstrip("?"), answer) for ways, answer in page.facts for way in ways]
    return found


def test_answers_hold():
    """Each form read by a pattern of its own and answered from the table by hand."""
    a, b = rf"({'|'.join(NATIONS)})", rf"({'|'.join(NATIONS)})"
    rules = {
        rf"how many {MEDALS} did {a} \w+": lambda x: str(GOLD[x]),
        rf"how many more {MEDALS} (?:did|does) {a} have than {b}": lambda x, y: str(GOLD[x] - GOLD[y]),
        rf"how many fewer {MEDALS} did {a} have than {b}": lambda x, y: str(GOLD[y] - GOLD[x]),
        rf"how many {MEDALS} did {a} and {b} have combined": lambda x, y: str(GOLD[x] + GOLD[y]),
        rf"d(?:oes|id) {a} have more {MEDALS} than {b}": lambda x, y: "yes" if GOLD[x] > GOLD[y] else "no",
        rf"did {a} or {b} have more {MEDALS}": lambda x, y: max(x, y, key=GOLD.get).title(),
        rf"who had fewer {MEDALS}, {a} or {b}": lambda x, y: min(x, y, key=GOLD.get).title(),
        rf"\w+ nation (?:has|had|won) the most {MEDALS}": lambda: "Peru",
        rf"\w+ nation (?:has|had|won) the (?:least|fewest) {MEDALS}": lambda: "Italy",
        rf"how many nations (?:have|had) (?:more than|over|above) (\d+) {MEDALS}": lambda n: str(
            sum(v > int(n) for v in GOLD.values())
        ),
        rf"how many nations (?:have|had) at least (\d+) {MEDALS}": lambda n: str(
            sum(v >= int(n) for v in GOLD.values())
        ),
        rf"(?:which|what) nation (?:came|was|comes|is).* after {a}": lambda x: TABLE.rows[NATIONS.index(x) + 1][1],
        rf"(?:which|what) nation (?:came|was|comes|is).* before {a}": lambda x: TABLE.rows[NATIONS.index(x) - 1][1],
        rf"is {a} listed before {b}": lambda x, y: "yes" if NATIONS.index(x) < NATIONS.index(y) else "no",
        rf"(?:which|what) nation has the same year as {a}": lambda x: {"ukraine": "Peru", "peru": "Ukraine"}[x],
        rf"who was {a}'s coach": lambda x: TABLE.rows[NATIONS.index(x)][3],
        r"how many nations (?:were|are listed|were there) in (\d{4})": lambda y: str(
            sum(r[4] == y for r in TABLE.rows)
        ),
        r"how many (?:total )?nations are (?:there|listed)": lambda: "4",
        r"which year appears the most": lambda: "1996",
    }
    seen = Counter()
    for question, answer in facts(60):
        for pattern, rule in rules.items():
            if found := re.fullmatch(pattern, question):
                assert answer == rule(*found.groups()), (question, answer)
                seen[pattern] += 1
    assert set(seen) == set(rules), set(rules) - set(seen)
    assert sum(seen.values()) > 500


def test_peoples_own_questions_are_among_them():
    assert ("which nation came in after italy", "Peru") in facts(1)


def test_what_is_asked_in_vain_is_not_there():
    vain = 0
    for seed in range(40):
        page = Page.blank(8, 8, "table", "")
        ask_as_people(page, TABLE, random.Random(seed), OTHER)
        for question in map(str.lower, page.absent):
            cells = {cell.lower() for row in TABLE.rows for cell in row if len(cell) > 2}
            assert not any(cell in question for cell in cells) or re.search("rider|laps", question), question
            vain += 1
    assert vain > 60


def test_a_table_of_one_row_one_column_or_empty_cells_is_asked_about_too():
    for header, rows in ((["A"], [["x"]]), (["A", "A"], [["", "-"], ["", ""]]), (["", "B"], [["1", "2"]])):
        for seed in range(10):
            page = Page.blank(8, 8, "table", "")
            ask_as_people(page, RealTable("", header, rows, []), random.Random(seed), OTHER)
            assert all(answer.strip() for _, answer in page.facts)


def test_the_whole_table_can_be_asked_for():
    page = Page.blank(8, 8, "table", "")
    ask_as_people(page, TABLE, random.Random(0), OTHER)
    ways, text = page.whole
    assert "Read the whole table." in ways
    assert text.splitlines() == [" | ".join(row) for row in [TABLE.header, *TABLE.rows]]


def test_shuffled_columns_keep_their_cells_and_lose_peoples_questions():
    moved = 0
    for seed in range(20):
        table = shuffle_columns(TABLE, random.Random(seed))
        assert sorted(table.header) == sorted(TABLE.header) and not table.qa
        for name in TABLE.header:
            old = [row[TABLE.header.index(name)] for row in TABLE.rows]
            assert sorted(old) == sorted(row[table.header.index(name)] for row in table.rows)
        moved += sorted(map(sorted, table.rows)) != sorted(map(sorted, TABLE.rows))
    assert moved > 15
