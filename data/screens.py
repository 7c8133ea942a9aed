"""Draws simple windows of programs: settings, lists, messages, log-ins, and what can be asked about them."""

import random

from mmvl.data.corpus import Phrases
from mmvl.data.invented import date_text, proper
from mmvl.data.page import Faces, Page, length, wrap

LAYOUTS = ("settings", "dialog", "login", "files", "chat", "editor")
HELD_OUT_LAYOUTS = ("dashboard", "wizard")

_THEMES = (
    {
        "back": (240, 240, 240), "bar": (210, 222, 238), "ink": (20, 20, 20), "box": (255, 255, 255),
        "edge": (150, 150, 150), "key": (225, 225, 225), "main": (0, 103, 192),
    },
    {
        "back": (255, 255, 255), "bar": (235, 235, 238), "ink": (40, 40, 45), "box": (250, 250, 250),
        "edge": (200, 200, 205), "key": (240, 240, 240), "main": (10, 122, 255),
    },
    {
        "back": (43, 45, 48), "bar": (30, 31, 34), "ink": (222, 224, 228), "box": (55, 58, 62),
        "edge": (90, 94, 100), "key": (70, 74, 80), "main": (53, 116, 240),
    },
    {
        "back": (192, 192, 192), "bar": (0, 0, 128), "ink": (0, 0, 0), "box": (255, 255, 255), "edge": (90, 90, 90),
        "key": (192, 192, 192), "main": (0, 0, 128),
    },
    {
        "back": (250, 247, 240), "bar": (52, 101, 84), "ink": (35, 45, 40), "box": (255, 255, 255),
        "edge": (180, 180, 170), "key": (228, 234, 228), "main": (52, 101, 84),
    },
)
_APPS = (
    "Settings", "Preferences", "Editor", "Mail", "Backup", "Files", "Player", "Calendar", "Printer", "Network",
    "Accounts", "Scanner",
)
_SWITCHES = (
    "Show hidden files", "Dark mode", "Automatic updates", "Notifications", "Bluetooth", "Wi-Fi", "Location",
    "Spell checking", "Save on exit", "Large text", "Sound", "Sync", "Airplane mode", "Auto-rotate", "Battery saver",
    "Keep history",
)
_CHOICES = {
    "Language": ("English", "French", "German", "Malay", "Spanish"), "Theme": ("Light", "Dark", "System"),
    "Font size": ("10", "11", "12", "14", "16"), "Quality": ("Low", "Medium", "High"),
    "Paper": ("A4", "A5", "Letter"), "Time zone": ("UTC", "UTC+1", "UTC+8", "UTC-5"),
    "Speed": ("Slow", "Normal", "Fast"), "Resolution": ("720p", "1080p", "1440p"),
}
_BUTTONS = (
    "OK", "Cancel", "Apply", "Save", "Close", "Help", "Next", "Back", "Yes", "No", "Retry", "Delete", "Open",
    "Print",
)


class _Window:
    def __init__(self, rng: random.Random, faces: Faces, layout: str, max_side: int, title: str):
        self.rng, self.theme = rng, rng.choice(_THEMES)
        self.size = rng.randint(12, 18)
        self.width = rng.randint(24 * self.size, max(24 * self.size + 1, min(max_side, 40 * self.size)))
        self.page = Page.blank(self.width, 2 * max_side, "screen", layout, self.theme["back"])
        self.face = faces.pick(rng, mono=0.08)
        self.draw = self.page.draw
        self.y = 0.0
        self.left = self.size * 1.2
        self.buttons: list[str] = []
        bar, ink = (
            self.theme["bar"],
            self.theme["ink"] if sum(self.theme["bar"]) > 400 or sum(self.theme["ink"]) > 400 else (255,) * 3,
        )
        self.draw.rectangle((0, 0, self.width, self.size * 2), fill=bar)
        self.y = self.size * 0.35
        self.put(self.left, title, ink=ink, bold=rng.random() < 0.5)
        x = self.width - self.size * 1.6
        self.draw.line((x, self.size * 0.7, x + self.size * 0.7, self.size * 1.4), fill=ink, width=2)
        self.draw.line((x, self.size * 1.4, x + self.size * 0.7, self.size * 0.7), fill=ink, width=2)
        self.y = self.size * 2.8
        self.page.row()
        self.page.values["title"] = title
        self.page.fact(title, "What is the title of the window?", "Which window is it?")

    def put(self, x: float, text: str, anchor="l", ink=None, bold=False, scale: float = 1.0) -> str:
        font = self.face(self.size * scale, bold)
        while text and anchor == "l" and length(font, text) > self.width - x - 6:
            text = text[:-1].rstrip()
        self.page.print(x, self.y + self.size, text, font, anchor, ink or self.theme["ink"])
        return text

    def next(self, share: float = 1.7) -> None:
        self.y += self.size * share
        self.page.row()

    def box(self, x0: float, x1: float, text: str, fill=None, ink=None) -> str:
        self.draw.rounded_rectangle(
            (x0, self.y - self.size * 0.25, x1, self.y + self.size * 1.4),
            3,
            fill=fill or self.theme["box"],
            outline=self.theme["edge"],
        )
        font = self.face(self.size)
        while text and length(font, text) > x1 - x0 - self.size * 0.6:
            text = text[:-1].rstrip()
        if text:
            self.page.print(x0 + self.size * 0.4, self.y + self.size, text, font, "l", ink or self.theme["ink"])
        return text

    def row_of_buttons(self, names) -> None:
        x, main = self.width - self.left, self.rng.random() < 0.6
        self.next(0.4)
        for number, name in enumerate(names):
            wide = length(self.face(self.size), name) + self.size * 1.8
            fill = self.theme["main"] if main and number == 0 else self.theme["key"]
            ink = (255, 255, 255) if main and number == 0 else self.theme["ink"]
            self.draw.rounded_rectangle(
                (x - wide, self.y - self.size * 0.3, x, self.y + self.size * 1.5),
                4,
                fill=fill,
                outline=self.theme["edge"],
            )
            self.page.print(x - wide / 2, self.y + self.size, name, self.face(self.size), "m", ink)
            x -= wide + self.size * 0.7
        self.buttons = list(names)
        self.page.fact(str(len(names)), "How many buttons are at the bottom?")
        self.page.fact(", ".join(reversed(names)), "Which buttons are there?", "Name the buttons at the bottom.")
        self.next(2)


