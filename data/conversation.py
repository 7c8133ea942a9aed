"""Conversations about a page: questions for its fields, its other facts and its lines, some of them in vain."""

import random
from collections import Counter

from mmvl.data.page import Page

CANNOT_SEE = "I can't see that in the image."

# What a question is for: a field of the page by its name, another fact, a line by its place, what it is, all of its
# text, or something that is not there.
KINDS = ("field", "fact", "line", "caption", "text", "absent")

# Ways of asking for a field by its name. A field that a page lacks may be asked for all the same: see `converse`.
FIELDS: dict[str, tuple[str, ...]] = {
    "company": (
        "What is the company?",
        "What is the name of the company?",
        "Which company is it?",
        "Who issued this?",
        "What is the company's name?",
        "Which business is this from?",
    ),
    "shop": (
        "What is the name of the shop?",
        "Which shop is it?",
        "Where was this bought?",
        "What is the company?",
        "What is the name of the company?",
        "Who is the seller?",
    ),
    "address": ("What is the address?", "What is the company's address?", "Where is the company?"),
    "date": ("What is the date?", "What date is it?", "When was it issued?", "What is the date on the document?"),
    "time": ("What is the time?", "At what time was it issued?", "What time is printed?"),
    "due": ("What is the due date?", "When is it due?", "By when must it be paid?"),
    "number": ("What is the invoice number?", "What is the number of the document?", "What is the document number?"),
    "reference": ("What is the reference?", "What is the reference number?"),
    "phone": ("What is the phone number?", "What is the telephone number?", "Which number can be called?"),
    "fax": ("What is the fax number?",),
    "email": ("What is the e-mail address?", "What is the email?"),
    "website": ("What is the website?", "What is the web address?"),
    "registration": ("What is the registration number?", "What is the company registration number?"),
    "tax number": ("What is the tax number?", "What is the GST number?", "What is the tax registration number?"),
    "cashier": ("Who is the cashier?", "Who served the customer?", "What is the cashier's name?"),
    "table number": ("What is the table number?", "Which table is it?"),
    "subtotal": ("What is the subtotal?", "How much is it before tax?", "What is the sub total?"),
    "tax": ("How much is the tax?", "What is the tax?", "How much tax was charged?"),
    "discount": ("What is the discount?", "How much is the discount?"),
    "rounding": ("What is the rounding?", "How much is the rounding adjustment?"),
    "service": ("What is the service charge?", "How much is the service charge?"),
    "total": ("What is the total?", "What is the total amount?", "How much is the total?", "How much is to be paid?"),
    "cash": ("How much was paid in cash?", "How much cash was given?"),
    "change": ("How much is the change?", "What is the change?", "How much change was given?"),
    "sender": ("Who is the sender?", "Who wrote it?", "Who signed it?", "From whom is it?"),
    "recipient": ("Who is the recipient?", "To whom is it addressed?", "Who is it for?", "Who is the customer?"),
    "recipient address": ("What is the recipient's address?", "What is the customer's address?"),
    "subject": ("What is the subject?", "What is it about?", "What is the subject of the letter?"),
    "title": ("What is the title?", "What is the heading?", "What is the title of the document?"),
    "account": ("What is the account number?", "To which account should it be paid?"),
    "birth date": ("What is the date of birth?", "When was the person born?"),
    "nationality": ("What is the nationality?",),
    "occupation": ("What is the occupation?", "What is the person's job?"),
    "name": ("What is the name?", "What is the person's name?", "Whose form is it?"),
    "city": ("What is the city?", "Which city is given?"),
    "postcode": ("What is the postcode?", "What is the postal code?"),
    "country": ("What is the country?", "Which country is given?"),
    "place": ("What is the place?", "Where is it?", "Where do they meet?"),
}

_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth")
_WHOLE = (
    "Read the text.",
    "Transcribe the document.",
    "Read the whole page.",
    "Transcribe everything.",
    "Write down all the text.",
    "What does it say?",
)


