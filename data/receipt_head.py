"""The upper part of a till slip: whose shop it is, then number, date and cashier of this receipt."""

import random
import string

from mmvl.data.corpus import Phrases
from mmvl.data.invented import address_lines, company_name, date_text, digits, phone_text, proper, time_text
from mmvl.data.slip import Slip

_TITLES = (
    "TAX INVOICE", "Tax Invoice", "RECEIPT", "INVOICE", "CASH BILL", "Simplified Tax Invoice", "OFFICIAL RECEIPT",
    "CASH SALES", "Cash Receipt", "SALES RECEIPT", "*** TAX INVOICE ***",
)  # fmt: skip

_PEOPLE = """Anna Ben Clara Farid Mei Lim Tan Siti Kumar Raju Wong Lee Ali Nora Ivy Joyce Admin Manager Hafiz Aina Devi
Ong Jenny Azlan Suzy Chong Kevin Peter Maria User""".split()


def print_shop(slip: Slip, rng: random.Random, phrases: Phrases, values: dict[str, str]) -> None:
    """The shop's name, address, numbers, and a title; what stands there goes into `values` (see `Page.values`)."""
    align = "l" if rng.random() < 0.15 else "m"
    name = company_name(rng, phrases)
    name = name.upper() if rng.random() < 0.75 else name
    stretch = slip.tall if rng.random() < 0.6 else None
    # A name in two lines where it is too wide.
    font = slip.other(slip.size, True)
    words, lines = name.split(), [""]
    for word in words:
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) * (stretch or (1, 1))[0] > slip.width:
            lines.append(word)
        else:
            lines[-1] = longer
    bold = rng.random() < 0.5
    values["shop"] = " ".join(slip.line(line, align, bold, stretch, slip.other) for line in lines)
    registration = f"{digits(rng, 5, 7)}-{rng.choice(string.ascii_uppercase)}"
    if rng.random() < 0.55:
        values["registration"] = registration
        pattern = rng.choice(("({})", "Co. Reg. No.: {}", "(Co. No: {})", "ROC NO. {}", "Reg No: {}"))
        slip.line(slip.say(pattern.format(registration)), align)
    upper = rng.random() < 0.5
    printed = []
    for line in address_lines(rng, phrases):
        printed.append(slip.line(line.upper() if upper else line, align))
    values["address"] = " ".join(printed)
    if rng.random() < 0.7:
        phone = phone_text(rng)
        label = rng.choice(("Tel: ", "TEL : ", "Tel No: ", "Phone: ", "T: ", "H/P: "))
        fax = phone_text(rng)
        if rng.random() < 0.25 and slip.face(slip.size).getlength(label + phone + " Fax: " + fax) < slip.width:
            slip.line(f"{label}{phone} Fax: {fax}", align)
            values |= {"phone": phone, "fax": fax}
        elif phone in slip.line(label + phone, align):
            values["phone"] = phone
    if rng.random() < 0.65:
        number = digits(rng, 12, 12)
        label = rng.choice(
            ("GST No: ", "GST ID : ", "GST REG NO. ", "GST Reg. No: ", "(GST ID NO: ", "VAT No. ", "Tax ID: ")
        )
        if number in slip.line(label + number + (")" if label[0] == "(" else ""), align):
            values["tax number"] = number
    if rng.random() < 0.12:
        site = f"www.{proper(rng, phrases).lower()}.com"
        if slip.line(site, align) == site:
            values["website"] = site
    slip.next(rng.uniform(0, 0.6))
    if rng.random() < 0.75:
        slip.line(
            rng.choice(_TITLES),
            "m" if align == "m" else "l",
            rng.random() < 0.4,
            slip.tall if rng.random() < 0.3 else None,
        )


def print_details(slip: Slip, rng: random.Random, values: dict[str, str]) -> None:
    """Number, date, time, cashier, table, in any order; what stands there goes into `values`."""
    number = rng.choice(("", "", "CS", "INV", "A", "OR", "R")) + rng.choice(("", "-", "")) + digits(rng, 4, 10)
    date, time = date_text(rng), time_text(rng)
    person = rng.choice(_PEOPLE)
    person = person.upper() if slip.upper else person
    rows = [
        ("number", rng.choice(("Invoice No", "Inv No.", "Receipt #", "Bill No", "Doc No.", "INV#", "Slip No")), number)
    ]
    with_time = rng.random() < 0.45
    rows.append(
        (
            "date",
            rng.choice(("Date", "DATE", "Bill Date", "Date/Time" if with_time else "Date", "")),
            f"{date} {time}" if with_time else date,
        )
    )
    if not with_time and rng.random() < 0.4:
        rows.append(("time", "Time", time))
    if rng.random() < 0.6:
        rows.append(("cashier", rng.choice(("Cashier", "Served by", "Staff", "Cashier")), person))
    if rng.random() < 0.2:
        rows.append(("table number", "Table", str(rng.randint(1, 60))))
    rows = [row for row in rows if row[0] == "date" or rng.random() < 0.85]
    rng.shuffle(rows)
    colon = rng.choice((" : ", ": ", " :", ":"))
    column = slip.left + slip.width * rng.uniform(0.3, 0.45) if rng.random() < 0.4 else None
    together = column is None and rng.random() < 0.3
    printed = []
    while rows:
        name, label, value = rows.pop(0)
        label = slip.say(label)
        if not label:
            text = slip.line(value)
        elif column:
            font = slip.face(slip.size)
            if font.getlength(label) > column - slip.left - slip.size * 0.4:
                label = label[:6].strip(" .")
            slip.put(slip.left, label)
            text = slip.put(column, f"{colon.strip()} {value}")
            slip.next()
        else:
            text = slip.put(slip.left, f"{label}{colon}{value}")
            if together and rows and rows[0][1] and not with_time:
                second = f"{slip.say(rows[0][1])}{colon}{rows[0][2]}"
                font = slip.face(slip.size)
                if font.getlength(text) + font.getlength(second) + slip.size < slip.width:
                    slip.put(slip.right, second, "r")
                    printed.append((rows[0][0], rows[0][2], second))
                    rows.pop(0)
            slip.next()
        printed.append((name, value, text))
    for name, value, text in printed:
        if value not in text:
            # Cut at the paper's edge: only the date may be known from what is left.
            if name == "date" and date in text:
                values["date"] = date
            continue
        values[name] = date if name == "date" else value
        if name == "date" and with_time:
            values["time"] = time
    if "date" not in values:
        values["date"] = slip.line(date)
