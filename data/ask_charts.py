"""Questions about a chart with exact answers, and some that it does not answer.

Where values are not printed, only what can be seen is asked: single values that can be read off the axis, to its
precision; which is more where one clearly is; neither differences nor sums, and nothing of a stack's or pie's numbers.
Colours are asked about where the chart names them.
"""

import itertools
import math
import random
import re
from collections import Counter
from collections.abc import Sequence

from mmvl.data.chart_words import owner_ways, plural, rank_ways, thing, value_ways
from mmvl.data.charts import COUNTRIES, MONTHS, NAMES, Chart
from mmvl.data.page import Page


def ask_chart(page: Page, chart: Chart, rng: random.Random, looks: int = 16) -> None:
    """Put the chart's questions into page.facts, and some without answer into page.absent.

    looks: how many single values are asked for; where there are fewer, they come again in other words.
    """
    fact, cats, about = page.fact, chart.categories, chart.about
    many = len(chart.series) > 1
    noun = thing(chart, rng)
    shown = [c.rstrip("*") for c in cats]
    text, can_read, clear = _reading(chart)
    at = "in" if chart.time else "for"
    pairs = [(i, j) for i in range(len(cats)) for j in range(len(chart.series))]
    often = Counter(v for _, values in chart.series for v in values)
    rng.shuffle(pairs)
    for i, j in itertools.islice(itertools.cycle(pairs), looks):
        name, values = chart.series[j]
        if not can_read(values[i]):
            continue
        fact(text(values[i]), *value_ways(chart, name, shown[i], rng))
        if chart.shown and values.count(values[i]) == 1:
            fact(shown[i], *owner_ways(chart, noun, name, text(values[i])))
        if chart.shown and many and often[values[i]] == 1:
            fact(
                name,
                f"Which group has {text(values[i])} {at} {shown[i]}?",
                f"What does the value {text(values[i])} belong to?",
            )
    for name, values in rng.sample(chart.series, min(2, len(chart.series))):
        of = f" of {name}" if name else ""
        order = sorted(values, reverse=True)
        best, worst = order[0], order[-1]
        if len(values) == 1 or clear(best, order[1]):
            fact(shown[values.index(best)], *rank_ways(chart, noun, name, highest=True))
        if can_read(best):
            fact(
                text(best),
                f"What is the highest value{of}?",
                f"What is the maximum {about}{of}?",
                f"What is the largest value{of}?",
            )
        if len(values) == 1 or clear(worst, order[-2]):
            fact(shown[values.index(worst)], *rank_ways(chart, noun, name, highest=False))
        if can_read(worst):
            fact(text(worst), f"What is the lowest value{of}?", f"What is the minimum {about}{of}?")
        if len(values) > 3 and clear(order[0], order[1]) and clear(order[1], order[2]):
            fact(
                shown[values.index(order[1])],
                f"Which {noun} has the second highest {about}{of}?",
                f"What was the second largest {noun}{of}?",
                f"Which {noun} ranked second{of}?",
            )
        if len(cats) > 1:
            a, b = rng.sample(range(len(cats)), 2)
            if chart.shown and values[a] != values[b]:
                fact(
                    text(abs(values[a] - values[b])),
                    f"What is the difference{of} between {shown[a]} and {shown[b]}?",
                    f"By how much do {shown[a]} and {shown[b]} differ{of}?",
                )
            if chart.shown:
                fact(
                    text(values[a] + values[b]),
                    f"What is the sum{of} of {shown[a]} and {shown[b]}?",
                    f"How much do {shown[a]} and {shown[b]} add up to{of}?",
                )
            if clear(values[a], values[b]):
                more = a if values[a] > values[b] else b
                fact(
                    shown[more],
                    f"Which has more{of}, {shown[a]} or {shown[b]}?",
                    f"Which is larger{of}, {shown[a]} or {shown[b]}?",
                )
                fact(
                    "Yes" if more == a else "No",
                    f"Is {shown[a]} higher than {shown[b]}{of}?",
                    f"Is the value{of} {at} {shown[a]} greater than {at} {shown[b]}?",
                )
            if chart.shown:
                limit = rng.choice(values)
                above = sum(v > limit for v in values)
                fact(str(above), f"How many values{of} are above {text(limit)}?")
        if chart.time and clear(values[0], values[-1]):
            fact(
                "It increased" if values[-1] > values[0] else "It decreased",
                f"Did the {about}{of} rise or fall from {shown[0]} to {shown[-1]}?",
            )
        if chart.shown and len(values) <= 8:
            mean = Chart("", [], [], "", "", decimals=2).text(sum(values) / len(values))
            fact(mean, f"What is the average{of}?", f"What is the mean {about}{of}?")
    if many:
        i = rng.randrange(len(cats))
        column = [values[i] for _, values in chart.series]
        first, second = sorted(column, reverse=True)[:2]
        if clear(first, second):
            fact(
                chart.series[column.index(first)][0],
                f"Which is the largest {at} {shown[i]}?",
                f"Which group has the highest value {at} {shown[i]}?",
            )
        if chart.shown:
            a, b = rng.sample(range(len(column)), 2)
            fact(
                text(abs(column[a] - column[b])),
                f"What is the difference between {chart.series[a][0]} and {chart.series[b][0]} {at} {shown[i]}?",
            )
        fact(
            str(len(chart.series)),
            "How many series are shown?",
            "How many entries does the legend have?",
            "How many colours are there?",
        )
        for (name, _), colour in zip(chart.series if chart.colours else (), chart.colours, strict=True):
            fact(name, f"What does the {colour} colour stand for?", f"What does {colour} represent?")
            fact(colour, f"Which colour is {name}?", f"What colour represents {name}?")
    elif chart.kind == "pie":
        for category, colour in zip(shown if chart.colours else (), chart.colours, strict=True):
            fact(category, f"What does the {colour} slice stand for?")
    else:
        fact(
            chart.colours[0],
            "What colour are the bars?" if chart.kind in ("bar", "horizontal") else "What colour is the line?",
        )
    things = plural(noun)
    fact(str(len(cats)), f"How many {things} are shown?", f"How many {things} does the chart show?")
    if chart.kind in ("bar", "horizontal") and not many:
        fact(str(len(cats)), "How many bars are there?", "How many bars does the chart have?")
    if chart.title:
        page.values["title"] = chart.title
        fact(chart.title, "What is the title of the chart?", "What does the chart show?")
    else:
        page.absent += ["What is the title of the chart?"]
    if chart.label and chart.kind != "pie":
        fact(chart.label, "What is the label of the value axis?", "What does the axis measure?")
    kind = NAMES[chart.kind]
    fact(kind, "What kind of chart is this?", "What type of chart is it?")
    page.caption = f"A {kind} of {about} with {len(cats)} {plural(noun if chart.time else 'category')}."
    if chart.shown and len(pairs) <= 24:
        rows = [" | ".join(["", *(n for n, _ in chart.series)]).strip()] if many else []
        rows += [" | ".join([c, *(text(v[i]) for _, v in chart.series)]) for i, c in enumerate(shown)]
        ways = ("Write the data as a table.", "List all values.", "What are the data of the chart?")
        page.whole = ways, "\n".join(rows)
        page.facts += [page.whole] * 2
    page.absent += _strange(chart, shown, rng)


