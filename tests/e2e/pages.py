"""Finding things on a page as a person would."""

import os
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from playwright.sync_api import Locator, Page, expect

from tests.dashboard.contrast import contrast


def cell(where: Page | Locator, layer: int, expert: int) -> Locator:
    """An expert of the map, on a page with one component or in one component's chart."""
    return where.locator(f"path[aria-label^='Expert: {expert}; Layer: {layer};']").first  # behind it, its mark


def query(url: str) -> dict[str, str]:
    return dict(parse_qsl(urlsplit(url).query))


def wait_for_query(page: Page, **expected: str) -> None:
    page.wait_for_url(lambda url: query(url) == expected)


def fact(page: Page, label: str) -> Locator:
    """The value under a label."""
    blocks = page.get_by_test_id("stVerticalBlock").filter(has=page.get_by_text(label, exact=True))
    return blocks.last.get_by_test_id("stText")  # the last is the innermost


def chart(page: Page, title: str) -> Locator:
    """A drawn chart, by how its title begins."""
    return page.locator(f"[data-testid=stVegaLiteChart][aria-label^='{title}']")


def idle(page: Page) -> None:
    """Wait until the page's script is done and its charts are drawn; before, what is clicked may be about to go."""
    expect(page.get_by_test_id("stApp")).to_have_attribute("data-test-script-state", "notRunning")
    expect(page.locator("[data-testid=stVegaLiteChart]:not(:has(svg))")).to_have_count(0)


def choose(page: Page, label: str, option: str) -> None:
    """Choose from a list."""
    idle(page)
    page.get_by_role("combobox", name=label).click()
    page.get_by_role("option", name=option, exact=True).click()


TEXTS = """() => {
  const parts = (colour) => [...colour.match(/[\\d.]+/g).map(Number), 1].slice(0, 4);  // red, green, blue, how opaque
  const over = (colour, below) => {
    const [above, under] = [parts(colour), parts(below)];
    return `rgb(${[0, 1, 2].map((i) => above[3] * above[i] + (1 - above[3]) * under[i]).join(', ')})`;
  };
  const behind = (element) => {
    const colour = getComputedStyle(element).backgroundColor;
    if (parts(colour)[3] === 1) return colour;
    return over(colour, element.parentElement ? behind(element.parentElement) : 'rgb(255, 255, 255)');
  };
  const found = [];
  for (const chart of document.querySelectorAll('[data-testid=stVegaLiteChart] svg')) {
    const frame = chart.getBoundingClientRect();
    for (const node of chart.querySelectorAll('.role-axis text, .role-legend text, .role-title text')) {
      const style = getComputedStyle(node), box = node.getBoundingClientRect();
      if (!node.textContent.trim() || style.opacity === '0' || style.display === 'none') continue;
      const isOut = box.left < frame.left - 1 || box.right > frame.right + 1
        || box.top < frame.top - 1 || box.bottom > frame.bottom + 1;
      const isCut = isOut || node.textContent.endsWith('…');
      const where = chart.closest('[aria-label]')?.ariaLabel.slice(0, 40);
      found.push({text: node.textContent, where, colour: style.fill, behind: behind(chart), isCut});
    }
  }
  const names = ['stText', 'stCaptionContainer', 'stHeading', 'stAlert', 'stWidgetLabel', 'stPageLink'];
  const controls = ['button:enabled', '[role=radio]', 'nav a', 'input[role=combobox]'];
  for (const where of [...names.map((name) => `[data-testid=${name}]`), ...controls]) {
    for (const node of document.querySelectorAll(where)) {
      const inner = node.querySelector('p, h1, h2, h3, div') || node, style = getComputedStyle(inner);
      const text = inner.textContent.trim() || inner.value;
      if (!text || !node.checkVisibility()) continue;
      const below = behind(inner);
      found.push({text, where, colour: over(style.color, below), behind: below, isCut: false});
    }
  }
  return found;
}"""
"""Texts of charts, and beside them, with their colour, the colour behind them, and whether one is cut off."""


def unreadable(page: Page, patience_ms: int) -> list[dict[str, Any]]:
    """Texts that are hard to read or cut off, once the page stays as it is; one that has some may not be done yet."""
    idle(page)
    page.mouse.move(0, 0)
    found: list[dict[str, Any]] = []
    bad = found
    for _ in range(patience_ms // 500):
        page.wait_for_timeout(500)
        before, found = found, page.evaluate(TEXTS)
        bad = [text for text in found if text["isCut"] or contrast(text["colour"], text["behind"]) < 4.5]
        if found == before and not bad:
            break
    assert len(found) > 10
    return bad


def picture(page: Page, name: str) -> None:
    """Keep a screenshot in the folder that SEGMOE_SCREENSHOTS names, if it names one."""
    if folder := os.environ.get("SEGMOE_SCREENSHOTS"):
        idle(page)
        page.mouse.move(0, 0)
        page.wait_for_timeout(1500)  # neither a canvas nor a fade tells when it is done
        page.screenshot(path=f"{folder}/{name}.png")