def draw_screen(rng: random.Random, phrases: Phrases, faces: Faces, layouts, max_side: int = 720) -> Page:
    """A window of at most max_side pixels (RGB); its facts: title, fields, switches, buttons."""
    layout = rng.choice(layouts)
    title = rng.choice(_APPS)
    if rng.random() < 0.4:
        title = f"{proper(rng, phrases)} {title}"
    win = _Window(rng, faces, layout, max_side, title)
    page, size = win.page, win.size
    half = win.width * 0.5
    if layout in ("settings", "dashboard", "wizard"):
        if layout == "wizard":
            step, steps = rng.randint(1, 4), rng.randint(4, 6)
            page.fact(str(step), "Which step is it?")
            win.put(win.left, f"Step {step} of {steps}", bold=True)
            win.next(2)
        switches = rng.sample(_SWITCHES, rng.randint(2, 5))
        for name in switches:
            on = rng.random() < 0.5
            if layout == "dashboard":
                x = win.width - win.left - size * 2
                win.put(win.left, name)
                win.draw.rounded_rectangle(
                    (x, win.y, x + size * 2, win.y + size * 1.1),
                    size * 0.55,
                    fill=win.theme["main"] if on else win.theme["edge"],
                )
                knob = x + size * 0.95 if on else x
                win.draw.ellipse((knob + 1, win.y + 1, knob + size, win.y + size * 1.1 - 1), fill=(255, 255, 255))
            else:
                box = (win.left, win.y + 1, win.left + size, win.y + 1 + size)
                win.draw.rectangle(box, fill=win.theme["box"], outline=win.theme["ink"])
                if on:
                    win.draw.line(
                        (box[0] + 2, box[1] + size / 2, box[0] + size * 0.4, box[3] - 3, box[2] - 2, box[1] + 2),
                        fill=win.theme["main"],
                        width=2,
                    )
                win.put(win.left + size * 1.6, name)
            page.fact("Yes" if on else "No", f'Is "{name}" on?', f"Is {name} switched on?")
            win.next()
        page.fact(str(len(switches)), "How many switches are there?", "How many options can be switched on or off?")
        page.absent = [f'Is "{name}" on?' for name in _SWITCHES if name not in switches][:4]
        for name in rng.sample(sorted(_CHOICES), rng.randint(0, 3)):
            win.put(win.left, name + ":")
            value = win.box(half, win.width - win.left, rng.choice(_CHOICES[name]))
            page.fact(value, f"What is the {name.lower()}?", f"Which {name.lower()} is set?", f"What is {name} set to?")
            win.next(2)
    elif layout == "dialog":
        text = phrases.sentence(rng, 25, 80)
        colour = rng.choice(((200, 50, 40), (230, 170, 20), (40, 120, 210)))
        win.draw.ellipse((win.left, win.y, win.left + size * 2.4, win.y + size * 2.4), fill=colour)
        for line in (lines := wrap(text, win.face(size), win.width - win.left * 2 - size * 3.2)):
            win.put(win.left + size * 3.2, line)
            win.next(1.3)
        page.fact(" ".join(lines), "What is the message?", "What does the dialog say?")
        win.next(0.8)
    elif layout == "login":
        fields = {
            "User name": proper(rng, phrases).lower(),
            "Server": f"{proper(rng, phrases).lower()}.example.org",
            "Password": "*" * rng.randint(5, 10),
            "Port": str(rng.randint(80, 9000)),
            "Domain": proper(rng, phrases).upper(),
        }
        for name in rng.sample(sorted(fields), rng.randint(2, 4)):
            win.put(win.left, name + ":")
            value = win.box(win.width * 0.4, win.width - win.left, fields[name])
            if name != "Password":
                page.fact(value, f"What is the {name.lower()}?", f"What is entered as {name.lower()}?")
            del fields[name]
            win.next(2.1)
        page.absent = [f"What is the {name.lower()}?" for name in fields if name != "Password"]
    elif layout == "files":
        columns = (win.left, win.width * 0.52, win.width - win.left)
        for x, name, anchor in zip(columns, ("Name", "Size", "Date"), "llr", strict=True):
            win.put(x, name, anchor, bold=True)
        win.next(1.6)
        names = list(
            dict.fromkeys(
                f"{phrases.word(rng).lower()[:12]}.{rng.choice('txt pdf png doc zip csv'.split())}"
                for _ in range(rng.randint(2, 8))
            )
        )
        chosen = rng.choice(names)
        for name in names:
            amount, date = f"{rng.randint(1, 999)} {rng.choice(('KB', 'MB', 'B'))}", date_text(rng)
            if name == chosen:
                win.draw.rectangle(
                    (win.left - 4, win.y - 1, win.width - win.left + 4, win.y + size * 1.4), fill=win.theme["main"]
                )
            ink = (255, 255, 255) if name == chosen else None
            win.put(columns[0], name, ink=ink)
            win.put(columns[1], amount, ink=ink)
            win.put(columns[2], date, "r", ink=ink)
            win.next(1.5)
            page.fact(amount, f"How large is {name}?", f"What is the size of {name}?")
            page.fact(date, f"What is the date of {name}?")
        page.fact(chosen, "Which file is selected?", "Which line is highlighted?")
        page.fact(str(len(names)), "How many files are there?", "How many files are listed?")
        other = f"{phrases.word(rng).lower()[:12]}.{rng.choice('txt pdf png doc zip csv'.split())}"
        page.absent = [f"How large is {other}?", f"What is the date of {other}?"] if other not in names else []
    elif layout == "chat":
        people = (proper(rng, phrases), proper(rng, phrases))
        said = []
        for number in range(rng.randint(2, 5)):
            text = phrases.sentence(rng, 10, 60)
            lines = wrap(text, win.face(size), win.width * 0.55)
            who = people[number % 2]
            x = win.left + size * 0.5 if number % 2 == 0 else win.width * 0.36
            win.put(x, who, bold=True, scale=0.85)
            win.next(1.4)
            wide = max(length(win.face(size), line) for line in lines) + size
            win.draw.rounded_rectangle(
                (x - size * 0.5, win.y - 3, x + wide, win.y + len(lines) * size * 1.3 + 4),
                7,
                fill=win.theme["box"],
                outline=win.theme["edge"],
            )
            for line in lines:
                win.put(x, line)
                win.next(1.3)
            win.next(0.7)
            said.append((who, " ".join(lines)))
        page.fact(said[0][0], "Who writes first?", "Who began the chat?")
        page.fact(said[-1][1], "What is the last message?", "What was written last?")
        page.fact(said[0][1], "What is the first message?")
        page.fact(str(len(said)), "How many messages are there?")
    else:  # editor
        text = " ".join(phrases.sentence(rng, 15, 70) for _ in range(rng.randint(1, 3)))
        menu = rng.sample(("File", "Edit", "View", "Insert", "Tools", "Help", "Format"), rng.randint(3, 5))
        x = win.left
        for name in menu:
            win.put(x, name)
            x += length(win.face(size), name) + size * 1.3
        page.fact(", ".join(menu), "Which menus are there?", "Read the menu bar.")
        page.fact(str(len(menu)), "How many menus are there?")
        win.next(1.8)
        lines = wrap(text, win.face(size), win.width - 2.6 * win.left)
        win.draw.rectangle(
            (win.left * 0.7, win.y - 2, win.width - win.left * 0.7, win.y + len(lines) * size * 1.4 + size),
            fill=win.theme["box"],
            outline=win.theme["edge"],
        )
        for line in lines:
            win.put(win.left, line)
            win.next(1.4)
        page.fact(" ".join(lines), "What is the text in the editor?", "What was typed?")
        win.next(1)
    if layout not in ("chat", "files") or rng.random() < 0.4:
        win.row_of_buttons(rng.sample(_BUTTONS, rng.randint(1, 3)))
    button = rng.choice(win.buttons or _BUTTONS) if rng.random() < 0.5 else rng.choice(_BUTTONS)
    page.fact(
        "Yes" if button in win.buttons else "No",
        f'Is there a button "{button}"?',
        f"Is there a button called {button}?",
    )
    page.cut(win.width, min(page.image.height, round(win.y + size * 0.8)))
    page.rows = [row for row in page.rows if row]
    page.caption = f'A window with the title "{title}".'
    if max(page.image.size) > max_side:
        page.shrink(max_side / max(page.image.size))
    return page
