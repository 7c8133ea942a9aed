"""Takes docs/chat-page.png: the chat page with mmvl-tiny, after an example and a question about the same note.

Needs a Chromium on the system and the extra `dev`: .venv/bin/python docs/take_picture.py
"""

import shutil
from pathlib import Path

from playwright.sync_api import expect, sync_playwright

from mmvl import VLM
from mmvl.app.chat import build_page, launch

TARGET = Path(__file__).with_name("chat-page.png")
EXAMPLE, FOLLOW_UP = 4, "Who wrote the note?"


def take_picture(model=None, target: Path = TARGET) -> None:
    """model: a directory; None is mmvl-tiny. Raises ValueError if there is no Chromium."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        raise ValueError("no Chromium here: apt-get install chromium")
    page = build_page(VLM(model))
    launch(page, server_name="127.0.0.1", inbrowser=False, quiet=True)
    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=chromium, args=flags)
        tab = browser.new_page(viewport={"width": 1200, "height": 1150})
        tab.goto(page.local_url)
        tab.locator(f"#example-{EXAMPLE}").click(timeout=30_000)
        expect(tab.locator("#window .bot")).to_contain_text("tokens/s", timeout=120_000)
        tab.locator("#box textarea").fill(FOLLOW_UP)
        tab.locator("#box textarea").press("Enter")
        expect(tab.locator("#window .bot")).to_have_count(2, timeout=30_000)
        expect(tab.locator("#stop")).to_be_disabled(timeout=120_000)
        tab.mouse.move(5, 5)
        tab.wait_for_timeout(1000)
        tab.screenshot(path=target)
        browser.close()
    page.close()


if __name__ == "__main__":
    take_picture()
