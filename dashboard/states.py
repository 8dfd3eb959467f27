"""What a page shows when it has no figures to show, and what to do then. Figures are drawn by views/."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import streamlit as st

from dashboard.connection import Mirror, RecordMissingError, RecordUnreadableError
from dashboard.contract import RECORD_VARIABLE


@st.cache_resource(max_entries=4, show_spinner=False)
def _mirror(path: Path) -> Mirror:
    return Mirror(path)


def open_record() -> Mirror:
    """Return the mirror of the record that the dashboard was started on, or stop the page and say what is missing."""
    path = os.environ.get(RECORD_VARIABLE, "")
    if not path:
        _stop("No record was named.", "Start the dashboard with:", "python -m dashboard --db FILE")
    return _mirror(Path(path))


@contextmanager
def record_required() -> Iterator[None]:
    """Stop the page with an explanation if the record cannot be read."""
    try:
        yield
    except RecordMissingError as missing:
        _stop(
            "There is no record at this path yet.",
            "Write one with `observer run`, or start the dashboard on another file. Then reload this page.",
            str(missing.path),
        )
    except RecordUnreadableError as unreadable:
        _stop(
            "This file is not a record that the dashboard can read.",
            "A record is a database written by `observer`, of the same version as this dashboard. "
            "Start the dashboard on such a file, or bring an older one up to date with `observer db upgrade`.",
            f"{unreadable.path}\n{unreadable.why}",
        )


def no_runs(path: Path) -> NoReturn:
    """Say that the record holds no run."""
    _stop(
        "The record holds no runs yet.",
        "Start one with `observer run` on this record. Then reload this page.",
        str(path),
    )


def no_trust(live: bool) -> None:
    """Say that the run holds no trust rows, and whether waiting helps."""
    if live:
        st.info(
            "This run has not scored its experts yet. Trust needs its first block of tokens; "
            "the page refreshes by itself.",
            icon=":material/hourglass_empty:",
        )
    else:
        st.info(
            "This run ended without scoring its experts. Choose another run, or record it again with "
            "`observer run` at capture level `contribution`, which trust needs.",
            icon=":material/info:",
        )


def _stop(what: str, then: str, detail: str) -> NoReturn:
    st.warning(f"**{what}** {then}", icon=":material/database_off:")
    st.code(detail, language=None)
    st.stop()
