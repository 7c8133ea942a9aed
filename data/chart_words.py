"""How people ask about charts: for a value, for whom a value belongs to, for the most and the least.

Readers of statistics pages name whom the whole chart is about, a year or a unit, which such a chart often leaves to the
page around it. What decides is the category, and where there are several, the series.
"""

import random
import re

from mmvl.data.charts import COUNTRIES, Chart

_OWNERS = (
    "the company", "the group", "the airline", "the club", "the bank", "the region", "the industry", "the city",
    "the museum", "the world", "Europe", "the EU", "Asia", "Africa", "North America", "Latin America", "California",
    "London", "Kelmore Inc.", "Alvento", "Norrland Air", "Bexley & Co.", "Tarvio", "Ostra Energy", "Hillmarch United",
    "Davenport Foods", "Zentra", "Corvell Motors", "Penrith Bank", "Lumora Group", "Westfall Hotels",
)  # fmt: skip

# What the categories of an invented chart are, by one of them; of names that mean nothing, any of _THINGS.
_KNOWN = {
    "Very satisfied": "answer", "Yes": "answer", "18-24": "age group", "Daily": "frequency", "Male": "gender",
    "Agree": "answer", "Too much": "answer", "Agriculture": "sector", "Coal": "energy source",
    "Cars": "means of transport",
    "Food": "expense", "Q1": "quarter", "North": "region", "Games": "segment",
}  # fmt: skip
_THINGS = ("category", "company", "brand", "city", "region", "player", "product", "country", "team", "group")
_PLURALS = {
    "category": "categories", "country": "countries", "company": "companies", "city": "cities",
    "frequency": "frequencies", "means of transport": "means of transport",
}  # fmt: skip
_QUALITIES = ("total ", "overall ", "annual ", "estimated ", "global ", "net ", "")


def thing(chart: Chart, rng: random.Random) -> str:
    """What one of the chart's categories is: "year", "country" and the like, "category" where nothing says so."""
    if chart.time:
        return "year" if chart.categories[0][:4].isdigit() else "month"
    if chart.thing.isascii() and 3 <= len(chart.thing) <= 20 and chart.thing.replace(" ", "").isalpha():
        return chart.thing
    if all(c in COUNTRIES for c in chart.categories):
        return "country"
    for category, name in _KNOWN.items():
        if category in chart.categories:
            return name
    return rng.choice(_THINGS)


def plural(noun: str) -> str:
    """The noun for several."""
    return _PLURALS.get(noun, noun + ("" if noun.endswith("s") else "s"))


def counted(chart: Chart) -> str | None:
    """What the chart counts, as in "how many employees"; None if its numbers are not counts of things."""
    if chart.about.startswith("number of "):
        return chart.about.removeprefix("number of ")
    if chart.thing and chart.decimals == 0 and chart.about.isalpha() and re.search(r"[^su]s$", chart.about):
        return chart.about  # of a real table: goals, seats, wins
    return {"population": "people", "units sold": "units", "passengers": "passengers"}.get(chart.about)


def _units(chart: Chart) -> tuple[str, str]:
    """(unit as printed at the axis, the same without its power of ten), each "" where there is none."""
    unit = chart.label.partition(" in ")[2] if chart.unit != "%" else ""
    bare = " ".join(w for w in unit.split() if w not in ("thousand", "million", "billion", "thousands", "millions"))
    return unit, bare


