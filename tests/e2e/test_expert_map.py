"""The expert map in a browser: a click shows the figures that the record holds for that cell."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from playwright.sync_api import Locator, Page, expect, sync_playwright

CHROMIUM = Path("/usr/bin/chromium")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
RECORD = Path(__file__).parents[1] / "dashboard" / "record.py"
PATIENCE_MS = 30_000
expect.set_options(timeout=PATIENCE_MS)  # its own default is 5 s, as long as a page waits between two looks

pytestmark = pytest.mark.e2e


def run_record(*arguments: str) -> str:
    return subprocess.run([sys.executable, RECORD, *arguments], check=True, capture_output=True, text=True).stdout


@pytest.fixture
def record(tmp_path: Path) -> Path:
    path = tmp_path / "record.db"
    run_record("make", str(path))
    return path


def sql(record: Path, statement: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(run_record("sql", str(record), statement))
    return rows


@pytest.fixture
def address(record: Path, tmp_path: Path) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "dashboard", "--db", str(record), "--port", str(port), "--headless"]
    log = tmp_path / "server.log"
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output) as server:
        try:
            wait_for(f"http://localhost:{port}/_stcore/health", server, log)
            yield f"http://localhost:{port}/"
        finally:
            server.terminate()


def wait_for(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + PATIENCE_MS / 1000
    while time.monotonic() < deadline and server.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.2)
    pytest.fail(f"The dashboard did not start at {url}:\n{log.read_text()}")


@pytest.fixture
def page() -> Iterator[Page]:
    if not CHROMIUM.exists():
        pytest.fail(f"{CHROMIUM} is missing; install it with: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(PATIENCE_MS)
        away: list[str] = []
        page.on("request", lambda request: leaves(request.url) and away.append(request.url))
        yield page
        browser.close()
    assert away == [], "the page asks other machines for something"


def leaves(url: str) -> bool:
    return not url.startswith(("http://localhost:", "ws://localhost:", "data:", "blob:"))


def cell(page: Page, layer: int, expert: int) -> Locator:
    return page.locator(f"path[aria-label^='Expert: {expert}; Layer: {layer};']")


def wait_for_query(page: Page, **query: str) -> None:
    page.wait_for_url(lambda url: dict(parse_qsl(urlsplit(url).query)) == query)


def fact(page: Page, label: str) -> Locator:
    """The value under a label."""
    blocks = page.get_by_test_id("stVerticalBlock").filter(has=page.get_by_text(label, exact=True))
    return blocks.last.get_by_test_id("stText")  # the last is the innermost


def test_a_click_shows_the_expert_that_was_clicked(record: Path, address: str, page: Page):
    page.goto(f"{address}?run=small&context=code")
    cell(page, 2, 12).click()
    wait_for_query(page, run="small", context="code", layer="2", expert="12")

    key = "run_id = 1 and component = 'model' and layer = 2 and expert = 12"
    (row,) = sql(record, f"select * from v_expert_trust where {key} and context = 'code'")
    expected = {
        "Trust": f"{row['trust']:.3f}",
        "90% interval": f"{row['trust_low']:.3f} to {row['trust_high']:.3f}",
        "Uses": f"{row['uses']:,d}",
        "Load": f"{row['load']:.2%}",
        "REAP": f"{row['reap']:.4f}",
        "Impact": f"{row['impact_mean']:.5f}",
    }
    for label, value in expected.items():
        expect(fact(page, label)).to_have_text(value)
    if path := os.environ.get("SEGMOE_SCREENSHOT"):
        page.mouse.move(0, 0)
        expect(page.get_by_test_id("stDataFrame").locator("canvas").first).to_be_visible()
        page.wait_for_timeout(1500)  # a canvas does not tell when it is drawn
        page.screenshot(path=path)


def test_a_click_after_another_choice_is_still_a_choice(address: str, page: Page):
    page.goto(f"{address}?run=omni")
    cell(page, 1, 3).first.click()
    wait_for_query(page, run="omni", layer="1", expert="3")
    page.get_by_role("combobox", name="Expert").click()
    page.get_by_role("option", name="5", exact=True).click()
    wait_for_query(page, run="omni", layer="1", expert="5")
    cell(page, 1, 3).first.click()
    wait_for_query(page, run="omni", layer="1", expert="3")


def test_a_run_that_goes_on_refreshes_by_itself(record: Path, address: str, page: Page):
    page.goto(f"{address}?run=omni&component=talker&layer=0&expert=0")
    expect(fact(page, "Tokens")).to_have_text("4,096")
    now = "strftime('%Y-%m-%dT%H:%M:%S+00:00', 'now')"
    sql(record, "update expert_trust set trust = 0.98765 where run_id = 2")
    sql(record, f"update run set tokens = 8192, heartbeat_at = {now} where run_id = 2")
    expect(fact(page, "Tokens")).to_have_text("8,192")
    expect(fact(page, "Trust")).to_have_text("0.988")
    sql(record, f"update run set status = 'done', finished_at = {now} where run_id = 2")
    expect(fact(page, "Status")).to_have_text("done")
