"""One server on one record, and a browser, for the tests of this folder."""

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

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
PATIENCE_MS = 60_000
expect.set_options(timeout=PATIENCE_MS)  # its own default is 5 s, as long as a page waits between two looks
LATER = "strftime('%Y-%m-%dT%H:%M:%S+00:00', 'now', '+1 hour')"  # a run goes on, however slow this machine is

Sql = Callable[[str], list[dict[str, Any]]]


def run_record(*arguments: str) -> str:
    return subprocess.run([sys.executable, RECORD, *arguments], check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="session")
def made_record(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("e2e") / "made.db"
    run_record("make", str(path))
    return path


@pytest.fixture(scope="module")
def record(made_record: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("e2e") / "record.db"
    path.write_bytes(made_record.read_bytes())
    run_record("sql", str(path), f"update run set heartbeat_at = {LATER} where run_id = 2")
    return path


@pytest.fixture(scope="module")
def sql(record: Path) -> Sql:
    return lambda statement: json.loads(run_record("sql", str(record), statement))


@pytest.fixture(scope="module")
def address(record: Path) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "dashboard", "--db", str(record), "--port", str(port), "--headless"]
    log = record.with_name("server.log")
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output) as server:
        try:
            wait_for(f"http://localhost:{port}/_stcore/health", server, log)
            yield f"http://localhost:{port}"
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


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if not CHROMIUM.exists():
        pytest.fail(f"{CHROMIUM} is missing; install it with: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@contextmanager
def a_user(browser: Browser, **context: Any) -> Iterator[Page]:
    """A page of someone's own, that asks no other machine for anything and raises no error in the browser."""
    page = browser.new_page(viewport={"width": 1280, "height": 900}, **context)
    page.set_default_timeout(PATIENCE_MS)
    away: list[str] = []
    errors: list[str] = []
    page.on("request", lambda request: leaves(request.url) and away.append(request.url))
    page.on("pageerror", lambda error: "ResizeObserver loop" in str(error) or errors.append(str(error)))  # mere haste
    page.on("dialog", lambda dialog: errors.append(dialog.message) or dialog.dismiss())
    yield page
    page.close()
    assert away == [], "the page asks other machines for something"
    assert errors == []


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    with a_user(browser) as page:
        yield page


def leaves(url: str) -> bool:
    return not url.startswith(("http://localhost:", "ws://localhost:", "data:", "blob:"))
