"""What a page shows when it has no figures to show, and what to do then. Figures are drawn by views/."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from dashboard.connection import Mirror
from dashboard.console import Console
from dashboard.contract import EXPERT_WINDOWS, RECORD_VARIABLE, VIEWS
from dashboard.record import Progress, RecordMissingError, RecordNewerError, RecordUnreadableError

_MANY = 500_000  # rows of a view; reading fewer takes no time to speak of


@st.cache_resource(max_entries=4, show_spinner=False)
def _mirror(path: Path) -> Mirror:
    return Mirror(path, VIEWS.keys() - {EXPERT_WINDOWS})


def open_record() -> Mirror:
    """Return the mirror of the record that the dashboard was started on, or stop the page and say what is missing."""
    path = os.environ.get(RECORD_VARIABLE, "")
    if not path:
        _stop("No record was named.", "Start the dashboard with:", "python -m dashboard --db FILE")
    return _mirror(Path(path))


@st.cache_resource(max_entries=4, show_spinner=False, on_release=Console.close)
def _console(path: Path) -> Console:
    return Console(path)


def open_console(mirror: Mirror) -> Console:
    """Return the console of the mirror's record; there is one for all users."""
    return _console(mirror.path)


def sync(mirror: Mirror) -> None:
    """Bring the mirror up to date."""
    with reading() as progress:
        mirror.sync(progress)


@contextmanager
def reading() -> Iterator[Progress]:
    """Stop the page if the record cannot be read; say how far reading is, where there is much of it."""
    place = st.empty()  # always there, so that what is below it stays in place
    with record_required():
        yield lambda view, rows: _say_progress(place, view, rows)
        place.empty()


def _say_progress(place: DeltaGenerator, view: str, rows: int) -> None:
    if rows >= _MANY:
        place.info(f"Reading the record: {rows:,} rows of {view} so far.", icon=":material/hourglass_top:")


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
    except RecordNewerError as newer:
        _stop(
            "This record was written by a later version.",
            "Bring this dashboard up to date: install the version of segmoe that wrote the record.",
            f"{newer.path}\n{newer.why}",
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


def no_windows(live: bool) -> None:
    """Say that the run has no score window, and whether waiting helps."""
    if live:
        st.info(
            "This run has not finished a score window yet; the page refreshes by itself.",
            icon=":material/hourglass_empty:",
        )
    else:
        nothing("This run ended before its first score window.", "Choose another run, or observe more texts.")


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


def nothing(what: str, then: str) -> None:
    """Say what the record does not hold of a run, and what would put it there."""
    st.info(f"{what} {then}", icon=":material/info:")


def _stop(what: str, then: str, detail: str) -> NoReturn:
    st.warning(f"**{what}** {then}", icon=":material/database_off:")
    st.code(detail, language=None)
    st.stop()
