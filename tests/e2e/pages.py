"""Finding things on a page as a person would."""

import os
from urllib.parse import parse_qsl, urlsplit

from playwright.sync_api import Locator, Page, expect


def cell(page: Page, layer: int, expert: int) -> Locator:
    return page.locator(f"path[aria-label^='Expert: {expert}; Layer: {layer};']")


def query(page: Page) -> dict[str, str]:
    return dict(parse_qsl(urlsplit(page.url).query))


def wait_for_query(page: Page, **expected: str) -> None:
    page.wait_for_url(lambda url: dict(parse_qsl(urlsplit(url).query)) == expected)


def fact(page: Page, label: str) -> Locator:
    """The value under a label."""
    blocks = page.get_by_test_id("stVerticalBlock").filter(has=page.get_by_text(label, exact=True))
    return blocks.last.get_by_test_id("stText")  # the last is the innermost


def chart(page: Page, title: str) -> Locator:
    """A drawn chart, by how its title begins."""
    return page.locator(f"[data-testid=stVegaLiteChart][aria-label^='{title}']")


def picture(page: Page, name: str) -> None:
    """Keep a screenshot in the folder that SEGMOE_SCREENSHOTS names, if it names one."""
    if folder := os.environ.get("SEGMOE_SCREENSHOTS"):
        page.mouse.move(0, 0)
        expect(page.get_by_test_id("stStatusWidget")).to_have_count(0)
        page.wait_for_timeout(1500)  # a canvas does not tell when it is drawn
        page.screenshot(path=f"{folder}/{name}.png")
