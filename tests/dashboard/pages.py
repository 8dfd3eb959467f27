"""Driving pages without a browser."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

import dashboard
from dashboard.contract import RECORD_VARIABLE

APP = Path(dashboard.__file__).with_name("app.py")


def ago(seconds: int) -> str:
    """Name a moment of the past."""
    return (datetime.now(UTC) - timedelta(seconds=seconds)).isoformat(timespec="seconds")


def open_page(view: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> AppTest:
    """Stand before a page on a record; nothing is drawn before `visit`."""
    monkeypatch.setenv(RECORD_VARIABLE, str(path))
    return AppTest.from_file(APP, default_timeout=60).switch_page(f"views/{view}.py")


def visit(page: AppTest, **query: str) -> AppTest:
    """Draw the page with this in its URL."""
    for key, value in query.items():
        page.query_params[key] = value
    page.run()
    assert not page.exception
    return page


def texts(page: AppTest) -> list[str]:
    """All plain text, in order."""
    return [text.value for text in page.text]


def fact(page: AppTest, label: str) -> str:
    """The value under a label."""
    captions = [element for element in page.main if element.type in ("caption", "text")]
    places = [place for place, element in enumerate(captions) if element.value == label]
    return str(captions[places[0] + 1].value)


def charts(page: AppTest) -> list[Any]:
    """All charts, in order."""
    return list(page.get("vega_lite_chart"))
