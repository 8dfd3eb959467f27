"""Overview: all runs, how they stand, and what differs between two. One run's figures are on the other pages."""

from datetime import UTC, datetime
from typing import Any

import streamlit as st

from dashboard import findings, page, queries, words
from dashboard.connection import Mirror
from dashboard.queries import Run
from dashboard.views import course
from dashboard.views.course import Course

_COLUMNS = {
    "run": st.column_config.TextColumn("Run", pinned=True),
    "status": st.column_config.TextColumn("Status"),
    "heard": st.column_config.TextColumn("Heartbeat", help="How long ago the job last said that it is alive."),
    "texts": st.column_config.TextColumn("Texts", help="Observed to their end, of those planned."),
    "tokens": st.column_config.NumberColumn("Tokens", format="localized"),
    "nll": st.column_config.NumberColumn("Mean NLL", format="%.3f", help="Nats per predicted token."),
    "hit_rate": st.column_config.NumberColumn("Hit rate", format="percent"),
    "hit_rates": st.column_config.LineChartColumn(
        "Hit rate over the run", y_min=0, y_max=1, help="From its first score window to its last, 0 to 1."
    ),
    "parity": st.column_config.TextColumn("Parity", help="Was the output equal to the stock model's?"),
    "recorded": st.column_config.TextColumn("Events recorded", help="The share that all statistics rest on."),
}


def render() -> None:
    """Draw the page. The run and the one that it is compared with are in the URL."""
    mirror = page.begin("Overview")
    with st.container(horizontal=True, vertical_alignment="bottom"):
        run = page.choose_run(mirror)
        other = page.choose_other_run(mirror, run, "Compare with", "What differs between the two, below.")

    def draw(run: Run) -> None:
        _runs(mirror)
        _course(mirror, run)

    page.follow(mirror, run.name, draw)
    if other is not None:
        _compare(mirror, run, other)


def _runs(mirror: Mirror) -> None:
    now = datetime.now(UTC)
    rates = queries.sparklines(mirror)
    runs = queries.runs(mirror)
    rows = [
        {
            "run": run.name,
            "status": words.status(run, now),
            "heard": words.age(now - run.heard_at()),
            "texts": words.progress(run),
            "tokens": run.tokens,
            "nll": run.nll,
            "hit_rate": run.hit_rate,
            "hit_rates": rates.get(run.run_id, []),
            "parity": run.parity,
            "recorded": words.share(run.recorded_frac),
        }
        for run in runs
    ]
    live = sum(run.is_live(now) for run in runs)
    st.dataframe(
        rows,
        hide_index=True,
        column_config=_COLUMNS,
        alt=f"{len(rows)} runs, {live} of them going on, newest first; the newest is {runs[0].name}.",
    )


def _course(mirror: Mirror, run: Run) -> None:
    courses = (
        Course("nll", "NLL", f"NLL of {run.name}, by score window", "Nats per predicted token", from_zero=False),
        Course(
            "hit_rate",
            "the hit rate",
            f"Hit rate of {run.name}, by score window",
            "Share of fetches that found the expert in memory",
            (0.0, 1.0),
        ),
    )
    course.draw(mirror, run, courses)


def _compare(mirror: Mirror, run: Run, other: Run) -> None:
    st.subheader("What differs", anchor=False)
    st.text(f"{run.name} against {other.name}")
    left, right = st.columns(2)
    with left:
        rows = words.settings_that_differ(run, other)
        if rows:
            _table(rows, {"what": "Setting", "this": run.name, "other": other.name}, "Settings that differ")
        else:
            st.caption("Their settings and versions are the same.")
    with right:
        _table(
            words.results(run, other), {"what": "Result", "this": run.name, "other": other.name}, "Results of both runs"
        )
    changes = queries.difference(mirror, run.run_id, other.run_id)
    finding = findings.difference(changes, other.name)
    st.text(finding)
    if changes:
        shown = [
            {key: row[key] for key in ("component", "layer", "expert", "this", "other", "change", "apart")}
            for row in changes
        ]
        st.dataframe(
            shown,
            hide_index=True,
            column_config={
                "component": st.column_config.TextColumn("Component"),
                "layer": st.column_config.NumberColumn("Layer"),
                "expert": st.column_config.NumberColumn("Expert"),
                "this": st.column_config.NumberColumn("Trust here", format="%.3f"),
                "other": st.column_config.NumberColumn("Trust there", format="%.3f"),
                "change": st.column_config.NumberColumn("Change", format="%+.3f"),
                "apart": st.column_config.CheckboxColumn("Intervals apart"),
            },
            alt=f"The experts whose trust differs most. {finding}",
        )


def _table(rows: list[dict[str, Any]], names: dict[str, str], alt: str) -> None:
    columns = {key: st.column_config.TextColumn(name) for key, name in names.items()}
    st.dataframe(rows, hide_index=True, column_config=columns, alt=f"{alt}: {len(rows)} rows")


if __name__ == "__main__":
    render()
