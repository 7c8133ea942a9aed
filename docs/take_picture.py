"""Takes the pictures of the chat page in docs/, with mmvl-tiny: a conversation, what the model saw, a narrow screen.

Needs a Chromium on the system and the extra `dev`: .venv/bin/python docs/take_picture.py
"""

import shutil
from pathlib import Path

from playwright.sync_api import Page, expect, sync_playwright

from mmvl import VLM
from mmvl.app.chat import mount_page
from mmvl.app.chat.in_thread import in_thread
from mmvl.app.server import ServerSettings, create_app

FOLDER = Path(__file__).parent
EXAMPLE, FOLLOW_UP = 0, "What is the address?"
PATIENCE = 120_000  # milliseconds


def take_pictures(model=None, folder: Path = FOLDER) -> None:
    """chat-page.png, chat-seen.png and chat-narrow.png. model: a directory; None is mmvl-tiny.

    Raises ValueError if there is no Chromium.
    """
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        raise ValueError("no Chromium here: apt-get install chromium")
    app = create_app(VLM(model), ServerSettings())
    mount_page(app)
    with in_thread(app) as url, sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=chromium, args=flags)
        tab = browser.new_page(viewport={"width": 1200, "height": 760})
        tab.goto(url)
        tab.locator(f"#example-{EXAMPLE}").click(timeout=PATIENCE)
        expect(tab.locator("#live .note")).to_be_visible(timeout=PATIENCE)
        tab.locator("#box textarea").fill(FOLLOW_UP)
        tab.locator("#box textarea").press("Enter")
        expect(tab.locator(".turn")).to_have_count(2, timeout=PATIENCE)
        expect(tab.locator("#live .note")).to_be_visible(timeout=PATIENCE)
        _take(tab, folder / "chat-page.png")
        tab.locator("#live [data-do=seen]").click()
        expect(tab.locator("#seen .tile").first).to_be_in_viewport(timeout=PATIENCE)
        tab.locator("#side .toggle-button").click()
        _take(tab, folder / "chat-seen.png")
        tab.locator("#seen-side .toggle-button").click()
        tab.evaluate("window.mmvlTheme()")
        tab.set_viewport_size({"width": 375, "height": 760})
        _take(tab, folder / "chat-narrow.png")
        browser.close()


def _take(tab: Page, file: Path) -> None:
    tab.mouse.move(5, 300)
    tab.wait_for_timeout(1000)  # what slides has come to rest
    tab.screenshot(path=file)


if __name__ == "__main__":
    take_pictures()
