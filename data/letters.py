"""Invents and draws letters: head, recipient, reference, paragraphs, signature."""

import random

from mmvl.data.corpus import Phrases
from mmvl.data.invented import address_lines, company_name, date_text, digits, person_name, phone_text, proper
from mmvl.data.page import Faces, Page
from mmvl.data.sheet import Sheet

LAYOUTS = ("block", "right-date", "letterhead")
HELD_OUT_LAYOUTS = ("side-head",)

_SUBJECTS = (
    "Renewal of the {w} contract", "Your order of {d}", "Invitation to {w}", "Delivery of {w}", "Change of address",
    "Complaint about {w}", "Application for {w}", "Report on {w}", "Meeting on {d}", "Payment reminder {n}",
)  # fmt: skip
_CLOSINGS = (
    "Yours sincerely,", "Yours faithfully,", "Kind regards,", "Best regards,", "Sincerely,", "With best wishes,",
)  # fmt: skip


def draw_letter(rng: random.Random, phrases: Phrases, faces: Faces, layout: str, max_side: int) -> Page:
    """A letter of 1 to 3 paragraphs."""
    sheet = Sheet(rng, faces, layout, "letter", max_side)
    page, values = sheet.page, sheet.page.values
    company = company_name(rng, phrases)
    where = {"letterhead": "m", "right-date": "l", "block": "l", "side-head": "r"}[layout]
    values["company"] = sheet.line(company, where, rng.random() < 0.6, 1.3 if rng.random() < 0.6 else 1)
    values["address"] = " ".join(sheet.lines(address_lines(rng, phrases), where))
    if rng.random() < 0.6:
        phone = phone_text(rng)
        if phone in sheet.line(rng.choice(("Tel. ", "Phone: ", "T ")) + phone, where):
            values["phone"] = phone
    if rng.random() < 0.5:
        mail = f"{rng.choice(('info', 'office'))}@{proper(rng, phrases).lower()}.{rng.choice(('com', 'org', 'net'))}"
        if sheet.line(mail, where) == mail:
            values["email"] = mail
    if layout == "letterhead":
        sheet.rule()
    sheet.next(0.6)
    to = person_name(rng, phrases)
    values["recipient"] = sheet.line(to)
    if rng.random() < 0.7:
        values["recipient address"] = " ".join(sheet.lines(address_lines(rng, phrases)))
    sheet.next(0.6)
    date = date_text(rng)
    label = rng.choice(("", "", "Date: "))
    if date in sheet.line(label + date, "r" if layout == "right-date" else "l"):
        values["date"] = date
    if rng.random() < 0.5:
        reference = f"{proper(rng, phrases)[:2].upper()}/{digits(rng, 3, 6)}"
        if reference in sheet.line(rng.choice(("Our ref: ", "Ref. ", "Reference: ")) + reference):
            values["reference"] = reference
    if rng.random() < 0.75:
        subject = rng.choice(_SUBJECTS).format(w=phrases.word(rng), d=date_text(rng), n=digits(rng, 2, 4))
        printed = sheet.line(("Subject: " if (labelled := rng.random() < 0.4) else "") + subject, bold=not labelled)
        values["subject"] = printed.removeprefix("Subject: ")
    sheet.next(0.5)
    sheet.line(f"Dear {to},")
    for _ in range(rng.randint(1, 3)):
        sheet.next(0.3)
        sheet.paragraph(" ".join(phrases.sentence(rng, 20, 90) for _ in range(rng.randint(1, 3))))
    sheet.next(0.5)
    sheet.line(rng.choice(_CLOSINGS))
    sheet.next(rng.uniform(0.3, 1.5))
    values["sender"] = sheet.line(person_name(rng, phrases), hand=rng.random() < 0.4)
    page.may = (
        "company", "address", "phone", "email", "date", "reference", "subject", "sender", "recipient", "fax",
        "website", "recipient address", "account", "total", "due",
    )  # fmt: skip
    page.caption = f"A letter from {values['company']} to {values['recipient']}."
    return sheet.done()
