"""Invents and draws short papers: notes to somebody, memos, lists."""

import random

from mmvl.data.corpus import Phrases
from mmvl.data.invented import date_text, goods_name, person_name, phone_text, time_text
from mmvl.data.page import Faces, Page
from mmvl.data.sheet import Sheet

LAYOUTS = ("note", "memo", "slip")
HELD_OUT_LAYOUTS = ("card",)

_PLACES = "station library office cafe park museum harbour school"


def draw_note(rng: random.Random, phrases: Phrases, faces: Faces, layout: str, max_side: int) -> Page:
    """A note, a memo or card of labelled lines, or a list (the layout slip)."""
    sheet = Sheet(rng, faces, layout, "note", min(max_side, 560), mono=0.1, fancy=0.45)
    page, values = sheet.page, sheet.page.values
    to, sender = person_name(rng, phrases), person_name(rng, phrases)
    if layout in ("memo", "card"):
        values["title"] = sheet.line(
            rng.choice(("MEMO", "Memo", "Message", "NOTICE", "While you were out")), "m", True, 1.2
        )
        rows = [
            ("recipient", "To", to),
            ("sender", "From", sender),
            ("date", "Date", date_text(rng)),
            ("time", "Time", time_text(rng)),
            ("subject", "Subject", phrases.sentence(rng, 8, 24).rstrip(".!?")),
            ("phone", "Phone", phone_text(rng)),
        ]
        for name, label, value in rng.sample(rows, rng.randint(3, 6)):
            sheet.put(sheet.left, f"{label}:")
            values[name] = sheet.put(sheet.left + sheet.size * 5, value)
            sheet.next()
        sheet.rule()
        sheet.paragraph(" ".join(phrases.sentence(rng, 15, 60) for _ in range(rng.randint(1, 3))))
    elif layout == "slip":
        title = rng.choice(("Shopping list", "To do", "Packing list", "Inventory", "Menu", "Agenda"))
        values["title"] = sheet.line(title, "l", True, 1.15)
        mark = rng.choice(("- ", "", "* ", "{n}. ", "[ ] "))
        items = list(dict.fromkeys(goods_name(rng, phrases) for _ in range(rng.randint(2, 9))))
        printed = [
            sheet.line(mark.format(n=n) + item).removeprefix(mark.format(n=n)) for n, item in enumerate(items, 1)
        ]
        for n, item in enumerate(printed[:6]):
            page.fact(
                item,
                f"What is the {('first', 'second', 'third', 'fourth', 'fifth', 'sixth')[n]} item?",
                f"What is item {n + 1}?",
            )
        page.fact(printed[-1], "What is the last item?")
        page.fact(str(len(items)), "How many items are on the list?", "How many entries are there?")
    else:
        if rng.random() < 0.6:
            values["date"] = sheet.line(date_text(rng), rng.choice("lr"))
        values["recipient"] = to
        sheet.line(f"{rng.choice(('Dear', 'Hi', 'Hello', 'To'))} {to},")
        if rng.random() < 0.6:
            time, place = (
                time_text(rng),
                f"{rng.choice(('the', 'our'))} {rng.choice(_PLACES.split())}",
            )
            text = rng.choice(
                ("Please meet me at {p} at {t}.", "I shall wait at {p} from {t}.", "See you at {p}, {t}.")
            ).format(p=place, t=time)
            sheet.paragraph(text)
            values |= {"time": time, "place": place}
        sheet.paragraph(" ".join(phrases.sentence(rng, 15, 70) for _ in range(rng.randint(1, 2))))
        sheet.line(rng.choice(("Best wishes,", "Yours,", "Love,", "Thanks,", "See you soon,")))
        values["sender"] = sheet.line(sender)
    page.may = (
        "sender", "recipient", "date", "time", "place", "phone", "title", "subject", "email", "total", "company",
    )  # fmt: skip
    page.caption = {"slip": "A list.", "memo": "A memo.", "card": "A message."}.get(layout, f"A note to {to}.")
    return sheet.done()
