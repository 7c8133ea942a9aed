"""Takes docs/chat-page.png: the chat page with mmvl-tiny, after it has answered about its examples.

Needs a Chromium on the system and the extra `dev`: .venv/bin/python docs/take_picture.py
"""

import shutil
from pathlib import Path

from playwright.sync_api import expect, sync_playwright

from mmvl import VLM
from mmvl.app.chat import build_page, launch

TARGET = Path(__file__).with_name("chat-page.png")
EXAMPLES = (0, 1)


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
        tab = browser.new_page(viewport={"width": 1200, "height": 860})
        tab.goto(page.local_url)
        for number in EXAMPLES:
            tab.locator(f"#example-{number}").click(timeout=30_000)
            expect(tab.locator("#stop")).to_be_enabled(timeout=30_000)
            expect(tab.locator("#stop")).to_be_disabled(timeout=120_000)
        tab.mouse.move(5, 5)
        tab.wait_for_timeout(1000)
        tab.screenshot(path=target)
        browser.close()
    page.close()


if __name__ == "__main__":
    take_picture()
