"""Questions about a chart with exact answers, and some that it does not answer."""

import random
from collections.abc import Sequence

from mmvl.data.charts import COUNTRIES, Chart
from mmvl.data.page import Page


def ask_chart(page: Page, chart: Chart, rng: random.Random) -> None:
    """Put the chart's questions into page.facts, and some without answer into page.absent."""
    fact, cats, about = page.fact, chart.categories, chart.about
    many = len(chart.series) > 1
    noun = "year" if chart.time and cats[0][:4].isdigit() else "month" if chart.time else "category"
    shown = [c.rstrip("*") for c in cats]
    text = chart.text
    at = "in" if chart.time else "for"
    pairs = [(i, j) for i in range(len(cats)) for j in range(len(chart.series))]
    for i, j in rng.sample(pairs, min(6, len(pairs))):
        name, values = chart.series[j]
        of = f" of {name}" if name else ""
        fact(
            text(values[i]),
            f"What was the {about}{of} {at} {shown[i]}?",
            f"What is the value{of} {at} {shown[i]}?",
            f"How much was the {about}{of} {at} {shown[i]}?",
            f"What is the {about}{of} {at} {shown[i]}?",
        )
        if chart.shown and values.count(values[i]) == 1 and not many:
            fact(
                shown[i],
                f"In which {noun} was the value {text(values[i])}?",
                f"Which {noun} has a value of {text(values[i])}?",
                f"What {noun} shows {text(values[i])}?",
            )
    for name, values in rng.sample(chart.series, min(2, len(chart.series))):
        of = f" of {name}" if name else ""
        best, worst = max(values), min(values)
        if values.count(best) == 1:
            fact(
                shown[values.index(best)],
                f"Which {noun} has the highest {about}{of}?",
                f"In which {noun} was the {about}{of} highest?",
                f"Where does the {about}{of} peak?",
            )
            fact(
                text(best),
                f"What is the highest value{of}?",
                f"What is the maximum {about}{of}?",
                f"What is the largest value{of}?",
            )
        if values.count(worst) == 1:
            fact(
                shown[values.index(worst)],
                f"Which {noun} has the lowest {about}{of}?",
                f"Which {noun} has the smallest value{of}?",
            )
            fact(text(worst), f"What is the lowest value{of}?", f"What is the minimum {about}{of}?")
        order = sorted(values, reverse=True)
        if len(values) > 3 and order.count(order[1]) == 1 and order[0] != order[1]:
            fact(shown[values.index(order[1])], f"Which {noun} has the second highest {about}{of}?")
        if len(cats) > 1:
            a, b = rng.sample(range(len(cats)), 2)
            if values[a] != values[b]:
                fact(
                    text(abs(values[a] - values[b])),
                    f"What is the difference{of} between {shown[a]} and {shown[b]}?",
                    f"By how much do {shown[a]} and {shown[b]} differ{of}?",
                )
            fact(
                text(values[a] + values[b]),
                f"What is the sum{of} of {shown[a]} and {shown[b]}?",
                f"How much do {shown[a]} and {shown[b]} add up to{of}?",
            )
            if values[a] != values[b]:
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
            if chart.shown or len(cats) < 6:
                limit = rng.choice(values)
                above = sum(v > limit for v in values)
                fact(str(above), f"How many values{of} are above {text(limit)}?")
        if chart.time and values[0] != values[-1]:
            fact(
                "It increased" if values[-1] > values[0] else "It decreased",
                f"Did the {about}{of} rise or fall from {shown[0]} to {shown[-1]}?",
            )
        if len(values) <= 8:
            mean = Chart("", [], [], "", "", decimals=2).text(sum(values) / len(values))
            fact(mean, f"What is the average{of}?", f"What is the mean {about}{of}?")
    if many:
        i = rng.randrange(len(cats))
        column = [values[i] for _, values in chart.series]
        if column.count(max(column)) == 1:
            fact(
                chart.series[column.index(max(column))][0],
                f"Which is the largest {at} {shown[i]}?",
                f"Which group has the highest value {at} {shown[i]}?",
            )
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
        for j, (name, _) in enumerate(chart.series):
            fact(
                name, f"What does the {chart.colours[j]} colour stand for?", f"What does {chart.colours[j]} represent?"
            )
            fact(chart.colours[j], f"Which colour is {name}?", f"What colour represents {name}?")
    elif chart.kind == "pie":
        for category, colour in zip(shown, chart.colours, strict=True):
            fact(category, f"What does the {colour} slice stand for?")
    else:
        fact(
            chart.colours[0],
            "What colour are the bars?" if chart.kind in ("bar", "horizontal") else "What colour is the line?",
        )
    plural = {"year": "years", "month": "months", "category": "categories"}[noun]
    fact(str(len(cats)), f"How many {plural} are shown?", f"How many {plural} does the chart show?")
    if chart.title:
        page.values["title"] = chart.title
        fact(chart.title, "What is the title of the chart?", "What does the chart show?")
    else:
        page.absent += ["What is the title of the chart?"]
    if chart.label and chart.kind != "pie":
        fact(chart.label, "What is the label of the value axis?", "What does the axis measure?")
    kind = {
        "bar": "bar chart",
        "horizontal": "horizontal bar chart",
        "grouped": "grouped bar chart",
        "stacked": "stacked bar chart",
        "stacked-horizontal": "stacked horizontal bar chart",
        "line": "line chart",
        "lines": "line chart",
        "pie": "pie chart",
    }[chart.kind]
    fact(kind, "What kind of chart is this?", "What type of chart is it?")
    page.caption = f"A {kind} of {about} with {len(cats)} {plural}."
    if chart.shown and len(pairs) <= 24:
        rows = [" | ".join(["", *(n for n, _ in chart.series)]).strip()] if many else []
        rows += [" | ".join([c, *(text(v[i]) for _, v in chart.series)]) for i, c in enumerate(shown)]
        ways = ("Write the data as a table.", "List all values.", "What are the data of the chart?")
        page.whole = ways, "\n".join(rows)
        page.facts += [page.whole] * 2
    page.absent += _strange(chart, shown, rng)


def _strange(chart: Chart, shown: Sequence[str], rng: random.Random) -> list[str]:
    """Questions for categories that the chart does not have."""
    if chart.time and shown[0][:4].isdigit() and len(shown[0]) == 4:
        years = [int(s[:4]) for s in shown]
        others = [y for y in (years[0] - rng.randint(2, 9), years[-1] + rng.randint(2, 9)) if str(y) not in shown]
        return [f"What was the {chart.about} in {year}?" for year in others]
    others = [c for c in rng.sample(COUNTRIES, 4) if c not in shown and all(c not in n for n, _ in chart.series)]
    return [f"What is the {chart.about} for {country}?" for country in others]
