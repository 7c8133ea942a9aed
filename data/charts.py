"""Charts as facts: kinds, names and numbers, invented or taken from a real table.

Answers are plain numbers, as in ChartQA: no per cent sign, no thousands separator.
"""

import math
import random
import re
from dataclasses import dataclass, field, replace

from mmvl.data.corpus import Phrases
from mmvl.data.invented import proper
from mmvl.data.public_formats import RealTable

KINDS = (
    "bar",
    "bar",
    "bar",
    "horizontal",
    "horizontal",
    "grouped",
    "grouped",
    "stacked",
    "stacked-horizontal",
    "line",
    "line",
    "lines",
    "pie",
)

NAMES = {
    "bar": "bar chart",
    "horizontal": "horizontal bar chart",
    "grouped": "grouped bar chart",
    "stacked": "stacked bar chart",
    "stacked-horizontal": "stacked horizontal bar chart",
    "line": "line chart",
    "lines": "line chart",
    "pie": "pie chart",
}


@dataclass
class Chart:
    """Numbers by series and category. label: of the value axis; unit: "%" or ""; about: what the numbers are.

    colours: names of those of the series, or of a pie's categories; [] where names do not tell them apart.
    """

    kind: str
    categories: list[str]
    series: list[tuple[str, list[float]]]
    label: str
    about: str
    unit: str = ""
    title: str = ""
    decimals: int = 0
    time: bool = False
    colours: list[str] = field(default_factory=list)
    shown: bool = True  # every value is printed
    thing: str = ""  # what a category is, such as "country", where that is known

    def text(self, value: float) -> str:
        """The value as an answer."""
        text = f"{value:.{self.decimals}f}"
        return text.rstrip("0").rstrip(".") if "." in text else text


_TOPICS = (
    ("Share of respondents", "%", "share of respondents", 1, 90),
    ("Revenue in million U.S. dollars", "", "revenue", 5, 9000),
    ("Number of employees", "", "number of employees", 100, 90000),
    ("Unemployment rate", "%", "unemployment rate", 2, 25),
    ("Population in millions", "", "population", 0.5, 200),
    ("Sales in billion euros", "", "sales", 0.3, 80),
    ("Market share", "%", "market share", 1, 60),
    ("Inflation rate", "%", "inflation rate", 0.2, 12),
    ("Production in thousand tons", "", "production", 10, 5000),
    ("Exports in million dollars", "", "exports", 20, 9000),
    ("Number of visitors in thousands", "", "number of visitors", 5, 8000),
    ("Average price in dollars", "", "average price", 1, 400),
    ("Units sold in millions", "", "units sold", 0.5, 60),
    ("Life expectancy in years", "", "life expectancy", 45, 85),
    ("Number of users in millions", "", "number of users", 1, 900),
    ("Fertility rate", "", "fertility rate", 1, 6),
    ("Birth rate per 1,000 inhabitants", "", "birth rate", 6, 40),
    ("Expenditure in billion dollars", "", "expenditure", 1, 700),
    ("Energy use in terawatt hours", "", "energy use", 1, 900),
    ("Average temperature", "", "average temperature", 1, 35),
    ("Number of deaths", "", "number of deaths", 20, 60000),
    ("Net income in million dollars", "", "net income", 10, 4000),
    ("Attendance", "", "attendance", 900, 90000),
    ("Share of GDP", "%", "share of GDP", 1, 70),
    ("Number of stores", "", "number of stores", 5, 3000),
    ("Passengers in millions", "", "passengers", 1, 120),
)

MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")

COUNTRIES = (
    """China India Brazil Germany France Italy Spain Japan Mexico Canada Turkey Poland Sweden Norway Finland Denmark
Austria Greece Portugal Ireland Egypt Kenya Nigeria Ghana Chile Peru Colombia Argentina Vietnam Thailand Indonesia
Malaysia Australia Iceland Hungary Romania Bulgaria Belgium Israel Iran Iraq Nepal Laos""".split()
    + [
        "United States",
        "United Kingdom",
        "South Korea",
        "South Africa",
        "New Zealand",
        "Saudi Arabia",
        "Czechia",
        "Sri Lanka",
    ]
)