def region_questions(page: Page, rng: random.Random, number: int) -> list[tuple[str, str]]:
    """Questions for one line each, which they name by its place or by a neighbour's words."""
    lines = page.lines()
    count = Counter(line.lower() for line in lines)
    heads = Counter(line.split()[0].lower() for line in lines if line.split())
    out = []
    for _ in range(number):
        at = rng.randrange(len(lines))
        if not any(c.isalnum() for c in lines[at]):
            continue
        ways = []
        if at < len(_ORDINALS):
            ways.append(f"What is the {_ORDINALS[at]} line?")
        if at == len(lines) - 1:
            ways += ["What is the last line?", "Read the last line."]
        if at == 0:
            ways += ["What is at the top?", "Read the first line."]
        for step, where in ((1, "below"), (-1, "above")):
            if 0 <= at - step < len(lines):
                beside = lines[at - step]
                if count[beside.lower()] == 1 and len(beside) <= 40 and any(c.isalpha() for c in beside):
                    ways.append(f'What is the line {where} "{beside}"?')
                    ways.append(f'Read the line {where} "{beside}".')
        head = lines[at].split()[0]
        if len(lines[at].split()) > 1 and heads[head.lower()] == 1 and len(head) > 2:
            ways.append(f'Read the line that begins with "{head}".')
        if ways:
            out.append((rng.choice(ways), lines[at]))
    return out


def converse(
    page: Page,
    rng: random.Random,
    fewest: int,
    most: int,
    unanswerable: float = 0.1,
    longest: int = 1600,
    whole: float = 0.0,
) -> list[tuple[str, str, str]]:
    """`fewest` to `most` different (question, answer, one of KINDS) about a page; fewer where there is less to ask.

    unanswerable: share of the questions whose answer is not in the picture. longest: most characters of a page that may
    be asked for as a whole. whole: share of the conversations that end with all that the page says, where they have not
    had it: at the end, so that no answer before can be copied from there.
    """
    known = [(rng.choice(FIELDS[name]), value, "field") for name, value in page.values.items()]
    # "What is the company?" is asked twice as often as all else: it is what people ask.
    often = [name for name in ("company", "shop", "date", "total") if name in page.values]
    known += [(rng.choice(FIELDS[name]), page.values[name], "field") for name in often]
    facts = [(rng.choice(ways), answer) for ways, answer in page.facts]
    known += [(question, answer, "field" if question in page.fields else "fact") for question, answer in facts]
    answered = {question for name in page.values for question in FIELDS[name]}
    answered |= {question for ways, _ in page.facts for question in ways}
    missing = [q for name in page.may if name not in page.values for q in FIELDS[name] if q not in answered]
    missing += [question for question in page.absent if question not in answered]
    lines = page.lines() if page.read_rows else []
    text = "\n".join(lines)
    asked: dict[str, tuple[str, str]] = {}  # question -> its answer and kind

    def said(answer: str) -> bool:
        return any(answer == given for given, _ in asked.values())

    number = rng.randint(fewest, most)
    for _ in range(8 * number):
        if len(asked) >= number:
            break
        draw = rng.random()
        if draw < unanswerable:
            if missing:
                asked.setdefault(rng.choice(missing), (CANNOT_SEE, "absent"))
        elif draw < unanswerable + 0.18 and lines:
            for question, answer in region_questions(page, rng, 1):
                asked.setdefault(question, (answer, "line"))
        elif draw < unanswerable + 0.24 and page.caption and not said(page.caption):
            ways = ("Caption this image.", "Describe the picture.", "What is this?", "What does the picture show?")
            asked.setdefault(rng.choice(ways), (page.caption, "caption"))
        elif draw < unanswerable + 0.28 and lines and len(text) <= longest and not said(text):
            asked.setdefault(rng.choice(_WHOLE), (text, "text"))
        elif known:
            question, *answer_and_kind = rng.choice(known)
            asked.setdefault(question, tuple(answer_and_kind))
    if not asked and (known or lines):
        question, *answer_and_kind = rng.choice(known) if known else ("What is the first line?", lines[0], "line")
        asked[question] = tuple(answer_and_kind)
    ways, text = page.whole or (_WHOLE, text)
    if whole and rng.random() < whole and 0 < len(text) <= longest and not said(text):
        asked.setdefault(rng.choice(ways), (text, "text"))
    return [(question, *answer_and_kind) for question, answer_and_kind in asked.items()]
