"""Finding things on a page as a person would."""

import os
from urllib.parse import parse_qsl, urlsplit

from playwright.sync_api import Locator, Page, expect


def cell(where: Page | Locator, layer: int, expert: int) -> Locator:
    """An expert of the map, on a page with one component or in one component's chart."""
    return where.locator(f"path[aria-label^='Expert: {expert}; Layer: {layer};']").first  # behind it, its mark


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


def settled(page: Page, still_ms: int = 1500) -> None:
    """Wait until nothing runs and nothing moves."""
    page.mouse.move(0, 0)
    expect(page.get_by_test_id("stStatusWidget")).to_have_count(0)
    page.wait_for_timeout(still_ms)  # neither a canvas nor a fade tells when it is done


TEXTS = """() => {
  const clear = (colour) => colour === 'transparent' || /, 0\\)$/.test(colour);
  const behind = (element) => {
    for (let node = element; node; node = node.parentElement) {
      const colour = getComputedStyle(node).backgroundColor;
      if (!clear(colour) && !/rgba/.test(colour)) return colour;
    }
    return getComputedStyle(document.querySelector('[data-testid=stApp]')).backgroundColor;
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
  for (const name of ['stText', 'stCaptionContainer', 'stHeading', 'stAlert', 'stWidgetLabel']) {
    for (const node of document.querySelectorAll(`[data-testid=${name}]`)) {
      const inner = node.querySelector('p, h1, h2, h3, div') || node, style = getComputedStyle(inner);
      if (!inner.textContent.trim() || /rgba/.test(style.color)) continue;
      found.push({text: inner.textContent, colour: style.color, behind: behind(inner), isCut: false});
    }
  }
  return found;
}"""
"""Texts of charts, and beside them, with their colour, the colour behind them, and whether one is cut off."""


def picture(page: Page, name: str) -> None:
    """Keep a screenshot in the folder that SEGMOE_SCREENSHOTS names, if it names one."""
    if folder := os.environ.get("SEGMOE_SCREENSHOTS"):
        settled(page)
        page.screenshot(path=f"{folder}/{name}.png")