_ANSWERS = (
    ["Very satisfied", "Satisfied", "Neutral", "Dissatisfied", "Very dissatisfied"],
    ["Yes", "No", "Don't know"],
    ["18-24", "25-34", "35-44", "45-54", "55-64", "65+"],
    ["Daily", "Weekly", "Monthly", "Rarely", "Never"],
    ["Male", "Female"],
    ["Agree", "Disagree", "No opinion"],
    ["Too much", "About right", "Too little"],
    ["Agriculture", "Industry", "Services"],
    ["Coal", "Oil", "Gas", "Nuclear", "Hydro", "Wind", "Solar"],
    ["Cars", "Buses", "Trains", "Bicycles", "Walking"],
    ["Food", "Rent", "Clothes", "Travel", "Health", "Savings", "Other"],
    ["Q1", "Q2", "Q3", "Q4"],
    ["North", "South", "East", "West"],
    ["Games", "Hardware", "Software", "Services"],
)


def invent_chart(rng: random.Random, phrases: Phrases) -> Chart:
    """A chart of any kind, 2 to 21 categories, 1 to 5 series."""
    kind = rng.choice(KINDS)
    label, unit, about, low, high = rng.choice(_TOPICS)
    many = kind in ("grouped", "stacked", "stacked-horizontal", "lines")
    time = kind in ("line", "lines") or (kind != "pie" and rng.random() < 0.4)
    if time:
        if rng.random() < 0.8:
            step = rng.choice((1, 1, 1, 1, 2, 5))
            number = rng.randint(3, 7 if many and kind != "lines" else rng.choice((14, 14, 21)))
            first = rng.randint(1975, max(1980, 2030 - step * number))
            suffix = rng.choice(("", "", "", "*"))
            categories = [str(first + step * i) for i in range(number)]
            categories[-1] += suffix
            if rng.random() < 0.08:
                categories = [
                    f"{c}/{(int(c.strip('*')) + 1) % 100:02d}" for c in categories if c.isdigit()
                ] or categories
        else:
            start, number = rng.randrange(12), rng.randint(3, 7 if many else 10)
            year = rng.choice(("", "", " '" + f"{rng.randint(8, 22):02d}"))
            categories = [MONTHS[(start + i) % 12] + year for i in range(number)]
    else:
        draw = rng.random()
        number = rng.randint(2, 6 if many or kind == "pie" else 11)
        if draw < 0.35:
            categories = rng.sample(COUNTRIES, number)
        elif draw < 0.6:
            categories = list(rng.choice(_ANSWERS))
        else:
            categories = list(
                dict.fromkeys(
                    proper(rng, phrases) + rng.choice(("", "", " " + proper(rng, phrases))) for _ in range(number)
                )
            )
    series_number = rng.randint(2, 4) if many else 1
    names = [""]
    if many:
        pools = [a for a in _ANSWERS if len(a) >= series_number and a[0] not in categories]
        pool = rng.choice(
            (rng.choice(pools), rng.sample(COUNTRIES, 8), [str(year) for year in rng.sample(range(1990, 2024), 6)])
        )
        names = [n for n in pool if n not in categories][:series_number]
        while len(names) < 2:
            names.append(proper(rng, phrases))
    return _numbers(rng, kind, categories, names, label, about, unit, low, high, time)


def _numbers(rng, kind, categories, names, label, about, unit, low, high, time) -> Chart:
    scale_low = low * (high / low) ** rng.uniform(0, 0.5)
    scale_high = min(high, scale_low * rng.choice((1.3, 2, 4, 10)))
    chart = Chart(kind, categories, [], label, about, unit, time=time)
    if kind == "pie" or (kind.startswith("stacked") and rng.random() < 0.5):
        chart.unit, chart.label, chart.about = "%", "Share", "share"
        chart.decimals = rng.choice((0, 0, 1))
        columns = 1 if kind == "pie" else len(categories)
        parts = len(categories) if kind == "pie" else len(names)
        table = []
        for _ in range(columns):
            weights = [rng.uniform(0.4, 4) for _ in range(parts)]
            factor = 10**chart.decimals
            cut = [max(1, round(100 * factor * w / sum(weights))) for w in weights]
            cut[cut.index(max(cut))] += 100 * factor - sum(cut)
            table.append([c / factor for c in cut])
        chart.series = (
            [("", table[0])] if kind == "pie" else [(n, [row[i] for row in table]) for i, n in enumerate(names)]
        )
        return chart
    magnitude = math.log10(max(scale_high, 1e-9))
    chart.decimals = 0 if magnitude >= 3 else rng.choice((0, 1, 1, 2)) if magnitude >= 1.3 else rng.choice((1, 2))
    for name in names:
        value = rng.uniform(scale_low, scale_high)
        values = []
        for _ in categories:
            if time:  # one year resembles the last
                value = max(scale_low * 0.6, value * rng.uniform(0.85, 1.2))
            else:
                value = rng.uniform(scale_low, scale_high)
            value = min(value, 98.0) if unit == "%" else value
            values.append(round(value, chart.decimals))
        if kind in ("bar", "line", "horizontal") and not time and rng.random() < 0.5:
            values.sort(reverse=True)
        chart.series.append((name, values))
    if kind in ("bar", "line") and unit == "%" and rng.random() < 0.15:
        at = rng.randrange(len(values))
        chart.series[0][1][at] = -chart.series[0][1][at]
    return chart