def value_ways(chart: Chart, name: str, category: str, rng: random.Random) -> list[str]:
    """Wordings for the value of a category, and of the series `name` if that is not ""."""
    about, at = chart.about, "in" if chart.time else "for"
    of = f" of {name}" if name else ""
    plain = [
        f"What was the {about}{of} {at} {category}?",
        f"What is the value{of} {at} {category}?",
        f"How much was the {about}{of} {at} {category}?",
        f"What is the {about}{of} {at} {category}?",
    ]
    unit, bare = _units(chart)
    within = rng.choice(("", "", f" in {unit}" if unit else "", f" in {bare}" if bare else ""))
    bald = chart.thing or about.split()[0] in ("average", "number", "share")
    quality = "" if bald else rng.choice(_QUALITIES)
    what, things = quality + about, counted(chart)
    places = [country for country in COUNTRIES if country in chart.title]
    owner = rng.choice(places or (*COUNTRIES, *_OWNERS))
    if name:
        return plain + _of_series(chart, name, category, what, things, within)
    if chart.time:
        when = rng.choice(
            (f"in {category}",) * 4 + (f"as of {category}", f"by {category}", f"at the end of {category}")
        )
        if category.isdigit():
            when = rng.choice((when, when, when, f"in the year {category}", f"in the fiscal year of {category}"))
        ways = [
            f"What was the {what} {rng.choice(('in', 'of', 'for'))} {owner}{within} {when}?",
            f"What was {_whose(owner)} {what}{within} {when}?",
            f"What was the {what}{within} {when}?",
            f"How much did the {what} of {owner} amount to{within} {when}?",
        ]
        if chart.unit == "%":
            ways.append(f"What percentage was the {about} of {owner} {when}?")
        if things:
            ways += [f"How many {things} did {owner} have {when}?", f"How many {things} were there in {owner} {when}?"]
        elif unit:
            ways.append(f"How many {unit} did the {about} amount to {when}?")
        return plain + ways
    # The year stands at most in the title; it decides nothing.
    years = [word for word in chart.title.split() if word.isdigit() and len(word) == 4]
    when = rng.choice(("", "", f" in {years[0] if years else rng.randint(2008, 2022)}"))
    ways = [
        f"What was {_whose(category)} {what}{within}{when}?",
        f"What was the {what} of {category}{within}{when}?",
        f"What is the {about} of {category}?",
        f"How much does {category} have?",
    ]
    if chart.unit == "%":
        ways += [
            f"What percentage is {category}?",
            f"What percentage of respondents said {category}?",
            f"What percentage did {category} account for{when}?",
            f"What {about} did {category} have{when}?",
        ]
    if things:
        ways += [f"How many {things} did {category} have{when}?", f"How many {things} does {category} have?"]
    elif unit:
        ways.append(f"How many {unit} did {_whose(category)} {about} amount to{when}?")
    return plain + ways


def _of_series(chart: Chart, name: str, category: str, what: str, things: str | None, within: str) -> list[str]:
    at = "in" if chart.time else "for"
    ways = [
        f"What was {_whose(name)} {what}{within} {at} {category}?",
        f"How high was {name} {at} {category}?",
        f"What is the value of {category} for {name}?",
    ]
    if chart.unit == "%" and not chart.time:
        ways += [f"What share of {category} said {name}?", f"What percentage of {category} said {name}?"]
    if things:
        ways.append(f"How many {things} did {name} have {at} {category}?")
    return ways


def _whose(name: str) -> str:
    return name + ("'" if name.endswith("s") else "'s")


def owner_ways(chart: Chart, noun: str, name: str, value: str) -> list[str]:
    """Wordings for the category that has a value, in the series `name` if that is not ""."""
    of = f" of {name}" if name else ""
    ways = [
        f"In which {noun} was the value{of} {value}?",
        f"Which {noun} has a value{of} of {value}?",
        f"What {noun} shows {value}{of and ' for ' + name}?",
    ]
    if not chart.about.endswith("s"):
        article = "an" if chart.about[0] in "aeiou" else "a"
        ways.append(f"What {noun} had {article} {chart.about}{of} of {value}{' percent' if chart.unit == '%' else ''}?")
    if chart.time:
        ways += [f"When was the {chart.about}{of} {value}?", f"In what {noun} did the {chart.about}{of} reach {value}?"]
    elif chart.unit == "%" and not name:
        ways += [f"What did {value} percent of respondents say?"]
    elif counted(chart):
        ways.append(f"Which {noun} had {value} {counted(chart)}{of and ' of ' + name}?")
    return ways


def rank_ways(chart: Chart, noun: str, name: str, highest: bool) -> list[str]:
    """Wordings for the category of the highest or lowest value, of the series `name` if that is not ""."""
    about, of = chart.about, f" of {name}" if name else ""
    most, extreme = ("most", "highest") if highest else ("fewest", "lowest")
    ways = [f"Which {noun} has the {extreme} {about}{of}?", f"What {noun} had the {extreme} {about}{of}?"]
    if not highest:
        ways.append(f"Which {noun} has the smallest value{of}?")
    if chart.time:
        ways += [f"When was the {about}{of} {extreme}?", f"In what {noun} was the {about}{of} at its {extreme}?"]
        ways += [f"When did the {about}{of} peak?"] if highest else []
    elif not name:
        ways += [f"Who had the {extreme} {about}?", f"Which {noun} ranked {'first' if highest else 'last'}?"]
        if highest:
            ways += [f"Which {noun} topped the list?", f"What was the leading {noun} in terms of {about}?"]
    if counted(chart) and not name:
        ways.append(f"{'In which year were there' if chart.time else f'Which {noun} had'} the {most} {counted(chart)}?")
    return ways + (
        [f"In which {noun} was the {about}{of} highest?", f"Where does the {about}{of} peak?"] if highest else []
    )