def _reading(chart: Chart):
    """(a value as an answer; whether it can be read; whether of two values one is clearly more), for a reader.

    Without printed values a reader of the axis sees about a fiftieth of its power of ten, and less than ten of these
    steps not within the 5% that count as right.
    """
    if chart.shown:
        return chart.text, lambda value: True, lambda a, b: a != b
    top = max(abs(v) for _, values in chart.series for v in values) or 1.0
    step = 10.0 ** math.floor(math.log10(top)) / 50
    apart = top * (0.1 if chart.kind.startswith("stacked") or chart.kind == "pie" else 0.04)
    from_zero = chart.kind in ("bar", "horizontal", "grouped", "line", "lines")

    def text(value: float) -> str:
        return chart.text(round(value / step) * step)

    return text, lambda value: from_zero and abs(value) >= 10 * step, lambda a, b: abs(a - b) >= apart


def _strange(chart: Chart, shown: Sequence[str], rng: random.Random) -> list[str]:
    """Questions for categories that the chart does not have, in the words of those for the ones that it has."""
    names = [name for name, _ in chart.series]
    if chart.time and shown[0][:4].isdigit():
        years = [int(s[:4]) for s in shown]
        around = {min(years) - rng.randint(2, 9), max(years) + rng.randint(2, 9)}
        twofold = re.fullmatch(r"\d{4}/\d\d", shown[0])  # 2019/20
        others = [f"{y}/{(y + 1) % 100:02d}" if twofold else str(y) for y in sorted(around)]
    elif chart.time:
        months = [m + shown[0][3:] for m in MONTHS if not any(s.startswith(m) for s in shown)]
        others = rng.sample(months, min(2, len(months)))
    else:
        others = [c for c in rng.sample(COUNTRIES, 4) if c not in shown and all(c not in n for n in names)]
    return [rng.choice(value_ways(chart, rng.choice(names), other, rng)) for other in others]