def cut_chart(chart: Chart, rng: random.Random, most_categories: int, most_series: int) -> Chart:
    """The chart with at most so many categories, one after the other, and series. What adds up to 100% still does."""
    number = len(chart.categories)
    first, last = 0, number
    if number > most_categories:
        size = rng.randint(min(3, most_categories), most_categories)
        first = rng.randrange(number - size + 1)
        last = first + size
    series = [(name, values[first:last]) for name, values in chart.series[:most_series]]
    decimals, whole = chart.decimals, chart.unit == "%" and chart.label == "Share"  # a pie or a stack
    if whole and chart.kind == "pie":
        series[0][1][-1] = round(series[0][1][-1] + 100 - sum(series[0][1]), decimals)
    elif whole and len(chart.series) > most_series:
        for i in range(last - first):
            series[-1][1][i] = round(series[-1][1][i] + 100 - sum(values[i] for _, values in series), decimals)
    return replace(chart, categories=chart.categories[first:last], series=series)


def number(text: str) -> float | None:
    """The number that a table's cell is, else None."""
    match = re.fullmatch(r"[$+]?(-?\d{1,3}(?:,\d{3})+|-?\d+)(\.\d+)?\s?%?", text.strip())
    return float(match[1].replace(",", "") + (match[2] or "")) if match else None


def chart_of_table(rng: random.Random, table: RealTable) -> Chart | None:
    """A chart of a column of numbers of a real table against its first column of words; None if it has none."""
    rows = [row for row in table.rows if len(row) == len(table.header)]
    if not 3 <= len(rows):
        return None
    rows = rows[: rng.randint(3, 12)]
    columns = list(zip(*rows, strict=True))
    numeric = [
        i
        for i, c in enumerate(columns)
        if all((v := number(x)) is not None and 0 <= v < 1e7 for x in c)
        and len(set(c)) > 2
        and "year" not in table.header[i].lower()
        and table.header[i].strip()
        and "no" not in table.header[i].lower()[:2]
        and "#" not in table.header[i]
        and not all(1800 < number(x) < 2100 for x in c)
    ]
    named = [
        i
        for i, c in enumerate(columns)
        if i not in numeric
        and len(set(c)) == len(c)
        and all(0 < len(x) <= 24 and all(" " <= ch <= "~" for ch in x) for x in c)
    ]
    numeric = [i for i in numeric if all(" " <= ch <= "~" for ch in table.header[i])]
    if not numeric or not named:
        return None
    at, by = rng.choice(numeric), named[0]
    values = [number(x) for x in columns[at]]
    if max(values) <= 0 or max(values) > 300 * (sorted(values)[len(values) // 2] + 1e-9):
        return None
    label = " ".join(table.header[at].split())[:40]
    decimals = max((len(x.rpartition(".")[2].strip(" %")) if "." in x else 0) for x in columns[at])
    time = all(re.fullmatch(r"(1[89]|20)\d\d.*", x) for x in columns[by])
    kind = rng.choice(("bar", "horizontal", "horizontal", "line") if time else ("bar", "horizontal", "horizontal"))
    return Chart(
        kind,
        list(columns[by]),
        [("", values)],
        label,
        label.lower(),
        decimals=min(2, decimals),
        time=time,
        thing=" ".join(table.header[by].lower().split()),
    )
