"""Data quality: what was not recorded, and how the job kept up."""

from datetime import UTC, datetime

import streamlit as st

from dashboard import charts, facts, figure, findings, page, queries, states, words
from dashboard.connection import Mirror
from dashboard.queries import Run

_GAPS = {
    "reason": st.column_config.TextColumn("Reason", pinned=True),
    "first_step": st.column_config.NumberColumn("From pass", format="localized"),
    "last_step": st.column_config.NumberColumn("To pass", format="localized"),
    "count": st.column_config.NumberColumn("Events", format="localized"),
}


def render() -> None:
    """Draw the page. The run is in the URL."""
    mirror = page.begin("Data quality")
    run = page.choose_run(mirror)
    page.follow(mirror, run.name, lambda run: _figures(mirror, run))


def _figures(mirror: Mirror, run: Run) -> None:
    now = datetime.now(UTC)
    facts.line(words.quality(run, now))
    st.subheader("What was not recorded", anchor=False)
    gaps = queries.gaps(mirror, run.run_id)
    if gaps:
        total = sum(row["count"] for row in gaps)
        st.dataframe(
            gaps, hide_index=True, column_config=_GAPS, alt=f"{len(gaps)} gaps of {total:,} events, the largest first"
        )
    else:
        st.success("No gap is recorded: the statistics rest on every event.", icon=":material/check_circle:")
    st.subheader("How the job kept up", anchor=False)
    _pace(mirror, run, now)
    st.subheader("Raw trace", anchor=False)
    trace = queries.trace(mirror, run.run_id)
    if trace:
        facts.line(words.trace(trace[0]))
    else:
        st.caption("No raw routing was kept; `observer run --trace` keeps it.")


def _pace(mirror: Mirror, run: Run, now: datetime) -> None:
    pace = queries.pace(mirror, run.run_id)
    if not pace.num_rows:
        states.no_windows(run.is_live(now))
        return
    rows = pace.to_pylist()
    finding = findings.course(rows, "tokens_per_s", "the pace", ",.0f")
    title = "Pace by score window, time in forward passes"
    figure.draw(
        charts.line(
            pace,
            x=charts.Axis("token", "Tokens observed", (0, max(row["token"] for row in rows))),
            y=charts.Axis("tokens_per_s", "Tokens per second", form=",.0f"),
            by="phase",
            title=title,
            finding=finding,
        ),
        key="pace",
        title=title,
        finding=finding,
    )


if __name__ == "__main__":
    render()
