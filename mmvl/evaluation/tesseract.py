"""The baseline from outside: Tesseract by its command line (Debian's tesseract-ocr), and simple rules for fields."""

import os
import re
import shutil
import subprocess
from collections.abc import Sequence

from mmvl.evaluation.fields import find_amounts, find_dates
from mmvl.evaluation.task import TESSERACT, Example

SECONDS = 120.0
PAGE, LINE = 4, 7  # Tesseract's --psm: a column of text of various sizes; a single line
_COMPANY = re.compile(r"\b(sdn|bhd|enterprise|trading|restaurant|restoran|company|co\.?|ltd|inc|store|shop)\b", re.I)
_ADDRESS_ENDS = re.compile(r"\b(tel|fax|phone|gst|reg|invoice|receipt|date|bill|cash|tax|email|www)\b|@", re.I)


def version() -> str | None:
    """ "5.3.0", or None where Tesseract is not installed."""
    if shutil.which("tesseract") is None:
        return None
    out = subprocess.run(["tesseract", "--version"], capture_output=True, text=True, timeout=SECONDS, check=True)
    return (out.stdout or out.stderr).split()[1]


def read(picture: bytes, mode: int) -> str:
    """The text of a picture (bytes of a PNG, JPEG or WebP file), read as English on one thread; mode: PAGE or LINE.

    ValueError, in one line, when Tesseract fails on it.
    """
    command = ["tesseract", "stdin", "stdout", "--psm", str(mode), "-l", "eng"]
    done = subprocess.run(
        command, input=picture, capture_output=True, timeout=SECONDS, env=os.environ | {"OMP_THREAD_LIMIT": "1"}
    )
    if done.returncode:
        raise ValueError(f"Tesseract failed: {done.stderr.decode(errors='replace').strip().splitlines()[-1:]}")
    return done.stdout.decode(errors="replace").strip()


def readings(examples: Sequence[Example], mode: int) -> dict[str, list[str]]:
    """The baseline's name with what it reads on the picture of every question; {} where it is not installed."""
    if not version():
        return {}
    pictures = [next(p["image"] for p in e.messages[-1]["content"] if p["type"] == "image") for e in examples]
    return {TESSERACT: [read(picture, mode) for picture in pictures]}


def receipt_fields(text: str) -> dict[str, str]:
    """Fields of a receipt's text by simple rules; "" where a rule finds nothing.

    date: the first. total: the last amount of a line that says total, not subtotal, quantity, items, tax or discount;
    else the largest amount. company: the first line with a word of companies, else the first with three letters.
    address: the lines after it up to one that begins something else (telephone, tax, date ...), at most five.
    """
    lines = [line.strip() for line in text.splitlines() if re.search(r"\w", line)]
    fields = {"company": "", "date": "", "address": "", "total": ""}
    fields["date"] = next((line for line in lines if find_dates(line)), "")
    if fields["date"]:
        fields["date"] = "{:04d}-{:02d}-{:02d}".format(*find_dates(fields["date"])[0])
    named = [line for line in lines if re.search(r"\btotal\b", line, re.I) and not _PARTIAL.search(line)]
    amounts = [amount for line in named for amount in find_amounts(line)[-1:]]
    if not amounts and (money := [a for line in lines for a in find_amounts(line) if a.as_tuple().exponent == -2]):
        amounts = [max(money)]
    if amounts:
        fields["total"] = f"{amounts[-1]:.2f}"
    wordy = [n for n, line in enumerate(lines) if len(re.findall(r"[^\W\d_]", line)) >= 3]
    head = next((n for n in wordy[:8] if _COMPANY.search(lines[n])), wordy[0] if wordy else None)
    if head is not None:
        fields["company"] = lines[head]
        address = []
        for line in lines[head + 1 : head + 8]:
            if len(address) == 5 or (address and _ADDRESS_ENDS.search(line)):
                break
            if not _ADDRESS_ENDS.search(line) and not re.fullmatch(r"\(?[\w .:-]*\d{4,}[- ]?\w?\)?", line):
                address.append(line)
        fields["address"] = " ".join(address)
    return fields


_PARTIAL = re.compile(r"sub|qty|quantity|item|tax|gst|disc|saving|excl", re.I)
